"""Follows which partitions are ours, and makes each ready to be counted.

A partition that was assigned is not ready. Its hash is loaded, the fence is checked against the
log, and the log is sought to the fence. Whatever fails in one partition stops that one alone: it is
loaded again, from what is saved. A log that lost records, or is another one now, is counted on, and
what is missing is recorded as a loss: evidence of that time passes no gate by itself, and
guardrails go on. See ops/decisions/0011-made-again.md.

Belongs here: taking partitions on, loading them, letting them go. Does not belong here: records
(`ingest.py`), saves (`saving.py`).
"""

from __future__ import annotations

import asyncio
from math import inf

import structlog

from controller.counting.dependencies import Dependencies
from controller.counting.folding.engine import NativeFault
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.folding.partition_fold import PartitionFold
from controller.counting.owned_partition import (
    TRIES,
    OwnedPartition,
    PartitionPair,
    PartitionState,
)
from controller.counting.partition_faults import PartitionFaults
from controller.counting.partition_totals import PartitionTotals
from controller.counting.pending_records import PendingRecords
from controller.errors import BrokenInvariant, OperatingTrouble
from controller.log_identity import is_other_topic, why_other_log
from controller.ports import TopicPartition
from controller.settings import CountingSettings

#: A log that ends before our position so many times in a row is another one. Once may be a follower
#: that has just become leader.
SHORT_TIMES = 3
_BEYOND_EVERY_OFFSET = 2**63


