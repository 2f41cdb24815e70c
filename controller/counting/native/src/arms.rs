//! Counters of arms, and what counting needs of a rollout: `folding/arm_counters.py`.

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
    pub fn read_places(&self, digest: u64, bucket: Option<i32>) -> usize {
        let latency = bucket.map_or(0, |bucket| self.counts.latency.get(bucket));
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
