"""Counts events exactly once: fetch, fold, save, for every event partition this replica owns.

What is counted is `counting.py`'s; here is the order in which things happen, which is what makes it exactly once:

1. A partition that was assigned is not ready. Its hash is loaded, the fence checked against the log, the log sought to the
   fence. Only then are its records taken; those that came earlier are dropped, the seek brings them back.
2. Records are folded into totals in memory. About every 100 ms what changed is written *as absolute totals, together with the
   offset to read next*, if the stored fence is still the one we began from. The next batch folds meanwhile.
3. Refused records are acknowledged by the quarantine topic before the fence moves past them. A crash in between publishes
   them again, with the same topic, partition and offset: readers drop repeats by these.
4. Somebody else's fence means that memory is void: load again, seek there. A save of unknown outcome is repeated with the
   same arguments until it is known; meanwhile folding goes on until a bound is met, then fetching stops. Nothing is lost.
5. Kafka's committed offset follows, for lag tools only. It is never read.

Evaluations and outcomes of the same partition number are a pair: outcomes without flags are joined to the exposures of their
context. See ops/decisions/0003-attribution.md.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import structlog

from controller.core.rollout import Rollout
from controller.errors import BrokenInvariant, EventLogTruncated, EventLogUnavailable, StoreUnavailable
from controller.metrics import Metrics
from controller.ports import Clock, EventLog, TopicPartition, Totals
from controller.service.counting import Changes, PartitionTotals, ReadEvaluations, ReadOutcomes
from controller.service.directory import Directory
from controller.service.folding import FOLDED_AT_ONCE, Folding
from controller.service.partitions import Owned, Pacing, Pair, PartitionState, PartitionView
from controller.settings import CountingSettings
from schemas.quarantine import MAX_REFUSALS, Refusal
from schemas.terms import QuarantineReason, Recorded
from schemas.totals import MAX_FIELDS_PER_SAVE, encode_progress

_PACKED_BYTES_PENDING = 16 * 1024 * 1024  # of records that hold many events, fetched and not yet folded, per partition
_FOLDED_BEFORE_PAUSE = 2 * FOLDED_AT_ONCE  # by one pair as a rule; then others get the loop
_RECORDED = (Recorded.COUNTED, Recorded.QUARANTINED, Recorded.LATE, Recorded.IGNORED)
_COLLECTED_FROM_OBJECTS = 20_000
_SCATTERED = "a context's events are in several partitions and it is counted once in each: see ops/formats.md"
_PACING = Pacing()
_SWEEP_SECONDS = 600.0  # by then the directory is newer than any hash that was loaded


#: Publishes refusals of one topic partition, at most `MAX_REFUSALS`, and returns once they are acknowledged. Raises
#: EventLogUnavailable; a repeat is harmless.
Quarantine = Callable[[str, int, Sequence[Refusal]], Awaitable[None]]


@dataclass(slots=True)
class IngestCounters:
    """What happened since the start, for metrics."""

    saves: int = 0
    fields_saved: int = 0
    save_troubles: int = 0  # tries with unknown outcome
    fences_lost: int = 0  # somebody else had counted
    quarantine_troubles: int = 0
    fetch_troubles: int = 0
    gaps: int = 0
    late_revokes: int = 0  # partitions handed over without a last save; they are counted again from the fence


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A consistent state of one partition, ready to be saved."""

    owned: Owned
    expected: int | None
    next_offset: int
    changes: Changes
    refusals: Sequence[Refusal]


