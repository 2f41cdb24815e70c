"""Merges the records of several partitions by their timestamps.

Belongs here: the order. Does not belong here: reading (`topic_reader.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import Final, NamedTuple

from aiokafka import ConsumerRecord
from aiokafka import TopicPartition as KafkaPartition

from schemas.envelope import MAX_AHEAD_MS, MAX_TIME_MS

#: Records behind one that leaps ahead, most of which must confirm its timestamp.
_WITNESSES: Final = 10


class Placed(NamedTuple):
    """A record, and when it came, as far as can be told from those around it; ms since 1970."""

    at_ms: int
    record: ConsumerRecord


class TimeMerge:
    """Gives records in the order of their timestamps, each partition's in its own order.

    Where a partition's timestamps fall, the greatest so far counts. A timestamp from the future is
    not believed, or all behind it would come last: neither one that lies ahead of now, nor one
    that lay ahead when it was written, which shows in that most of what follows it in its partition
    is older by more than is tolerated. The daemon refuses both, by its clock. Such a record is
    given with what comes next, and whoever counts refuses it for its timestamp.
    """

    def __init__(self, partitions: Sequence[KafkaPartition], latest_ms: int = MAX_TIME_MS) -> None:
        """Start without records; every partition's next one must be known before any is given.

        `latest_ms` is the latest timestamp that can be true.
        """
        self._partitions = partitions
        self._latest_ms = latest_ms
        self._waiting: dict[KafkaPartition, deque[ConsumerRecord]] = {
            partition: deque() for partition in partitions
        }
        self._greatest = dict.fromkeys(partitions, 0)
        # (timestamp, index of its partition, record): the next of each partition.
        self._heads: list[tuple[int, int, ConsumerRecord]] = []
        self._headless = set(range(len(partitions)))  # indexes of partitions without a head
        self._ended: set[KafkaPartition] = set()

    def add(self, partition: KafkaPartition, records: Iterable[ConsumerRecord]) -> None:
        """Add the next records of a partition."""
        self._waiting[partition].extend(records)

    def end(self, partition: KafkaPartition) -> None:
        """Expect no more records of a partition."""
        self._ended.add(partition)

    def waiting(self, partition: KafkaPartition) -> int:
        """Return how many records of a partition wait for those of others."""
        return len(self._waiting[partition])

    def next(self) -> Placed | None:
        """Return the next record.

        None when some partition's next one is not known yet, and when all are given.
        """
        for index in list(self._headless):
            partition = self._partitions[index]
            if self._waiting[partition]:
                if (at_ms := self._place(partition)) is None:
                    continue
                record = self._waiting[partition].popleft()
                self._greatest[partition] = max(self._greatest[partition], at_ms)
                heappush(self._heads, (self._greatest[partition], index, record))
                self._headless.discard(index)
            elif partition in self._ended:
                self._headless.discard(index)
        if self._headless or not self._heads:
            return None
        at_ms, index, record = heappop(self._heads)
        self._headless.add(index)
        return Placed(at_ms, record)

    def _place(self, partition: KafkaPartition) -> int | None:
        """Return when a partition's next record came; None: not known before more are read."""
        waiting = self._waiting[partition]
        at_ms: int = waiting[0].timestamp
        if at_ms <= self._greatest[partition] + MAX_AHEAD_MS:
            return min(at_ms, self._latest_ms)
        if len(waiting) <= _WITNESSES and partition not in self._ended:
            return None
        later: list[int] = [one.timestamp for one in islice(waiting, 1, 1 + _WITNESSES)]
        confirming = sum(one >= at_ms - MAX_AHEAD_MS for one in later)
        if at_ms <= self._latest_ms and 2 * confirming >= len(later):
            return at_ms
        # It came before what follows it, and after what was before it.
        return max(self._greatest[partition], min([*later, self._latest_ms]))

    @property
    def is_over(self) -> bool:
        """Whether all records were given; to be asked after `next` has returned None."""
        return not self._headless and not self._heads
