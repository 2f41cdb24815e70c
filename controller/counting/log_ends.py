"""Follows where the logs of our partitions end, and how long brokers have not reported them.

Belongs here: asking, also while nothing is read or saved, and noticing a log that is another one
now. Does not belong here: loading such a partition again (`assignment.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from controller.counting.assignment import SHORT_TIMES, Assignment
from controller.counting.dependencies import Dependencies
from controller.counting.owned_partition import OwnedPartition, PartitionState
from controller.errors import EventLogUnavailable
from controller.log_identity import is_other_topic, why_other_log

#: Transactions of producers usually last for milliseconds to seconds.
HIDDEN_SECONDS = 5.0


class LogEnds:
    """What the log says of itself."""

    def __init__(self, dependencies: Dependencies, assignment: Assignment) -> None:
        """Ask about the partitions of `assignment`."""
        self._events = dependencies.events
        self._clock = dependencies.clock
        self._pacing = dependencies.pacing
        self._assignment = assignment
        self._faults = assignment.faults
        self._logger = structlog.get_logger()

    async def follow(self, updated: Callable[[], None]) -> None:
        """Ask where the log ends, again and again, and call `updated` after each answer.

        Otherwise a lag that nobody reads would look like none.
        """
        while True:
            await asyncio.sleep(self._pacing.ends_seconds)
            owned = self._assignment.owned
            positions = {one: partition.totals.position for one, partition in owned.items()}
            if not positions:
                continue
            try:
                ends = await self._events.ends(list(positions))
            except EventLogUnavailable as trouble:
                self._logger.warning("ends_unknown", error=str(trouble))
                continue
            except Exception:  # a mistake of ours; the next round asks again
                self._logger.exception("ends_unknown")
                continue
            for partition, end in ends.items():
                if partition in owned and partition in positions:
                    self._update(owned[partition], positions[partition], end)
            updated()

    def _update(self, owned: OwnedPartition, position: int, end: int) -> None:
        """Record where a log ends, and load its partition again when the log is another one."""
        now = self._clock.monotonic()
        owned.end, owned.end_answered_at = end, now
        self._check_hidden(owned, position, end, now)
        if owned.state is not PartitionState.READY or owned.is_leaving:
            return
        is_other = is_other_topic(owned.totals.progress.topic_id, self._assignment.topic_id(owned))
        owned.times_short = owned.times_short + 1 if why_other_log(position, end) else 0
        if is_other or owned.times_short >= SHORT_TIMES:
            owned.times_short = 0
            self._logger.warning("log_changed", topic_partition=owned.key, offset=position, end=end)
            self._assignment.reload(owned)

    def _check_hidden(self, owned: OwnedPartition, position: int, end: int, now: float) -> None:
        """Report records that an open transaction hides, once they have been hidden for long."""
        hidden = (self._events.end_offset(owned.partition) or 0) - end
        if position < end or hidden <= 0:
            if owned.hidden_since is not None:
                owned.hidden_since = None
                self._faults.clear_hidden(owned)
            return
        if owned.hidden_since is None:
            owned.hidden_since = now
        elif now - owned.hidden_since >= HIDDEN_SECONDS:
            self._faults.report_hidden(owned, hidden)

    def end_of(self, owned: OwnedPartition) -> int | None:
        """Return the offset behind a log's last record, as far as it is known."""
        fetched = self._events.end_offset(owned.partition)
        if owned.end is None or fetched is None:
            return owned.end if fetched is None else fetched
        return max(owned.end, fetched)

    def silent_seconds(self, owned: OwnedPartition, now: float) -> float | None:
        """Return how long the brokers have said nothing about a partition; None: they never did."""
        answers = [self._events.heard_at(owned.partition), owned.bounds_at]
        if owned.is_paused:
            answers.append(owned.end_answered_at)  # it is not fetched, so only this is asked
        times = [at for at in answers if at is not None]
        return max(0.0, now - max(times)) if times else None

    def lag_of(self, owned: OwnedPartition) -> int:
        """Return how many records are not saved yet; 0 while the log's end is not known."""
        return max(0, (self.end_of(owned) or 0) - owned.counted_from)
