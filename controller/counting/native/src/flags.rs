//! Flags, and which of their arms an event falls into: `folding/flag_partition.py`.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;

use crate::arms::{is_one_of, CountedFlag, Kind};
use crate::hashing::ByDigest;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    Number(i64),
    Outside,
    Uncounted,
}

/// One flag in one partition. What nearly every event of it needs fills one line of the processor's
/// caches, and its texts another: with thousands of flags an event waits for each line.
#[repr(C, align(64))]
pub struct Flag {
    texts: Texts,
    from_ms: i64,
    until_ms: i64, // an empty interval: no visit is at hand
    at_hand: [u32; 2],
    pub id: u32, // of its exposures in a slice's log
    pub has_one_visit: bool,
    pub rest: Box<FlagRest>,
}

const _: () = assert!(size_of::<Option<Flag>>() == 64);

/// What is needed when a visit is opened, a plan applied, or a variant is neither of the usual two.
pub struct FlagRest {
    pub key: Arc<str>,
    pub counted: CountedFlag,
    visits: Vec<(Visit, [usize; 2])>, // treatment and control; of `Uncounted` the same twice
}

/// A flag's key, its control and its treatment, one behind the other.
struct Texts {
    text: Box<[u8]>,
    key_end: u32,
    control_end: u32,
}

impl Texts {
    fn of(key: &str, counted: &CountedFlag) -> Self {
        let (control, treatment) = (&*counted.control, &*counted.treatment);
        Self {
            text: [key, control, treatment].concat().into_bytes().into(),
            key_end: key.len() as u32,
            control_end: (key.len() + control.len()) as u32,
        }
    }

    #[inline]
    fn key(&self) -> &[u8] {
        &self.text[..self.key_end as usize]
    }

    #[inline]
    fn control(&self) -> &[u8] {
        &self.text[self.key_end as usize..self.control_end as usize]
    }

    #[inline]
    fn treatment(&self) -> &[u8] {
        &self.text[self.control_end as usize..]
    }
}

impl Flag {
    pub fn new(key: &str, id: u32, counted: CountedFlag) -> Self {
        Self {
            texts: Texts::of(key, &counted),
            from_ms: 0,
            until_ms: 0,
            at_hand: [0, 0],
            id,
            has_one_visit: false,
            rest: Box::new(FlagRest { key: key.into(), counted, visits: Vec::new() }),
        }
    }

    /// Count by a newer document of the same rollout.
    pub fn apply(&mut self, counted: CountedFlag) {
        self.texts = Texts::of(&self.rest.key, &counted);
        self.rest.counted = counted;
        (self.from_ms, self.until_ms) = (0, 0);
    }

    #[inline]
    pub fn has_key(&self, flag_key: &str) -> bool {
        self.texts.key() == flag_key.as_bytes()
    }

    /// The first byte of its texts, for `ahead.rs`.
    #[inline]
    pub fn first_byte(&self) -> usize {
        self.texts.text.first().copied().unwrap_or_default().into()
    }

    #[inline]
    pub fn kind_of(&self, variant: &str) -> Kind {
        if variant.as_bytes() == self.texts.control() {
            Kind::Control
        } else if variant.as_bytes() == self.texts.treatment()
            || is_one_of(&self.rest.counted.more_treatments, variant)
        {
            Kind::Treatment
        } else {
            Kind::Neither
        }
    }

    /// The arm of an event, None when it is of neither or its visit is not at hand.
    #[inline]
    pub fn arm_at_hand(&self, variant: &str, time_ms: i64) -> Option<usize> {
        if self.from_ms <= time_ms && time_ms < self.until_ms {
            return match self.kind_of(variant) {
                Kind::Treatment => Some(self.at_hand[0] as usize),
                Kind::Control => Some(self.at_hand[1] as usize),
                Kind::Neither => None,
            };
        }
        None
    }

    /// Have the arms of a visit at hand for the events of a time.
    pub fn keep_at_hand(&mut self, from_ms: i64, until_ms: i64, arms: [usize; 2]) {
        (self.from_ms, self.until_ms) = (from_ms, until_ms);
        self.at_hand = arms.map(|arm| arm as u32);
    }

    pub fn visits(&self) -> &[(Visit, [usize; 2])] {
        &self.rest.visits
    }

    pub fn arms_of(&self, visit: Visit) -> Option<[usize; 2]> {
        self.rest.visits.iter().rev().find(|(of, _)| *of == visit).map(|(_, arms)| *arms)
    }

    pub fn add_visit(&mut self, visit: Visit, arms: [usize; 2]) {
        self.rest.visits.push((visit, arms));
        self.has_one_visit = self.rest.visits.len() == 1 && visit != Visit::Uncounted;
    }
}

/// The flags that have been met, each with a slot, so that an event looks its flag up once.
#[derive(Default)]
pub struct OpenFlags {
    slots: Vec<Option<Flag>>,
    // A part of the key's hash, and the slot. The key itself is with the flag, so this is small.
    by_key: HashTable<(u32, u32)>,
    free: Vec<usize>,
}

fn hash_of(flag_key: &[u8]) -> u64 {
    ByDigest.hash_one(flag_key)
}

impl OpenFlags {
    #[inline]
    pub fn slot_of(&self, flag_key: &str) -> Option<usize> {
        let hash = hash_of(flag_key.as_bytes());
        let is_it = |&(part, slot): &(u32, u32)| {
            part == hash as u32 && self.at(slot as usize).has_key(flag_key)
        };
        self.by_key.find(hash, is_it).map(|&(_, slot)| slot as usize)
    }

    /// The slot of a flag that has this key or, very rarely, another one: no flag is read for it.
    #[inline]
    pub fn probable_slot(&self, flag_key: &str) -> Option<u32> {
        let hash = hash_of(flag_key.as_bytes());
        self.by_key.find(hash, |&(part, _)| part == hash as u32).map(|&(_, slot)| slot)
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

    /// Give a flag that has none a slot.
    pub fn insert(&mut self, flag: Flag) -> usize {
        let hash = hash_of(flag.texts.key());
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(flag);
        let slots = &self.slots;
        self.by_key.insert_unique(hash, (hash as u32, slot as u32), |&(_, slot)| {
            slots[slot as usize].as_ref().map_or(0, |flag| hash_of(flag.texts.key()))
        });
        slot
    }

    pub fn remove(&mut self, flag_key: &str) -> Option<Flag> {
        let slot = self.slot_of(flag_key)?;
        let is_it = |&(_, of): &(u32, u32)| of as usize == slot;
        self.by_key.find_entry(hash_of(flag_key.as_bytes()), is_it).ok()?.remove();
        self.free.push(slot);
        self.slots[slot].take()
    }
}
