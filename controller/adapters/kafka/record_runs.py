"""Runs of native records among the batches of a fetch.

A run is what the native reader makes of consecutive plain batches: one sequence, of whose records
no object is made until somebody asks for one. All other batches are aiokafka's: those of
transactions and their ends, older formats, and broken ones, which it reports. Belongs here: which
batch is whose. Does not belong here: which batches count (`getmany`), what plain is
(`controller/counting/native/src/record_batches.rs`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from aiokafka.record.memory_records import MemoryRecords

from controller.adapters.kafka.batch_format import LOG_OVERHEAD, START

#: Reads plain batches of these bytes from this place on, leaving out records before this offset.
#: Returns a run, the place behind its last batch, and the offset behind that; the same place where
#: the first batch is not plain.
ReadBatches: TypeAlias = Callable[[bytes, int, int], tuple[Sequence[Any], int, int]]


class Run:
    """Consecutive plain batches, with what aiokafka asks of one batch."""

    __slots__ = ("next_offset", "records")

    #: In no transaction: so it is neither asked for its first offset, nor left out.
    producer_id = None
    is_control_batch = False

    def __init__(self, records: Sequence[Any], next_offset: int) -> None:
        self.records = records
        self.next_offset = next_offset

    def validate_crc(self) -> bool:
        """Return that the checksums are right: a batch with a wrong one is not plain."""
        return True


class RunsAndBatches:
    """Implements what aiokafka uses of its MemoryRecords, over the content of one fetch."""

    __slots__ = ("_at", "_batch", "_content", "_owner", "_read", "_run")

    def __init__(self, content: bytes, owner: Any, read: ReadBatches) -> None:
        """`owner` knows the offset of the next record that is wanted: `next_fetch_offset`."""
        self._content = content
        self._owner = owner
        self._read = read
        self._at = 0
        self._run: Run | None = None  # the next batch, or
        self._batch: Any = None  # what gives it

    def has_next(self) -> bool:
        """Return whether there is another batch."""
        if self._run is None and self._batch is None:
            self._look()
        return self._run is not None or self._batch.has_next()

    def next_batch(self) -> Any:
        """Return the next run or batch, None after the last."""
        if not self.has_next():
            return None
        if self._run is not None:
            run, self._run = self._run, None
            return run
        batch = self._batch.next_batch()
        if not self._batch.has_next() and self._at < len(self._content):
            self._batch = None
        return batch

    def _look(self) -> None:
        """Find what comes next."""
        records, end, next_offset = self._read(
            self._content, self._at, self._owner.next_fetch_offset
        )
        if end > self._at:
            self._run = Run(records, next_offset)
        else:
            end = self._end_of_batch()
            self._batch = MemoryRecords(self._content[self._at : end])
        self._at = end

    def _end_of_batch(self) -> int:
        """Return the place behind the next batch; where that cannot be told, of all that is left.

        aiokafka then finds what is wrong with it.
        """
        size = len(self._content)
        if size - self._at < LOG_OVERHEAD:
            return size
        length = START.unpack_from(self._content, self._at)[1]
        end = int(self._at + LOG_OVERHEAD + length)
        return end if self._at < end < size else size
