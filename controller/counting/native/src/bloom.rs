//! Bloom filters: `folding/bloom.py`, bit for bit.

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

pub struct BloomFilter {
    words: Vec<u64>,
    pub keys: u64,
}

impl BloomFilter {
    /// An empty filter with room for at least `capacity` keys.
    pub fn for_keys(capacity: u64) -> Self {
        let needed = (capacity / 4).saturating_sub(1); // a fourth of a word per key
        let bits = (64 - needed.leading_zeros()).max(10);
        Self { words: vec![0; 1 << bits], keys: 0 }
    }

    /// The filter with these words, little-endian. None: their number is no power of two.
    pub fn of(bytes: &[u8], keys: u64) -> Option<Self> {
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
            .collect();
        (words.len().is_power_of_two() && words.len() * 8 == bytes.len())
            .then_some(Self { words, keys })
    }

    /// How many keys it takes at the stated rate of false positives.
    pub fn capacity(&self) -> u64 {
        self.words.len() as u64 * 4
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[inline]
    fn places(&self, digest: u64) -> [(usize, u64); 2] {
        let last = self.words.len() - 1;
        let spread = digest.wrapping_mul(MULTIPLIER);
        [(digest as usize & last, four_bits(spread)), (spread as usize & last, four_bits(digest))]
    }

    #[inline]
    pub fn contains(&self, digest: u64) -> bool {
        self.places(digest).iter().all(|&(at, bits)| self.words[at] & bits == bits)
    }

    pub fn insert(&mut self, digest: u64) {
        for (at, bits) in self.places(digest) {
            self.words[at] |= bits;
        }
        self.keys += 1;
    }
}

#[inline]
fn four_bits(source: u64) -> u64 {
    two_bits(source >> 32) | two_bits(source >> 44)
}

#[inline]
fn two_bits(source: u64) -> u64 {
    (1 << (source & 63)) | (1 << (source >> 6 & 63))
}