class Assignment:
    """The partitions that the group has assigned to this member, in pairs."""

    def __init__(self, dependencies: Dependencies, faults: PartitionFaults) -> None:
        """Own nothing."""
        self._events = dependencies.events
        self._totals = dependencies.totals
        self._clock = dependencies.clock
        self._settings: CountingSettings = dependencies.settings
        self._pacing = dependencies.pacing
        self._topics = dependencies.topics
        self._epoch = dependencies.epoch
        self._flags_to_count = dependencies.flags_to_count
        self._topology = dependencies.topology
        self._tasks = dependencies.tasks
        self._sampling = dependencies.sampling
        self._new_fold = dependencies.new_fold
        self._now_ms = dependencies.now_ms
        self.faults = faults
        self._logger = structlog.get_logger()
        self.owned: dict[TopicPartition, OwnedPartition] = {}
        self.pairs: dict[int, PartitionPair] = {}

    # - what is ours -

    def follow(self) -> None:
        """Take on what was assigned to us, and let go of what was taken without notice."""
        assignment = self._events.assignment
        if assignment == self.owned.keys():
            return
        for partition in self.owned.keys() - assignment:
            self.let_go(self.owned[partition])
        for partition in sorted(assignment - self.owned.keys()):
            self._take_on(partition)

    def _take_on(self, partition: TopicPartition) -> None:
        topic, number = partition
        if topic not in self._topics:
            raise BrokenInvariant(f"{topic} is assigned to ingest, which counts no such topic")
        key = f"{topic}/{number}/{self._epoch}"
        owned = OwnedPartition(partition, key, self._new_totals(partition), self._clock.monotonic())
        self.owned[partition] = owned
        pair = self.pairs.setdefault(number, PartitionPair())
        if owned.is_counting_exposures:
            pair.evaluations = owned
        else:
            pair.outcomes = owned
        self._tasks.start(self._load(owned), f"load:{key}")

    def let_go(self, owned: OwnedPartition) -> None:
        """Forget a partition that is ours no longer."""
        owned.state = PartitionState.GONE
        owned.pending = PendingRecords()
        if owned.is_faulty:
            self.faults.clear(owned)
        self.faults.clear_hidden(owned)
        owned.totals.flags.close()
        owned.end_trial()
        self._sampling.forget(owned.partition)
        if self.owned.get(owned.partition) is owned:
            del self.owned[owned.partition]
        number = owned.partition[1]
        pair = self.pairs[number]
        if pair.evaluations is owned:
            pair.evaluations = None
        if pair.outcomes is owned:
            pair.outcomes = None
        if pair.evaluations is None and pair.outcomes is None:
            del self.pairs[number]

    def forget(self) -> None:
        """Let go of all: what is in memory may be half a save."""
        for owned in list(self.owned.values()):
            self.let_go(owned)
            self._events.resume([owned.partition])

    def trial_totals(self, partition: TopicPartition) -> PartitionTotals:
        """Return totals to try records on: what is noticed of other flags there counts nowhere."""
        counted = self._flags_to_count
        return self._totals_with(FlagsToCount(0, flags=counted.flags, over=counted.over), partition)

    def _new_totals(self, partition: TopicPartition) -> PartitionTotals:
        return self._totals_with(self._flags_to_count, partition)

    def _totals_with(
        self, flags_to_count: FlagsToCount, partition: TopicPartition
    ) -> PartitionTotals:
        owned = self.owned.get(partition)
        is_by_reference = owned is not None and owned.is_by_reference
        return PartitionTotals(
            flags_to_count,
            counts_exposures=partition[0] == self._topics[0],
            exact_limit=self._settings.exact_set_limit,
            window_ms=self._settings.attribution_window_ms,
            number=partition[1],
            new_fold=PartitionFold if is_by_reference else self._new_fold,
        )

    # - loading -

    async def _load(self, owned: OwnedPartition, after_seconds: float = 0.0) -> None:
        """Load a partition and check it against the log; `begin_loaded` makes it ready.

        What fails is tried again, after some tries slowly, for as long as the partition is ours: a
        person may have repaired it.
        """
        if after_seconds:
            await asyncio.sleep(after_seconds)
        tries = 0
        while (
            owned.state in (PartitionState.LOADING, PartitionState.STOPPED) and owned.loaded is None
        ):
            try:
                owned.loaded = await self._stored_totals(owned)
                owned.state = PartitionState.LOADING
            except OperatingTrouble as trouble:
                self._logger.warning("load_failed", topic_partition=owned.key, error=str(trouble))
                await asyncio.sleep(self._pacing.retry_seconds)
            except NativeFault as fault:
                self._go_on_by_reference(owned, fault)
            except Exception as mistake:
                # It stops this partition alone. Evidence of the others goes on, and gates see that
                # one does not report.
                tries += 1
                self.faults.record_failure(owned, mistake)
                if isinstance(mistake, BrokenInvariant) or tries >= TRIES:
                    self._stop(owned)
                is_stopped = owned.state is PartitionState.STOPPED
                pacing = self._pacing
                await asyncio.sleep(pacing.stopped_seconds if is_stopped else pacing.failed_seconds)

    async def _stored_totals(
        self, owned: OwnedPartition
    ) -> tuple[PartitionTotals, int | None, int]:
        """Return a partition's stored totals, at the place in the log to go on at, and its fence.

        The fence is an offset, None for none, and how often the partition was rebased.
        """
        stored = await self._totals.load(owned.key)
        first, end = await self._bounds(owned, stored.next_offset or 0)
        totals = self._new_totals(owned.partition)
        totals.set_time(self._now_ms())
        topic_id = self.topic_id(owned) or ""
        if stored.next_offset is None:
            totals.start_at(first)
            if first > 0:
                self.faults.record_loss(owned, 0, first)
                totals.lose(0, is_over=first >= end)
            totals.progress.topic_id = topic_id
            return totals, None, 0
        # In a thread: a hash with a million contexts takes a second, and other partitions go on.
        await asyncio.to_thread(totals.restore, stored.next_offset, stored.fields)
        progress = totals.progress
        rebased = progress.rebased
        why = why_other_log(
            stored.next_offset, end, previous_id=progress.topic_id, present_id=topic_id
        )
        if why is not None:
            # A topic that was made again is counted from its beginning, a log that was cut from
            # its end.
            offset = first if is_other_topic(progress.topic_id, topic_id) else end
            self._rebase(owned, totals, offset, end, why)
        elif stored.next_offset < first:
            self.faults.record_loss(owned, stored.next_offset, first)
            totals.skip_to(first, end)
        if topic_id:
            totals.progress.topic_id = topic_id
        return totals, stored.next_offset, rebased

    async def _bounds(self, owned: OwnedPartition, position: int) -> tuple[int, int]:
        """Return the log's first and end offset, after several requests when it ends too early.

        A broker that has just become leader may know less than was read already, for a moment.
        """
        first, end = await self._events.bounds(owned.partition)
        for _ in range(SHORT_TIMES - 1):
            if position <= end:
                break
            await asyncio.sleep(self._pacing.ends_seconds)
            first, end = await self._events.bounds(owned.partition)
        owned.end, owned.bounds_at = end, self._clock.monotonic()
        return first, end

    def _rebase(
        self, owned: OwnedPartition, totals: PartitionTotals, offset: int, end: int, why: str
    ) -> None:
        """Count on in another log than the one that is stored."""
        fence = totals.position
        totals.rebase(offset, end)
        owned.set_failures_behind(_BEYOND_EVERY_OFFSET)  # its offsets are not there any more
        owned.failed_at = 0
        self.faults.record_rebase(
            owned, fence=fence, offset=offset, why=why, now=self._clock.monotonic()
        )

    def topic_id(self, owned: OwnedPartition) -> str | None:
        """Return the present id of a partition's topic, None when it is not known."""
        if self._topology is None:
            return None
        return self._topology.topic_id("evaluations" if owned.is_counting_exposures else "outcomes")

    def begin_loaded(self) -> None:
        """Seek to the fences that were loaded, and count from there.

        To be called right before a fetch, so that what it returns was read from there.
        """
        for owned in self.owned.values():
            if owned.loaded is None or owned.state is not PartitionState.LOADING:
                continue
            owned.totals, owned.saved, owned.saved_rebased = owned.loaded
            owned.loaded = None
            owned.unsaved_since = None
            owned.trouble = ""
            now = self._clock.monotonic()
            owned.saved_at = owned.moved_at = owned.delivered_at = owned.swept_at = now
            stored = owned.totals.progress
            owned.holes_checked = stored.holes
            owned.checked_to, owned.checked_last_ms = owned.totals.position, stored.last_ms or 0
            owned.reported = (stored.counted, stored.quarantined, stored.late, stored.ignored)
            owned.last_timestamp_ms = -inf
            owned.pending = PendingRecords()
            self._events.seek(owned.partition, owned.totals.position)
            if owned.is_paused:
                self._events.resume([owned.partition])
                owned.is_paused = False
            owned.state = PartitionState.READY
            self._logger.info(
                "partition_ready", topic_partition=owned.key, offset=owned.totals.position
            )

    # - loading again -

    def reload(self, owned: OwnedPartition, after_seconds: float = 0.0) -> None:
        """Drop a partition's memory and load it again."""
        owned.state = PartitionState.LOADING
        owned.loaded = None
        owned.pending = PendingRecords()
        owned.unsaved_since = None
        owned.totals.flags.close()
        owned.totals = self._new_totals(owned.partition)
        self._tasks.start(self._load(owned, after_seconds), f"load:{owned.key}")

    def fail(self, pair: PartitionPair, mistake: BaseException) -> None:
        """Load a pair again after a mistake of ours: what is in memory may be half a change."""
        for owned in pair.owned():
            if isinstance(mistake, NativeFault):
                # It may be the other one's: outcomes are joined by the fold of evaluations. What
                # is counted by the reference is loaded again all the same, never blamed for it.
                if not owned.is_by_reference:
                    self._go_on_by_reference(owned, mistake)
                if owned.state is PartitionState.READY:
                    self.reload(owned)
                continue
            if owned.state is not PartitionState.READY:
                continue
            self.faults.record_failure(owned, mistake)
            # Progress ends the row of failures: a record that was set aside, or another place.
            owned.failures = owned.failures + 1 if owned.totals.position <= owned.failed_at else 1
            owned.failed_at = max(owned.failed_at, owned.totals.position)
            is_searching = len(owned.poisoned) > 0 or owned.careful_to >= 0
            is_stopping = owned.failures > TRIES * (2 if is_searching else 1)
            pacing = self._pacing
            self.reload(owned, pacing.stopped_seconds if is_stopping else pacing.failed_seconds)
            if is_stopping:
                self._stop(owned)

    def _go_on_by_reference(self, owned: OwnedPartition, fault: NativeFault) -> None:
        """Have a partition counted by the reference, from its next load until it is not ours."""
        self.faults.record_native_fault(owned, fault)
        owned.is_by_reference = True

    def _stop(self, owned: OwnedPartition) -> None:
        """Leave a partition alone except for rare tries; gates see that it does not report."""
        if owned.state is PartitionState.LOADING:
            owned.state = PartitionState.STOPPED
            self._events.pause([owned.partition])
            owned.is_paused = True
            self._logger.error("partition_stopped", topic_partition=owned.key, error=owned.trouble)
