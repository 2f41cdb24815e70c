//! Actions: the outcomes of a context in one arm and one batch, which is what lies between two
//! saves of a partition.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::HashTable;

use crate::hashing::ByDigest;

/// Contexts that an unusually large batch has, whose memory is freed at its end.
const LARGE: usize = 1 << 16;

/// What is counted of an action.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Untimed, // its end, and no latency so far
    Timed,
    LeftOut, // neither: the context is far more active than others
}

struct Of {
    digest: u64,
    arm: u32,
    action: Action,
}

/// The actions of a batch: one table for all arms. With thousands of arms each has a few, and a
/// table for each would be allocated, cleared and waited for.
#[derive(Default)]
pub struct Actions {
    table: HashTable<Of>,
}

/// Both are hashed with the number that is drawn at start, so nobody can choose what collides.
#[inline]
fn hash_of(arm: usize, digest: u64) -> u64 {
    ByDigest.hash_one(digest).wrapping_add(ByDigest.hash_one(arm as u32))
}

impl Actions {
    /// The action of a context; `begin` says what is counted of it when it begins.
    #[inline]
    pub fn of(&mut self, arm: usize, digest: u64, begin: impl FnOnce() -> Action) -> &mut Action {
        let is_it = |of: &Of| of.digest == digest && of.arm as usize == arm;
        let hash = |of: &Of| hash_of(of.arm as usize, of.digest);
        let place = self.table.entry(hash_of(arm, digest), is_it, hash);
        let of = match place {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                free.insert(Of { digest, arm: arm as u32, action: begin() }).into_mut()
            }
        };
        &mut of.action
    }

    #[inline]
    pub fn contains(&self, arm: usize, digest: u64) -> bool {
        let is_it = |of: &Of| of.digest == digest && of.arm as usize == arm;
        self.table.find(hash_of(arm, digest), is_it).is_some()
    }

    /// Begin the next batch.
    pub fn end_batch(&mut self) {
        if self.table.capacity() > LARGE {
            self.table = HashTable::new();
        } else {
            self.table.clear();
        }
    }
}