class Ingest:
    """One member of the counting group. Everything but `run` may be called at any time from the same event loop."""

    def __init__(
        self,
        log: EventLog,
        totals: Totals,
        *,
        clock: Clock,
        metrics: Metrics,
        settings: CountingSettings,
        topics: tuple[str, str],
        epoch: int,
        quarantine: Quarantine,
        on_counted: Callable[[frozenset[str]], None],
        read_evaluations: ReadEvaluations,
        read_outcomes: ReadOutcomes,
        pacing: Pacing = _PACING,
    ) -> None:
        """`topics` are the evaluations' and the outcomes'. `epoch` is part of the partitions' keys: a new one counts anew.

        `on_counted` is told which flags' totals have just been saved.
        """
        self._log = log
        self._totals = totals
        self._clock = clock
        self._metrics = metrics
        self._settings = settings
        self._pacing = pacing
        # At hand of a partition: with less, what a fetch brings does not pause it. aiokafka would drop what it has read ahead.
        self._plenty = FOLDED_AT_ONCE + max(0, pacing.pending_records - settings.fetch_max_records)
        self._evaluations_topic, self._outcomes_topic = topics
        self._epoch = epoch
        self._quarantine = quarantine
        self._on_counted = on_counted
        self._folding = Folding(log, clock, settings, pacing, read_evaluations=read_evaluations, read_outcomes=read_outcomes)
        self._owned: dict[TopicPartition, Owned] = {}
        self._pairs: dict[int, Pair] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._is_blocked = False  # records are at hand and none could be folded
        self._has_ended = asyncio.Event()
        self._committed_at = 0.0
        self._unknown_reported = 0
        self._scattered_reported = 0
        self._logger = structlog.get_logger()
        self.directory = Directory(settings.seen_flags_limit)
        self.counters = IngestCounters()

    # - what others call -

    def watch(self, rollout: Rollout) -> None:
        """Count for this rollout from now on; an older revision than the one known changes nothing.

        To be told of every rollout there is before `run`: what is folded before its flag is known is ignored for good.
        """
        watched = self.directory.watch(rollout)
        if watched is not None:
            for owned in self._owned.values():
                owned.totals.take(watched)

    def forget(self, flag_key: str) -> None:
        """Count no longer for a flag, and delete what is stored of its rollout in the partitions we own."""
        watched = self.directory.flags.pop(flag_key, None)
        if watched is not None:
            for owned in self._owned.values():
                owned.totals.drop(flag_key, watched.rollout_id)

    async def stop(self) -> None:
        """Let `run` save what was folded, under one deadline, and return once it has ended; at once if it never began."""
        self._is_stopping = True
        if self._group is not None:
            await self._has_ended.wait()

    def views(self) -> list[PartitionView]:
        """Return how every partition we own stands."""
        now = self._clock.monotonic()
        return [
            PartitionView(
                topic=owned.partition[0],
                partition=owned.partition[1],
                state=owned.state,
                next_offset=owned.totals.position,
                saved_offset=owned.saved,
                end_offset=self._log.end_offset(owned.partition),
                records=owned.totals.records,
                unmoved_seconds=now - owned.moved_at,
                trouble=owned.trouble,
                saved_seconds=now - owned.saved_at,
            )
            for owned in self._owned.values()
        ]

    def stalled(self, seconds: float) -> list[PartitionView]:
        """Return the partitions that have records to count and have not moved for `seconds`, stopped ones aside."""
        return [
            view
            for view in self.views()
            if view.state is not PartitionState.STOPPED and view.unmoved_seconds >= seconds and view.lag != 0
        ]

    @property
    def longest_fold_seconds(self) -> float:
        """How long one fold has kept the loop to itself at most."""
        return self._folding.longest_seconds

    @property
    def is_caught_up(self) -> bool:
        """True when every assigned partition is ready or stopped."""
        return all(
            partition in self._owned and self._owned[partition].state in (PartitionState.READY, PartitionState.STOPPED)
            for partition in self._log.assignment
        )

    async def run(self) -> None:
        """Count until `stop`. Raises what a broken invariant of ours raises; trouble outside is waited for.

        May be run again after it failed: what is in memory may be half a save, so all is loaded again.
        """
        for owned in list(self._owned.values()):
            self._let_go(owned)
            self._log.resume([owned.partition])
        self._tasks.clear()
        self._has_ended.clear()
        self._log.on_revoked(self._hand_over)
        gc.freeze()  # what exists by now lives as long as the process: collections need not look at it
        # Records come by the hundred and die young without a collection's help; at the usual 700 new objects a pass would
        # come with every fetch and cost 4 % of the whole.
        gc.set_threshold(_COLLECTED_FROM_OBJECTS)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                while not self._is_stopping:
                    await self._round()
                await self._drain()
        finally:
            self._has_ended.set()

    # - one round -

    async def _round(self) -> None:
        self._follow_assignment()
        self._begin_loaded()
        if not any(len(one.pending) >= self._plenty and (one.is_busy or not self._is_blocked) for one in self._owned.values()):
            await self._fetch()
        now = self._clock.monotonic()
        self._is_blocked = True
        since_pause = 0
        for pair in list(self._pairs.values()):
            folded = self._folding.fold(pair, now)
            if folded:
                self._is_blocked = False
            since_pause += folded if not self._folding.has_packed else _FOLDED_BEFORE_PAUSE
            if since_pause >= _FOLDED_BEFORE_PAUSE:
                since_pause = 0
                await asyncio.sleep(0)
        self._pace_fetching()
        self._save_what_is_due(self._clock.monotonic())
        await asyncio.sleep(0)  # a log that always has records must not keep the loop to itself

    async def _fetch(self) -> None:
        """Take from the log what it has, and wait a little for it if nothing can be done meanwhile."""
        try:
            fetched = await self._log.fetch(self._settings.fetch_max_records, self._wait_seconds())
        except EventLogUnavailable as trouble:
            self.counters.fetch_troubles += 1
            self._logger.warning("fetch_failed", error=str(trouble))
            await asyncio.sleep(self._pacing.retry_seconds)
            return
        now = self._clock.monotonic()
        for partition, records in fetched.items():
            owned = self._owned.get(partition)
            if owned is not None and owned.state is PartitionState.READY and not owned.is_leaving and records:
                last = owned.pending[-1].offset if owned.pending else -1
                owned.pending += records if records[0].offset > last else [each for each in records if each.offset > last]
                owned.delivered_at = now

    def _wait_seconds(self) -> float:
        """Return how long a fetch may wait: not at all with records at hand, else about until the next save."""
        if any(owned.pending for owned in self._owned.values()):
            return 0.01 if self._is_blocked else 0.0
        return min(0.05, self._settings.flush_interval_seconds)

    def _follow_assignment(self) -> None:
        """Take on what was assigned to us, and let go of what was taken without a word."""
        assignment = self._log.assignment
        if assignment == self._owned.keys():
            return
        for partition in self._owned.keys() - assignment:
            self._let_go(self._owned[partition])
        for partition in sorted(assignment - self._owned.keys()):
            topic, number = partition
            if topic not in (self._evaluations_topic, self._outcomes_topic):
                raise BrokenInvariant(f"{topic} is assigned to ingest, which counts no such topic")
            key = f"{topic}/{number}/{self._epoch}"
            owned = Owned(partition, key, self._fresh_totals(partition), self._clock.monotonic())
            self._owned[partition] = owned
            pair = self._pairs.setdefault(number, Pair())
            if owned.is_counting_exposures:
                pair.evaluations = owned
            else:
                pair.outcomes = owned
            self._start(self._load(owned), f"load:{key}")

    def _fresh_totals(self, partition: TopicPartition) -> PartitionTotals:
        return PartitionTotals(
            self.directory,
            counts_exposures=partition[0] == self._evaluations_topic,
            exact_limit=self._settings.exact_set_limit,
            window_ms=self._settings.attribution_window_ms,
            number=partition[1],
        )

    def _let_go(self, owned: Owned) -> None:
        owned.state = PartitionState.GONE
        owned.pending = []
        owned.totals.close()
        if self._owned.get(owned.partition) is owned:
            del self._owned[owned.partition]
        number = owned.partition[1]
        pair = self._pairs[number]
        if pair.evaluations is owned:
            pair.evaluations = None
        if pair.outcomes is owned:
            pair.outcomes = None
        if pair.evaluations is None and pair.outcomes is None:
            del self._pairs[number]

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self._group is not None
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _pace_fetching(self) -> None:
        """Stop fetching what cannot be folded, and go on once half of it is gone."""
        for owned in self._owned.values():
            fullness = len(owned.pending) / self._pacing.pending_records
            if self._folding.has_packed:
                fullness = max(fullness, sum(len(record.value or b"") for record in owned.pending) / _PACKED_BYTES_PENDING)
            if not owned.is_paused and fullness >= 1:
                self._log.pause([owned.partition])
                owned.is_paused = True
            elif owned.is_paused and fullness < 0.5:
                self._log.resume([owned.partition])
                owned.is_paused = False

    # - taking a partition on -

    async def _load(self, owned: Owned) -> None:
        """Read a partition's hash and check it against the log; the loop seeks and declares it ready."""
        while owned.state is PartitionState.LOADING:
            try:
                stored = await self._totals.load(owned.key)
                first, end = await self._log.bounds(owned.partition)
                totals = self._fresh_totals(owned.partition)
                if stored.next_offset is None:
                    totals.start_at(first)
                else:
                    # In a thread: a hash with a million contexts takes a second, and other partitions go on counting.
                    await asyncio.to_thread(totals.restore, stored.next_offset, stored.fields)
                    if stored.next_offset > end:
                        raise EventLogTruncated(
                            f"counted up to offset {stored.next_offset}, but the log ends at {end}: the topic was recreated or "
                            f"truncated; set a new epoch to begin the count anew"
                        )
                    if stored.next_offset < first:
                        self.counters.gaps += 1
                        self._logger.error(
                            "records_lost", topic_partition=owned.key, from_offset=stored.next_offset, to_offset=first
                        )
                        totals.skip_to(first, self._now_ms())
            except (StoreUnavailable, EventLogUnavailable) as trouble:
                self._logger.warning("load_failed", topic_partition=owned.key, error=str(trouble))
                await asyncio.sleep(self._pacing.retry_seconds)
            except BrokenInvariant as broken:
                # This partition alone: the others' evidence goes on, and gates see that one does not report.
                owned.trouble = str(broken)
                if owned.state is PartitionState.LOADING:
                    owned.state = PartitionState.STOPPED
                self._log.pause([owned.partition])
                self._logger.exception("partition_stopped", topic_partition=owned.key)
            else:
                owned.loaded = (totals, stored.next_offset)
                return

    def _begin_loaded(self) -> None:
        """Seek to the fences that were loaded. Right before a fetch, so that what it returns was read from there."""
        for owned in self._owned.values():
            if owned.loaded is None or owned.state is not PartitionState.LOADING:
                continue
            owned.totals, owned.saved = owned.loaded
            owned.loaded = None
            now = self._clock.monotonic()
            owned.saved_at = owned.moved_at = owned.delivered_at = owned.swept_at = now
            stored = owned.totals.records
            owned.holes_seen = stored.holes
            owned.reported = (stored.counted, stored.quarantined, stored.late, stored.ignored)
            owned.last_timestamp_ms = -inf
            owned.pending = []
            self._log.seek(owned.partition, owned.totals.position)
            if owned.is_paused:
                self._log.resume([owned.partition])
                owned.is_paused = False
            owned.state = PartitionState.READY
            self._logger.info("partition_ready", topic_partition=owned.key, offset=owned.totals.position)

    # - saving -

    def _save_what_is_due(self, now: float) -> None:
        for number, pair in self._pairs.items():
            if pair.saving is not None and not pair.saving.done():
                continue
            pair.saving = None
            ready = [owned for owned in pair.owned() if owned.state is PartitionState.READY and not owned.is_leaving]
            if not ready:
                continue
            is_full = any(owned.pending and self._folding.room(owned) == 0 for owned in ready)
            is_wanted = any(
                self._has_changed(owned) or now - owned.saved_at >= self._pacing.heartbeat_seconds for owned in ready
            )
            due_at = pair.next_save_at + (self._pacing.backlog_seconds if self._is_behind(pair) else 0.0)
            if is_full or (is_wanted and now >= due_at):
                pair.saving = self._start(self._save(pair), f"save:{number}")

    def _is_behind(self, pair: Pair) -> bool:
        """Whether the log has more of a pair than is kept at hand: then throughput matters more than the latest totals."""
        return any(
            (self._log.end_offset(owned.partition) or 0) - owned.totals.position >= self._pacing.pending_records
            for owned in pair.owned()
        )

    def _has_changed(self, owned: Owned) -> bool:
        return owned.totals.position != owned.saved or owned.totals.has_changed

    async def _save(self, pair: Pair) -> None:
        """Save both partitions as they are now, outcomes first."""
        began = self._clock.monotonic()
        ready = [owned for owned in pair.owned() if owned.state is PartitionState.READY]
        for owned in ready:
            await self._look_for_lost_records(owned)
        snapshots = []
        try:
            for owned in ready:
                owned.is_busy = True
            pair.encode_seconds = 0.0
            snapshots = [await self._encode(owned, pair) for owned in ready]
        finally:
            for owned in ready:
                owned.is_busy = False
        for snapshot in snapshots:
            await self._write(snapshot)
        # Time of the loop's own, not what passed: while much is folded a save waits for its turns, and is not to come later for
        # that. Writing takes about as much of it as encoding.
        spent = 2 * sum(each.encode_seconds for each in self._pairs.values())
        pause = max(self._settings.flush_interval_seconds, spent / self._pacing.saving_share)
        pair.next_save_at = began + min(pause, self._pacing.longest_flush_seconds)
        await self._commit(self._clock.monotonic())

    async def _look_for_lost_records(self, owned: Owned) -> None:
        """Tell offsets that never held a record for us from records that the log forgot before we read them."""
        holes = owned.totals.records.holes
        if holes == owned.holes_seen:
            return
        try:
            first, _ = await self._log.bounds(owned.partition)
        except EventLogUnavailable as trouble:
            self._logger.warning("bounds_unknown", topic_partition=owned.key, error=str(trouble))
            return  # asked again before the next save
        owned.holes_seen = holes
        if owned.saved is not None and first > owned.saved:
            self.counters.gaps += 1
            self._logger.error("records_lost", topic_partition=owned.key, from_offset=owned.saved, to_offset=first)
            owned.totals.taint(self._now_ms())

    async def _encode(self, owned: Owned, pair: Pair) -> _Snapshot:
        """Return the partition's state; looks at the loop now and then, nothing is folded meanwhile."""
        totals = owned.totals
        now = self._clock.monotonic()
        if now - owned.swept_at >= _SWEEP_SECONDS:
            owned.swept_at = now
            totals.drop_superseded()
        changes = Changes()
        steps = totals.take_changed(changes)
        while True:
            began = self._clock.monotonic()
            is_done = next(steps, True)
            pair.encode_seconds += self._clock.monotonic() - began
            if is_done:
                break
            await asyncio.sleep(0)
        records = totals.records
        records.end = max(totals.position, self._log.end_offset(owned.partition) or 0)
        records.reported_at_ms = self._now_ms()
        if not records.adds_up(totals.position):
            raise BrokenInvariant(f"{owned.key}: {records} does not add up to offset {totals.position}")
        changes.fields |= encode_progress(records)
        refusals, totals.refused = totals.refused, []
        return _Snapshot(owned, owned.saved, totals.position, changes, refusals)

    async def _write(self, snapshot: _Snapshot) -> None:
        """Save one partition, for as long as it takes and the partition is ours."""
        owned = snapshot.owned
        began = self._clock.monotonic()
        if snapshot.refusals:
            await self._publish_refusals(snapshot)
            reasons = [refusal.reason for refusal in snapshot.refusals]
            for reason in QuarantineReason:  # with a Counter each refusal would cost the hash of an enum, which is not C
                if count := reasons.count(reason):
                    self._metrics.quarantined.of(reason).inc(count)
        while owned.state is PartitionState.READY:
            try:
                stored = await self._totals.save(
                    owned.key, expected=snapshot.expected, next_offset=snapshot.next_offset, fields=snapshot.changes.fields
                )
            except StoreUnavailable as trouble:
                self.counters.save_troubles += 1
                self._logger.warning("save_failed", topic_partition=owned.key, error=str(trouble))
                await asyncio.sleep(self._pacing.retry_seconds)
                continue
            if stored is not None:
                self._begin_anew(owned, stored)
                return
            break
        else:
            return
        now = self._clock.monotonic()
        if snapshot.next_offset != owned.saved or snapshot.next_offset >= (self._log.end_offset(owned.partition) or 0):
            owned.moved_at = now
        owned.saved = snapshot.next_offset
        owned.saved_at = now
        self.counters.saves += 1
        self.counters.fields_saved += len(snapshot.changes.fields)
        self._metrics.flush_duration_seconds.observe(now - began)
        self._report(owned)
        if snapshot.changes.flag_keys:
            self._on_counted(snapshot.changes.flag_keys)
        if snapshot.changes.garbage:
            await self._delete(owned, snapshot.changes.garbage)

    def _report(self, owned: Owned) -> None:
        """Bring the metrics up to date with what was saved; between saves the hot path touches none."""
        topic = "evaluations" if owned.is_counting_exposures else "outcomes"
        totals = owned.totals.records
        recorded = (totals.counted, totals.quarantined, totals.late, totals.ignored)
        for kind, total, reported in zip(_RECORDED, recorded, owned.reported, strict=True):
            self._metrics.events.of(topic, kind).inc(total - reported)
        owned.reported = recorded
        of_topic = [each for each in self._owned.values() if each.is_counting_exposures == owned.is_counting_exposures]
        self._metrics.partitions_owned.of(topic).set(len(of_topic))
        lags = [(self._log.end_offset(each.partition) or each.totals.position) - each.totals.position for each in of_topic]
        self._metrics.lag_records.of(topic).set(max(0, sum(lags)))
        unknown = self.directory.unknown_flags
        self._metrics.unknown_flag_events.inc(unknown - self._unknown_reported)
        self._unknown_reported = unknown
        scattered = self.directory.scattered
        if scattered and not self._scattered_reported:
            self._logger.warning("contexts_scattered", topic=owned.partition[0], reason=_SCATTERED)
        self._metrics.scattered_contexts.inc(scattered - self._scattered_reported)
        self._scattered_reported = scattered

    def _begin_anew(self, owned: Owned, stored: int) -> None:
        """Drop a partition's memory, because somebody else has counted it, and load it again."""
        self.counters.fences_lost += 1
        self._metrics.fence_conflicts.inc()
        self._logger.warning("fence_lost", topic_partition=owned.key, expected=owned.saved, offset=stored)
        owned.state = PartitionState.LOADING
        owned.pending = []
        owned.totals.close()
        owned.totals = self._fresh_totals(owned.partition)
        self._start(self._load(owned), f"load:{owned.key}")

    async def _publish_refusals(self, snapshot: _Snapshot) -> None:
        """Return once the quarantine has acknowledged every refusal, or the partition is not ours any more."""
        owned = snapshot.owned
        topic, number = owned.partition
        left = list(snapshot.refusals)
        while left and owned.state is PartitionState.READY:
            try:
                await self._quarantine(topic, number, left[:MAX_REFUSALS])
            except EventLogUnavailable as trouble:
                self.counters.quarantine_troubles += 1
                self._logger.warning("quarantine_failed", topic_partition=owned.key, error=str(trouble))
                await asyncio.sleep(self._pacing.retry_seconds)
            else:
                del left[:MAX_REFUSALS]

    async def _delete(self, owned: Owned, garbage: Iterable[str]) -> None:
        """Delete fields nothing refers to any more. What a failure leaves behind is found again at the next load."""
        names = list(garbage)
        try:
            for begin in range(0, len(names), MAX_FIELDS_PER_SAVE):
                await self._totals.drop(owned.key, names[begin : begin + MAX_FIELDS_PER_SAVE])
        except StoreUnavailable as trouble:
            self._logger.warning("delete_failed", topic_partition=owned.key, error=str(trouble))

    async def _commit(self, now: float) -> None:
        """Tell Kafka how far we are: for lag tools."""
        if now - self._committed_at < self._pacing.commit_seconds:
            return
        self._committed_at = now
        offsets = {
            owned.partition: owned.saved
            for owned in self._owned.values()
            if owned.saved is not None and owned.state is PartitionState.READY
        }
        if offsets:
            await self._log.commit(offsets)

    # - letting go -

    async def _hand_over(self, partitions: frozenset[TopicPartition]) -> None:
        """Save once more what is to be taken from us, within the time there is, and forget it.

        Called from the middle of a rebalance, perhaps from within our own fetch: it waits for the store, never for a round.
        """
        leaving = [self._owned[partition] for partition in partitions if partition in self._owned]
        for owned in leaving:
            owned.is_leaving = True
        pairs = {owned.partition[1]: self._pairs[owned.partition[1]] for owned in leaving}
        try:
            async with asyncio.timeout(self._pacing.revoke_seconds):
                await asyncio.gather(*(self._save_last(pair) for pair in pairs.values()))
        except TimeoutError:
            late = [owned for owned in leaving if owned.totals.position != owned.saved]
            self.counters.late_revokes += len(late)
            self._logger.warning("handed_over_unsaved", topic_partitions=[owned.key for owned in late])
        finally:
            for owned in leaving:
                self._let_go(owned)

    async def _save_last(self, pair: Pair) -> None:
        """Wait for the save under way, then save what came after it."""
        if pair.saving is not None and not pair.saving.done():
            await asyncio.wait({pair.saving})
        if any(owned.state is PartitionState.READY and self._has_changed(owned) for owned in pair.owned()):
            await self._save(pair)

    async def _drain(self) -> None:
        """Save what was folded, under one deadline, then stop every task."""
        for owned in self._owned.values():
            owned.is_leaving = True
        try:
            async with asyncio.timeout(self._pacing.drain_seconds):
                await asyncio.gather(*(self._save_last(pair) for pair in self._pairs.values()))
        except TimeoutError:
            self._logger.warning("drained_unsaved")
        finally:
            for owned in list(self._owned.values()):
                self._let_go(owned)
            for task in self._tasks:
                task.cancel()

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)
