//! Digests, and tables of them that nobody outside can make slow.

use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

use xxhash_rust::xxh3::xxh3_64;

/// The digest of a context id in UTF-8: XXH3 with 64 bits and seed 0, as it is stored.
#[inline]
pub fn digest_of(context_id: &[u8]) -> u64 {
    xxh3_64(context_id)
}

/// Hashes digests, which are spread evenly already, by one multiplication with a number that is
/// drawn at start: senders choose context ids, and must not choose places in a table.
#[derive(Clone, Copy, Default)]
pub struct ByDigest;

pub struct DigestHasher(u64);

fn secret() -> u64 {
    static SECRET: OnceLock<u64> = OnceLock::new();
    *SECRET.get_or_init(|| std::collections::hash_map::RandomState::new().hash_one(0) | 1)
}

impl BuildHasher for ByDigest {
    type Hasher = DigestHasher;

    #[inline]
    fn build_hasher(&self) -> DigestHasher {
        DigestHasher(0)
    }
}

impl Hasher for DigestHasher {
    #[inline]
    fn write_u64(&mut self, digest: u64) {
        let product = u128::from(digest) * u128::from(secret());
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    #[inline]
    fn write_i32(&mut self, number: i32) {
        self.write_u64(number as u32 as u64);
    }

    #[inline]
    fn write_i64(&mut self, number: i64) {
        self.write_u64(number as u64);
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.write_u64(self.0 ^ xxh3_64(bytes));
    }

    #[inline]
    fn write_u8(&mut self, _: u8) {} // the end of a str, which adds nothing

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

pub type Map<K, V> = hashbrown::HashMap<K, V, ByDigest>;
pub type Set<K> = hashbrown::HashSet<K, ByDigest>;
