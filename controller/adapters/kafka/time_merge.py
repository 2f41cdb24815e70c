"""Merges the records of several partitions by their timestamps.

Belongs here: the order. Does not belong here: reading (`topic_reader.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from aiokafka import ConsumerRecord
from aiokafka import TopicPartition as KafkaPartition


class TimeMerge:
    """Gives records in the order of their timestamps, each partition's in its own order.

    Where a partition's timestamps fall, the greatest so far counts.
    """

    def __init__(self, partitions: Sequence[KafkaPartition]) -> None:
        """Start without records; every partition's next one must be known before any is given."""
        self._partitions = partitions
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

    def next(self) -> ConsumerRecord | None:
        """Return the next record.

        None when some partition's next one is not known yet, and when all are given.
        """
        for index in list(self._headless):
            partition = self._partitions[index]
            if self._waiting[partition]:
                record = self._waiting[partition].popleft()
                self._greatest[partition] = max(self._greatest[partition], record.timestamp)
                heappush(self._heads, (self._greatest[partition], index, record))
                self._headless.discard(index)
            elif partition in self._ended:
                self._headless.discard(index)
        if self._headless or not self._heads:
            return None
        _, index, record = heappop(self._heads)
        self._headless.add(index)
        return record

    @property
    def is_over(self) -> bool:
        """Whether all records were given; to be asked after `next` has returned None."""
        return not self._headless and not self._heads
