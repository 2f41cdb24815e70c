"""Sets of contexts of one partition: which contexts were exposed, failed or converted.

A context is known here by its 64-bit digest alone. A set is named
`<flag>|<rollout id>|<visit>|<kind>`, with the visit `-` for exposures outside every visit, and has
a number.

A set is exact until it holds `exact_limit` contexts. Then those are sealed: they move into a Bloom
filter, and the exact part begins again. From then on it grows up to an eighth of what the set's
filters hold, so that a filter is not written again for a few new members. A false positive (at most
0.2 %) drops a context from both arms alike.

Does not belong here: what a membership means (`events.py`), what is stored of sets
(`layout/stored_sets.py`).
"""

from __future__ import annotations

import struct

import numpy as np
from xxhash import xxh3_64_intdigest

from controller.counting.folding.bloom import BloomFilter
from controller.counting.folding.difference import SealedSet

#: The digest of a context id in UTF-8: XXH3 with 64 bits and seed 0. It is stored, so it stays the
#: same over processes and releases. Two of 10^6 contexts share one with a probability below 3 in
#: 10^8.
digest_of = xxh3_64_intdigest

#: A set number and a context's digest: one membership, as it is journaled.
ENTRY = struct.Struct("<IQ")
ENTRIES = np.dtype([("number", "<u4"), ("digest", "<u8")])

_SEALED_EARLY_FROM = 1_024  # members; with fewer a filter would be mostly empty
# A new filter has room for so many times what is sealed into it. So a set has few filters, and each
# is written a few times.
FILTER_ROOM = 8


class ContextSet:
    """A set of contexts: `exact` holds the newest ones, `filters` the rest."""

    __slots__ = ("exact", "filters", "is_full", "name", "number", "seal_at")

    def __init__(self, name: str, number: int, seal_at: int) -> None:
        """Start empty. At `seal_at` exact members those are sealed into a filter."""
        self.name = name
        self.number = number
        self.seal_at = seal_at
        self.exact: set[int] = set()
        self.filters: tuple[BloomFilter, ...] = ()
        self.is_full = False  # it takes no new contexts: the partition's budget is spent

    def __contains__(self, digest: int) -> bool:
        """Return whether the context is in the set."""
        if digest in self.exact:
            return True
        return bool(self.filters) and any(digest in layer for layer in self.filters)

    @property
    def keys(self) -> int:
        """How many contexts are in its filters."""
        return sum([layer.keys for layer in self.filters])


