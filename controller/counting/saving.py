"""Saves what was counted: absolute totals together with the offset to read next.

About every 100 ms what changed is written if the stored fence is still the one that we began from.
The next batch is counted meanwhile. Another fence means that another process has counted, and that
our memory is void: the partition is loaded again. A save of unknown outcome is repeated with the
same arguments until its outcome is known. Meanwhile folding goes on up to a bound, then fetching
stops. Nothing is lost. Refused records are counted with the fence; their details go to the
quarantine topic (`refusals.py`).

Belongs here: when a pair is saved, and what a save does in which order. Does not belong here: what
of a partition has changed (`counted_flags.py`), how it is stored (`controller.ports.Totals`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from controller.counting.assignment import Assignment
from controller.counting.counted_flags import Changes
from controller.counting.counting_report import CountingReport
from controller.counting.dependencies import Dependencies
from controller.counting.folding.engine import NativeFault
from controller.counting.folding.evaluation_hours import HOUR_MS
from controller.counting.log_ends import LogEnds
from controller.counting.lost_records import LostRecords
from controller.counting.owned_partition import OwnedPartition, PartitionPair, PartitionState
from controller.counting.pair_order import PairOrder
from controller.counting.partition_totals import PartitionTotals
from controller.counting.refusals import RefusalBacklog
from controller.errors import BrokenInvariant, StoreUnavailable
from controller.health import Scope
from controller.ports import TopicPartition
from controller.settings import CountingSettings
from schemas.quarantine import WrittenRefusals
from schemas.totals import MAX_FIELDS_PER_SAVE, changed_field, encode_progress

BUDGET = "budget"
"""The reporter of flags whose contexts fill a partition; it alone clears these faults."""
_OVER_BUDGET = "end the rollout when you can, or raise counting.max_contexts_per_partition"
_LAST_COMMIT_SECONDS = 0.5  # at the end; no more, because Kafka may hang
_SWEEP_SECONDS = 600.0  # by then the counted flags are newer than any hash that was loaded
_NOTED_SECONDS = 20.0  # between two passes over all arms for their evaluations by hour
_EXPOSURES_KEPT_MS = 3_600_000  # beyond their window, in a partition without traffic


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A consistent state of one partition, ready to be saved."""

    owned: OwnedPartition
    expected: int | None
    next_offset: int
    changes: Changes
    refusals: Sequence[WrittenRefusals]
    totals: PartitionTotals
    rebased: int  # expected in the store
    at: float


