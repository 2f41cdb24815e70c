"""Append-only journals of (set number, context digest) entries, stored in chunks.

Memberships are journaled in one, and the exposures of each slice of time in one of their own. So a
save carries each new entry once, in one or two fields, however many flags there are. A stored chunk
has up to 256 entries of 12 bytes, little-endian: set number (u32), digest (u64).

Belongs here: chunks, and which of them have changed. Does not belong here: what an entry means
(`folding/context_sets.py`, `folding/recent_exposures.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import sleep

from controller.counting.folding.context_sets import ENTRY

#: 3 KiB: a quiet partition rewrites at most as much per save, and a busy one writes few fields.
ENTRIES_PER_CHUNK = 256
_CHUNK_BYTES = ENTRIES_PER_CHUNK * ENTRY.size
# What is restored at once: a few ms, then other threads may run.
_CHUNKS_PER_TURN = 128


class EntryLog:
    """Append-only entries in chunks, with those changed since the last save."""

    __slots__ = ("_chunks", "_keeps_content", "_next", "_prefix", "_tail", "_unsaved")

    def __init__(self, prefix: str, *, begin: int = 0, keeps_content: bool = True) -> None:
        """Start empty with chunk number `begin`; chunk `n` is stored in the field `<prefix>/<n>`.

        `keeps_content`: full chunks are kept in memory, for `remove_oldest`.
        """
        self._prefix = prefix
        self._keeps_content = keeps_content
        self._next = begin  # the chunk being filled
        self._chunks: dict[int, bytes] = {}
        self._tail = bytearray()  # entries after the last full chunk
        self._unsaved = False

    def append(self, entries: bytes) -> None:
        """Add entries."""
        if entries:
            self._tail += entries
            self._unsaved = True

    def changed(self, added: int) -> int:
        """Return how many chunks will have changed with so many more entries."""
        if not added and not self._unsaved:
            return 0
        return 1 + (len(self._tail) // ENTRY.size + added) // ENTRIES_PER_CHUNK

    @property
    def chunks(self) -> int:
        """How many chunks there were at the last save."""
        return len(self._chunks)

    @property
    def next_chunk(self) -> int:
        """A number above those of all chunks."""
        return self._next + 1

    def drain(self) -> dict[str, bytes]:
        """Return the fields to write; they count as written from now on."""
        fields: dict[str, bytes] = {}
        if not self._unsaved:
            return fields
        full = len(self._tail) // _CHUNK_BYTES * _CHUNK_BYTES
        for begin in range(0, full, _CHUNK_BYTES):
            self._write(bytes(self._tail[begin : begin + _CHUNK_BYTES]), fields)
            if not self._keeps_content:
                self._chunks[self._next] = b""
            self._next += 1
        del self._tail[:full]
        if self._tail:
            self._write(bytes(self._tail), fields)
        self._unsaved = False
        return fields

    def _write(self, content: bytes, fields: dict[str, bytes]) -> None:
        fields[self.field(self._next)] = self._chunks[self._next] = content

    def field(self, chunk: int) -> str:
        """Return the name of a chunk's field."""
        return f"{self._prefix}/{chunk}"

    def fields(self) -> list[str]:
        """Return the names of all fields that were written."""
        return [self.field(chunk) for chunk in self._chunks]

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        """Continue from stored chunks.

        New entries go into a new chunk, so that no chunk is written by two owners. Raises
        ValueError for a chunk that is cut.
        """
        for chunk in chunks.values():
            if len(chunk) % ENTRY.size:
                raise ValueError(f"a chunk of {self._prefix} has {len(chunk)} bytes: it is cut")
        kept = chunks if self._keeps_content else dict.fromkeys(chunks, b"")
        self._chunks = {chunk: kept[chunk] for chunk in sorted(chunks)}
        self._next = max(chunks, default=self._next - 1) + 1

    def pieces(self) -> Iterator[bytes]:
        """Yield all entries that were written, oldest first, some chunks at a time.

        Lets other threads run in between: the event loop would wait for a thread that restores a
        million contexts.
        """
        chunks = list(self._chunks.values())
        for begin in range(0, len(chunks), _CHUNKS_PER_TURN):
            if begin:
                sleep(0)
            yield b"".join(chunks[begin : begin + _CHUNKS_PER_TURN])

    def remove_oldest(self, most: int) -> Iterator[tuple[int, bytes]]:
        """Remove the oldest full chunks one by one, at most `most`; never the one being filled.

        Yields their numbers and contents. A caller that stops early leaves the other chunks.
        """
        for chunk in [chunk for chunk in self._chunks if chunk != self._next][:most]:
            yield chunk, self._chunks.pop(chunk)
