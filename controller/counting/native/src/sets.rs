//! Sets of contexts: `folding/context_sets.py`.

use crate::bloom::BloomFilter;
use crate::hashing::{Map, Set};

pub const ENTRY: usize = 12; // bytes: set number (u32), digest (u64), little-endian
const SEALED_EARLY_FROM: usize = 1_024;
const FILTER_ROOM: u64 = 8;

pub struct ContextSet {
    pub name: Box<str>,
    pub number: u32,
    pub seal_at: usize,
    pub exact: Set<u64>,
    pub filters: Vec<BloomFilter>,
    pub is_full: bool,
}

impl ContextSet {
    #[inline]
    pub fn contains(&self, digest: u64) -> bool {
        self.exact.contains(&digest) || self.is_sealed(digest)
    }

    #[inline]
    fn is_sealed(&self, digest: u64) -> bool {
        self.filters.iter().any(|layer| layer.contains(digest))
    }

    fn keys(&self) -> u64 {
        self.filters.iter().map(|layer| layer.keys).sum()
    }
}

pub enum Added {
    New,
    Known,
    NoRoom,
}

/// A set whose exact members have just moved into one of its filters.
pub struct Sealed {
    pub number: u32,
    pub layer: usize,
    pub keys: u64,
    pub words: Vec<u8>,
}

#[derive(Default)]
pub struct ContextSets {
    exact_limit: usize,
    // By slot, which never changes; None: it was dropped.
    slots: Vec<Option<ContextSet>>,
    by_name: Map<Box<str>, usize>,
    by_number: Map<u32, usize>,
    next_number: u32,
    new: Vec<usize>,
    full: Vec<usize>, // one is sealed per save, because one filter is a large write
    added: Vec<u8>,   // entries
    live: i64,        // exact members, without those added since the last save
    sealed: i64,      // members in filters
}

impl ContextSets {
    pub fn new(exact_limit: usize) -> Self {
        Self { exact_limit, ..Self::default() }
    }

    /// The slot of the set of that name, a new one if there is none.
    pub fn slot_of(&mut self, name: &str) -> usize {
        if let Some(&slot) = self.by_name.get(name) {
            return slot;
        }
        let slot = self.place(self.next_number, name);
        self.new.push(slot);
        slot
    }

    pub fn place(&mut self, number: u32, name: &str) -> usize {
        let slot = self.slots.len();
        self.slots.push(Some(ContextSet {
            name: name.into(),
            number,
            seal_at: self.exact_limit,
            exact: Set::default(),
            filters: Vec::new(),
            is_full: false,
        }));
        self.by_name.insert(name.into(), slot);
        self.by_number.insert(number, slot);
        self.reserve(number.saturating_add(1));
        slot
    }

    pub fn reserve(&mut self, above: u32) {
        self.next_number = self.next_number.max(above);
    }

    #[inline]
    pub fn get(&self, slot: usize) -> Option<&ContextSet> {
        self.slots.get(slot).and_then(Option::as_ref)
    }

    #[inline]
    pub fn contains(&self, slot: usize, digest: u64) -> bool {
        self.get(slot).is_some_and(|contexts| contexts.contains(digest))
    }

