"""Reads the totals of all live rollouts, and gives each worker its evidence.

Totals that one flag's worker cannot use concern this flag alone: the others are still watched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from controller.core.evidence import Evidence, PartitionProgress, VisitTotals
from controller.core.rollout import Baking, Rollout
from controller.deciding.event_partitions import EventPartitions
from controller.deciding.evidence_reader import visits_to_read
from controller.deciding.external_readings import ExternalReadings
from controller.deciding.flag.flag_inbox import NewTotals
from controller.deciding.flag.flag_worker import FlagWorker
from controller.deciding.gate_questions import GateQuestions
from controller.deciding.worker_pool import WorkerPool
from controller.errors import OperatingTrouble
from controller.health import Faults, Scope
from controller.ports import Clock, GateWebhooks, Queries, Totals

#: Totals are read this often at most, and at least every `READ_EVERY_SECONDS`. In between, reading
#: takes no more than this share of the time, as far as that leaves one read a second.
READ_AT_MOST_EVERY_SECONDS = 0.1
READ_EVERY_SECONDS = 1.0
READ_TIME_SHARE = 0.1
#: While nothing new is counted for a flag that bakes, only time can change what is judged: silence,
#: lag, a gap that lasts. A look then comes after this part of the shorter of the plan's
#: `fresh_within` and `health_grace`, at the latest after so many seconds. A look costs about a
#: millisecond and a write to Redis, for each of ten thousand flags.
QUIET_LOOK_PART = 0.1
QUIET_LOOK_SECONDS = 8.0
#: Flags whose totals are read together: what they get is fresh, also where there are thousands.
FLAGS_PER_READ = 200
#: Flags that get evidence before the event loop's others have their turn, for so long that looks
#: take no more than a share of its time, and hold it for milliseconds. A partition with so many
#: records to count is behind: what is counted is old, and harm is found soonest by catching up.
FLAGS_PER_TURN = 20
LOOK_SHARE = 0.5
LOOK_SHARE_BEHIND = 0.1
BEHIND_RECORDS = 50_000
#: The reporter of flags whose totals cannot be read, which alone clears them.
_SHOWING = "showing evidence"

Visits = tuple[str, Sequence[int]]
"""A rollout's id and the numbers of its visits."""


class Actuation(Protocol):
    """What the flag planes serve, as far as evidence has to say it."""

    def drift(self, rollout: Rollout) -> str | None:
        """Return which plane does not serve what was decided, None when all do."""


@dataclass(frozen=True, slots=True)
class Given:
    """The evidence that a flag's worker got last."""

    rollout: Rollout
    evidence: Evidence
    at: float  # monotonic seconds

    def is_enough(
        self, rollout: Rollout, evidence: Evidence, handled_at: float | None, now: float
    ) -> bool:
        """Return whether a look at `evidence` now would find the same, but for some time.

        `handled_at` is when the worker last handled evidence: until it has this, it gets it again.
        """
        if evidence.visits != self.evidence.visits:
            return False
        if now - self.at < READ_EVERY_SECONDS:
            return True
        return (
            now - self.at < quiet_look_seconds(rollout)
            and handled_at is not None
            and handled_at >= self.at
            and rollout is self.rollout
            and _beside_counts(evidence) == _beside_counts(self.evidence)
        )


def _beside_counts(evidence: Evidence) -> tuple[object, ...]:
    """Return all in evidence that decides something, without counts and without ages."""
    losses = [partition.losses for partition in evidence.partitions]
    return losses, evidence.actuation_drift, evidence.readings, evidence.replies


def quiet_look_seconds(rollout: Rollout) -> float:
    """Return the seconds after which a rollout is looked at again without new totals."""
    if not isinstance(rollout.phase, Baking):
        return READ_EVERY_SECONDS
    plan = rollout.plan
    part = QUIET_LOOK_PART * min(plan.fresh_within, plan.health_grace).total_seconds()
    return min(max(part, READ_EVERY_SECONDS), QUIET_LOOK_SECONDS)


@dataclass(frozen=True, slots=True)
class WatchView:
    """Whether a live rollout of this replica is watched."""

    flag_key: str
    rollout: Rollout
    evidence: Evidence | None  # the newest that its worker got; None: none yet
    read_at: float | None  # monotonic seconds of it
    handled_at: float | None = None  # when its worker last had handled all it got, saved
    trouble: str = ""  # why its worker handles none: stopped by a mistake, or nothing is saved


