//! What one event adds to the counters: `folding/events.py`, `folding/partition_arms.py`.
//!
//! Nothing here knows Python but through `Surroundings`: what a flag's plan says, and where what is
//! not counted is reported.

mod ahead;
mod visits;

pub use ahead::{Ahead, KnownArm};

use std::sync::Arc;

use crate::actions::{Action, Actions};
use crate::arms::{is_one_of, Arm, Bucket, CountedFlag, Counts, Kind};
use crate::bundles::Bundles;
use crate::exposures::RecentExposures;
use crate::flags::{FlagRest, OpenFlags, Visit};
use crate::hashing::Map;
use crate::sets::{Added, ContextSets};

/// What the fold asks of the rest of the program, and reports to it.
pub trait Surroundings {
    type Error;
    /// What counting needs of a flag's rollout, None for a flag without one.
    fn counted_flag(&self, flag_key: &str) -> Result<Option<CountedFlag>, Self::Error>;
    fn count_unknown(&self, flag_key: &str) -> Result<(), Self::Error>;
    /// The arm of a variant of a flag whose rollout is over, None when it was retired.
    fn ended_arm(&self, flag_key: &str, variant: &str) -> Result<Option<Kind>, Self::Error>;
    /// The bundle that an arm is stored in, None for one with a field of its own.
    fn bundle_of(&self, flag_key: &str, name: &str) -> Result<Option<u32>, Self::Error>;
    fn add_other_variants(&self, count: i64) -> Result<(), Self::Error>;
    fn add_unjoined(&self, count: i64) -> Result<(), Self::Error>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Counted,
    Late,
    Ignored,
}

/// What a run of events was.
#[derive(Default)]
pub struct Counted {
    pub counted: i64,
    pub late: i64,
    pub ignored: i64,
}

impl Counted {
    #[inline]
    pub fn add(&mut self, class: Class) {
        match class {
            Class::Counted => self.counted += 1,
            Class::Late => self.late += 1,
            Class::Ignored => self.ignored += 1,
        }
    }
}

/// One evaluation, as any reader gives it.
pub struct Evaluation<'a> {
    pub digest: u64, // of its context
    pub flag_key: &'a str,
    pub variant: &'a str,
    pub time_ms: i64,
}

/// One outcome, as any reader gives it.
pub struct Outcome<'a> {
    pub digest: u64, // of its context
    pub time_ms: i64,
    pub flags: &'a [(&'a str, &'a str)],
    pub ahead: &'a [Ahead<'a>], // of each flag; empty: none was looked up before
    pub is_error: bool,
    pub bucket: Option<Bucket>,
    pub conversions: &'a [&'a str],
}

pub struct Fold {
    pub counts_exposures: bool,
    pub flags: OpenFlags,
    pub arms: Vec<Option<Box<Arm>>>,
    pub sets: ContextSets,
    pub recent: Option<RecentExposures>,
    // Restored, not opened yet: totals, and the bundle that they are stored in.
    pub stored: Map<Box<str>, (Counts, Option<u32>)>,
    pub bundles: Bundles,
    // Set number -> flag key, rollout id, arm.
    pub exposure_of: Map<u32, (Arc<str>, Arc<str>, Kind)>,
    pub actions: Actions,
    pub changed: Vec<usize>,
    pub changed_in_bundles: usize,
    others: Vec<((Box<str>, Kind), i64)>, // in the order in which they were first met
    other_places: Map<Box<str>, [Option<usize>; 3]>, // by flag and arm, where it is in `others`
    pub opened: usize,
    pub joins: bool,
    pub freshest_ms: i64, // of the events of this run
    flag_ids: Map<Box<str>, u32>,
}

impl Fold {
    pub fn new(counts_exposures: bool, exact_limit: usize, window_ms: Option<i64>) -> Self {
        Self {
            counts_exposures,
            flags: OpenFlags::default(),
            arms: Vec::new(),
            sets: ContextSets::new(exact_limit),
            recent: window_ms.filter(|_| counts_exposures).map(RecentExposures::new),
            stored: Map::default(),
            bundles: Bundles::default(),
            exposure_of: Map::default(),
            actions: Actions::default(),
            changed: Vec::new(),
            changed_in_bundles: 0,
            others: Vec::new(),
            other_places: Map::default(),
            opened: 0,
            joins: false,
            freshest_ms: 0,
            flag_ids: Map::default(),
        }
    }

    #[inline]
    pub fn arm(&self, arm: usize) -> &Arm {
        self.arms[arm].as_ref().expect("an arm of an open flag")
    }

    #[inline]
    fn arm_mut(&mut self, arm: usize) -> &mut Arm {
        self.arms[arm].as_mut().expect("an arm of an open flag")
    }

