r"""Sets of contexts of one event partition: which contexts were exposed, failed or converted.

A context is known here by its 64-bit digest alone. All sets of a partition share one journal.

| field | content |
|---|---|
| `sets/<chunk>` | names of 64 sets as JSON: number -> `flag\|rollout\|visit\|kind` |
| `journal/<chunk>` | entries of the journal (`journal.py`) |
| `filter/<number>/<layer>` | Bloom filters of a set (`bloom.py`) |

The visit is `-` for exposures outside every visit.

A set is exact until it holds `exact_limit` contexts. Then those are sealed: they move into a Bloom
filter, which is written whole, and the exact part begins again. From then on it grows up to an
eighth of what the set's filters hold. So only the last chunk is rewritten often, a reload gives
back exactly what was there, and a false positive (at most 0.2 %) drops a context from both arms
alike. Chunks whose entries are mostly dead are cleaned, a few per save.

Does not belong here: what a membership means (`fold.py`), when it is saved (`saving.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from controller.counting.bloom import PART_WORDS, WORDS_PER_KEY, BloomFilter
from controller.counting.journal import CHUNK_ENTRIES, ENTRIES_PER_CHUNK, ENTRY, EntryLog

#: The digest of a context id in UTF-8: XXH3 with 64 bits and seed 0. It is stored, so it stays the
#: same over processes and releases. Two of 10^6 contexts share one with a probability below 3 in
#: 10^8.
digest_of = xxh3_64_intdigest

_CLEANED_PER_SAVE = 8  # chunks; more would make a save long, fewer could not keep up with new ones
_INSPECTED_PER_SAVE = 200  # chunks; one without a live entry costs some 10 µs
_CLEAN_FROM = 16  # chunks: with fewer the garbage is not worth a write
# Names in a field: 3 KB. At a start flags come by the thousand, and a save has few fields.
_SETS_PER_CHUNK = 64
_SEALED_EARLY_FROM = 1_024  # members; with fewer a filter would be mostly empty
# A new filter has room for so many times what is sealed into it. So a set has few filters, and each
# is written a few times.
_FILTER_ROOM = 8


class ContextSet:
    """A set of contexts: `exact` holds the newest ones, `filters` the rest."""

    __slots__ = ("exact", "filters", "is_full", "name", "number", "seal_at")

    def __init__(self, name: str, number: int, seal_at: int) -> None:
        """Start empty. At `seal_at` exact members those are sealed into a filter."""
        self.name = name
        self.number = number
        self.seal_at = seal_at
        self.exact: set[int] = set()
        self.filters: list[BloomFilter] = []
        self.is_full = False  # it takes no new contexts: the partition's budget is spent

    def __contains__(self, digest: int) -> bool:
        """Return whether the context is in the set."""
        if digest in self.exact:
            return True
        return bool(self.filters) and any(digest in layer for layer in self.filters)


class Memberships:
    """All sets of one partition, with what of them has changed since the last save."""

    def __init__(self, exact_limit: int) -> None:
        """Start empty.

        `exact_limit` is how many contexts a set holds exactly, at about 85 bytes of memory each.
        """
        self._exact_limit = exact_limit
        self._sets: dict[str, ContextSet] = {}
        self._by_number: dict[int, ContextSet] = {}
        self._next_number = 0
        self.new_names: list[ContextSet] = []
        self._dropped: set[int] = set()  # numbers whose stored names are to be removed
        # Sets at their limit. One is sealed per save, because one filter is a large write.
        self._full: list[ContextSet] = []
        self._sealed = 0  # members in filters
        self._live = 0  # journal entries of exact members, without those added since the last save
        self._garbage: list[str] = []  # fields to delete after the save that replaces them
        self.journal = EntryLog("journal")

    def set_of(self, name: str) -> ContextSet:
        """Return the set of that name, a new one if there is none."""
        contexts = self._sets.get(name)
        if contexts is None:
            contexts = self._sets[name] = self._by_number[self._next_number] = ContextSet(
                name, self._next_number, self._exact_limit
            )
            self._next_number += 1
            self.new_names.append(contexts)
        return contexts

    def names(self) -> list[str]:
        """Return the names of all sets."""
        return list(self._sets)

    def reserve(self, above: int) -> None:
        """Give new sets no number below `above`.

        Entries elsewhere may still carry numbers of sets that were dropped.
        """
        self._next_number = max(self._next_number, above)

    def add(self, contexts: ContextSet, digest: int) -> bool:
        """Put a context into a set; return whether it is new there."""
        exact = contexts.exact
        if digest in exact or contexts.is_full:
            return False
        if contexts.filters and any(digest in layer for layer in contexts.filters):
            return False
        exact.add(digest)
        self.journal.tail += (contexts.number, digest)
        if len(exact) == contexts.seal_at:
            self.seal_later(contexts)
        return True

    def seal_later(self, contexts: ContextSet) -> None:
        """Seal a set, whose exact part has reached its limit, with one of the next saves."""
        self._full.append(contexts)

    @property
    def changed(self) -> int:
        """About how many fields the next save will carry."""
        sealing = 0
        if self._full:
            next_sealed = self._full[-1]
            largest = max(
                _FILTER_ROOM * len(next_sealed.exact),
                *(layer.capacity for layer in next_sealed.filters),
                0,
            )
            sealing = 2 + int(2 * largest * WORDS_PER_KEY) // PART_WORDS
        # Numbers of new sets are consecutive.
        names = 2 + len(self.new_names) // _SETS_PER_CHUNK + len(self._dropped)
        return self.journal.changed + names + _CLEANED_PER_SAVE + sealing

    def drain_changes(self) -> tuple[dict[str, bytes], list[str]]:
        """Return the fields to write and the fields to delete after that.

        Both count as done from now on.
        """
        self._live += self.journal.added
        self._clean()
        fields = self.journal.drain_changes()
        fields |= self._names()
        if self._full:
            fields.update(self._seal(self._full.pop()))
        garbage = self._garbage
        self.new_names, self._dropped, self._garbage = [], set(), []
        return fields, garbage

    def _names(self) -> dict[str, bytes]:
        """Return the chunks of names that have changed.

        An empty chunk is kept, because its numbers may be given to new sets.
        """
        numbers = self._dropped.union(contexts.number for contexts in self.new_names)
        fields = {}
        for chunk in sorted({number // _SETS_PER_CHUNK for number in numbers}):
            members = map(
                self._by_number.get, range(chunk * _SETS_PER_CHUNK, (chunk + 1) * _SETS_PER_CHUNK)
            )
            fields[f"sets/{chunk}"] = msgspec.json.encode(
                {each.number: each.name for each in members if each is not None}
            )
        return fields

    def drop(self, flag_key: str, rollout_id: str) -> None:
        """Forget every set of a rollout that is over; its entries become garbage."""
        prefix = f"{flag_key}|{rollout_id}|"
        for name in [name for name in self._sets if name.startswith(prefix)]:
            contexts = self._sets.pop(name)
            del self._by_number[contexts.number]
            self._live -= len(contexts.exact)
            self._full = [full for full in self._full if full is not contexts]
            self.new_names = [new for new in self.new_names if new is not contexts]
            self._dropped.add(contexts.number)
            for layer, bloom_filter in enumerate(contexts.filters):
                self._sealed -= bloom_filter.keys
                self._garbage.extend(bloom_filter.fields(f"filter/{contexts.number}/{layer}"))

    def restore(self, fields: Mapping[str, bytes]) -> None:
        """Continue from the stored fields of the partition.

        Raises ValueError when we cannot have written them.
        """
        chunks: dict[int, bytes] = {}
        layers: list[tuple[int, int]] = []
        for field, value in fields.items():
            match field.split("/"):
                case "sets", _:
                    for number, name in msgspec.json.decode(value, type=dict[int, str]).items():
                        self._sets[name] = self._by_number[number] = ContextSet(
                            name, number, self._exact_limit
                        )
                case "journal", chunk:
                    chunks[int(chunk)] = value
                case "filter", owner, layer:
                    layers.append((int(owner), int(layer)))
        self._next_number = max(self._by_number, default=-1) + 1
        for set_number, position in sorted(layers):
            if set_number in self._by_number:
                self._by_number[set_number].filters.append(
                    BloomFilter.restored(f"filter/{set_number}/{position}", fields)
                )
        self.journal.restore(chunks)
        for numbers, digests in self.journal.arrays():
            self._restore_entries(numbers, digests)
        self._live = sum(len(contexts.exact) for contexts in self._sets.values())
        self._sealed = sum(
            layer.keys for contexts in self._sets.values() for layer in contexts.filters
        )
        for contexts in self._sets.values():
            self._update_limit(contexts)
        self._full = [
            contexts for contexts in self._sets.values() if len(contexts.exact) >= contexts.seal_at
        ]

    def _restore_entries(self, numbers: NDArray[np.uint32], digests: NDArray[np.uint64]) -> None:
        """Put journal entries into their sets, all entries of one set together."""
        order = np.argsort(numbers, kind="stable")
        numbers, digests = numbers[order], digests[order]
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
        self._next_number = max(self._next_number, int(numbers[-1]) + 1)

    # - budget -

    @property
    def load(self) -> int:
        """Memory in use, in exact memberships of about 100 bytes; in a filter it is an eighth."""
        return self._live + self.journal.added + self._sealed // _FILTER_ROOM

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
                keys = sum([layer.keys for layer in contexts.filters])
                sizes[flag_key] = sizes.get(flag_key, 0) + len(contexts.exact) + keys
        if not sizes:
            return None
        largest = max(sizes, key=sizes.__getitem__)
        for name, contexts in self._sets.items():
            if name.startswith(f"{largest}|") and not name.endswith("|errors"):
                contexts.is_full = True
        return largest

    def _seal(self, contexts: ContextSet) -> dict[str, bytes]:
        """Move the exact part of a set into its last filter, or a new one; return the fields."""
        count = len(contexts.exact)
        if (
            not contexts.filters
            or contexts.filters[-1].keys + count > contexts.filters[-1].capacity
        ):
            contexts.filters.append(BloomFilter.for_keys(_FILTER_ROOM * count))
        contexts.filters[-1].update(contexts.exact, count)
        contexts.exact.clear()
        self._live -= count
        self._sealed += count
        self._update_limit(contexts)
        return contexts.filters[-1].fields(f"filter/{contexts.number}/{len(contexts.filters) - 1}")

    def _update_limit(self, contexts: ContextSet) -> None:
        """Let the exact part grow with the filters.

        So a filter is not written again for a few new members.
        """
        sealed = sum(layer.keys for layer in contexts.filters)
        contexts.seal_at = max(self._exact_limit, sealed // _FILTER_ROOM)

    def _clean(self) -> None:
        """Rewrite the oldest chunks when less than half of all entries are alive."""
        chunks = self.journal.chunks
        if chunks < _CLEAN_FROM and self._live:
            return
        if 2 * self._live >= chunks * ENTRIES_PER_CHUNK:
            return
        cleaned = 0
        for chunk, content in self.journal.remove_oldest(_INSPECTED_PER_SAVE):
            self._garbage.append(self.journal.field(chunk))
            entries = np.frombuffer(content, dtype=CHUNK_ENTRIES)
            if self._by_number.keys().isdisjoint(entries["number"].tolist()):
                continue  # all of rollouts that are over
            for number, digest in ENTRY.iter_unpack(content):
                contexts = self._by_number.get(number)
                if contexts is not None and digest in contexts.exact:
                    self.journal.tail += (number, digest)
            cleaned += 1
            if cleaned == _CLEANED_PER_SAVE:
                break


def _exact_members(contexts: ContextSet) -> int:
    return len(contexts.exact)
