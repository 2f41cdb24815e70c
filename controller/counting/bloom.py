"""Bloom filters: large sets of context digests in little memory.

Belongs here: one filter and how it is stored. Does not belong here: when contexts move into a
filter (`membership.py`). Stored fields, where `<prefix>` names one filter:

| field | content |
|---|---|
| `<prefix>` | `words keys`: the filter's size and how many keys are in it |
| `<prefix>/<part>` | 64 KiB of its bits |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

PART_WORDS = 8192  # 64 KiB of filter in a field
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

    @property
    def capacity(self) -> int:
        """How many keys it takes at the stated rate of false positives."""
        return int(len(self.words) / WORDS_PER_KEY)

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

    def fields(self, prefix: str) -> dict[str, bytes]:
        """Return all fields to be stored."""
        stored = self.words.astype("<u8", copy=False)
        fields = {prefix: b"%d %d" % (len(stored), self.keys)}
        for part, begin in enumerate(range(0, len(stored), PART_WORDS)):
            fields[f"{prefix}/{part}"] = stored[begin : begin + PART_WORDS].tobytes()
        return fields

    @classmethod
    def restored(cls, prefix: str, fields: Mapping[str, bytes]) -> BloomFilter:
        """Return the filter stored under `prefix`.

        Raises ValueError when a part is missing or of the wrong size.
        """
        words, keys = (int(number) for number in fields[prefix].split())
        if words.bit_count() != 1 or words > len(fields) * PART_WORDS or keys < 0:
            raise ValueError(f"filter {prefix!r} cannot have {words} words and {keys} keys")
        parts = [fields.get(f"{prefix}/{part}", b"") for part in range(-(-words // PART_WORDS))]
        bits = np.frombuffer(b"".join(parts), dtype="<u8").astype(np.uint64)
        if len(bits) != words:
            raise ValueError(f"filter {prefix!r} has {len(bits)} of {words} words")
        return cls(bits, keys)
