//! Counters of arms, and which of them an event falls into: `folding/arm_counters.py` and
//! `folding/flag_partition.py`.

use std::sync::Arc;

use crate::activity::Activity;
use crate::hashing::Map;

/// Numbers by log bucket, in the order in which the buckets were first met, as in Python's dict.
#[derive(Default, Clone)]
pub struct Histogram {
    pub counts: Vec<(i32, i64)>,
    places: Map<i32, u32>, // of more than a few buckets
}

const FEW: usize = 12;

impl Histogram {
    #[inline]
    pub fn add(&mut self, bucket: i32, count: i64) {
        match self.place(bucket) {
            Some(place) => self.counts[place].1 += count,
            None => {
                self.counts.push((bucket, count));
                if self.counts.len() > FEW {
                    if self.places.is_empty() {
                        for (place, (of, _)) in self.counts.iter().enumerate() {
                            self.places.insert(*of, place as u32);
                        }
                    } else {
                        self.places.insert(bucket, self.counts.len() as u32 - 1);
                    }
                }
            }
        }
    }

    pub fn get(&self, bucket: i32) -> i64 {
        self.place(bucket).map_or(0, |place| self.counts[place].1)
    }

    #[inline]
    fn place(&self, bucket: i32) -> Option<usize> {
        if self.places.is_empty() {
            self.counts.iter().position(|(of, _)| *of == bucket)
        } else {
            self.places.get(&bucket).map(|place| *place as usize)
        }
    }
}

/// The totals of an arm: `schemas.counters.Counters`.
#[derive(Default, Clone)]
pub struct Counts {
    pub evaluations: i64,
    pub exposures: i64,
    pub switched: i64,
    pub outcomes: i64,
    pub errors: i64,
    pub at_risk: i64,
    pub first_errors: i64,
    pub converted: Vec<(Box<str>, i64)>,
    pub latency: Histogram,
    pub latency_again: Histogram, // what all latencies have more
    pub checked: i64,
    pub repeated: i64,
}

impl Counts {
    pub fn latency_all(&self) -> Vec<(i32, i64)> {
        let mut all = self.latency.counts.clone();
        for &(bucket, count) in &self.latency_again.counts {
            match self.latency.place(bucket) {
                Some(place) => all[place].1 += count,
                None => all.push((bucket, count)),
            }
        }
        all
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Treatment,
    Control,
    Neither,
}

/// What is counted of a context's action, its outcomes in one batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Untimed, // its end, and no latency so far
    Timed,
    LeftOut, // neither: the context is far more active than others
}

pub type BatchContexts = Map<u64, Action>;

pub struct Arm {
    pub flag_key: Arc<str>,
    pub rollout_id: Arc<str>,
    pub kind: Kind,
    pub field: Box<str>,     // empty outside every visit
    pub bundle: Option<u32>, // that it is stored in; None: it has a field of its own
    pub is_changed: bool,
    pub is_counting: bool,
    pub counts: Counts,
    pub passed_on: i64, // of the evaluations those that `take_evaluations` returned
    pub exposed: Option<usize>, // slots of sets
    pub opposite: Option<usize>,
    pub failed: Option<usize>,
    pub converted: Vec<(Box<str>, usize)>,
    pub batch: BatchContexts,
    pub activity: Activity,
}

impl Arm {
    /// Begin the next batch: the totals are being written.
    pub fn begin_batch(&mut self) {
        self.is_changed = false;
        self.end_batch();
    }

    /// The evaluations since the last call.
    pub fn take_evaluations(&mut self) -> i64 {
        let before = std::mem::replace(&mut self.passed_on, self.counts.evaluations);
        self.counts.evaluations - before
    }

    /// Forget the contexts of a batch, and the memory that an unusually large one took.
    pub fn end_batch(&mut self) {
        if self.batch.capacity() > 4_096 {
            self.batch = BatchContexts::default();
        } else {
            self.batch.clear();
        }
    }
}

/// What counting needs of a rollout: `CountedFlag`.
pub struct CountedFlag {
    pub rollout_id: Arc<str>,
    pub treatment: Arc<str>,
    pub control: Arc<str>,
    pub more_treatments: Vec<Arc<str>>,
    pub uncounted: Vec<Arc<str>>,
    pub conversions: Vec<Box<str>>, // sorted
    pub intervals: Vec<(i64, i64, i64)>,
}

impl CountedFlag {
    /// The interval that a time is in: from, until, visit.
    pub fn interval_at(&self, time_ms: i64) -> Option<(i64, i64, i64)> {
        let place = self.intervals.partition_point(|&(from, _, _)| from <= time_ms);
        let interval = self.intervals[place.checked_sub(1)?];
        (time_ms < interval.1).then_some(interval)
    }

    #[inline]
    pub fn kind_of(&self, variant: &str) -> Kind {
        if variant == &*self.control {
            Kind::Control
        } else if variant == &*self.treatment || is_one_of(&self.more_treatments, variant) {
            Kind::Treatment
        } else {
            Kind::Neither
        }
    }
}

pub fn is_one_of(variants: &[Arc<str>], variant: &str) -> bool {
    variants.iter().any(|one| &**one == variant)
}

/// One flag in one partition: its counters by visit, with those of one visit at hand.
pub struct Flag {
    pub key: Arc<str>,
    pub id: u32, // of its exposures in a slice's log
    pub counted: CountedFlag,
    pub visits: Vec<(Visit, [usize; 2])>, // treatment and control; of `Uncounted` the same twice
    pub has_one_visit: bool,
    pub from_ms: i64,
    pub until_ms: i64, // an empty interval: no visit is at hand
    pub at_hand: [usize; 2],
}

/// The flags that have been met, each with a slot, so that an event looks its flag up once.
#[derive(Default)]
pub struct OpenFlags {
    slots: Vec<Option<Flag>>,
    by_key: Map<Box<str>, usize>,
    free: Vec<usize>,
}

impl OpenFlags {
    #[inline]
    pub fn slot_of(&self, flag_key: &str) -> Option<usize> {
        self.by_key.get(flag_key).copied()
    }

    #[inline]
    pub fn at(&self, slot: usize) -> &Flag {
        self.slots[slot].as_ref().expect("the slot of an open flag")
    }

    #[inline]
    pub fn at_mut(&mut self, slot: usize) -> &mut Flag {
        self.slots[slot].as_mut().expect("the slot of an open flag")
    }

    pub fn get(&self, flag_key: &str) -> Option<&Flag> {
        self.slot_of(flag_key).map(|slot| self.at(slot))
    }

    pub fn get_mut(&mut self, flag_key: &str) -> Option<&mut Flag> {
        self.slot_of(flag_key).map(|slot| self.at_mut(slot))
    }

    pub fn insert(&mut self, flag: Flag) -> usize {
        let key: Box<str> = (*flag.key).into();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(flag);
        self.by_key.insert(key, slot);
        slot
    }

    pub fn remove(&mut self, flag_key: &str) -> Option<Flag> {
        let slot = self.by_key.remove(flag_key)?;
        self.free.push(slot);
        self.slots[slot].take()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    Number(i64),
    Outside,
    Uncounted,
}

impl Flag {
    pub fn arms_of(&self, visit: Visit) -> Option<[usize; 2]> {
        self.visits.iter().rev().find(|(of, _)| *of == visit).map(|(_, arms)| *arms)
    }
}