    /// List a counter among those that have changed.
    #[inline]
    fn note_change(&mut self, place: usize) {
        let arm = self.arms[place].as_mut().expect("an arm of an open flag");
        if arm.is_changed || !arm.is_counting {
            return;
        }
        arm.is_changed = true;
        self.changed.push(place);
        self.changed_in_bundles += usize::from(arm.bundle.is_some());
    }

    // - evaluations -

    /// Count one evaluation; `known` is what was found out about its arm before.
    #[inline]
    pub fn count_evaluation<S: Surroundings>(
        &mut self,
        around: &S,
        evaluation: &Evaluation<'_>,
        known: Option<KnownArm>,
    ) -> Result<Class, S::Error> {
        let &Evaluation { digest, flag_key, variant, time_ms } = evaluation;
        let (flag, arm) = match known {
            Some(KnownArm { flag, arm }) => (flag as usize, Some(arm as usize)),
            None => {
                let Some(flag) = self.open_flag(around, flag_key)? else {
                    if let Some(kind) = around.ended_arm(flag_key, variant)? {
                        self.note(flag_key, kind, 1);
                    }
                    return Ok(Class::Ignored);
                };
                (flag, self.arm_at(around, flag, variant, time_ms)?)
            }
        };
        self.freshest_ms = self.freshest_ms.max(time_ms);
        let (arm, class) = match arm {
            Some(arm) if self.arm(arm).is_counting => (arm, Class::Counted),
            Some(arm) => (arm, Class::Late),
            None => match self.uncounted_arm(around, flag, variant)? {
                Some(arm) => (arm, Class::Ignored),
                None => {
                    around.add_other_variants(1)?;
                    self.note(flag_key, Kind::Neither, 1);
                    return Ok(Class::Ignored);
                }
            },
        };
        self.add_evaluation(arm, digest, flag, time_ms);
        Ok(class)
    }

    /// Add one evaluation to a counter, and remember the exposure.
    #[inline]
    fn add_evaluation(&mut self, place: usize, digest: u64, flag: usize, time_ms: i64) {
        self.note_change(place);
        let arm = self.arms[place].as_mut().expect("an arm of an open flag");
        arm.counts.evaluations += 1;
        let Some(exposed) = arm.exposed else { return };
        let mut is_first = false; // of this context to this flag in the present visit
        if !arm.is_counting {
            if self.sets.get(exposed).is_none_or(|contexts| contexts.is_full) {
                return;
            }
        } else {
            match self.sets.add(exposed, digest) {
                Added::NoRoom => return,
                Added::Known => {}
                Added::New => {
                    arm.counts.exposures += 1;
                    if arm.opposite.is_some_and(|opposite| self.sets.contains(opposite, digest)) {
                        arm.counts.switched += 1;
                    } else {
                        is_first = true;
                    }
                }
            }
        }
        let Some(exposures) = self.recent.as_mut().and_then(|recent| recent.slice_of(time_ms))
        else {
            return;
        };
        let Some(contexts) = self.sets.get(exposed) else { return };
        let flag = self.flags.at(flag);
        if is_first && flag.has_one_visit {
            exposures.record_first(contexts.number, digest);
        } else {
            exposures.record(flag.id, contexts.number, digest);
        }
    }

    /// Note evaluations that no counter has.
    pub fn note(&mut self, flag_key: &str, kind: Kind, count: i64) {
        if count == 0 {
            return;
        }
        if !self.other_places.contains_key(flag_key) {
            self.other_places.insert(flag_key.into(), [None; 3]);
        }
        let Some(places) = self.other_places.get_mut(flag_key) else { return };
        match places[kind as usize] {
            Some(place) => self.others[place].1 += count,
            None => {
                places[kind as usize] = Some(self.others.len());
                self.others.push(((flag_key.into(), kind), count));
            }
        }
    }

    /// Return what was noted since the last call, and begin anew.
    pub fn take_others(&mut self) -> Vec<((Box<str>, Kind), i64)> {
        self.other_places.clear();
        std::mem::take(&mut self.others)
    }

    // - outcomes -

    /// How many arms have changed and sets are new: what counts against the room of a save.
    #[inline]
    pub fn grown(&self) -> usize {
        self.changed.len() + self.sets.new_names()
    }

