"""Tells offsets that never held a record for us from records that the log deleted unread."""

from __future__ import annotations

import asyncio

import structlog

from controller.counting.owned_partition import OwnedPartition
from controller.counting.partition_faults import PartitionFaults
from controller.errors import EventLogUnavailable
from controller.ports import EventLog


class LostRecords:
    """Checks the holes of partitions before each save."""

    def __init__(self, events: EventLog, faults: PartitionFaults, seconds: float) -> None:
        """Ask `events` where it begins, and wait for the answer so long: a save waits, too."""
        self._events = events
        self._seconds = seconds
        self._faults = faults
        self._logger = structlog.get_logger()

    async def check(self, owned: OwnedPartition) -> None:
        """Record a loss if some of a partition's new holes were records that retention deleted.

        They are lost if the log begins behind the position up to which all holes are accounted for.
        The fence is no such position: a save goes on while the log does not answer, or while more
        is folded, and may already lie behind the holes.
        """
        totals = owned.totals
        holes, position = totals.progress.holes, totals.position
        last_ms = totals.progress.last_ms or 0
        if holes == owned.holes_checked:
            owned.checked_to, owned.checked_last_ms = position, last_ms
            return
        try:
            async with asyncio.timeout(self._seconds):
                first, _ = await self._events.bounds(owned.partition)
        except (EventLogUnavailable, TimeoutError) as trouble:
            why = str(trouble) or f"no answer within {self._seconds:g} s"
            self._logger.warning("bounds_unknown", topic_partition=owned.key, error=why)
            return  # asked again before the next save
        if owned.totals is not totals:
            return
        if first > owned.checked_to:
            self._faults.record_loss(owned, owned.checked_to, first)
            is_over = totals.position > first
            to_ms = (totals.progress.last_ms or 0) if is_over else None
            totals.progress.note_loss(owned.checked_last_ms, to_ms)
        owned.holes_checked = holes
        owned.checked_to, owned.checked_last_ms = position, last_ms
