"""Bloom filters: large sets of context digests in little memory.

Belongs here: one filter. Does not belong here: when contexts move into it (`context_sets.py`), how
it is stored (`layout/stored_sets.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

WORDS_PER_KEY = 0.25  # 16 bits per key
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads the digest a second time
_ALL_BITS = 0xFFFFFFFFFFFFFFFF
_TWO_BITS = tuple((1 << (i & 63)) | (1 << (i >> 6)) for i in range(4096))
_TWO_BITS_ARRAY = np.array(_TWO_BITS, dtype=np.uint64)


class BloomFilter:
    """A Bloom filter: four bits in each of two 64-bit words per key.

    When full it has at most 0.2 % false positives. It is blocked, because in plain Python each
    touched word costs time. It has two words per key, because with one alone crowded words spoil
    the rate. Source: F. Putze, P. Sanders, J. Singler, Cache-, Hash- and
    Space-Efficient Bloom Filters, WEA 2007.
    """

    __slots__ = ("_view", "keys", "words")

    def __init__(self, words: NDArray[np.uint64], keys: int) -> None:
        """Wrap `words` (a power of two of them), into which `keys` keys have gone."""
        self.words = words
        self.keys = keys
        self._view = words.data  # a scalar read from it costs a third of one from the array

    @classmethod
    def for_keys(cls, capacity: int) -> BloomFilter:
        """Return an empty filter with room for at least `capacity` keys."""
        words = 1 << max(10, (int(capacity * WORDS_PER_KEY) - 1).bit_length())
        return cls(np.zeros(words, dtype=np.uint64), 0)

    @classmethod
    def of(cls, words: bytes, keys: int) -> BloomFilter:
        """Return the filter with these words, little-endian."""
        return cls(np.frombuffer(words, dtype="<u8").astype(np.uint64), keys)

    @property
    def capacity(self) -> int:
        """How many keys it takes at the stated rate of false positives."""
        return int(len(self.words) / WORDS_PER_KEY)

    def to_bytes(self) -> bytes:
        """Return its words, little-endian."""
        return self.words.astype("<u8", copy=False).tobytes()

    def __contains__(self, digest: int) -> bool:
        """Return whether `digest` was added; sometimes True for one that was not."""
        view = self._view
        last = len(view) - 1
        spread = digest * _MULTIPLIER & _ALL_BITS
        bits = _TWO_BITS[spread >> 32 & 4095] | _TWO_BITS[spread >> 44 & 4095]
        if view[digest & last] & bits != bits:
            return False
        bits = _TWO_BITS[digest >> 32 & 4095] | _TWO_BITS[digest >> 44 & 4095]
        return view[spread & last] & bits == bits

    def has(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return the same as `in` for each digest."""
        last = np.uint64(len(self.words) - 1)
        low, middle, high = np.uint64(4095), np.uint64(32), np.uint64(44)
        spread = digests * np.uint64(_MULTIPLIER)
        contained = np.ones(len(digests), dtype=np.bool_)
        for at, source in ((digests, spread), (spread, digests)):
            bits = _TWO_BITS_ARRAY[source >> middle & low] | _TWO_BITS_ARRAY[source >> high & low]
            contained &= self.words[at & last] & bits == bits
        return contained

    def update(self, digests: Iterable[int], count: int) -> None:
        """Add `count` digests. With numpy 100,000 take about 10 ms."""
        last = np.uint64(len(self.words) - 1)
        low, middle, high = np.uint64(4095), np.uint64(32), np.uint64(44)
        digest = np.fromiter(digests, dtype=np.uint64, count=count)
        spread = digest * np.uint64(_MULTIPLIER)
        for at, source in ((digest, spread), (spread, digest)):
            bits = _TWO_BITS_ARRAY[source >> middle & low] | _TWO_BITS_ARRAY[source >> high & low]
            np.bitwise_or.at(self.words, at & last, bits)
        self.keys += count
