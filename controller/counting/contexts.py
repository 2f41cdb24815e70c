r"""Which contexts were seen where.

Membership sets and recent exposures of one event partition, with what is stored of them.

A context is known here by its 64-bit digest alone. All sets of a partition share one append-only
journal of (set, digest) entries, so that a save carries each new membership once, in one or two
fields, however many flags there are:

| field | what stands in it |
|---|---|
| `sets/<chunk>` | names of 64 sets as JSON: number -> `flag\|rollout\|visit\|kind`, visit `-` for exposures in no visit |
| `journal/<chunk>` | up to 256 entries of 12 bytes, little-endian: set number (u32), digest (u64) |
| `filter/<number>/<layer>` | `words keys`: size of a Bloom filter and how many keys are in it |
| `filter/<number>/<layer>/<part>` | 64 KiB of its bits |
| `recent/<generation>/<chunk>` | entries like the journal's: who was exposed in this slice of event time, in order |

A set is exact until it holds `exact_limit` contexts; then those go into a Bloom filter, which is
written whole, and the set begins anew in front of it, from then on up to an eighth of what its
filters hold. So nothing is rewritten often but the last chunk, a reload gives back exactly what was
there, and a false positive (at most 0.2 %) drops a context from both arms alike. Chunks whose
entries are mostly dead are cleaned, a few per save.

Does not belong here: what a membership means (`counting.py`), when things are saved (`ingest.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from time import sleep
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

# : The digest of a context id in UTF-8. Stable over processes and releases, because digests are
# stored: XXH3 with 64 bits and : seed 0. Two of 10^6 contexts share one with a probability below 3
# in 10^8.
digest_of = xxh3_64_intdigest

_ENTRY = struct.Struct("<IQ")
# 3 KiB: what a quiet partition rewrites per save at most, and few enough fields for a busy one
_ENTRIES_PER_CHUNK = 256
_NUMBERS_PER_CHUNK = 2 * _ENTRIES_PER_CHUNK
_FULL_CHUNK = struct.Struct("<" + "IQ" * _ENTRIES_PER_CHUNK)
_CHUNK_ENTRIES = np.dtype([("number", "<u4"), ("digest", "<u8")])
# a few ms, as the interpreter's own interval; handing over more often would wait that long for each
# turn
_CHUNKS_AT_ONCE = 128
_CLEANED_PER_SAVE = (
    8  # chunks; more would make a save long, fewer would never catch up with one new chunk per save
)
_LOOKED_AT_PER_SAVE = 200  # chunks; one with nothing alive costs some 10 µs
_CLEAN_FROM = 16  # chunks: below that the garbage is not worth a write

_SETS_PER_CHUNK = (
    64  # names in a field: 3 KB; flags come by the thousand at a start, and a save has few fields
)

_SEALED_EARLY_FROM = 1_024  # members; of fewer a filter would be mostly empty

_PART_WORDS = 8192  # 64 KiB of filter in a field
_WORDS_PER_KEY = 0.25  # 16 bits per key
# a new filter takes so many times what is sealed into it: few filters to ask, each written a few
# times
_FILTER_ROOM = 8
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads the digest a second time
_NO_END = 2**62 - 1
_ALL_BITS = 0xFFFFFFFFFFFFFFFF
_TWO_BITS = tuple((1 << (i & 63)) | (1 << (i >> 6)) for i in range(4096))
_TWO_BITS_ARRAY = np.array(_TWO_BITS, dtype=np.uint64)


class EntryLog:
    """Append-only (number, digest) entries in chunks, of which those changed since the last save are known."""

    __slots__ = ("_chunks", "_next", "_prefix", "_saved", "tail")

    def __init__(self, prefix: str) -> None:
        """Start empty; chunk `n` is stored in the field `<prefix>/<n>`."""
        self._prefix = prefix
        self._next = 0  # the chunk being filled
        self._chunks: dict[int, bytes] = {}
        self._saved = 0  # of the tail's numbers
        # : Number and digest of each entry after the last full chunk, flat. Add with `tail +=
        # (number, digest)`: packing them : one by one would cost four times as much.
        self.tail: list[int] = []

    @property
    def changed(self) -> int:
        """How many chunks have changed."""
        return 0 if len(self.tail) == self._saved else 1 + len(self.tail) // _NUMBERS_PER_CHUNK

    @property
    def added(self) -> int:
        """How many entries were added since the last save."""
        return (len(self.tail) - self._saved) // 2

    @property
    def chunks(self) -> int:
        """How many chunks there are, as of the last save."""
        return len(self._chunks)

    @property
    def entries_kept(self) -> int:
        """How many entries there are, about."""
        full = len(self._chunks) - (self._next in self._chunks)
        return full * _ENTRIES_PER_CHUNK + len(self.tail) // 2

    def take_changed(self) -> dict[str, bytes]:
        """Return the fields to write; they count as written from here on."""
        fields: dict[str, bytes] = {}
        if len(self.tail) == self._saved:
            return fields
        begin = 0
        while len(self.tail) - begin >= _NUMBERS_PER_CHUNK:
            packed = _FULL_CHUNK.pack(*self.tail[begin : begin + _NUMBERS_PER_CHUNK])
            fields[self.field(self._next)] = self._chunks[self._next] = packed
            self._next += 1
            begin += _NUMBERS_PER_CHUNK
        if begin:
            del self.tail[:begin]
        if self.tail:
            packed = struct.pack("<" + "IQ" * (len(self.tail) // 2), *self.tail)
            fields[self.field(self._next)] = self._chunks[self._next] = packed
        self._saved = len(self.tail)
        return fields

    def field(self, chunk: int) -> str:
        """Return the name of a chunk's field."""
        return f"{self._prefix}/{chunk}"

    def fields(self) -> list[str]:
        """Return the names of all fields that were written."""
        return [self.field(chunk) for chunk in self._chunks]

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        """Take over stored chunks.

        What follows goes into a new chunk, so that none is written by two owners.
        """
        self._chunks = {chunk: chunks[chunk] for chunk in sorted(chunks)}
        self._next = max(chunks, default=-1) + 1

    def arrays(self) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint64]]]:
        """Yield numbers and digests of all entries that were written, oldest first, in slices.

        Raises ValueError for a chunk that is cut. Lets other threads run now and then: a thread
        that restores a million contexts would keep the event loop waiting, because compiled code
        does not hand over by itself as the interpreter does.
        """
        chunks = list(self._chunks.values())
        for begin in range(0, len(chunks), _CHUNKS_AT_ONCE):
            if begin:
                sleep(0)
            some = chunks[begin : begin + _CHUNKS_AT_ONCE]
            for chunk in some:
                if len(chunk) % _ENTRY.size:
                    raise ValueError(f"a chunk of {self._prefix} has {len(chunk)} bytes: it is cut")
            entries = np.frombuffer(b"".join(some), dtype=_CHUNK_ENTRIES)
            if len(entries):
                yield entries["number"].astype(np.uint32), entries["digest"].astype(np.uint64)

    def entries(self) -> Iterator[tuple[int, int]]:
        """Yield all entries that were written, oldest first. Raises ValueError for a cut chunk."""
        for numbers, digests in self.arrays():
            yield from zip(numbers.tolist(), digests.tolist(), strict=True)

    def read_on(self, place: tuple[int, int]) -> tuple[list[int], tuple[int, int]]:
        """Return numbers and digests, flat, from `place` to the end of its chunk.

        And the place to go on at.

        A place is (chunk, entries before it in the chunk); nothing comes at the end of the log.
        Only for a log whose chunks stay where they are.
        """
        chunk, before = place
        while (
            chunk < self._next and before >= _ENTRIES_PER_CHUNK
        ):  # what was the tail has been cut into chunks
            chunk, before = chunk + 1, before - _ENTRIES_PER_CHUNK
        if chunk == self._next:
            return self.tail[2 * before :], (chunk, len(self.tail) // 2)
        content = self._chunks.get(chunk, b"")
        return list(chain.from_iterable(_ENTRY.iter_unpack(content[before * _ENTRY.size :]))), (
            chunk + 1,
            0,
        )

    def take_oldest(self, most: int) -> Iterator[tuple[int, bytes]]:
        """Take the oldest full chunks out one by one, at most `most`; never the one being filled.

        Yields their numbers and contents; who stops early leaves the others where they are.
        """
        for chunk in [chunk for chunk in self._chunks if chunk != self._next][:most]:
            yield chunk, self._chunks.pop(chunk)


class Filter:
    """A Bloom filter: four bits in each of two 64-bit words per key.

    At most 0.2 % false positives when full.

    Blocked, because a test in plain Python costs what it touches; two words, because one alone lets
    crowded words spoil the rate. Source: F. Putze, P. Sanders, J. Singler, Cache-, Hash- and
    Space-Efficient Bloom Filters, WEA 2007.
    """

    __slots__ = ("_view", "keys", "words")

    def __init__(self, words: NDArray[np.uint64], keys: int) -> None:
        """Wrap `words` (a power of two of them), into which `keys` keys have gone."""
        self.words = words
        self.keys = keys
        self._view = words.data  # a scalar read from it costs a third of one from the array

    @classmethod
    def for_keys(cls, capacity: int) -> Filter:
        """Return an empty filter with room for at least `capacity` keys."""
        words = 1 << max(10, (int(capacity * _WORDS_PER_KEY) - 1).bit_length())
        return cls(np.zeros(words, dtype=np.uint64), 0)

    @property
    def capacity(self) -> int:
        """Keys it takes at the stated rate."""
        return int(len(self.words) / _WORDS_PER_KEY)

    def __contains__(self, digest: int) -> bool:
        """Whether `digest` was added, or looks so."""
        view = self._view
        last = len(view) - 1
        spread = digest * _MULTIPLIER & _ALL_BITS
        bits = _TWO_BITS[spread >> 32 & 4095] | _TWO_BITS[spread >> 44 & 4095]
        if view[digest & last] & bits != bits:
            return False
        bits = _TWO_BITS[digest >> 32 & 4095] | _TWO_BITS[digest >> 44 & 4095]
        return view[spread & last] & bits == bits

    def has(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return for each digest whether it was added, or looks so."""
        last = np.uint64(len(self.words) - 1)
        low, middle, high = np.uint64(4095), np.uint64(32), np.uint64(44)
        spread = digests * np.uint64(_MULTIPLIER)
        found = np.ones(len(digests), dtype=np.bool_)
        for at, source in ((digests, spread), (spread, digests)):
            bits = _TWO_BITS_ARRAY[source >> middle & low] | _TWO_BITS_ARRAY[source >> high & low]
            found &= self.words[at & last] & bits == bits
        return found

    def update(self, digests: Iterable[int], count: int) -> None:
        """Add `count` digests. 100,000 take about 10 ms: the reason for numpy here."""
        last = np.uint64(len(self.words) - 1)
        low, middle, high = np.uint64(4095), np.uint64(32), np.uint64(44)
        digest = np.fromiter(digests, dtype=np.uint64, count=count)
        spread = digest * np.uint64(_MULTIPLIER)
        for at, source in ((digest, spread), (spread, digest)):
            bits = _TWO_BITS_ARRAY[source >> middle & low] | _TWO_BITS_ARRAY[source >> high & low]
            np.bitwise_or.at(self.words, at & last, bits)
        self.keys += count

    def fields(self, prefix: str) -> dict[str, bytes]:
        """Return everything to be stored."""
        stored = self.words.astype("<u8", copy=False)
        fields = {prefix: b"%d %d" % (len(stored), self.keys)}
        for part, begin in enumerate(range(0, len(stored), _PART_WORDS)):
            fields[f"{prefix}/{part}"] = stored[begin : begin + _PART_WORDS].tobytes()
        return fields

    @classmethod
    def restored(cls, prefix: str, fields: Mapping[str, bytes]) -> Filter:
        """Return the filter stored under `prefix`.

        Raises ValueError when a part is missing or of the wrong size.
        """
        words, keys = (int(number) for number in fields[prefix].split())
        if words.bit_count() != 1 or words > len(fields) * _PART_WORDS or keys < 0:
            raise ValueError(f"filter {prefix!r} cannot have {words} words and {keys} keys")
        parts = [fields.get(f"{prefix}/{part}", b"") for part in range(-(-words // _PART_WORDS))]
        bits = np.frombuffer(b"".join(parts), dtype="<u8").astype(np.uint64)
        if len(bits) != words:
            raise ValueError(f"filter {prefix!r} has {len(bits)} of {words} words")
        return cls(bits, keys)


class ContextSet:
    """A set of contexts: `exact` holds the newest, `filters` what did not fit."""

    __slots__ = ("exact", "filters", "is_full", "name", "number", "seal_at")

    def __init__(self, name: str, number: int, seal_at: int) -> None:
        """Start empty. At `seal_at` exact members those go into a filter."""
        self.name = name
        self.number = number
        self.seal_at = seal_at
        self.exact: set[int] = set()
        self.filters: list[Filter] = []
        self.is_full = False  # by the partition's budget: it takes no new contexts

    def __contains__(self, digest: int) -> bool:
        """Whether the context is in the set."""
        if digest in self.exact:
            return True
        return bool(self.filters) and any(digest in layer for layer in self.filters)


class Memberships:
    """All sets of one partition, their journal.

    And what of them has changed since the last save.
    """

    def __init__(self, exact_limit: int) -> None:
        """Start empty. `exact_limit` is how many contexts a set holds exactly.

        About 85 bytes each in memory.
        """
        self._exact_limit = exact_limit
        self._sets: dict[str, ContextSet] = {}
        self._by_number: dict[int, ContextSet] = {}
        self._next_number = 0
        self.new_names: list[ContextSet] = []
        self._dropped: set[int] = set()  # numbers whose names are to be taken out of what is stored
        self._full: list[
            ContextSet
        ] = []  # at the limit; one of them is sealed per save, as one filter is a large write
        self._sealed = 0  # members in filters
        self._live = (
            0  # journal entries that still say something, without those added since the last save
        )
        self._garbage: list[str] = []  # fields to delete once what replaces them is saved
        self.journal = EntryLog("journal")

    def named(self, name: str) -> ContextSet:
        """Return the set of that name, a new one if there is none."""
        found = self._sets.get(name)
        if found is None:
            found = self._sets[name] = self._by_number[self._next_number] = ContextSet(
                name, self._next_number, self._exact_limit
            )
            self._next_number += 1
            self.new_names.append(found)
        return found

    def name_of(self, number: int) -> str | None:
        """Return the name of set `number`, None when it was dropped."""
        found = self._by_number.get(number)
        return None if found is None else found.name

    def names(self) -> list[str]:
        """Return the names of all sets."""
        return list(self._sets)

    def reserve(self, above: int) -> None:
        """Give new sets no number below `above`.

        Entries elsewhere may still carry those of sets that were dropped.
        """
        self._next_number = max(self._next_number, above)

    def add(self, contexts: ContextSet, digest: int) -> bool:
        """Put a context into a set; return whether it was not in there yet."""
        exact = contexts.exact
        if digest in exact or contexts.is_full:
            return False
        if contexts.filters and any(digest in layer for layer in contexts.filters):
            return False
        exact.add(digest)
        self.journal.tail += (contexts.number, digest)
        if len(exact) == contexts.seal_at:
            self.note_full(contexts)
        return True

    def note_full(self, contexts: ContextSet) -> None:
        """Seal a set whose exact part has reached its limit, with one of the next saves."""
        self._full.append(contexts)

    @property
    def changed(self) -> int:
        """How many fields the next save will carry, about."""
        sealing = 0
        if self._full:
            next_sealed = self._full[-1]
            largest = max(
                _FILTER_ROOM * len(next_sealed.exact),
                *(layer.capacity for layer in next_sealed.filters),
                0,
            )
            sealing = 2 + int(2 * largest * _WORDS_PER_KEY) // _PART_WORDS
        names = (
            2 + len(self.new_names) // _SETS_PER_CHUNK + len(self._dropped)
        )  # new numbers follow one another
        return self.journal.changed + names + _CLEANED_PER_SAVE + sealing

    def take_changed(self) -> tuple[dict[str, bytes], list[str]]:
        """Return the fields to write and the fields to delete after that.

        They count as done from here on.
        """
        self._live += self.journal.added
        self._clean()
        fields = self.journal.take_changed()
        fields |= self._names()
        if self._full:
            fields.update(self._seal(self._full.pop()))
        garbage = self._garbage
        self.new_names, self._dropped, self._garbage = [], set(), []
        return fields, garbage

    def _names(self) -> dict[str, bytes]:
        """Return the chunks of names that have changed.

        An empty one is kept: its numbers may be given out again.
        """
        numbers = self._dropped.union(contexts.number for contexts in self.new_names)
        fields = {}
        for chunk in sorted({number // _SETS_PER_CHUNK for number in numbers}):
            held = map(
                self._by_number.get, range(chunk * _SETS_PER_CHUNK, (chunk + 1) * _SETS_PER_CHUNK)
            )
            fields[f"sets/{chunk}"] = msgspec.json.encode(
                {each.number: each.name for each in held if each is not None}
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
            for layer, held in enumerate(contexts.filters):
                self._sealed -= held.keys
                self._garbage.extend(held.fields(f"filter/{contexts.number}/{layer}"))

    def restore(self, fields: Mapping[str, bytes]) -> None:
        """Take over what is stored for the partition.

        Raises ValueError when it cannot have been written by us.
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
                    Filter.restored(f"filter/{set_number}/{position}", fields)
                )
        self.journal.restore(chunks)
        for numbers, digests in self.journal.arrays():
            self._restore_entries(numbers, digests)
        self._live = sum(len(held.exact) for held in self._sets.values())
        self._sealed = sum(layer.keys for held in self._sets.values() for layer in held.filters)
        for held in self._sets.values():
            self._note_size(held)
        self._full = [held for held in self._sets.values() if len(held.exact) >= held.seal_at]

    def _restore_entries(self, numbers: NDArray[np.uint32], digests: NDArray[np.uint64]) -> None:
        """Put journal entries into their sets, a set's together."""
        order = np.argsort(numbers, kind="stable")
        numbers, digests = numbers[order], digests[order]
        begins = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()]
        for begin, end in zip(begins, [*begins[1:], len(numbers)], strict=True):
            contexts = self._by_number.get(int(numbers[begin]))
            if contexts is None:
                continue
            some = digests[begin:end]
            # What is in a filter was journalled before it went there; a context that looks like one
            # in a filter never was.
            for layer in contexts.filters:
                some = some[~layer.has(some)]
            contexts.exact.update(some.tolist())
        # A dropped set's number may be given out again only when no entry is left that would then
        # mean another set.
        self._next_number = max(self._next_number, int(numbers[-1]) + 1)

    # - budget -

    @property
    def load(self) -> int:
        """Memory in use, in exact memberships of about 100 bytes.

        One in a filter takes an eighth.
        """
        return self._live + self.journal.added + self._sealed // _FILTER_ROOM

    def seal_early(self) -> bool:
        """Let the next save seal the largest set that is worth it; return whether there is one."""
        if self._full:
            return True
        largest = max(self._sets.values(), key=_exact_members, default=None)
        if largest is None or len(largest.exact) < _SEALED_EARLY_FROM:
            return False
        self._full.append(largest)
        return True

    def close_largest(self) -> str | None:
        """Let the sets of the flag with most contexts take no new ones.

        Return the flag, None for none.

        Contexts with an error are always taken: without them a failing release would look better.
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
        """Move the exact part of a set into its last filter.

        Or into a new one when that is full; return the fields.
        """
        count = len(contexts.exact)
        if (
            not contexts.filters
            or contexts.filters[-1].keys + count > contexts.filters[-1].capacity
        ):
            contexts.filters.append(Filter.for_keys(_FILTER_ROOM * count))
        contexts.filters[-1].update(contexts.exact, count)
        contexts.exact.clear()
        self._live -= count
        self._sealed += count
        self._note_size(contexts)
        return contexts.filters[-1].fields(f"filter/{contexts.number}/{len(contexts.filters) - 1}")

    def _note_size(self, contexts: ContextSet) -> None:
        """Let the exact part grow with the filters.

        So that a filter is not written again for a few new members.
        """
        sealed = sum(layer.keys for layer in contexts.filters)
        contexts.seal_at = max(self._exact_limit, sealed // _FILTER_ROOM)

    def _clean(self) -> None:
        """Rewrite the oldest chunks when less than half of all entries are alive."""
        chunks = self.journal.chunks
        if chunks < _CLEAN_FROM and self._live:
            return
        if 2 * self._live >= chunks * _ENTRIES_PER_CHUNK:
            return
        cleaned = 0
        for chunk, content in self.journal.take_oldest(_LOOKED_AT_PER_SAVE):
            self._garbage.append(self.journal.field(chunk))
            entries = np.frombuffer(content, dtype=_CHUNK_ENTRIES)
            if self._by_number.keys().isdisjoint(entries["number"].tolist()):
                continue  # of rollouts that are over: nothing to write again
            for number, digest in _ENTRY.iter_unpack(content):
                contexts = self._by_number.get(number)
                if contexts is not None and digest in contexts.exact:
                    self.journal.tail += (number, digest)
            cleaned += 1
            if cleaned == _CLEANED_PER_SAVE:
                break


def _exact_members(contexts: ContextSet) -> int:
    return len(contexts.exact)


class Generation:
    """The exposures of one slice of event time.

    What is stored of them, and an index by context, made when joins want one.

    Most producers name the flags in their outcomes; for them the log alone is kept.
    """

    __slots__ = ("_exposed", "_indexed_to", "_noted", "log")

    def __init__(self, number: int) -> None:
        """Start empty."""
        # : Set number and digest of each exposure that may be the last one of its context to its
        # flag, in order. Within a slice : of time a context's repeated exposures to one arm are in
        # it twice at most.
        self.log = EntryLog(f"recent/{number}")
        self._noted: dict[
            str, dict[int, int]
        ] = {}  # flag key -> digest -> the set number `note` logged last
        self._exposed: dict[
            int, tuple[int, ...]
        ] = {}  # digest -> set numbers, oldest first, as far as the log is indexed
        self._indexed_to = (0, 0)

    def note(self, flag_key: str, number: int, digest: int) -> None:
        """Log an exposure to a flag unless it is known to be its context's last.

        The very first of a context to a flag goes straight into `log.tail`: nothing has to be
        looked up or remembered.
        """
        noted = self._noted.get(flag_key)
        if noted is None:
            noted = self._noted[flag_key] = {}
        if noted.get(digest) != number:
            noted[digest] = number
            tail = self.log.tail
            tail.append(number)
            tail.append(digest)

    @property
    def entries(self) -> int:
        """How many exposures are logged."""
        return self.log.entries_kept

    def index(self, at_least: int) -> int:
        """Index `at_least` more entries, or all there are; return how many it were."""
        indexed, exposed = 0, self._exposed
        while indexed < at_least:
            entries, place = self.log.read_on(self._indexed_to)
            if place == self._indexed_to:
                break
            self._indexed_to = place
            indexed += len(entries) // 2
            for number, digest in zip(entries[::2], entries[1::2], strict=True):
                before = exposed.get(digest)
                if before is None:
                    exposed[digest] = (number,)
                elif number not in before:
                    exposed[digest] = (*before, number)
                elif before[-1] != number:
                    exposed[digest] = (*(other for other in before if other != number), number)
        return indexed

    def last(self, digest: int) -> Iterable[int]:
        """Return the set numbers of a context's exposures, newest first, of what is indexed."""
        return reversed(self._exposed.get(digest, ()))


