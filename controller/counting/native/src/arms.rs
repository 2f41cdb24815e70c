//! Counters of arms, and what counting needs of a rollout: `folding/arm_counters.py`.

use std::sync::Arc;

use crate::activity::Activity;

/// The number of a log bucket.
pub type Bucket = i16;

const COUNT_BITS: u32 = 48;
const SIGN: u16 = 1 << 15;

/// Numbers by log bucket, sorted. Tens of thousands of arms may have a hundred buckets each, and an
/// event waits for the memory that they lie in: so a bucket and its number share one word, with the
/// bucket in the upper bits, where the order of the words is that of the buckets.
#[derive(Default, Clone)]
pub struct Histogram {
    words: Vec<u64>,
}

impl Histogram {
    /// A number that one bucket can hold: 140 trillion values, more than any topic brings.
    pub const MOST: u64 = (1 << COUNT_BITS) - 1;

    /// Add to the number of a bucket, up to `MOST` of all.
    #[inline]
    pub fn add(&mut self, bucket: Bucket, count: u64) {
        let place = self.place(bucket);
        match self.words.get_mut(place) {
            Some(word) if bucket_of(*word) == bucket => *word += count,
            _ => {
                if self.words.len() == self.words.capacity() {
                    self.words.reserve_exact(4 + self.words.len() / 4);
                }
                self.words.insert(place, first_of(bucket) | count);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// The buckets that have a number, sorted, with it.
    pub fn iter(&self) -> impl Iterator<Item = (Bucket, u64)> + '_ {
        self.words.iter().map(|&word| (bucket_of(word), word & Self::MOST))
    }

    /// Read all of it: one word of each line of the processor's caches.
    #[inline]
    pub fn read(&self) -> u64 {
        self.words.iter().step_by(8).fold(0, |read, word| read ^ word)
    }

    /// Where a bucket's word is, or belongs.
    #[inline]
    fn place(&self, bucket: Bucket) -> usize {
        let first = first_of(bucket);
        self.words.partition_point(|&word| word < first)
    }
}

/// The least word of a bucket.
#[inline]
fn first_of(bucket: Bucket) -> u64 {
    u64::from(bucket as u16 ^ SIGN) << COUNT_BITS
}

#[inline]
fn bucket_of(word: u64) -> Bucket {
    ((word >> COUNT_BITS) as u16 ^ SIGN) as Bucket
}

/// The totals of an arm: `schemas.counters.Counters`.
#[derive(Default, Clone)]
#[repr(C)] // in this order: `Arm` says why
pub struct Counts {
    pub evaluations: i64,
    pub exposures: i64,
    pub switched: i64,
    pub outcomes: i64,
    pub errors: i64,
    pub at_risk: i64,
    pub first_errors: i64,
    pub latency: Histogram,
    pub checked: i64,
    pub repeated: i64,
    pub converted: Vec<(Box<str>, i64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Treatment,
    Control,
    Neither,
}

/// The counters of one arm. In this order, what an evaluation touches lies in one line of the
/// processor's caches, and what most outcomes touch in four: with thousands of flags an event waits
/// for each line.
#[repr(C, align(64))]
pub struct Arm {
    pub is_changed: bool,
    pub is_counting: bool,
    pub kind: Kind,
    pub bundle: Option<u32>, // that it is stored in; None: it has a field of its own
    pub exposed: Option<u32>, // slots of sets
    pub opposite: Option<u32>,
    pub failed: Option<u32>,
    pub counts: Counts,
    pub passed_on: i64, // of the evaluations those that `take_evaluations` returned
    pub activity: Activity,
    pub converted: Vec<(Box<str>, u32)>,
    pub field: Box<str>, // empty outside every visit
    pub flag_key: Arc<str>,
    pub rollout_id: Arc<str>,
}

impl Arm {
    /// The evaluations since the last call.
    pub fn take_evaluations(&mut self) -> i64 {
        let before = std::mem::replace(&mut self.passed_on, self.counts.evaluations);
        self.counts.evaluations - before
    }

    /// The slots of its sets that most events look into.
    #[inline]
    pub fn sets(&self) -> impl Iterator<Item = u32> {
        [self.exposed, self.opposite, self.failed].into_iter().flatten()
    }

    /// Read the two lines of it that nearly every event touches: `fold/ahead.rs`.
    #[inline]
    pub fn read_lines(&self) -> usize {
        self.counts.outcomes as usize ^ usize::from(self.is_changed)
    }

    /// Read what an outcome touches beside the arm itself.
    #[inline]
    pub fn read_places(&self, digest: u64, has_latency: bool) -> usize {
        let latency = if has_latency { self.counts.latency.read() } else { 0 };
        self.activity.of_group(digest) as usize ^ latency as usize
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
}

pub fn is_one_of(variants: &[Arc<str>], variant: &str) -> bool {
    variants.iter().any(|one| &**one == variant)
}
