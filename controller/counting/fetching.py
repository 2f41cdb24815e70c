"""Fetches records for partitions that are ready, and pauses those that have enough pending."""

from __future__ import annotations

import asyncio

import structlog

from controller.counting.dependencies import Dependencies
from controller.counting.owned_partition import OwnedPartition, PartitionState
from controller.counting.pair_order import FOLDED_AT_ONCE
from controller.counting.pending_records import PendingRecords
from controller.errors import EventLogUnavailable
from controller.ports import TopicPartition
from controller.settings import CountingSettings

#: A fetch waits so long for records where nothing is to be saved, and while something is.
_QUIET_WAIT_SECONDS = 0.2
_WAIT_SECONDS = 0.05
#: Of records that hold many events: fetched and not yet folded, per partition.
_PACKED_BYTES_PENDING = 16 * 1024 * 1024


class Fetching:
    """Takes records from the log into `OwnedPartition.pending`."""

    def __init__(
        self,
        dependencies: Dependencies,
        owned: dict[TopicPartition, OwnedPartition],
        *,
        has_packed: bool,
    ) -> None:
        """`owned` are the present partitions. `has_packed`: a record may hold many events."""
        self._events = dependencies.events
        self._clock = dependencies.clock
        settings: CountingSettings = dependencies.settings
        self._settings = settings
        self._pacing = pacing = dependencies.pacing
        self._counters = dependencies.counters
        self._owned = owned
        self._has_packed = has_packed
        # Fetch again only below this many pending records of a partition, so that one fetch cannot
        # pause it: aiokafka drops what it has read ahead of a pause.
        self._most_pending = FOLDED_AT_ONCE + max(
            0, pacing.pending_records - settings.fetch_max_records
        )
        self._logger = structlog.get_logger()

    def is_due(self, *, is_blocked: bool) -> bool:
        """Return whether to fetch now.

        `is_blocked`: no pending record could be folded, so that more of the other partition of a
        pair may be needed.
        """
        return not any(
            len(owned.pending) >= self._most_pending and (owned.is_busy or not is_blocked)
            for owned in self._owned.values()
        )

    async def fetch(self, *, is_blocked: bool) -> None:
        """Take from the log what it has; wait a little for it if nothing can be done meanwhile."""
        wait_seconds = self._wait_seconds(is_blocked)
        try:
            fetched = await self._events.fetch(self._settings.fetch_max_records, wait_seconds)
        except EventLogUnavailable as trouble:
            self._counters.fetch_troubles += 1
            self._logger.warning("fetch_failed", error=str(trouble))
            await asyncio.sleep(self._pacing.retry_seconds)
            return
        now = self._clock.monotonic()
        for partition, records in fetched.items():
            owned = self._owned.get(partition)
            if owned is None or not records:
                continue
            # Records from before the seek to the fence are dropped: the seek brings them back.
            if owned.state is PartitionState.READY and not owned.is_leaving:
                last = owned.pending.last.offset if owned.pending else -1
                owned.pending.add(
                    records
                    if records[0].offset > last
                    else [each for each in records if each.offset > last]
                )
                owned.delivered_at = now

    def _wait_seconds(self, is_blocked: bool) -> float:
        """Return how long a fetch may wait: not while records are pending, else until a save."""
        if any(owned.pending for owned in self._owned.values()):
            return 0.01 if is_blocked else 0.0
        is_quiet = all(
            owned.state is PartitionState.READY and owned.unsaved_since is None
            for owned in self._owned.values()
        )
        if is_quiet:
            return _QUIET_WAIT_SECONDS
        return min(_WAIT_SECONDS, self._settings.flush_interval_seconds)

    def pause_full(self) -> None:
        """Pause partitions that have enough pending, and resume those with less than half of it."""
        for owned in self._owned.values():
            fullness = self._fullness(owned.pending)
            if not owned.is_paused and fullness >= 1:
                self._events.pause([owned.partition])
                owned.is_paused = True
            elif owned.is_paused and fullness < 0.5:
                self._events.resume([owned.partition])
                owned.is_paused = False

    def _fullness(self, pending: PendingRecords) -> float:
        """Return how much of what may be pending is pending, 1 for all."""
        fullness = len(pending) / self._pacing.pending_records
        if self._has_packed:
            size = sum(len(record.value or b"") for record in pending)
            fullness = max(fullness, size / _PACKED_BYTES_PENDING)
        return fullness
