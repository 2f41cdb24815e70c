"""Records that were fetched and not folded yet, in the runs in which the log gave them.

A run stays as it is, because a native one holds its records in the bytes that were fetched, and
makes an object only of those that somebody asks for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from controller.ports import Record


class PendingRecords:
    """A queue of records of one partition, with rising offsets."""

    __slots__ = ("_begin", "_count", "_runs")

    def __init__(self) -> None:
        self._runs: deque[Sequence[Record]] = deque()
        self._begin = 0  # of the first run, so many were taken
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        begin = self._begin
        for run in self._runs:
            yield from run[begin:]
            begin = 0

    @property
    def first(self) -> Record:
        """The record to fold next. Raises IndexError when there is none."""
        return self._runs[0][self._begin]

    @property
    def last(self) -> Record:
        """The record that was added last. Raises IndexError when there is none."""
        return self._runs[-1][-1]

    def add(self, records: Sequence[Record]) -> None:
        """Add a run of records behind all others; it is not copied, and must not change."""
        if records:
            self._runs.append(records)
            self._count += len(records)

    def head(self, most: int) -> Sequence[Record]:
        """Return the next records, at most so many: all of one run, so perhaps fewer."""
        return self._runs[0][self._begin : self._begin + most]

    def drop(self, count: int) -> None:
        """Forget so many of the next records, of those that `head` gave."""
        self._begin += count
        self._count -= count
        while self._runs and self._begin >= len(self._runs[0]):
            self._begin -= len(self._runs.popleft())
