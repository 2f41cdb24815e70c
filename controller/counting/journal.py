"""Append-only journals of (set number, context digest) entries, stored in chunks.

Memberships are journaled in one, and the exposures of each slice of time in one of their own. So a
save carries each new entry once, in one or two fields, however many flags there are. A stored chunk
has up to 256 entries of 12 bytes, little-endian: set number (u32), digest (u64).

Belongs here: chunks, and which of them have changed. Does not belong here: what an entry means
(`membership.py`, `recent_exposures.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import chain
from time import sleep

import numpy as np
from numpy.typing import NDArray

ENTRY = struct.Struct("<IQ")
#: 3 KiB: a quiet partition rewrites at most as much per save, and a busy one writes few fields.
ENTRIES_PER_CHUNK = 256
CHUNK_ENTRIES = np.dtype([("number", "<u4"), ("digest", "<u8")])
_NUMBERS_PER_CHUNK = 2 * ENTRIES_PER_CHUNK
_FULL_CHUNK = struct.Struct("<" + "IQ" * ENTRIES_PER_CHUNK)
# They take a few ms, like the interpreter's own switch interval. A shorter turn would wait as long
# for the next one.
_CHUNKS_PER_TURN = 128


class EntryLog:
    """Append-only (number, digest) entries in chunks, with those changed since the last save."""

    __slots__ = ("_chunks", "_next", "_prefix", "_saved", "tail")

    def __init__(self, prefix: str) -> None:
        """Start empty; chunk `n` is stored in the field `<prefix>/<n>`."""
        self._prefix = prefix
        self._next = 0  # the chunk being filled
        self._chunks: dict[int, bytes] = {}
        self._saved = 0  # how many of the tail's numbers
        # Number and digest of each entry after the last full chunk, flat. Add with `tail +=
        # (number, digest)`: to pack them one by one would cost four times as much.
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
        """How many chunks there were at the last save."""
        return len(self._chunks)

    @property
    def entries_kept(self) -> int:
        """About how many entries there are."""
        full = len(self._chunks) - (self._next in self._chunks)
        return full * ENTRIES_PER_CHUNK + len(self.tail) // 2

    def drain_changes(self) -> dict[str, bytes]:
        """Return the fields to write; they count as written from now on."""
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
        """Continue from stored chunks.

        New entries go into a new chunk, so that no chunk is written by two owners.
        """
        self._chunks = {chunk: chunks[chunk] for chunk in sorted(chunks)}
        self._next = max(chunks, default=-1) + 1

    def arrays(self) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint64]]]:
        """Yield numbers and digests of all entries that were written, oldest first, in slices.

        Lets other threads run between slices: compiled code does not do so by itself as the
        interpreter does, and the event loop would wait for a thread that restores a million
        contexts. Raises ValueError for a chunk that is cut.
        """
        chunks = list(self._chunks.values())
        for begin in range(0, len(chunks), _CHUNKS_PER_TURN):
            if begin:
                sleep(0)
            some = chunks[begin : begin + _CHUNKS_PER_TURN]
            for chunk in some:
                if len(chunk) % ENTRY.size:
                    raise ValueError(f"a chunk of {self._prefix} has {len(chunk)} bytes: it is cut")
            entries = np.frombuffer(b"".join(some), dtype=CHUNK_ENTRIES)
            if len(entries):
                yield entries["number"].astype(np.uint32), entries["digest"].astype(np.uint64)

    def entries(self) -> Iterator[tuple[int, int]]:
        """Yield all entries that were written, oldest first. Raises ValueError for a cut chunk."""
        for numbers, digests in self.arrays():
            yield from zip(numbers.tolist(), digests.tolist(), strict=True)

    def read_on(self, place: tuple[int, int]) -> tuple[list[int], tuple[int, int]]:
        """Return numbers and digests, flat, from `place` to its chunk's end, and the next place.

        A place is (chunk, entries before it in the chunk). At the end of the log nothing is
        returned, with the same place. Only for a log whose chunks are not removed.
        """
        chunk, before = place
        while (
            chunk < self._next and before >= ENTRIES_PER_CHUNK
        ):  # the former tail has been cut into chunks
            chunk, before = chunk + 1, before - ENTRIES_PER_CHUNK
        if chunk == self._next:
            return self.tail[2 * before :], (chunk, len(self.tail) // 2)
        content = self._chunks.get(chunk, b"")
        return list(chain.from_iterable(ENTRY.iter_unpack(content[before * ENTRY.size :]))), (
            chunk + 1,
            0,
        )

    def remove_oldest(self, most: int) -> Iterator[tuple[int, bytes]]:
        """Remove the oldest full chunks one by one, at most `most`; never the one being filled.

        Yields their numbers and contents. A caller that stops early leaves the other chunks.
        """
        for chunk in [chunk for chunk in self._chunks if chunk != self._next][:most]:
            yield chunk, self._chunks.pop(chunk)
