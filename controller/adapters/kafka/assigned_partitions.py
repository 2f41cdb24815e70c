"""The partitions that one member of a consumer group owns, and where each stands.

Belongs here: state alone. Does not belong here: how partitions are assigned (`group_member.py`),
and how they are read (`event_log.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from controller.adapters.kafka.unreadable_records import UnreadableRecords
from controller.health import Faults
from controller.ports import TopicPartition


class AssignedPartitions:
    """What a member knows of the partitions that it owns."""

    def __init__(self, faults: Faults | None) -> None:
        """Own nothing. `faults` gets partitions that stand still at an unreadable record."""
        self.owned: frozenset[TopicPartition] = frozenset()
        # Taken away from their owner, who gets them again at the next fetch.
        self.to_return: set[TopicPartition] = set()
        self.positions: dict[TopicPartition, int] = {}  # next offset of what was sought or read
        self.paused: set[TopicPartition] = set()
        self.unreadable = UnreadableRecords(faults)
        # When the brokers last answered for each, on the loop's clock.
        self.answered_at: dict[TopicPartition, float] = {}
        # The same for what was taken away, until the group assigns something again.
        self.answered_before: float | None = None

    def assign(self, partitions: frozenset[TopicPartition]) -> None:
        """Own exactly these partitions, with nothing known of how they are read."""
        self.forget_reading()
        self.answered_before = None
        self.owned = partitions

    def remove(self, partitions: frozenset[TopicPartition]) -> None:
        """Own these partitions no longer."""
        self.owned -= partitions
        answers = [self.answered_at[one] for one in partitions if one in self.answered_at]
        if answers and not self.owned:
            self.answered_before = min(answers)
        for partition in partitions:
            self.positions.pop(partition, None)
            self.answered_at.pop(partition, None)
            self.unreadable.remove(partition)

    def forget_reading(self) -> None:
        """Forget what the owner asked for: the partitions may be another member's by now."""
        self.paused.clear()
        self.to_return.clear()
        self.unreadable.clear()

    def record_answers(self, partitions: Iterable[TopicPartition]) -> None:
        """Record that the brokers have just answered for these partitions."""
        now = asyncio.get_running_loop().time()
        self.answered_at.update((one, now) for one in partitions if one in self.owned)
