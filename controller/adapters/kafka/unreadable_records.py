"""Partitions that stand still at a record that cannot be read.

Belongs here: when such a partition is tried again, and the fault it raises. Does not belong here:
how a record is found to be unreadable (`event_log.py`, `consumer_records.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from controller.health import Faults, Scope
from controller.ports import TopicPartition

log = structlog.get_logger(__name__)

_REPORTER = "records"  # reports these faults, and alone clears them
# A bit flipped on the wire is correct at the next try. One on the disk stays wrong.
_RETRY_SECONDS = 5.0
# The delay doubles up to this: another replica of the partition may become leader.
_LONGEST_RETRY_SECONDS = 60.0


@dataclass(slots=True)
class _UnreadableRecord:
    """The record at which a partition stands still."""

    offset: int | None  # None: the partition was not sought yet
    retry_at: float  # on the loop's clock
    tries: int = 1


class UnreadableRecords:
    """The partitions that stand still, by their record that cannot be read."""

    def __init__(self, faults: Faults | None) -> None:
        """Report to `faults` from the second try of the same record on."""
        self._faults = faults
        self._records: dict[TopicPartition, _UnreadableRecord] = {}

    def __contains__(self, partition: TopicPartition) -> bool:
        """Return whether a partition stands still."""
        return partition in self._records

    def __iter__(self) -> Iterator[TopicPartition]:
        """Return the partitions that stand still."""
        return iter(tuple(self._records))

    def add(
        self,
        partition: TopicPartition,
        offset: int | None,
        *,
        next_offset: int | None,
        why: str,
        now: float,
    ) -> None:
        """Record that a partition stands still at `offset`, or that it still does after a try.

        `next_offset` is the one behind the broken batch, None when it is not known.
        """
        previous = self._records.get(partition)
        tries = previous.tries + 1 if previous is not None and previous.offset == offset else 1
        self._records[partition] = _UnreadableRecord(offset, now + _retry_seconds(tries), tries)
        topic, number = partition
        log.error("record_corrupt", topic=topic, partition=number, offset=offset, attempt=tries)
        if tries > 1 and self._faults is not None:
            place = f"{topic}/{number}"
            behind = (offset or 0) + 1 if next_offset is None else next_offset
            self._faults.report(
                Scope.PARTITION,
                place,
                f"the record at offset {offset} of {place} cannot be read ({why}): nothing "
                f"behind it is read",
                "repair the broker's disk, or give up everything before offset "
                f"{behind} with `kafka-delete-records --offset-json-file`",
                reporter=_REPORTER,
            )

    def remove(self, partition: TopicPartition) -> bool:
        """Forget that a partition stood still; return whether it did."""
        if self._records.pop(partition, None) is None:
            return False
        if self._faults is not None:
            self._faults.clear(
                Scope.PARTITION, f"{partition[0]}/{partition[1]}", reporter=_REPORTER
            )
        return True

    def clear(self) -> None:
        """Forget all."""
        for partition in self:
            self.remove(partition)

    def begin_try(self, partition: TopicPartition, now: float) -> bool:
        """Return whether it is time to try a partition again; if so, plan the try after it."""
        record = self._records[partition]
        if now < record.retry_at:
            return False
        record.retry_at = now + _retry_seconds(record.tries)
        return True


def _retry_seconds(tries: int) -> float:
    return min(_RETRY_SECONDS * 2.0 ** (tries - 1), _LONGEST_RETRY_SECONDS)
