"""Counts events exactly once: fetch, fold, save, for every event partition this replica owns.

Here is the round. The order of things is what makes it exactly once:

1. A partition that was assigned is loaded, its fence checked, and the log sought to it. Only then
   are its records taken (`assignment.py`, `fetching.py`).
2. Records are folded into totals in memory (`pair_order.py`, `partition_totals.py`). About every
   100 ms what changed is written *as absolute totals, together with the offset to read next*, if
   the stored fence is still the one that we began from (`saving.py`).
3. Refused records are counted with the fence. Their details go to the quarantine topic before the
   fence moves, if that answers within two seconds. Otherwise they wait in memory, bounded, and the
   fence moves on. A crash costs the details of those that wait, and publishes others again with the
   same topic, partition and offset: readers drop repeats by these (`refusals.py`).
4. Another process's fence means that our memory is void: load again, seek there.
5. Whatever fails in one partition stops that one alone. It is loaded again, from what is saved, and
   a record that cannot be counted is set aside (`partition_faults.py`).
6. Kafka's committed offset follows, for lag tools only. It is never read.

Evaluations and outcomes of the same partition number are a pair: outcomes without flags are joined
to the exposures of their context. See ops/decisions/0003-attribution.md.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import structlog

from controller.cancellation import task_group
from controller.core.rollout import Rollout
from controller.counting.assignment import Assignment
from controller.counting.counted_flags import new_fold
from controller.counting.counting_report import CountingReport
from controller.counting.dependencies import Dependencies
from controller.counting.event_sampling import EventSampling
from controller.counting.event_tally import EventTally
from controller.counting.fetching import Fetching
from controller.counting.folding.engine import Fold, NativeFault
from controller.counting.folding.flags_to_count import CountedFlag, FlagsToCount
from controller.counting.log_ends import LogEnds
from controller.counting.owned_partition import PartitionView
from controller.counting.pacing import Pacing
from controller.counting.pair_order import FOLDED_AT_ONCE, FoldingFailed, PairOrder
from controller.counting.partition_faults import PartitionFaults
from controller.counting.partition_totals import ReadEvaluations, ReadOutcomes
from controller.counting.refusals import Quarantine, RefusalBacklog
from controller.counting.saving import BUDGET, Saving
from controller.health import Faults, Scope
from controller.ports import Clock, EventLog, Topology, Totals
from controller.settings import CountingSettings
from controller.telemetry import Metrics
from schemas.events import Packed

_FOLDED_PER_TURN = 2 * FOLDED_AT_ONCE  # records, usually of one pair; then others may run
_PACING = Pacing()


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
        on_saved: Callable[[], None],
        read_evaluations: ReadEvaluations,
        read_outcomes: ReadOutcomes,
        pacing: Pacing = _PACING,
        faults: Faults | None = None,
        topology: Topology | None = None,
        new_fold: Callable[..., Fold] = new_fold,
    ) -> None:
        """Connect the parts of counting.

        `topics` are the evaluations' and the outcomes'. `epoch` is part of the partitions' keys: a
        new one counts everything again. `on_saved` is called when totals of arms have just been
        saved. `faults` gets what is contained in one partition or flag. `topology` knows which
        topic it is that has a name. `new_fold` makes the fold of each partition.
        """
        flags_to_count = FlagsToCount(settings.unknown_flags_limit)
        self.tally = EventTally(flags_to_count, read_evaluations, read_outcomes)
        of_packed = isinstance(read_evaluations, Packed) or isinstance(read_outcomes, Packed)
        dependencies = Dependencies(
            events=log,
            totals=totals,
            clock=clock,
            metrics=metrics,
            settings=settings,
            pacing=pacing,
            topics=topics,
            epoch=epoch,
            faults=Faults(clock.now) if faults is None else faults,
            topology=topology,
            flags_to_count=flags_to_count,
            sampling=EventSampling(self.tally, of_packed=of_packed),
            new_fold=new_fold,
        )
        self._dependencies = dependencies
        self.counters = dependencies.counters
        self.flags_to_count = dependencies.flags_to_count
        self._faults = PartitionFaults(dependencies)
        self.refusals = refusals = RefusalBacklog(
            quarantine, dependencies.faults, retry_seconds=pacing.retry_seconds
        )
        self.assignment = assignment = Assignment(dependencies, self._faults)
        self._order = order = PairOrder(
            dependencies,
            (read_evaluations, read_outcomes),
            assignment.owned,
            assignment.trial_totals,
        )
        self._fetching = Fetching(dependencies, assignment.owned, has_packed=order.has_packed)
        self._ends = ends = LogEnds(dependencies, assignment)
        self._report = report = CountingReport(dependencies, assignment, ends, refusals)
        self._saving = Saving(dependencies, assignment, order, ends, refusals, report, on_saved)
        self._is_stopping = False
        self._is_blocked = False  # records are pending and none could be folded
        self._has_ended = asyncio.Event()
        self._freed_at = 0.0
        self._logger = structlog.get_logger()

    # - what others call -

    def count_for(self, rollout: Rollout) -> None:
        """Count for this rollout from now on; an older revision than the known one changes nothing.

        Call it for every rollout there is before `run`: events that are folded before their flag is
        known are ignored for good.
        """
        counted = self.flags_to_count.count_for(rollout, self._dependencies.now_ms())
        if counted is not None:
            for owned in self.assignment.owned.values():
                owned.totals.flags.apply(counted)

    def retire(self, flag_key: str, revision: int) -> None:
        """Free what was counted for a flag that was retired as this revision."""
        counted = self.flags_to_count.retire(flag_key, revision)
        if counted is not None:
            self._free(counted)

    async def stop(self) -> None:
        """Let `run` save what was folded, under one deadline, and return once it has ended.

        Returns at once if it never began.
        """
        self._is_stopping = True
        if self._dependencies.tasks.have_begun:
            await self._has_ended.wait()

    def views(self) -> list[PartitionView]:
        """Return how every partition that we own stands."""
        return self._report.views(self._dependencies.clock.monotonic())

    @property
    def longest_fold_seconds(self) -> float:
        """How long one fold has kept the event loop to itself at most."""
        return self._order.longest_seconds

    async def run(self) -> None:
        """Count until `stop`; wait for the end of trouble outside.

        Raises what a broken invariant of ours raises. It may be run again after that: everything is
        loaded again.
        """
        self.assignment.forget()
        self._has_ended.clear()
        self._dependencies.events.on_revoked(self._saving.hand_over)
        # What exists by now, without cycles that nobody uses, lives as long as the process:
        # collections need not visit it.
        gc.collect()
        gc.freeze()
        try:
            async with task_group() as group:
                self._dependencies.tasks.begin(group)
                self._dependencies.tasks.start(self.refusals.run(), "refusals")
                self._dependencies.tasks.start(self._ends.follow(self._report.update_lag), "ends")
                while not self._is_stopping:
                    await self._round()
                await self._saving.drain()
        finally:
            self._has_ended.set()

    # - one round -

    async def _round(self) -> None:
        self.assignment.follow()
        self.assignment.begin_loaded()
        if self._fetching.is_due(is_blocked=self._is_blocked):
            await self._fetching.fetch(is_blocked=self._is_blocked)
        now = self._dependencies.clock.monotonic()
        await self._fold(now)
        self._fetching.pause_full()
        self._saving.save_due(self._dependencies.clock.monotonic())
        self._free_ended(now)
        await asyncio.sleep(0)  # a log that always has records must not keep the loop to itself

    async def _fold(self, now: float) -> None:
        """Fold what every pair has pending; let others run now and then."""
        self._is_blocked = True
        since_turn = 0
        for pair in list(self.assignment.pairs.values()):
            try:
                folded = self._order.fold(pair, now)
            except FoldingFailed as failure:
                self._faults.isolate(failure)
                self.assignment.fail(pair, failure.__cause__ or failure)
                continue
            except NativeFault as fault:  # beside the records, or of an earlier call
                self.assignment.fail(pair, fault)
                continue
            finally:
                self._faults.report_set_aside(pair)
            if folded:
                self._is_blocked = False
            is_slow = self._order.has_packed or any(one.is_careful for one in pair.owned())
            since_turn += _FOLDED_PER_TURN if is_slow else folded
            if since_turn >= _FOLDED_PER_TURN:
                since_turn = 0
                await asyncio.sleep(0)

    def _free_ended(self, now: float) -> None:
        """Free what was counted for rollouts that ended long enough ago."""
        if now - self._freed_at < self._dependencies.pacing.sweep_seconds:
            return
        self._freed_at = now
        self.tally.drop_ended()
        for counted in self.flags_to_count.end(self._dependencies.now_ms()):
            self._free(counted)

    def _free(self, counted: CountedFlag) -> None:
        for owned in self.assignment.owned.values():
            owned.totals.flags.drop(counted.flag_key, counted.rollout_id)
        self._dependencies.faults.clear(Scope.FLAG, counted.flag_key, reporter=BUDGET)
        self._logger.info("totals_freed", flag_key=counted.flag_key, rollout_id=counted.rollout_id)