class ContextSets:
    """All sets of one partition, with what of them has changed since the last save."""

    def __init__(self, exact_limit: int) -> None:
        """Start empty.

        `exact_limit` is how many contexts a set holds exactly, at about 85 bytes of memory each.
        """
        self._exact_limit = exact_limit
        self._sets: dict[str, ContextSet] = {}
        self._by_number: dict[int, ContextSet] = {}
        self._next_number = 0
        self.new: list[ContextSet] = []  # since the last save
        # Sets at their limit. One is sealed per save, because one filter is a large write.
        self._full: list[ContextSet] = []
        self._added: list[int] = []  # number and digest of each new membership, flat
        self._live = 0  # exact members, without those added since the last save
        self._sealed = 0  # members in filters

    def set_of(self, name: str) -> ContextSet:
        """Return the set of that name, a new one if there is none."""
        contexts = self._sets.get(name)
        if contexts is None:
            contexts = self.place(self._next_number, name)
            self.new.append(contexts)
        return contexts

    def place(self, number: int, name: str) -> ContextSet:
        """Return a set that is empty, with a number that it is known by."""
        contexts = ContextSet(name, number, self._exact_limit)
        self._sets[name] = self._by_number[number] = contexts
        self.reserve(number + 1)
        return contexts

    def reserve(self, above: int) -> None:
        """Give new sets no number below `above`.

        Entries elsewhere may still carry numbers of sets that were dropped.
        """
        self._next_number = max(self._next_number, above)

    def names(self) -> list[str]:
        """Return the names of all sets."""
        return list(self._sets)

    def add(self, contexts: ContextSet, digest: int) -> bool:
        """Put a context into a set; return whether it is new there."""
        if digest in contexts.exact or contexts.is_full:
            return False
        if contexts.filters and digest in contexts:
            return False
        self.put(contexts, digest)
        return True

    def put(self, contexts: ContextSet, digest: int) -> None:
        """Put a context that is not in a set into it; the set is not full."""
        exact = contexts.exact
        exact.add(digest)
        self._added += (contexts.number, digest)
        if len(exact) == contexts.seal_at:
            self._full.append(contexts)

    # - what has changed -

    @property
    def added(self) -> int:
        """How many memberships are new since the last save."""
        return len(self._added) // 2

    @property
    def new_names(self) -> int:
        """How many sets are new since the last save."""
        return len(self.new)

    @property
    def sealing_capacity(self) -> int:
        """How many keys the filter has room for that `seal_next` will change; 0 for none."""
        if not self._full:
            return 0
        contexts = self._full[-1]
        capacities = [layer.capacity for layer in contexts.filters]
        return max([FILTER_ROOM * len(contexts.exact), *capacities])

    def drain(self) -> tuple[list[tuple[int, str]], bytes]:
        """Return new sets and new members; they count as saved from now on."""
        names = [(contexts.number, contexts.name) for contexts in self.new]
        members = pack(self._added)
        self._live += self.added
        self.new, self._added = [], []
        return names, members

    def live(self, entries: bytes) -> bytes:
        """Return those of some entries whose context is an exact member."""
        alive: list[int] = []
        for number, digest in ENTRY.iter_unpack(entries):
            contexts = self._by_number.get(number)
            if contexts is not None and digest in contexts.exact:
                alive += (number, digest)
        return pack(alive)

    def seal_next(self) -> SealedSet | None:
        """Seal one set that is at its limit, None when none is.

        What is exact moves into its last filter, or into a new one.
        """
        if not self._full:
            return None
        contexts = self._full.pop()
        count = len(contexts.exact)
        last = contexts.filters[-1] if contexts.filters else None
        if last is None or last.keys + count > last.capacity:
            last = BloomFilter.for_keys(FILTER_ROOM * count)
            contexts.filters += (last,)
        last.update(contexts.exact, count)
        contexts.exact.clear()
        self._live -= count
        self._sealed += count
        self._update_limit(contexts)
        return SealedSet(contexts.number, len(contexts.filters) - 1, last.keys, last.to_bytes())

    def _update_limit(self, contexts: ContextSet) -> None:
        contexts.seal_at = max(self._exact_limit, contexts.keys // FILTER_ROOM)

    def drop(self, flag_key: str, rollout_id: str) -> None:
        """Forget every set of a rollout."""
        prefix = f"{flag_key}|{rollout_id}|"
        for name in [name for name in self._sets if name.startswith(prefix)]:
            contexts = self._sets.pop(name)
            del self._by_number[contexts.number]
            self._live -= len(contexts.exact)
            self._sealed -= contexts.keys
            self._full = [full for full in self._full if full is not contexts]
            self.new = [new for new in self.new if new is not contexts]

    # - restoring: sets first, then filters, then members -

    def add_filter(self, number: int, words: bytes, keys: int) -> None:
        """Give a set its next filter."""
        contexts = self._by_number.get(number)
        if contexts is not None:
            contexts.filters += (BloomFilter.of(words, keys),)

    def add_members(self, entries: bytes) -> None:
        """Put stored entries into their sets, all entries of one set together."""
        stored = np.frombuffer(entries, dtype=ENTRIES)
        if not len(stored):
            return
        order = np.argsort(stored["number"], kind="stable")
        numbers, digests = stored["number"][order], stored["digest"][order].astype(np.uint64)
        begins = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()]
        for begin, end in zip(begins, [*begins[1:], len(numbers)], strict=True):
            contexts = self._by_number.get(int(numbers[begin]))
            if contexts is None:
                continue
            some = digests[begin:end]
            # A context in a filter was journaled before it went there. A false positive of a filter
            # was never journaled.
            for layer in contexts.filters:
                some = some[~layer.has(some)]
            contexts.exact.update(some.tolist())
        # A new set may get a dropped set's number only when no entry with it is left.
        self.reserve(int(numbers[-1]) + 1)

    def end_restore(self) -> None:
        """Find the sets that are at their limit, after everything was restored."""
        self._live = sum([len(contexts.exact) for contexts in self._sets.values()])
        self._sealed = sum([contexts.keys for contexts in self._sets.values()])
        for contexts in self._sets.values():
            self._update_limit(contexts)
        self._full = [one for one in self._sets.values() if len(one.exact) >= one.seal_at]

    # - budget -

    @property
    def exact_members(self) -> int:
        """How many contexts are exact members, over all sets."""
        return self._live + self.added

    @property
    def load(self) -> int:
        """Memory in use, in exact memberships of about 100 bytes; in a filter it is an eighth."""
        return self.exact_members + self._sealed // FILTER_ROOM

    def seal_early(self) -> bool:
        """Let the next save seal the largest set; return False when none is large enough."""
        if self._full:
            return True
        largest = max(self._sets.values(), key=_exact_members, default=None)
        if largest is None or len(largest.exact) < _SEALED_EARLY_FROM:
            return False
        self._full.append(largest)
        return True

    def close_largest(self) -> str | None:
        """Close the sets of the flag with most contexts to new ones; return the flag or None.

        Sets of contexts with an error stay open: without them a failing release would look better.
        """
        sizes: dict[str, int] = {}
        for name, contexts in self._sets.items():
            if not contexts.is_full and not name.endswith("|errors"):
                flag_key = name.split("|", 1)[0]
                sizes[flag_key] = sizes.get(flag_key, 0) + len(contexts.exact) + contexts.keys
        if not sizes:
            return None
        largest = max(sizes, key=sizes.__getitem__)
        for name, contexts in self._sets.items():
            if name.startswith(f"{largest}|") and not name.endswith("|errors"):
                contexts.is_full = True
        return largest


def pack(flat: list[int]) -> bytes:
    """Return entries of numbers and digests in turn, 12 bytes each."""
    numbers = np.array(flat, dtype=np.uint64)
    entries = np.empty(len(flat) // 2, dtype=ENTRIES)
    entries["number"], entries["digest"] = numbers[::2], numbers[1::2]
    return entries.tobytes()


def _exact_members(contexts: ContextSet) -> int:
    return len(contexts.exact)