    /// Put a context into a set.
    #[inline]
    pub fn add(&mut self, slot: usize, digest: u64) -> Added {
        let Some(contexts) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return Added::NoRoom;
        };
        if contexts.contains(digest) {
            return Added::Known;
        }
        if contexts.is_full {
            return Added::NoRoom;
        }
        contexts.exact.insert(digest);
        push_entry(&mut self.added, contexts.number, digest);
        if contexts.exact.len() == contexts.seal_at {
            self.full.push(slot);
        }
        Added::New
    }

    // - what has changed -

    pub fn added(&self) -> usize {
        self.added.len() / ENTRY
    }

    #[inline]
    pub fn new_names(&self) -> usize {
        self.new.len()
    }

    pub fn sealing_capacity(&self) -> u64 {
        let Some(contexts) = self.full.last().and_then(|&slot| self.get(slot)) else {
            return 0;
        };
        let largest = contexts.filters.iter().map(BloomFilter::capacity).max().unwrap_or(0);
        largest.max(FILTER_ROOM * contexts.exact.len() as u64)
    }

    pub fn drain(&mut self) -> (Vec<(u32, String)>, Vec<u8>) {
        self.live += self.added() as i64;
        let new = std::mem::take(&mut self.new);
        let names = new
            .into_iter()
            .filter_map(|slot| self.get(slot))
            .map(|contexts| (contexts.number, contexts.name.to_string()))
            .collect();
        (names, std::mem::take(&mut self.added))
    }

    /// Those of some entries whose context is an exact member.
    pub fn live(&self, entries: &[u8]) -> Vec<u8> {
        let mut alive = Vec::new();
        for (number, digest) in entries_of(entries) {
            let slot = self.by_number.get(&number);
            if slot.and_then(|&slot| self.get(slot)).is_some_and(|one| one.exact.contains(&digest))
            {
                push_entry(&mut alive, number, digest);
            }
        }
        alive
    }

    pub fn seal_next(&mut self) -> Option<Sealed> {
        let slot = self.full.pop()?;
        let exact_limit = self.exact_limit;
        let contexts = self.slots.get_mut(slot).and_then(Option::as_mut)?;
        let count = contexts.exact.len() as u64;
        if contexts.filters.last().is_none_or(|last| last.keys + count > last.capacity()) {
            contexts.filters.push(BloomFilter::for_keys(FILTER_ROOM * count));
        }
        let layer = contexts.filters.len() - 1;
        let last = &mut contexts.filters[layer];
        for &digest in &contexts.exact {
            last.insert(digest);
        }
        let sealed =
            Sealed { number: contexts.number, layer, keys: last.keys, words: last.to_bytes() };
        contexts.exact.clear();
        update_limit(contexts, exact_limit);
        self.live -= count as i64;
        self.sealed += count as i64;
        Some(sealed)
    }

    pub fn drop_with_prefix(&mut self, prefix: &str) {
        let names: Vec<_> =
            self.by_name.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        for name in names {
            let Some(slot) = self.by_name.remove(&name) else { continue };
            if let Some(contexts) = self.slots[slot].take() {
                self.by_number.remove(&contexts.number);
                self.live -= contexts.exact.len() as i64;
                self.sealed -= contexts.keys() as i64;
            }
            self.full.retain(|&full| full != slot);
            self.new.retain(|&new| new != slot);
        }
    }

    // - restoring: sets first, then filters, then members -

    pub fn add_filter(&mut self, number: u32, filter: BloomFilter) {
        if let Some(contexts) = self.of_number(number) {
            contexts.filters.push(filter);
        }
    }

    pub fn add_members(&mut self, entries: &[u8]) {
        for (number, digest) in entries_of(entries) {
            if let Some(contexts) = self.of_number(number) {
                // A context in a filter was journaled before it went there.
                if !contexts.is_sealed(digest) {
                    contexts.exact.insert(digest);
                }
            }
            self.reserve(number.saturating_add(1));
        }
    }

    fn of_number(&mut self, number: u32) -> Option<&mut ContextSet> {
        let slot = *self.by_number.get(&number)?;
        self.slots[slot].as_mut()
    }

    pub fn end_restore(&mut self) {
        let exact_limit = self.exact_limit;
        self.full.clear();
        (self.live, self.sealed) = (0, 0);
        for (slot, contexts) in self.slots.iter_mut().enumerate() {
            let Some(contexts) = contexts else { continue };
            self.live += contexts.exact.len() as i64;
            self.sealed += contexts.keys() as i64;
            update_limit(contexts, exact_limit);
            if contexts.exact.len() >= contexts.seal_at {
                self.full.push(slot);
            }
        }
    }

    // - budget -

    pub fn exact_members(&self) -> i64 {
        self.live + self.added() as i64
    }

    pub fn load(&self) -> i64 {
        self.exact_members() + self.sealed.div_euclid(FILTER_ROOM as i64)
    }

    pub fn seal_early(&mut self) -> bool {
        if !self.full.is_empty() {
            return true;
        }
        // Of several of one size the first, as `max` of Python takes it.
        let mut largest: Option<(usize, usize)> = None;
        for (slot, contexts) in self.present() {
            if largest.is_none_or(|(_, members)| contexts.exact.len() > members) {
                largest = Some((slot, contexts.exact.len()));
            }
        }
        match largest {
            Some((slot, members)) if members >= SEALED_EARLY_FROM => {
                self.full.push(slot);
                true
            }
            _ => false,
        }
    }

    fn present(&self) -> impl Iterator<Item = (usize, &ContextSet)> {
        self.slots.iter().enumerate().filter_map(|(slot, one)| Some((slot, one.as_ref()?)))
    }

    pub fn close_largest(&mut self) -> Option<String> {
        let mut sizes: Vec<(Box<str>, u64)> = Vec::new();
        let mut places: Map<Box<str>, usize> = Map::default();
        for (_, contexts) in self.present().filter(|(_, one)| !one.is_full && !keeps_open(one)) {
            let flag_key = flag_of(contexts);
            let place = *places.entry(flag_key.into()).or_insert_with(|| {
                sizes.push((flag_key.into(), 0));
                sizes.len() - 1
            });
            sizes[place].1 += contexts.exact.len() as u64 + contexts.keys();
        }
        // Of several of one size the first, as `max` of Python takes it.
        let (largest, _) =
            sizes.into_iter().reduce(|most, one| if one.1 > most.1 { one } else { most })?;
        for contexts in self.slots.iter_mut().flatten() {
            if flag_of(contexts) == &*largest && !keeps_open(contexts) {
                contexts.is_full = true;
            }
        }
        Some(largest.into())
    }
}

/// Sets of contexts with an error stay open: without them a failing release would look better.
fn keeps_open(contexts: &ContextSet) -> bool {
    contexts.name.ends_with("|errors")
}

fn flag_of(contexts: &ContextSet) -> &str {
    contexts.name.split('|').next().unwrap_or_default()
}

fn update_limit(contexts: &mut ContextSet, exact_limit: usize) {
    contexts.seal_at = exact_limit.max((contexts.keys() / FILTER_ROOM) as usize);
}

#[inline]
pub fn push_entry(entries: &mut Vec<u8>, number: u32, digest: u64) {
    entries.extend_from_slice(&number.to_le_bytes());
    entries.extend_from_slice(&digest.to_le_bytes());
}

pub fn entries_of(entries: &[u8]) -> impl Iterator<Item = (u32, u64)> + '_ {
    entries.chunks_exact(ENTRY).map(|entry| {
        let (number, digest) = entry.split_at(4);
        (
            u32::from_le_bytes(number.try_into().expect("four bytes")),
            u64::from_le_bytes(digest.try_into().expect("eight bytes")),
        )
    })
}