class Saving:
    """Saves pairs of partitions, outcomes first, and commits their offsets."""

    def __init__(
        self,
        dependencies: Dependencies,
        assignment: Assignment,
        order: PairOrder,
        ends: LogEnds,
        refusals: RefusalBacklog,
        report: CountingReport,
        on_saved: Callable[[], None],
    ) -> None:
        """Save the partitions of `assignment`.

        `on_saved` is called when totals of arms have just been saved.
        """
        self._events = dependencies.events
        self._totals = dependencies.totals
        self._clock = dependencies.clock
        self._metrics = dependencies.metrics
        self._settings: CountingSettings = dependencies.settings
        self._pacing = dependencies.pacing
        self._faults = dependencies.faults
        self._counters = dependencies.counters
        self._tasks = dependencies.tasks
        self._now_ms = dependencies.now_ms
        self._assignment = assignment
        self._order = order
        self._ends = ends
        self._refusals = refusals
        self._report = report
        self._lost_records = LostRecords(
            dependencies.events, assignment.faults, self._pacing.holes_seconds
        )
        self._on_saved = on_saved
        self._committed_at = 0.0
        self._committing: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger()

    # - when -

    def save_due(self, now: float) -> None:
        """Begin the saves that are due."""
        for number, pair in self._assignment.pairs.items():
            if pair.saving is not None and not pair.saving.done():
                continue
            pair.saving = None
            ready = [
                owned
                for owned in pair.owned()
                if owned.state is PartitionState.READY and not owned.is_leaving
            ]
            if not ready:
                continue
            for owned in ready:
                if owned.unsaved_since is None and owned.has_changed:
                    owned.unsaved_since = now
            is_full = any(owned.pending and not self._order.has_room(owned) for owned in ready)
            is_wanted = any(
                owned.has_changed or now - owned.saved_at >= self._pacing.heartbeat_seconds
                for owned in ready
            )
            due_at = pair.next_save_at
            if self._is_behind(pair):
                due_at += self._pacing.backlog_pause(pair.save_pause)
            if is_full or (is_wanted and now >= due_at):
                pair.saving = self._tasks.start(self._save(pair), f"save:{number}")

    def _is_behind(self, pair: PartitionPair) -> bool:
        """Return whether the log has more of a pair than is fetched ahead.

        Then throughput matters more than the latest totals.
        """
        return any(
            (self._ends.end_of(owned) or 0) - owned.totals.position >= self._pacing.pending_records
            for owned in pair.owned()
        )

    # - the save of a pair -

    async def _save(self, pair: PartitionPair) -> None:
        """Save both partitions as they are now, outcomes first."""
        try:
            await self._save_both(pair)
        except Exception as mistake:  # of ours: other parts raise nothing but trouble
            self._assignment.fail(pair, mistake)

    async def _save_both(self, pair: PartitionPair) -> None:
        began = self._clock.monotonic()
        ready = [owned for owned in pair.owned() if owned.state is PartitionState.READY]
        for owned in ready:
            self._pass_holes(owned)
            await self._lost_records.check(owned)
        snapshots = []
        try:
            for owned in ready:
                owned.is_busy = True
            pair.encode_seconds = 0.0
            snapshots = [await self._encode(owned, pair) for owned in ready]
        finally:
            for owned in ready:
                owned.is_busy = False
        taken = [snapshot for snapshot in snapshots if snapshot is not None]
        await self._publish_refusals(taken)
        for snapshot in taken:
            await self._write(snapshot)
        # The event loop's own time, not what passed: while much is folded a save waits for its
        # turns, and must not come later for that. Writing takes about as much of it as encoding.
        spent = 2 * sum(each.encode_seconds for each in self._assignment.pairs.values())
        pause = max(self._settings.flush_interval_seconds, spent / self._pacing.saving_share)
        pair.save_pause = min(pause, self._pacing.longest_flush_seconds)
        pair.next_save_at = began + pair.save_pause
        self._commit(self._clock.monotonic())

    def _pass_holes(self, owned: OwnedPartition) -> None:
        """Go past offsets behind the last record that hold none for us: the end of a transaction.

        Otherwise the partition would seem to stand still with records waiting.
        """
        position = self._events.position(owned.partition)
        if owned.is_leaving or owned.pending or position is None:
            return  # a partition that is leaving takes no more of what is read
        if position > owned.totals.position:
            owned.totals.pass_holes(position)

    async def _encode(self, owned: OwnedPartition, pair: PartitionPair) -> _Snapshot | None:
        """Return the partition's state, or None when it was loaded again or lost meanwhile.

        The event loop runs others now and then, but nothing is folded meanwhile.
        """
        await self._note_evaluations(owned)
        if owned.state is not PartitionState.READY:
            return None
        totals = owned.totals
        now = self._clock.monotonic()
        self._sweep(owned, now)
        changes = Changes()
        steps = totals.drain_changes(changes)
        while True:
            began = self._clock.monotonic()
            is_done = next(steps, True)
            pair.encode_seconds += self._clock.monotonic() - began
            if is_done:
                break
            await asyncio.sleep(0)
            if owned.totals is not totals:
                return None
        progress = totals.progress
        progress.end = max(totals.position, self._ends.end_of(owned) or 0)
        silent = self._ends.silent_seconds(owned, now)
        if silent is not None:
            # While a broker hangs, nothing new is reported, so that the judge sees the silence.
            progress.reported_at_ms = max(0, self._now_ms() - int(silent * 1000))
        if not progress.adds_up(totals.position):
            self._metrics.invariant_violations.of("I2").inc()
            why = f"{progress} does not add up to offset {totals.position}"
            self._logger.error(
                "invariant_violated", invariant="I2", topic_partition=owned.key, error=why
            )
            raise BrokenInvariant(f"{owned.key}: {why}")
        totals.changed_flags.note(changes.flag_keys)
        changed = totals.changed_flags.at(totals.position)
        changes.fields |= encode_progress(progress) | changed_field(changed)
        return _Snapshot(
            owned,
            owned.saved,
            totals.position,
            changes,
            totals.take_refused(),
            totals,
            owned.saved_rebased,
            now,
        )

    def _sweep(self, owned: OwnedPartition, now: float) -> None:
        """Drop what is no longer needed, and keep the partition within its budget."""
        flags = owned.totals.flags
        if now - owned.swept_at >= _SWEEP_SECONDS:
            owned.swept_at = now
            flags.drop_superseded()
            if owned.totals.position >= (self._ends.end_of(owned) or 0):
                flags.fold.expire_exposures(self._now_ms() - _EXPOSURES_KEPT_MS)
        for flag_key in flags.keep_budget(self._settings.max_contexts_per_partition):
            why = (
                f"its contexts fill {owned.name}: new ones are no longer recorded there, "
                "and its exposures and conversions stand still"
            )
            self._faults.report(Scope.FLAG, flag_key, why, _OVER_BUDGET, reporter=BUDGET)

    async def _note_evaluations(self, owned: OwnedPartition) -> None:
        """Pass on the evaluations by hour, which are for people alone, every few seconds.

        Also when the hour has changed: with a backlog, hours pass in seconds.
        """
        hour, now = owned.totals.last_ms // HOUR_MS, self._clock.monotonic()
        if hour != owned.noted_hour or now - owned.noted_at >= _NOTED_SECONDS:
            owned.noted_hour, owned.noted_at = hour, now
            for _ in owned.totals.note_evaluations():
                await asyncio.sleep(0)

    def _let_go(self, leaving: Iterable[OwnedPartition]) -> None:
        """Forget partitions after their last save."""
        for owned in leaving:
            if owned.state is PartitionState.READY:
                with suppress(NativeFault):  # what a failed fold holds is counted by the next owner
                    deque(owned.totals.note_evaluations(), maxlen=0)
            self._assignment.let_go(owned)

    async def _publish_refusals(self, snapshots: Sequence[_Snapshot]) -> None:
        """Have the refusals of a pair published before any fence of it moves, all at once.

        It waits at most `quarantine_seconds` for room, and as long for the publishing.
        """
        refused = [snapshot for snapshot in snapshots if snapshot.refusals]
        longest = self._pacing.quarantine_seconds
        until = self._clock.monotonic() + longest
        for snapshot in refused:
            topic, number = snapshot.owned.partition
            left = until - self._clock.monotonic()
            await self._refusals.add_with_room(topic, number, snapshot.refusals, left)
        if refused:
            await self._refusals.flushed(longest)
        for snapshot in refused:
            self._report.count_refusals(snapshot.owned.partition[0], snapshot.refusals)

    async def _write(self, snapshot: _Snapshot) -> None:
        """Save one partition, for as long as it takes and the partition is ours."""
        owned = snapshot.owned
        began = self._clock.monotonic()
        while owned.state is PartitionState.READY and owned.totals is snapshot.totals:
            try:
                stored = await self._totals.save(
                    owned.key,
                    expected=snapshot.expected,
                    next_offset=snapshot.next_offset,
                    fields=snapshot.changes.fields,
                    rebased=snapshot.rebased,
                )
            except StoreUnavailable as trouble:
                self._counters.save_troubles += 1
                owned.save_trouble = str(trouble)
                self._logger.warning("save_failed", topic_partition=owned.key, error=str(trouble))
                await asyncio.sleep(self._pacing.retry_seconds)
                continue
            if stored is not None:
                self._lose_fence(owned, stored)
            elif owned.totals is snapshot.totals:  # else it was loaded again meanwhile
                self._record_save(snapshot, began)
                if snapshot.changes.garbage:
                    await self._delete(owned, snapshot.changes.garbage)
            return

    def _record_save(self, snapshot: _Snapshot, began: float) -> None:
        owned = snapshot.owned
        now = self._clock.monotonic()
        is_at_end = snapshot.next_offset >= (self._ends.end_of(owned) or 0)
        if snapshot.next_offset != owned.saved or is_at_end:
            owned.moved_at = now
        owned.saved = snapshot.next_offset
        owned.set_failures_behind(snapshot.next_offset)
        owned.saved_rebased = owned.totals.progress.rebased
        owned.saved_at = now
        owned.save_trouble = ""
        owned.unsaved_since = snapshot.at if owned.has_changed else None
        self._assignment.faults.clear_if_recovered(owned, now)
        self._counters.saves += 1
        self._metrics.flush_duration_seconds.observe(now - began)
        self._report.update(owned)
        if snapshot.changes.flag_keys:
            self._on_saved()

    def _lose_fence(self, owned: OwnedPartition, stored: int) -> None:
        """Load a partition again, because another process has counted it."""
        self._counters.fences_lost += 1
        self._metrics.fence_conflicts.inc()
        self._logger.warning(
            "fence_lost", topic_partition=owned.key, expected=owned.saved, offset=stored
        )
        self._assignment.reload(owned)

    async def _delete(self, owned: OwnedPartition, garbage: Iterable[str]) -> None:
        """Delete fields that nothing refers to; what a failure leaves is dropped after a load."""
        names = list(garbage)
        try:
            for begin in range(0, len(names), MAX_FIELDS_PER_SAVE):
                await self._totals.drop(owned.key, names[begin : begin + MAX_FIELDS_PER_SAVE])
        except StoreUnavailable as trouble:
            self._logger.warning("delete_failed", topic_partition=owned.key, error=str(trouble))

    def _commit(self, now: float) -> None:
        """Begin to commit the saved offsets to Kafka, for lag tools only: we never read them.

        No save waits for it: while Kafka hangs, totals go on being saved.
        """
        is_busy = self._committing is not None and not self._committing.done()
        if is_busy or now - self._committed_at < self._pacing.commit_seconds:
            return
        self._committed_at = now
        offsets = {
            owned.partition: owned.saved
            for owned in self._assignment.owned.values()
            if owned.saved is not None and owned.state is PartitionState.READY
        }
        if offsets:
            self._committing = self._tasks.start(self._events.commit(offsets), "commit")

    # - last saves -

    async def hand_over(self, partitions: frozenset[TopicPartition]) -> None:
        """Save once more what is to be taken from us, within `revoke_seconds`, and forget it.

        Called during a rebalance, perhaps from within our own fetch: it waits for the store, never
        for a round.
        """
        assignment = self._assignment
        leaving = [assignment.owned[one] for one in partitions if one in assignment.owned]
        for owned in leaving:
            owned.is_leaving = True
        pairs = {owned.partition[1]: assignment.pairs[owned.partition[1]] for owned in leaving}
        try:
            async with asyncio.timeout(self._pacing.revoke_seconds):
                await asyncio.gather(*(self._save_last(pair) for pair in pairs.values()))
        except TimeoutError:
            late = [owned for owned in leaving if owned.totals.position != owned.saved]
            self._logger.warning(
                "handed_over_unsaved", topic_partitions=[owned.key for owned in late]
            )
        finally:
            self._let_go(leaving)

    async def drain(self) -> None:
        """Save what was folded, within `drain_seconds`, then let go of everything."""
        assignment = self._assignment
        for owned in assignment.owned.values():
            owned.is_leaving = True
        try:
            async with asyncio.timeout(self._pacing.drain_seconds):
                await asyncio.gather(*(self._save_last(pair) for pair in assignment.pairs.values()))
                await self._refusals.flushed(self._pacing.drain_seconds)
                if self._committing is not None:
                    await asyncio.wait({self._committing}, timeout=_LAST_COMMIT_SECONDS)
        except TimeoutError:
            self._logger.warning("drained_unsaved")
        finally:
            self._let_go(list(assignment.owned.values()))
            if self._refusals.waiting:
                self._logger.error("refusals_lost", refusals=self._refusals.waiting)
            self._tasks.cancel()

    async def _save_last(self, pair: PartitionPair) -> None:
        """Wait for the save under way, then save what came after it."""
        if pair.saving is not None and not pair.saving.done():
            await asyncio.wait({pair.saving})
        if any(owned.state is PartitionState.READY and owned.has_changed for owned in pair.owned()):
            await self._save(pair)