class RecentExposures:
    """Where each context was last exposed, over the attribution window, by slices of event time ("generations").

    A window is three generations, so an exposure is found for at least the window and at most a
    third longer. Whether it is found depends on event times alone.
    """

    PER_WINDOW: ClassVar = 3

    def __init__(self, window_ms: int) -> None:
        """Start empty."""
        self.generation_ms = max(1, window_ms // self.PER_WINDOW)
        self._generations: dict[int, Generation] = {}
        self._newest = -1
        self._present = (
            _NO_END  # the generation of this moment, and the last one that may be opened
        )
        self._latest = _NO_END
        self._garbage: list[str] = []

    def set_time(self, now_ms: int, latest_ms: int) -> None:
        """Let nothing later than `latest_ms` be remembered, nor anything expire before its time.

        One timestamp from the future would else expire everything that outcomes still need.
        """
        self._present = now_ms // self.generation_ms
        self._latest = latest_ms // self.generation_ms

    def generation(self, number: int) -> Generation | None:
        """Return one generation, None when it is too old to matter."""
        found = self._generations.get(number)
        if found is None:
            # One more than the window needs, because the clocks of two apps differ.
            if number < self._newest - self.PER_WINDOW - 1 or number > self._latest:
                return None
            found = self._generations[number] = Generation(number)
            self._expire(max(min(number, self._present), self._newest))
        return found

    def catch_up(self, at_least: int) -> bool:
        """Index `at_least` more exposures, or all there are.

        Return whether nothing is left, so that `last` finds them.
        """
        for generation in self._generations.values():
            at_least -= generation.index(at_least)
            if at_least <= 0:
                return False
        return True

    def last(self, digest: int, time_ms: int) -> list[int]:
        """Return the set numbers of a context's exposures up to `time_ms`, newest first, of what is indexed."""
        newest = time_ms // self.generation_ms
        exposed: list[int] = []
        for number in range(newest, newest - self.PER_WINDOW - 1, -1):
            generation = self._generations.get(number)
            if generation is not None:
                exposed.extend(generation.last(digest))
        return exposed

    @property
    def changed(self) -> int:
        """How many fields the next save will carry."""
        return sum(generation.log.changed for generation in self._generations.values())

    def take_changed(self) -> tuple[dict[str, bytes], list[str]]:
        """Return the fields to write and the fields to delete after that.

        They count as done from here on.
        """
        fields: dict[str, bytes] = {}
        for generation in self._generations.values():
            fields.update(generation.log.take_changed())
        garbage, self._garbage = self._garbage, []
        return fields, garbage

    def restore(self, fields: Mapping[str, bytes]) -> int:
        """Take over what is stored and return a number above all set numbers in it.

        Raises ValueError for a cut chunk.
        """
        chunks: dict[int, dict[int, bytes]] = {}
        above = 0
        for field, value in fields.items():
            kind, _, rest = field.partition("/")
            if kind == "recent":
                of, _, chunk = rest.partition("/")
                chunks.setdefault(int(of), {})[int(chunk)] = value
        for number in sorted(chunks):
            generation = self._generations[number] = Generation(number)
            generation.log.restore(chunks[number])
            for numbers, _ in generation.log.arrays():
                above = max(above, 1 + int(numbers.max()))
            if number > self._latest:  # stored by a release that took any time for true
                self._garbage.extend(self._generations.pop(number).log.fields())
        if self._generations:
            self._expire(min(max(self._generations), self._present))
        return above

    @property
    def entries(self) -> int:
        """How many exposures are remembered."""
        return sum([generation.entries for generation in self._generations.values()])

    def clear(self) -> None:
        """Forget every exposure: no set that one could name is left."""
        for generation in self._generations.values():
            self._garbage.extend(generation.log.fields())
        self._generations.clear()

    def forget_oldest(self) -> bool:
        """Forget the oldest slice of time but for the newest one; return whether there was one."""
        if len(self._generations) < 2:
            return False
        self._garbage.extend(self._generations.pop(min(self._generations)).log.fields())
        return True

    def expire_at(self, time_ms: int) -> None:
        """Drop what no outcome of this time or later can reach."""
        self._expire(max(self._newest, min(time_ms // self.generation_ms, self._present)))

    def _expire(self, newest: int) -> None:
        """Drop the generations that no outcome can reach any more."""
        self._newest = newest
        for number in [
            number for number in self._generations if number < newest - self.PER_WINDOW - 1
        ]:
            self._garbage.extend(self._generations.pop(number).log.fields())