class TotalsReader:
    """Feeds the workers of this replica with evidence."""

    def __init__(
        self,
        pool: WorkerPool,
        totals: Totals,
        partitions: EventPartitions,
        actuation: Actuation,
        queries: Queries,
        webhooks: GateWebhooks,
        *,
        clock: Clock,
        faults: Faults,
    ) -> None:
        self.pool = pool
        self._totals = totals
        self.partitions = partitions
        self._actuation = actuation
        self.readings = ExternalReadings(queries, lambda: pool.rollouts, clock)
        self.gates = GateQuestions(webhooks, lambda: pool.judged_gates, clock)
        self._clock = clock
        self._faults = faults
        self._saved = asyncio.Event()
        self._given: dict[str, Given] = {}  # by flag
        #: By flag, the newest evidence, and when it was read (monotonic seconds).
        self._evidence: dict[str, tuple[Evidence, float]] = {}
        self._unread: set[str] = set()  # flags whose totals could not be read or used
        self._logger = structlog.get_logger()
        pool.on_stop(self.forget)

    def views(self) -> Sequence[WatchView]:
        """Return how well each rollout that runs here and has not ended is watched."""
        views = []
        broken = self.pool.broken
        for flag_key, rollout in self.pool.rollouts.items():
            worker = self.pool.worker(flag_key)
            if rollout.has_ended or worker is None:
                continue
            evidence, read_at = self._evidence.get(flag_key, (None, None))
            trouble = worker.unsaved or ""
            if flag_key in broken:
                trouble = f"its worker stopped: {broken[flag_key]}"
            handled_at = self._handled_at(flag_key, worker, read_at)
            views.append(WatchView(flag_key, rollout, evidence, read_at, handled_at, trouble))
        return views

    def _handled_at(self, flag_key: str, worker: FlagWorker, read_at: float | None) -> float | None:
        """Return when a worker last had nothing to handle; None: it has handled none yet."""
        given, handled_at = self._given.get(flag_key), worker.handled_at
        if handled_at is None or given is None or read_at is None or handled_at < given.at:
            return handled_at
        return max(handled_at, read_at)

    def totals_saved(self, flag_keys: frozenset[str]) -> None:
        """Note that new totals of these flags were saved: they are to be read."""
        if flag_keys:
            self._saved.set()

    def forget(self, flag_key: str) -> None:
        """Forget a flag that runs here no longer; its next owner reads for itself."""
        self._given.pop(flag_key, None)
        self._evidence.pop(flag_key, None)
        self._clear_unread(flag_key)

    def reset(self) -> None:
        """Forget all flags, as a run begins."""
        for flag_key in list(self._unread):
            self._clear_unread(flag_key)
        self._given.clear()
        self._evidence.clear()

    async def run(self) -> None:
        """Read when new totals were saved, and once a second, until cancelled."""
        pause = READ_AT_MOST_EVERY_SECONDS
        while True:
            await asyncio.sleep(pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(READ_EVERY_SECONDS - pause, 0)):
                    await self._saved.wait()
            self._saved.clear()
            began = self._clock.monotonic()
            try:
                await self._read()
                self._faults.clear(Scope.PART, "totals")
            except OperatingTrouble as trouble:
                self._logger.warning("totals_unavailable", error=str(trouble))
            except Exception as mistake:  # ours: totals must go on being read
                self._logger.exception("totals_failed")
                why = f"totals could not be read: {mistake!r}"
                self._faults.report(Scope.PART, "totals", why)
            self.pool.clear_recovered()
            seconds = self._clock.monotonic() - began
            # Bounded: after a read that Redis did not answer, harm must not wait for ten more.
            pause = min(seconds * (1 / READ_TIME_SHARE - 1), READ_EVERY_SECONDS)
            pause = max(pause, READ_AT_MOST_EVERY_SECONDS)

    async def _read(self) -> None:
        """Read the totals of all flags, many in one round trip per partition."""
        live = self.pool.rollouts
        visits = {
            key: (rollout.rollout_id, visits_to_read(rollout))
            for key, rollout in live.items()
            if rollout.stage_index is not None
        }
        for flag_key in self._evidence.keys() - live.keys():
            del self._evidence[flag_key]
        for flag_key in self._unread - visits.keys():
            self._clear_unread(flag_key)
        if not visits:
            return
        waiting = list(visits)
        for at in range(0, len(waiting), FLAGS_PER_READ):
            some = waiting[at : at + FLAGS_PER_READ]
            await self._read_some({flag_key: visits[flag_key] for flag_key in some}, live)

    async def _read_some(self, visits: Mapping[str, Visits], live: Mapping[str, Rollout]) -> None:
        """Read the totals of some flags, and give them to their workers, some at a time."""
        keys = self.partitions.keys
        try:
            totals, progress = await self._totals.read(keys, visits)
        except OperatingTrouble:
            raise
        except Exception as mistake:  # perhaps one flag's totals: the others must stay watched
            self._logger.warning("totals_unreadable", error=repr(mistake))
            for flag_key, of_flag in visits.items():
                await self._read_one(live[flag_key], keys, of_flag)
            return
        waiting, partitions = list(visits), tuple(progress)
        lag = max((one.end_offset - one.next_offset for one in progress), default=0)
        share = LOOK_SHARE_BEHIND if lag > BEHIND_RECORDS else LOOK_SHARE
        for at in range(0, len(waiting), FLAGS_PER_TURN):
            began = self._clock.monotonic()
            for flag_key in waiting[at : at + FLAGS_PER_TURN]:
                self._give(live[flag_key], totals.get(flag_key, {}), partitions)
            if len(visits) > FLAGS_PER_TURN:
                await asyncio.sleep(0)  # the workers look
                await asyncio.sleep((self._clock.monotonic() - began) * (1 / share - 1))

    async def _read_one(self, rollout: Rollout, keys: Sequence[str], visits: Visits) -> None:
        """Read one flag's totals alone, because those of all could not be read."""
        flag_key = rollout.flag_key
        try:
            totals, progress = await self._totals.read(keys, {flag_key: visits})
        except OperatingTrouble:
            raise
        except Exception as mistake:  # this flag's alone
            self._report_unread(flag_key, mistake)
        else:
            self._give(rollout, totals.get(flag_key, {}), tuple(progress))

    def _give(
        self,
        rollout: Rollout,
        visits: Mapping[int, VisitTotals],
        partitions: tuple[PartitionProgress, ...],
    ) -> None:
        """Give a flag's worker its totals, unless it got what says the same a moment ago."""
        flag_key, now = rollout.flag_key, self._clock.monotonic()
        worker = self.pool.worker(flag_key)
        try:
            evidence = Evidence(
                self._clock.now(),
                visits,
                partitions,
                len(self.partitions.keys),
                self._actuation.drift(rollout),
                self.readings.of(rollout),
                self.gates.of(rollout),
            )
            if worker is not None:
                given = self._given.get(flag_key)
                if given is None or not given.is_enough(rollout, evidence, worker.handled_at, now):
                    worker.inbox.put_totals(NewTotals(rollout.rollout_id, evidence))
                    self._given[flag_key] = Given(rollout, evidence, now)
                self._evidence[flag_key] = (evidence, now)
        except Exception as mistake:  # of what is given with it; other flags are watched
            self._report_unread(flag_key, mistake)
            return
        self._clear_unread(flag_key)

    def _report_unread(self, flag_key: str, mistake: Exception) -> None:
        if flag_key not in self.pool:
            return  # handed over while its totals were read
        if flag_key not in self._unread:
            self._logger.error("evidence_not_shown", flag_key=flag_key, error=repr(mistake))
        self._unread.add(flag_key)
        why = f"its totals cannot be read, so its guardrails are blind: {mistake!r}"
        fix = f"rolloutctl pause {flag_key}, or roll it back, until they can"
        self._faults.report(Scope.FLAG, flag_key, why, fix, reporter=_SHOWING)

    def _clear_unread(self, flag_key: str) -> None:
        if flag_key in self._unread:
            self._unread.discard(flag_key)
            self._faults.clear(Scope.FLAG, flag_key, reporter=_SHOWING)
