//! Sets of contexts: `folding/context_sets.py`.

use crate::bloom::BloomFilter;
use crate::hashing::{Map, Set};

pub const ENTRY: usize = 12; // bytes: set number (u32), digest (u64), little-endian
const SEALED_EARLY_FROM: usize = 1_024;
const FILTER_ROOM: u64 = 8;

/// One set. It fills one line of the processor's caches: with thousands of flags, an evaluation
/// waits for the sets of both arms. Hence its name is elsewhere, and its filters are a slice.
#[repr(align(64))]
pub struct ContextSet {
    pub number: u32,
    pub seal_at: usize,
    pub exact: Set<u64>,
    pub filters: Box<[BloomFilter]>,
    pub is_full: bool,
}

const _: () = assert!(size_of::<Option<ContextSet>>() == 64);

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

    fn add_filter(&mut self, filter: BloomFilter) {
        let mut filters = std::mem::take(&mut self.filters).into_vec();
        filters.push(filter);
        self.filters = filters.into();
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
    names: Vec<Box<str>>, // by slot, too
    by_name: Map<Box<str>, u32>,
    by_number: Map<u32, u32>,
    next_number: u32,
    new: Vec<u32>,
    full: Vec<u32>, // one is sealed per save, because one filter is a large write
    added: Vec<u8>, // entries
    live: i64,      // exact members, without those added since the last save
    sealed: i64,    // members in filters
}

impl ContextSets {
    pub fn new(exact_limit: usize) -> Self {
        Self { exact_limit, ..Self::default() }
    }

    /// The slot of the set of that name, a new one if there is none.
    pub fn slot_of(&mut self, name: &str) -> u32 {
        if let Some(&slot) = self.by_name.get(name) {
            return slot;
        }
        let slot = self.place(self.next_number, name);
        self.new.push(slot);
        slot
    }

    pub fn place(&mut self, number: u32, name: &str) -> u32 {
        let slot = self.slots.len() as u32;
        self.names.push(name.into());
        self.slots.push(Some(ContextSet {
            number,
            seal_at: self.exact_limit,
            exact: Set::default(),
            filters: Box::default(),
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
    pub fn get(&self, slot: u32) -> Option<&ContextSet> {
        self.slots.get(slot as usize).and_then(Option::as_ref)
    }

    #[inline]
    pub fn contains(&self, slot: u32, digest: u64) -> bool {
        self.get(slot).is_some_and(|contexts| contexts.contains(digest))
    }

    /// Put a context into a set.
    #[inline]
    pub fn add(&mut self, slot: u32, digest: u64) -> Added {
        let Some(contexts) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else {
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
            .filter_map(|slot| {
                Some((self.get(slot)?.number, self.names[slot as usize].to_string()))
            })
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
        let contexts = self.slots.get_mut(slot as usize).and_then(Option::as_mut)?;
        let count = contexts.exact.len() as u64;
        if contexts.filters.last().is_none_or(|last| last.keys + count > last.capacity()) {
            contexts.add_filter(BloomFilter::for_keys(FILTER_ROOM * count));
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
            self.names[slot as usize] = Box::default();
            if let Some(contexts) = self.slots[slot as usize].take() {
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
            contexts.add_filter(filter);
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
        self.slots[slot as usize].as_mut()
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
                self.full.push(slot as u32);
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
        let mut largest: Option<(u32, usize)> = None;
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

    fn present(&self) -> impl Iterator<Item = (u32, &ContextSet)> {
        self.slots.iter().zip(0..).filter_map(|(one, slot)| Some((slot, one.as_ref()?)))
    }

    pub fn close_largest(&mut self) -> Option<String> {
        let mut sizes: Vec<(Box<str>, u64)> = Vec::new();
        let mut places: Map<Box<str>, usize> = Map::default();
        for (slot, contexts) in self.present() {
            let name = &self.names[slot as usize];
            if contexts.is_full || keeps_open(name) {
                continue;
            }
            let flag_key = flag_of(name);
            let place = *places.entry(flag_key.into()).or_insert_with(|| {
                sizes.push((flag_key.into(), 0));
                sizes.len() - 1
            });
            sizes[place].1 += contexts.exact.len() as u64 + contexts.keys();
        }
        // Of several of one size the first, as `max` of Python takes it.
        let (largest, _) =
            sizes.into_iter().reduce(|most, one| if one.1 > most.1 { one } else { most })?;
        for (contexts, name) in self.slots.iter_mut().zip(&self.names) {
            if let Some(contexts) = contexts {
                contexts.is_full |= flag_of(name) == &*largest && !keeps_open(name);
            }
        }
        Some(largest.into())
    }
}

/// Sets of contexts with an error stay open: without them a failing release would look better.
fn keeps_open(name: &str) -> bool {
    name.ends_with("|errors")
}

fn flag_of(name: &str) -> &str {
    name.split('|').next().unwrap_or_default()
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
