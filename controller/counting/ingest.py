"""Counts events exactly once: fetch, fold, save, for every event partition this replica owns.

What is counted is `counting.py`'s; here is the order in which things happen, which is what makes it
exactly once:

1. A partition that was assigned is not ready. Its hash is loaded, the fence checked against the
   log, the log sought to the fence. Only then are its records taken; those that came earlier are
   dropped, the seek brings them back.
2. Records are folded into totals in memory. About every 100 ms what changed is written *as absolute
   totals, together with the offset to read next*, if the stored fence is still the one we began
   from. The next batch folds meanwhile.
3. Refused records are counted with the fence. Their details go to the quarantine topic, before the
   fence moves while that answers within two seconds; else they wait in memory, bounded, and the
   fence moves on. A crash costs the details of those that wait and publishes others again, with the
   same topic, partition and offset: readers drop repeats by these.
4. Somebody else's fence means that memory is void: load again, seek there. A save of unknown
   outcome is repeated with the same arguments until it is known; meanwhile folding goes on until a
   bound is met, then fetching stops. Nothing is lost.
5. Whatever fails in one partition stops that one alone: it is loaded again, from what is saved, and
   a record that cannot be counted is set aside. A log that lost records or was made again is
   counted on, and what is missing is noted as a loss: evidence of that time passes no gate by
   itself, and guardrails go on. See ops/decisions/0011-made-again.md.
6. Kafka's committed offset follows, for lag tools only. It is never read.

Evaluations and outcomes of the same partition number are a pair: outcomes without flags are joined
to the exposures of their context. See ops/decisions/0003-attribution.md.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import structlog

from controller.core.rollout import Rollout
from controller.counting.owned_partition import (
    TRIES,
    OwnedPartition,
    Pacing,
    PartitionPair,
    PartitionState,
    PartitionView,
)
from controller.counting.pair_order import (
    CAREFUL_RECORDS,
    FOLDED_AT_ONCE,
    FoldingFailed,
    PairOrder,
    failure_of,
)
from controller.counting.partition_totals import (
    Changes,
    PartitionTotals,
    ReadEvaluations,
    ReadOutcomes,
)
from controller.counting.refusals import Quarantine, RefusalBacklog
from controller.counting.watched_flags import WatchedFlags
from controller.errors import (
    BrokenInvariant,
    EventLogUnavailable,
    OperatingTrouble,
    StoreUnavailable,
)
from controller.health import Faults, Scope, partition_remedy
from controller.metrics import Metrics
from controller.ports import Clock, EventLog, TopicPartition, Topology, Totals
from controller.settings import CountingSettings
from schemas.quarantine import Refusal
from schemas.terms import QuarantineReason, RecordClass
from schemas.totals import MAX_FIELDS_PER_SAVE, encode_progress

_PACKED_BYTES_PENDING = (
    16 * 1024 * 1024
)  # of records that hold many events, fetched and not yet folded, per partition
_FOLDED_BEFORE_PAUSE = 2 * FOLDED_AT_ONCE  # by one pair as a rule; then others get the loop
_RECORD_CLASSES = (
    RecordClass.COUNTED,
    RecordClass.QUARANTINED,
    RecordClass.LATE,
    RecordClass.IGNORED,
)
_COLLECTED_FROM_OBJECTS = 20_000
_SCATTERED = (
    "a context's events are in several partitions and it is counted once in each: see "
    "ops/formats.md"
)
_REBASED = "look at the flags in a stage: it is tainted, and a person decides how it goes on"
_OVER_BUDGET = "end the rollout when you can, or raise counting.max_contexts_per_partition"
#: Who reports a fault, and alone clears it.
_COUNTING, _BUDGET = "counting", "budget"
_PACING = Pacing()
_SWEEP_SECONDS = 600.0  # by then the directory is newer than any hash that was loaded


_EXPOSURES_KEPT_MS = 3_600_000  # beyond their window, in a partition without traffic
_NOTICE_SECONDS = 600.0  # so long a rebase is shown as a fault; the loss it left is in the evidence
_SHRUNK_TIMES = 3  # a log ends before what we counted: once may be a follower that became leader


@dataclass(slots=True)
class IngestCounters:
    """What happened since the start, for metrics."""

    saves: int = 0
    save_troubles: int = 0  # tries with unknown outcome
    fences_lost: int = 0  # somebody else had counted
    fetch_troubles: int = 0
    gaps: int = 0
    rebases: int = 0  # partitions counted on in another log
    mistakes: int = 0  # of ours, each contained in a partition


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A consistent state of one partition, ready to be saved."""

    owned: OwnedPartition
    expected: int | None
    next_offset: int
    changes: Changes
    refusals: Sequence[Refusal]
    totals: PartitionTotals
    rebased: int  # expected in the store
    at: float