    /// Count one outcome; `found` is scratch space, and holds the arms that counted it.
    #[inline]
    pub fn count_outcome<S: Surroundings>(
        &mut self,
        around: &S,
        outcome: &Outcome<'_>,
        found: &mut Vec<usize>,
    ) -> Result<Class, S::Error> {
        found.clear();
        let mut is_late = false;
        for (place, &(flag_key, variant)) in outcome.flags.iter().enumerate() {
            let (flag, arm) = match outcome.ahead.get(place).and_then(|ahead| ahead.arm) {
                Some(KnownArm { flag, arm }) => (flag as usize, Some(arm as usize)),
                None => {
                    let Some(flag) = self.open_flag(around, flag_key)? else { continue };
                    (flag, self.arm_at(around, flag, variant, outcome.time_ms)?)
                }
            };
            self.freshest_ms = self.freshest_ms.max(outcome.time_ms);
            match arm {
                Some(arm) if self.arm(arm).is_counting => found.push(arm),
                Some(_) => is_late = true,
                None => {
                    let uncounted = &self.flags.at(flag).rest.counted.uncounted;
                    if !is_one_of(uncounted, variant) {
                        around.add_other_variants(1)?;
                    }
                }
            }
        }
        for &arm in found.iter() {
            self.add_outcome(arm, outcome);
        }
        Ok(match (found.is_empty(), is_late) {
            (false, _) => Class::Counted,
            (true, true) => Class::Late,
            (true, false) => Class::Ignored,
        })
    }

    /// Add one outcome to one counter.
    #[inline]
    fn add_outcome(&mut self, place: usize, outcome: &Outcome<'_>) {
        self.note_change(place);
        let arm = self.arms[place].as_mut().expect("an arm of an open flag");
        arm.counts.outcomes += 1;
        let digest = outcome.digest;
        let action = self.actions.of(place, digest, || {
            let action = match arm.activity.add(digest) {
                true => Action::Untimed,
                false => Action::LeftOut,
            };
            let has_failed = arm.failed.is_some_and(|set| self.sets.contains(set, digest));
            if action != Action::LeftOut && !has_failed {
                arm.counts.at_risk += 1;
            }
            action
        });
        if let Some(bucket) = outcome.bucket.filter(|_| *action == Action::Untimed) {
            *action = Action::Timed;
            arm.counts.latency.add(bucket, 1);
        }
        let is_left_out = *action == Action::LeftOut;
        if outcome.is_error {
            arm.counts.errors += 1;
            if let Some(failed) = arm.failed.filter(|_| !is_left_out) {
                if matches!(self.sets.add(failed, digest), Added::New) {
                    arm.counts.first_errors += 1;
                }
            }
        }
        for &name in outcome.conversions {
            let Some(&(_, slot)) = arm.converted.iter().find(|(one, _)| &**one == name) else {
                continue;
            };
            if matches!(self.sets.add(slot, digest), Added::New) {
                let counts = &mut arm.counts.converted;
                match counts.iter_mut().find(|(one, _)| &**one == name) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((name.into(), 1)),
                }
            }
        }
    }

    pub fn count_repetition(&mut self, arms: &[usize], came_before: bool) {
        for &arm in arms {
            let counts = &mut self.arm_mut(arm).counts;
            counts.checked += 1;
            counts.repeated += i64::from(came_before);
        }
    }

    // - dropping -

    pub fn drop_rollout(&mut self, flag_key: &str, rollout_id: &str) {
        let is_it = |rest: &FlagRest| &*rest.counted.rollout_id == rollout_id;
        if self.flags.get(flag_key).is_some_and(|flag| is_it(&flag.rest)) {
            let flag = self.flags.remove(flag_key).expect("an open flag");
            for (visit, arms) in flag.visits() {
                let arms = if *visit == Visit::Uncounted { &arms[..1] } else { &arms[..] };
                for &place in arms {
                    let Some(mut arm) = self.arms[place].take() else { continue };
                    if let Some(bundle) = arm.bundle {
                        self.bundles.remove(bundle, &arm.field);
                    }
                    self.note(flag_key, arm.kind, arm.take_evaluations());
                }
            }
            let arms = &self.arms;
            self.changed.retain(|&place| arms[place].is_some());
            self.changed_in_bundles = self
                .changed
                .iter()
                .filter(|&&place| arms[place].as_ref().is_some_and(|arm| arm.bundle.is_some()))
                .count();
        }
        let prefix = format!("{flag_key}|{rollout_id}|");
        let bundles = &mut self.bundles;
        self.stored.retain(|name, &mut (_, bundle)| {
            let is_kept = !name.starts_with(&prefix);
            if let Some(bundle) = bundle.filter(|_| !is_kept) {
                bundles.remove(bundle, name);
            }
            is_kept
        });
        self.exposure_of.retain(|_, (key, id, _)| &**key != flag_key || &**id != rollout_id);
        self.sets.drop_with_prefix(&prefix);
        if self.exposure_of.is_empty() {
            if let Some(recent) = &mut self.recent {
                recent.clear();
            }
        }
    }
}
