//! Recent exposures: `folding/recent_exposures.py`.

use std::collections::BTreeMap;

use crate::hashing::{Map, Set};
use crate::sets::{entries_of, push_entry, ENTRY};

const PER_WINDOW: i64 = 3;
const NO_END: i64 = (1 << 62) - 1;

#[derive(Default)]
pub struct ExposureSlice {
    log: Vec<u8>, // entries
    saved: usize, // bytes of them
    // Flag -> the sets that `record` logged exposures to, each with the contexts whose last one it
    // was. A context is in one of a flag's at most.
    logged: Map<u32, Vec<(u32, Set<u64>)>>,
    // Digest -> set numbers, oldest first, as far as the log is indexed.
    exposed: Map<u64, Vec<u32>>,
    indexed: usize, // entries
}

impl ExposureSlice {
    /// Log an exposure to a flag unless it is known to be its context's last one.
    #[inline]
    pub fn record(&mut self, flag: u32, number: u32, digest: u64) {
        let logged = self.logged.entry(flag).or_default();
        let place = match logged.iter().position(|(of, _)| *of == number) {
            Some(place) => place,
            None => {
                logged.push((number, Set::default()));
                logged.len() - 1
            }
        };
        if !logged[place].1.insert(digest) {
            return;
        }
        if logged.len() > 1 {
            for (other, (_, contexts)) in logged.iter_mut().enumerate() {
                if other != place {
                    contexts.remove(&digest);
                }
            }
        }
        push_entry(&mut self.log, number, digest);
    }

    /// Log the very first exposure of a context to a flag: there is nothing to look up.
    #[inline]
    pub fn record_first(&mut self, number: u32, digest: u64) {
        push_entry(&mut self.log, number, digest);
    }

    fn entries(&self) -> usize {
        self.log.len() / ENTRY
    }

    fn added(&self) -> usize {
        (self.log.len() - self.saved) / ENTRY
    }

    fn drain(&mut self) -> Vec<u8> {
        let added = self.log[self.saved..].to_vec();
        self.saved = self.log.len();
        added
    }

    fn index(&mut self, at_least: usize) -> usize {
        let begin = self.indexed;
        let end = self.entries().min(begin.saturating_add(at_least));
        for (number, digest) in entries_of(&self.log[begin * ENTRY..end * ENTRY]) {
            let before = self.exposed.entry(digest).or_default();
            if before.last() != Some(&number) {
                before.retain(|&other| other != number);
                before.push(number);
            }
        }
        self.indexed = end;
        end - begin
    }
}

pub struct RecentExposures {
    pub slice_ms: i64,
    // Slices in the order in which they were opened: it decides what is indexed first.
    slices: Vec<(i64, ExposureSlice)>,
    newest: i64,
    present: i64,
    latest: i64,
    forgotten: Vec<i64>,
}

impl RecentExposures {
    pub fn new(window_ms: i64) -> Self {
        Self {
            slice_ms: (window_ms / PER_WINDOW).max(1),
            slices: Vec::new(),
            newest: -1,
            present: NO_END,
            latest: NO_END,
            forgotten: Vec::new(),
        }
    }

    pub fn set_time(&mut self, now_ms: i64, latest_ms: i64) {
        self.present = now_ms.div_euclid(self.slice_ms);
        self.latest = latest_ms.div_euclid(self.slice_ms);
    }

    /// The slice of a time, a new one if needed; None when it is too old or too far ahead.
    #[inline]
    pub fn slice_of(&mut self, time_ms: i64) -> Option<&mut ExposureSlice> {
        let number = time_ms.div_euclid(self.slice_ms);
        if let Some(place) = self.slices.iter().rposition(|(one, _)| *one == number) {
            return Some(&mut self.slices[place].1);
        }
        if number < self.newest - PER_WINDOW - 1 || number > self.latest {
            return None;
        }
        self.slices.push((number, ExposureSlice::default()));
        self.expire(number.min(self.present).max(self.newest));
        self.slices.iter_mut().find(|(one, _)| *one == number).map(|(_, slice)| slice)
    }

    pub fn catch_up(&mut self, at_least: usize) -> bool {
        let mut left = at_least;
        for (_, slice) in &mut self.slices {
            let indexed = slice.index(left);
            if indexed >= left {
                return false;
            }
            left -= indexed;
        }
        true
    }

    /// The set numbers of a context's indexed exposures up to `time_ms`, newest first.
    pub fn last(&self, digest: u64, time_ms: i64) -> Vec<u32> {
        let newest = time_ms.div_euclid(self.slice_ms);
        let mut exposed = Vec::new();
        for number in (newest - PER_WINDOW..=newest).rev() {
            let slice = self.slices.iter().find(|(one, _)| *one == number);
            if let Some(numbers) = slice.and_then(|(_, slice)| slice.exposed.get(&digest)) {
                exposed.extend(numbers.iter().rev());
            }
        }
        exposed
    }

    pub fn added(&self) -> Vec<usize> {
        self.slices.iter().map(|(_, slice)| slice.added()).filter(|&added| added > 0).collect()
    }

    pub fn drain(&mut self) -> (Vec<(i64, Vec<u8>)>, Vec<i64>) {
        let added = self
            .slices
            .iter_mut()
            .filter(|(_, slice)| slice.added() > 0)
            .map(|(number, slice)| (*number, slice.drain()))
            .collect();
        (added, std::mem::take(&mut self.forgotten))
    }

    pub fn restore(&mut self, slices: BTreeMap<i64, Vec<u8>>) {
        for (number, log) in slices {
            if number > self.latest {
                self.forgotten.push(number); // stored by a release that believed every time
                continue;
            }
            let saved = log.len();
            self.slices.push((number, ExposureSlice { log, saved, ..Default::default() }));
        }
        if let Some(newest) = self.slices.iter().map(|(number, _)| *number).max() {
            self.expire(newest.min(self.present));
        }
    }

    pub fn entries(&self) -> usize {
        self.slices.iter().map(|(_, slice)| slice.entries()).sum()
    }

    pub fn clear(&mut self) {
        self.forgotten.extend(self.slices.drain(..).map(|(number, _)| number));
    }

    pub fn forget_oldest(&mut self) -> bool {
        if self.slices.len() < 2 {
            return false;
        }
        let oldest = self.slices.iter().map(|(number, _)| *number).min().expect("two slices");
        self.forget(|number| number == oldest);
        true
    }

    pub fn expire_at(&mut self, time_ms: i64) {
        self.expire(self.newest.max(time_ms.div_euclid(self.slice_ms).min(self.present)));
    }

    fn expire(&mut self, newest: i64) {
        self.newest = newest;
        self.forget(|number| number < newest - PER_WINDOW - 1);
    }

    fn forget(&mut self, is_over: impl Fn(i64) -> bool) {
        let forgotten = &mut self.forgotten;
        self.slices.retain(|(number, _)| {
            if is_over(*number) {
                forgotten.push(*number);
            }
            !is_over(*number)
        });
    }
}