class Ingest:
    """One member of the counting group.

    Everything but `run` may be called at any time from the same event loop.
    """

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
        faults: Faults | None = None,
        topology: Topology | None = None,
    ) -> None:
        """`topics` are the evaluations' and the outcomes'.

        `epoch` is part of the partitions' keys: a new one counts anew.

        `on_counted` is told which flags' totals have just been saved. What is contained in one
        partition or flag is reported to `faults`. `topology` says which topic it is that has a
        name.
        """
        self._faults = Faults(clock.now) if faults is None else faults
        self._topology = topology
        self._log = log
        self._totals = totals
        self._clock = clock
        self._metrics = metrics
        self._settings = settings
        self._pacing = pacing
        # At hand of a partition: with less, what a fetch brings does not pause it. aiokafka would
        # drop what it has read ahead.
        self._plenty = FOLDED_AT_ONCE + max(0, pacing.pending_records - settings.fetch_max_records)
        self._evaluations_topic, self._outcomes_topic = topics
        self._epoch = epoch
        self.refusals = RefusalBacklog(quarantine, self._faults, retry_seconds=pacing.retry_seconds)
        self._on_counted = on_counted
        self._folding = PairOrder(
            log,
            clock,
            settings,
            pacing,
            read_evaluations=read_evaluations,
            read_outcomes=read_outcomes,
            trial=self._trial_totals,
        )
        self._owned: dict[TopicPartition, OwnedPartition] = {}
        self._pairs: dict[int, PartitionPair] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._is_blocked = False  # records are at hand and none could be folded
        self._has_ended = asyncio.Event()
        self._committed_at = 0.0
        self._given_back_at = 0.0
        self._unknown_reported = 0
        self._dropped_reported = 0
        self._scattered_reported = 0
        self._logger = structlog.get_logger()
        self.directory = WatchedFlags(settings.unknown_flags_limit)
        self.counters = IngestCounters()

    # - what others call -

    def watch(self, rollout: Rollout) -> None:
        """Count for this rollout from now on; an older revision than the one known changes nothing.

        To be told of every rollout there is before `run`: what is folded before its flag is known
        is ignored for good.
        """
        watched = self.directory.watch(rollout, self._now_ms())
        if watched is not None:
            for owned in self._owned.values():
                owned.totals.take(watched)

    async def stop(self) -> None:
        """Let `run` save what was folded, under one deadline, and return once it has ended.

        At once if it never began.
        """
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
                saved_offset=None if owned.saved is None else owned.counted_from,
                end_offset=self._end_of(owned),
                records=owned.totals.records,
                unmoved_seconds=now - owned.moved_at,
                trouble=owned.trouble,
                unsaved_seconds=0.0
                if owned.unsaved_since is None
                else max(0.0, now - owned.unsaved_since),
                heard_seconds=self._unheard_seconds(owned, now),
                counts_exposures=owned.is_counting_exposures,
                saved_seconds=now - owned.saved_at,
            )
            for owned in self._owned.values()
        ]

    @property
    def longest_fold_seconds(self) -> float:
        """How long one fold has kept the loop to itself at most."""
        return self._folding.longest_seconds

    async def run(self) -> None:
        """Count until `stop`.

        Raises what a broken invariant of ours raises; trouble outside is waited for.

        May be run again after it failed: what is in memory may be half a save, so all is loaded
        again.
        """
        for owned in list(self._owned.values()):
            self._let_go(owned)
            self._log.resume([owned.partition])
        self._tasks.clear()
        self._has_ended.clear()
        self._log.on_revoked(self._hand_over)
        # what exists by now lives as long as the process: collections need not look at it
        gc.freeze()
        # Records come by the hundred and die young without a collection's help; at the usual 700
        # new objects a pass would come with every fetch and cost 4 % of the whole.
        gc.set_threshold(_COLLECTED_FROM_OBJECTS)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._start(self.refusals.run(), "refusals")
                self._start(self._follow_ends(), "ends")
                while not self._is_stopping:
                    await self._round()
                await self._drain()
        finally:
            self._has_ended.set()

    # - one round -

    async def _round(self) -> None:
        self._follow_assignment()
        self._begin_loaded()
        if not any(
            len(one.pending) >= self._plenty and (one.is_busy or not self._is_blocked)
            for one in self._owned.values()
        ):
            await self._fetch()
        now = self._clock.monotonic()
        self._is_blocked = True
        since_pause = 0
        for pair in list(self._pairs.values()):
            try:
                folded = self._folding.fold(pair, now)
            except FoldingFailed as failed:
                self._isolate(failed)
                self._fail(pair, failed.__cause__ or failed)
                continue
            finally:
                self._report_set_aside(pair)
            if folded:
                self._is_blocked = False
            is_slow = self._folding.has_packed or any(one.is_careful for one in pair.owned())
            since_pause += _FOLDED_BEFORE_PAUSE if is_slow else folded
            if since_pause >= _FOLDED_BEFORE_PAUSE:
                since_pause = 0
                await asyncio.sleep(0)
        self._pace_fetching()
        self._save_what_is_due(self._clock.monotonic())
        self._give_back(now)
        await asyncio.sleep(0)  # a log that always has records must not keep the loop to itself

    async def _fetch(self) -> None:
        """Take from the log what it has.

        And wait a little for it if nothing can be done meanwhile.
        """
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
            if (
                owned is not None
                and owned.state is PartitionState.READY
                and not owned.is_leaving
                and records
            ):
                last = owned.pending[-1].offset if owned.pending else -1
                owned.pending += (
                    records
                    if records[0].offset > last
                    else [each for each in records if each.offset > last]
                )
                owned.delivered_at = now

    def _wait_seconds(self) -> float:
        """Return how long a fetch may wait.

        Not at all with records at hand, else about until the next save.
        """
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
            owned = OwnedPartition(
                partition, key, self._fresh_totals(partition), self._clock.monotonic()
            )
            self._owned[partition] = owned
            pair = self._pairs.setdefault(number, PartitionPair())
            if owned.is_counting_exposures:
                pair.evaluations = owned
            else:
                pair.outcomes = owned
            self._start(self._load(owned), f"load:{key}")

    def _trial_totals(self, partition: TopicPartition) -> PartitionTotals:
        """Return totals to try records on: what is noticed there besides counts nowhere."""
        known = self.directory
        return self._totals_with(WatchedFlags(0, flags=known.flags, over=known.over), partition)

    def _fresh_totals(self, partition: TopicPartition) -> PartitionTotals:
        return self._totals_with(self.directory, partition)

    def _totals_with(self, directory: WatchedFlags, partition: TopicPartition) -> PartitionTotals:
        return PartitionTotals(
            directory,
            counts_exposures=partition[0] == self._evaluations_topic,
            exact_limit=self._settings.exact_set_limit,
            window_ms=self._settings.attribution_window_ms,
            number=partition[1],
        )

    def _let_go(self, owned: OwnedPartition) -> None:
        owned.state = PartitionState.GONE
        owned.pending = []
        if owned.is_faulty:
            self._faults.clear(Scope.PARTITION, owned.name, reporter=_COUNTING)
        owned.totals.close()
        owned.end_trial()
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
                fullness = max(
                    fullness,
                    sum(len(record.value or b"") for record in owned.pending)
                    / _PACKED_BYTES_PENDING,
                )
            if not owned.is_paused and fullness >= 1:
                self._log.pause([owned.partition])
                owned.is_paused = True
            elif owned.is_paused and fullness < 0.5:
                self._log.resume([owned.partition])
                owned.is_paused = False

    # - taking a partition on -

    async def _load(self, owned: OwnedPartition, after_seconds: float = 0.0) -> None:
        """Read a partition's hash and check it against the log.

        The loop seeks and declares it ready.

        What fails is tried again, and after some times slowly, for as long as the partition is
        ours: somebody may have repaired it.
        """
        if after_seconds:
            await asyncio.sleep(after_seconds)
        tries = 0
        while (
            owned.state in (PartitionState.LOADING, PartitionState.STOPPED) and owned.loaded is None
        ):
            try:
                owned.loaded = await self._take_over(owned)
                owned.state = PartitionState.LOADING
            except OperatingTrouble as trouble:
                self._logger.warning("load_failed", topic_partition=owned.key, error=str(trouble))
                await asyncio.sleep(self._pacing.retry_seconds)
            except Exception as mistake:
                # This partition alone: the others' evidence goes on, and gates see that one does
                # not report.
                tries += 1
                self._note_failure(owned, mistake)
                if isinstance(mistake, BrokenInvariant) or tries >= TRIES:
                    self._stop_partition(owned)
                is_stopped = owned.state is PartitionState.STOPPED
                pacing = self._pacing
                await asyncio.sleep(pacing.stopped_seconds if is_stopped else pacing.failed_seconds)

    async def _take_over(self, owned: OwnedPartition) -> tuple[PartitionTotals, int | None, int]:
        """Return a partition's totals as stored, at the place in the log to go on at.

        And its fence.
        """
        stored = await self._totals.load(owned.key)
        first, end = await self._log.bounds(owned.partition)
        for _ in range(_SHRUNK_TIMES - 1):
            if stored.next_offset is None or stored.next_offset <= end:
                break
            # A broker that has just become leader may know less than was read already, for a
            # moment.
            await asyncio.sleep(self._pacing.ends_seconds)
            first, end = await self._log.bounds(owned.partition)
        owned.end, owned.bounds_at = end, self._clock.monotonic()
        totals = self._fresh_totals(owned.partition)
        totals.set_time(self._now_ms())
        topic_id = self._topic_id(owned) or ""
        if stored.next_offset is None:
            totals.start_at(first)
            if first > 0:
                self._note_lost(owned, 0, first)
                totals.lose(0, is_over=first >= end)
            totals.records.topic_id = topic_id
            return totals, None, 0
        # In a thread: a hash with a million contexts takes a second, and other partitions go on
        # counting.
        await asyncio.to_thread(totals.restore, stored.next_offset, stored.fields)
        records = totals.records
        rebased = records.rebased
        if records.topic_id and topic_id and records.topic_id != topic_id:
            why = f"the topic was made again: its id was {records.topic_id} and is {topic_id}"
            self._rebase(owned, totals, first, end, why)
        elif stored.next_offset > end:
            why = f"the log ends at {end}, before offset {stored.next_offset} that was counted"
            self._rebase(owned, totals, end, end, why)
        elif stored.next_offset < first:
            self._note_lost(owned, stored.next_offset, first)
            totals.skip_to(first, end)
        if topic_id:
            totals.records.topic_id = topic_id
        return totals, stored.next_offset, rebased

    def _rebase(
        self, owned: OwnedPartition, totals: PartitionTotals, offset: int, end: int, why: str
    ) -> None:
        """Count on in another log than the one that is stored, and say so."""
        self.counters.rebases += 1
        fence = totals.position
        totals.rebase(offset, end)
        owned.set_failures_behind(2**63)  # offsets of a log that is not there any more
        owned.failed_at = 0
        owned.rebased_at = self._clock.monotonic()
        owned.is_faulty = True
        self._logger.error(
            "partition_rebased",
            topic_partition=owned.key,
            from_offset=fence,
            to_offset=offset,
            reason=why,
        )
        why = f"{why}; counting goes on at {offset}"
        self._faults.report(Scope.PARTITION, owned.name, why, _REBASED, reporter=_COUNTING)

    def _note_lost(self, owned: OwnedPartition, offset: int, first: int) -> None:
        self.counters.gaps += 1
        self._logger.error(
            "records_lost", topic_partition=owned.key, from_offset=offset, to_offset=first
        )

    def _topic_id(self, owned: OwnedPartition) -> str | None:
        if self._topology is None:
            return None
        return self._topology.topic_id("evaluations" if owned.is_counting_exposures else "outcomes")

    # - mistakes of ours -

    def _isolate(self, failed: FoldingFailed) -> None:
        """Find out which records cannot be counted: try them one by one, and set aside what fails.

        One that fails on what was counted and not on the trial's totals is known for the next time;
        what lies before it is saved first then, so that each such failure moves the fence.
        """
        owned = failed.owned
        owned.careful_to = max(owned.careful_to, failed.last + CAREFUL_RECORDS)
        if failed.first == failed.last:
            owned.poisoned[failed.first] = failure_of(failed.__cause__)
            owned.save_at = max(owned.save_at, failed.first + 1)

    def _report_set_aside(self, pair: PartitionPair) -> None:
        for owned in pair.owned():
            if owned.set_aside:
                (offset, why), records = owned.set_aside[0], len(owned.set_aside)
                owned.set_aside = []
                self.counters.mistakes += records
                self._logger.error(
                    "record_set_aside",
                    topic_partition=owned.key,
                    offset=offset,
                    records=records,
                    error=why,
                )

    def _fail(self, pair: PartitionPair, mistake: BaseException) -> None:
        """Load a pair again after a mistake of ours: what is in memory may be half a change."""
        for owned in pair.owned():
            if owned.state is not PartitionState.READY:
                continue
            self._note_failure(owned, mistake)
            # Progress ends the row: a record that was set aside, or another place.
            owned.failures = owned.failures + 1 if owned.totals.position <= owned.failed_at else 1
            owned.failed_at = max(owned.failed_at, owned.totals.position)
            is_searching = len(owned.poisoned) > 0 or owned.careful_to >= 0
            is_stopping = owned.failures > TRIES * (2 if is_searching else 1)
            pacing = self._pacing
            self._reload(owned, pacing.stopped_seconds if is_stopping else pacing.failed_seconds)
            if is_stopping:
                self._stop_partition(owned)

    def _note_failure(self, owned: OwnedPartition, mistake: BaseException) -> None:
        self.counters.mistakes += 1
        owned.is_faulty = True
        owned.trouble = str(mistake) or repr(mistake)
        why = f"it cannot be counted: {owned.trouble}"
        self._faults.report(
            Scope.PARTITION, owned.name, why, partition_remedy(owned.name, why), reporter=_COUNTING
        )
        self._logger.error("partition_failed", topic_partition=owned.key, exc_info=mistake)

    def _stop_partition(self, owned: OwnedPartition) -> None:
        """Leave a partition alone, but for a try now and then.

        Gates see that it does not report.
        """
        if owned.state is PartitionState.LOADING:
            owned.state = PartitionState.STOPPED
            self._log.pause([owned.partition])
            owned.is_paused = True
            self._logger.error("partition_stopped", topic_partition=owned.key, error=owned.trouble)

    def _reload(self, owned: OwnedPartition, after_seconds: float = 0.0) -> None:
        """Drop a partition's memory and load it again."""
        owned.state = PartitionState.LOADING
        owned.loaded = None
        owned.pending = []
        owned.unsaved_since = None
        owned.totals.close()
        owned.totals = self._fresh_totals(owned.partition)
        self._start(self._load(owned, after_seconds), f"load:{owned.key}")

    # - what the log says of itself -

    async def _follow_ends(self) -> None:
        """Ask where the log ends, also while nothing is read or saved.

        Lag must not look like none.
        """
        while True:
            await asyncio.sleep(self._pacing.ends_seconds)
            before = {owned.partition: owned.totals.position for owned in self._owned.values()}
            if not before:
                continue
            try:
                ends = await self._log.ends(list(before))
            except EventLogUnavailable as trouble:
                self._logger.warning("ends_unknown", error=str(trouble))
                continue
            except Exception:  # of ours; the next round asks again
                self._logger.exception("ends_unknown")
                continue
            for partition, end in ends.items():
                owned = self._owned.get(partition)
                if owned is not None and partition in before:
                    self._take_end(owned, before[partition], end)
            self._report_lag()

    def _take_end(self, owned: OwnedPartition, position: int, end: int) -> None:
        """Note where the log ends, and load a partition again whose log is another one by now."""
        owned.end, owned.asked_at = end, self._clock.monotonic()
        if owned.state is not PartitionState.READY or owned.is_leaving:
            return
        owned.shrunk = owned.shrunk + 1 if end < position else 0
        stored, topic_id = owned.totals.records.topic_id, self._topic_id(owned)
        is_another = bool(stored and topic_id and stored != topic_id)
        if owned.shrunk >= _SHRUNK_TIMES or is_another:
            owned.shrunk = 0
            self._logger.warning("log_changed", topic_partition=owned.key, offset=position, end=end)
            self._reload(owned)

    def _end_of(self, owned: OwnedPartition) -> int | None:
        """Return the offset after the last record, as far as it is known."""
        fetched = self._log.end_offset(owned.partition)
        if owned.end is None or fetched is None:
            return owned.end if fetched is None else fetched
        return max(owned.end, fetched)

    def _unheard_seconds(self, owned: OwnedPartition, now: float) -> float | None:
        """Return how long the brokers have said nothing about a partition; None: they never did."""
        heard = [self._log.heard_at(owned.partition), owned.bounds_at]
        if owned.is_paused:
            heard.append(owned.asked_at)  # it is not fetched, so only this is asked
        known = [at for at in heard if at is not None]
        return max(0.0, now - max(known)) if known else None

    # - giving back -

    def _give_back(self, now: float) -> None:
        """Free what was counted for rollouts that ended long enough ago."""
        if now - self._given_back_at < self._pacing.sweep_seconds:
            return
        self._given_back_at = now
        for watched in self.directory.end(self._now_ms()):
            for owned in self._owned.values():
                owned.totals.drop(watched.flag_key, watched.rollout_id)
            self._faults.clear(Scope.FLAG, watched.flag_key, reporter=_BUDGET)
            self._logger.info(
                "totals_freed", flag_key=watched.flag_key, rollout_id=watched.rollout_id
            )

    def _begin_loaded(self) -> None:
        """Seek to the fences that were loaded.

        Right before a fetch, so that what it returns was read from there.
        """
        for owned in self._owned.values():
            if owned.loaded is None or owned.state is not PartitionState.LOADING:
                continue
            owned.totals, owned.saved, owned.saved_rebased = owned.loaded
            owned.loaded = None
            owned.unsaved_since = None
            owned.trouble = ""
            now = self._clock.monotonic()
            owned.saved_at = owned.moved_at = owned.delivered_at = owned.swept_at = now
            stored = owned.totals.records
            owned.holes_seen = stored.holes
            owned.looked_to, owned.looked_last_ms = owned.totals.position, stored.last_ms or 0
            owned.reported = (stored.counted, stored.quarantined, stored.late, stored.ignored)
            owned.last_timestamp_ms = -inf
            owned.pending = []
            self._log.seek(owned.partition, owned.totals.position)
            if owned.is_paused:
                self._log.resume([owned.partition])
                owned.is_paused = False
            owned.state = PartitionState.READY
            self._logger.info(
                "partition_ready", topic_partition=owned.key, offset=owned.totals.position
            )

    # - saving -

    def _save_what_is_due(self, now: float) -> None:
        for number, pair in self._pairs.items():
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
            is_full = any(owned.pending and self._folding.room(owned) == 0 for owned in ready)
            is_wanted = any(
                owned.has_changed or now - owned.saved_at >= self._pacing.heartbeat_seconds
                for owned in ready
            )
            due_at = pair.next_save_at + (
                self._pacing.backlog_seconds if self._is_behind(pair) else 0.0
            )
            if is_full or (is_wanted and now >= due_at):
                pair.saving = self._start(self._save(pair), f"save:{number}")

    def _is_behind(self, pair: PartitionPair) -> bool:
        """Whether the log has more of a pair than is kept at hand.

        Then throughput matters more than the latest totals.
        """
        return any(
            (self._end_of(owned) or 0) - owned.totals.position >= self._pacing.pending_records
            for owned in pair.owned()
        )

    async def _save(self, pair: PartitionPair) -> None:
        """Save both partitions as they are now, outcomes first."""
        try:
            await self._save_both(pair)
        except Exception as mistake:  # of ours: nothing outside raises anything else than trouble
            self._fail(pair, mistake)

    async def _save_both(self, pair: PartitionPair) -> None:
        began = self._clock.monotonic()
        ready = [owned for owned in pair.owned() if owned.state is PartitionState.READY]
        for owned in ready:
            self._pass_holes(owned)
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
        # Time of the loop's own, not what passed: while much is folded a save waits for its turns,
        # and is not to come later for that. Writing takes about as much of it as encoding.
        spent = 2 * sum(each.encode_seconds for each in self._pairs.values())
        pause = max(self._settings.flush_interval_seconds, spent / self._pacing.saving_share)
        pair.next_save_at = began + min(pause, self._pacing.longest_flush_seconds)
        await self._commit(self._clock.monotonic())

    def _pass_holes(self, owned: OwnedPartition) -> None:
        """Go past offsets behind the last record that hold none for us: the end of a transaction.

        Otherwise the partition would seem to stand still with records waiting.
        """
        position = self._log.position(owned.partition)
        if owned.is_leaving or owned.pending or position is None:
            return  # one that is leaving takes no more of what is read
        if position > owned.totals.position:
            owned.totals.pass_holes(position)

    async def _look_for_lost_records(self, owned: OwnedPartition) -> None:
        """Tell offsets that never held a record for us from records that the log forgot unread.

        They are lost if the log begins behind the place up to which all holes are accounted for.
        The fence is no such place: a save goes on while the log does not answer, or while more is
        folded, and may already lie behind the holes.
        """
        totals = owned.totals
        holes, position = totals.records.holes, totals.position
        last_ms = totals.records.last_ms or 0
        if holes == owned.holes_seen:
            owned.looked_to, owned.looked_last_ms = position, last_ms
            return
        try:
            first, _ = await self._log.bounds(owned.partition)
        except EventLogUnavailable as trouble:
            self._logger.warning("bounds_unknown", topic_partition=owned.key, error=str(trouble))
            return  # asked again before the next save
        if owned.totals is not totals:
            return
        if first > owned.looked_to:
            self._note_lost(owned, owned.looked_to, first)
            is_over = totals.position > first
            to_ms = (totals.records.last_ms or 0) if is_over else None
            totals.records.note_loss(owned.looked_last_ms, to_ms)
        owned.holes_seen = holes
        owned.looked_to, owned.looked_last_ms = position, last_ms

    async def _encode(self, owned: OwnedPartition, pair: PartitionPair) -> _Snapshot:
        """Return the partition's state.

        Looks at the loop now and then, nothing is folded meanwhile.
        """
        totals = owned.totals
        now = self._clock.monotonic()
        if now - owned.swept_at >= _SWEEP_SECONDS:
            owned.swept_at = now
            totals.drop_superseded()
            if totals.position >= (self._end_of(owned) or 0):
                totals.expire_exposures(self._now_ms() - _EXPOSURES_KEPT_MS)
        for flag_key in totals.keep_budget(self._settings.max_contexts_per_partition):
            why = (
                f"its contexts fill {owned.name}: new ones are no longer recorded there, "
                "and its exposures and conversions stand still"
            )
            self._faults.report(Scope.FLAG, flag_key, why, _OVER_BUDGET, reporter=_BUDGET)
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
        records.end = max(totals.position, self._end_of(owned) or 0)
        unheard = self._unheard_seconds(owned, now)
        if unheard is not None:
            # A broker that hangs says nothing, and then neither do we: whoever judges sees the
            # silence.
            records.reported_at_ms = max(0, self._now_ms() - int(unheard * 1000))
        if not records.adds_up(totals.position):
            self._metrics.invariant_violations.of("I2").inc()
            why = f"{records} does not add up to offset {totals.position}"
            self._logger.error(
                "invariant_violated", invariant="I2", topic_partition=owned.key, error=why
            )
            raise BrokenInvariant(f"{owned.key}: {why}")
        changes.fields |= encode_progress(records)
        refusals, totals.refused = totals.refused, []
        return _Snapshot(
            owned,
            owned.saved,
            totals.position,
            changes,
            refusals,
            totals,
            owned.saved_rebased,
            now,
        )

    async def _write(self, snapshot: _Snapshot) -> None:
        """Save one partition, for as long as it takes and the partition is ours."""
        owned = snapshot.owned
        began = self._clock.monotonic()
        if snapshot.refusals:
            topic, number = owned.partition
            self.refusals.add(topic, number, snapshot.refusals)
            await self.refusals.flushed(self._pacing.quarantine_seconds)
            reasons = [refusal.reason for refusal in snapshot.refusals]
            for reason in (
                QuarantineReason
            ):  # with a Counter each refusal would cost the hash of an enum, which is not C
                if count := reasons.count(reason):
                    self._metrics.quarantined.of(reason).inc(count)
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
        if owned.totals is not snapshot.totals:
            return  # loaded again meanwhile
        now = self._clock.monotonic()
        if snapshot.next_offset != owned.saved or snapshot.next_offset >= (
            self._end_of(owned) or 0
        ):
            owned.moved_at = now
        owned.saved = snapshot.next_offset
        owned.set_failures_behind(snapshot.next_offset)
        owned.saved_rebased = owned.totals.records.rebased
        owned.saved_at = now
        owned.unsaved_since = snapshot.at if owned.has_changed else None
        self._note_recovery(owned, now)
        self.counters.saves += 1
        self._metrics.flush_duration_seconds.observe(now - began)
        self._report(owned)
        if snapshot.changes.flag_keys:
            self._on_counted(snapshot.changes.flag_keys)
        if snapshot.changes.garbage:
            await self._delete(owned, snapshot.changes.garbage)

    def _report(self, owned: OwnedPartition) -> None:
        """Bring the metrics up to date with what was saved.

        Between saves the hot path touches none.
        """
        topic = "evaluations" if owned.is_counting_exposures else "outcomes"
        totals = owned.totals.records
        recorded = (totals.counted, totals.quarantined, totals.late, totals.ignored)
        for kind, total, reported in zip(_RECORD_CLASSES, recorded, owned.reported, strict=True):
            self._metrics.events.of(topic, kind).inc(total - reported)
        owned.reported = recorded
        of_topic = [
            each
            for each in self._owned.values()
            if each.is_counting_exposures == owned.is_counting_exposures
        ]
        self._metrics.partitions_owned.of(topic).set(len(of_topic))
        self._report_lag()
        self._metrics.refusals_waiting.set(self.refusals.waiting)
        self._metrics.refusals_dropped.inc(self.refusals.dropped - self._dropped_reported)
        self._dropped_reported = self.refusals.dropped
        unknown = self.directory.unknown_flags
        self._metrics.unknown_flag_events.inc(unknown - self._unknown_reported)
        self._unknown_reported = unknown
        scattered = self.directory.scattered
        if scattered and not self._scattered_reported:
            self._logger.warning("contexts_scattered", topic=owned.partition[0], reason=_SCATTERED)
        self._metrics.scattered_contexts.inc(scattered - self._scattered_reported)
        self._scattered_reported = scattered

    def _report_lag(self) -> None:
        """Bring the lag up to date with what is known of the log.

        Records that are not saved yet.
        """
        for topic, is_of_exposures in (("evaluations", True), ("outcomes", False)):
            lags = [
                max(0, (self._end_of(each) or 0) - each.counted_from)
                for each in self._owned.values()
                if each.is_counting_exposures == is_of_exposures
                and (each.state is PartitionState.READY or each.saved is not None)
            ]
            self._metrics.lag_records.of(topic).set(sum(lags))

    def _note_recovery(self, owned: OwnedPartition, now: float) -> None:
        """Take a partition's fault back, once it has been saved beyond the place where it failed."""
        if not owned.is_faulty or owned.totals.position < owned.failed_at:
            return
        if owned.rebased_at is not None and now - owned.rebased_at < _NOTICE_SECONDS:
            return
        owned.is_faulty, owned.rebased_at, owned.failures = False, None, 0
        self._faults.clear(Scope.PARTITION, owned.name, reporter=_COUNTING)

    def _begin_anew(self, owned: OwnedPartition, stored: int) -> None:
        """Drop a partition's memory, because somebody else has counted it, and load it again."""
        self.counters.fences_lost += 1
        self._metrics.fence_conflicts.inc()
        self._logger.warning(
            "fence_lost", topic_partition=owned.key, expected=owned.saved, offset=stored
        )
        self._reload(owned)

    async def _delete(self, owned: OwnedPartition, garbage: Iterable[str]) -> None:
        """Delete fields nothing refers to any more.

        What a failure leaves behind is found again at the next load.
        """
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

        Called from the middle of a rebalance, perhaps from within our own fetch: it waits for the
        store, never for a round.
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
            self._logger.warning(
                "handed_over_unsaved", topic_partitions=[owned.key for owned in late]
            )
        finally:
            for owned in leaving:
                self._let_go(owned)

    async def _save_last(self, pair: PartitionPair) -> None:
        """Wait for the save under way, then save what came after it."""
        if pair.saving is not None and not pair.saving.done():
            await asyncio.wait({pair.saving})
        if any(owned.state is PartitionState.READY and owned.has_changed for owned in pair.owned()):
            await self._save(pair)

    async def _drain(self) -> None:
        """Save what was folded, under one deadline, then stop every task."""
        for owned in self._owned.values():
            owned.is_leaving = True
        try:
            async with asyncio.timeout(self._pacing.drain_seconds):
                await asyncio.gather(*(self._save_last(pair) for pair in self._pairs.values()))
                await self.refusals.flushed(self._pacing.drain_seconds)
        except TimeoutError:
            self._logger.warning("drained_unsaved")
        finally:
            for owned in list(self._owned.values()):
                self._let_go(owned)
            if self.refusals.waiting:
                self._logger.error("refusals_lost", refusals=self.refusals.waiting)
            for task in self._tasks:
                task.cancel()

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)
