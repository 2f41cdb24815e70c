//! Looks ahead in a run of events: which arms they count for, and what that will touch.
//!
//! With thousands of flags, nearly all that an event touches has left the processor's caches since
//! it was used last, and one piece leads to the next: flag, texts, arm, set, place in the set.
//! Event by event the processor would wait for each in turn. Here one step is taken for all events
//! of a run, in short loops whose rounds do not depend on each other, so that it waits for many at
//! a time. Nothing changes here; what is read without a use is given to `black_box`, which keeps
//! the compiler from leaving it out.

use std::hint::black_box;

use super::Fold;

/// The arm of an event, of an open flag whose visit is at hand. It stays so until a flag is dropped
/// or its plan applied, hence for a whole run.
#[derive(Clone, Copy)]
pub struct KnownArm {
    pub flag: u32,
    pub arm: u32,
}

/// One event, or one flag that it names, before its turn.
#[derive(Clone, Copy, Default)]
pub struct Ahead<'a> {
    pub digest: u64, // of its context
    pub flag_key: &'a str,
    pub variant: &'a str,
    pub time_ms: i64,
    pub has_latency: bool,
    pub slot: Option<u32>,     // of the flag that probably has this key
    pub arm: Option<KnownArm>, // None: it is found, or opened, when it is its turn
}

impl Fold {
    /// Find the arms of events, and read what counting them will touch.
    pub fn look_ahead(&self, events: &mut [Ahead<'_>]) {
        for event in events.iter_mut() {
            event.slot = self.flags.probable_slot(event.flag_key);
        }
        let mut read = 0;
        for slot in events.iter().filter_map(|event| event.slot) {
            read ^= self.flags.at(slot as usize).first_byte();
        }
        for event in events.iter_mut() {
            event.arm = event.slot.and_then(|flag| {
                let found = self.flags.at(flag as usize);
                let arm = found.arm_at_hand(event.variant, event.time_ms)?;
                found.has_key(event.flag_key).then_some(KnownArm { flag, arm: arm as u32 })
            });
        }
        let known = || events.iter().filter_map(|event| Some((event, event.arm?.arm as usize)));
        for (_, arm) in known() {
            read ^= self.arm(arm).read_lines();
        }
        for (_, arm) in known() {
            for set in self.arm(arm).sets() {
                read ^= usize::from(self.sets.get(set).is_some_and(|contexts| contexts.is_full));
            }
        }
        for (event, arm) in known() {
            for set in self.arm(arm).sets() {
                read ^= usize::from(self.sets.contains(set, event.digest));
            }
        }
        if !self.counts_exposures {
            for (event, arm) in known() {
                read ^= usize::from(self.actions.contains(arm, event.digest));
                read ^= self.arm(arm).read_places(event.digest, event.has_latency);
            }
        }
        black_box(read);
    }
}
