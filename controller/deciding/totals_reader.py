"""Reads the totals of all live rollouts, and gives each worker its evidence.

Totals that one flag's worker cannot use concern this flag alone: the others are still watched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple, Protocol

import structlog

from controller.codec.merging import stored_together
from controller.core.evidence import VisitTotals
from controller.core.rollout import Rollout
from controller.deciding.due_looks import DueLooks
from controller.deciding.event_partitions import EventPartitions
from controller.deciding.evidence_reader import visits_to_read
from controller.deciding.external_readings import ExternalReadings
from controller.deciding.flag.flag_inbox import NewTotals
from controller.deciding.flag.flag_worker import FlagWorker
from controller.deciding.gate_questions import GateQuestions
from controller.deciding.given_evidence import (
    READ_EVERY_SECONDS,
    Facts,
    Given,
    Progress,
    Visits,
)
from controller.deciding.known_totals import AsOf, KnownTotals
from controller.deciding.worker_pool import WorkerPool
from controller.errors import OperatingTrouble
from controller.health import Faults, Scope
from controller.ports import Clock, GateWebhooks, Queries, Totals
from controller.text import plural

#: Totals are read this often at most, and at least every `READ_EVERY_SECONDS`. In between, reading
#: takes no more than this share of the time, as far as that leaves one read a second.
READ_AT_MOST_EVERY_SECONDS = 0.1
READ_TIME_SHARE = 0.1
#: Only totals that have changed are read, as far as their partitions tell. All are read again so
#: often all the same: a manual repair changes totals and tells nobody.
READ_ALL_EVERY_SECONDS = 30.0
#: Flags whose totals are read together: what they get is fresh, also where there are thousands.
FLAGS_PER_READ = 200
#: Flags whose workers look before the event loop's others have their turn. The pause after them is
#: so long that looks take no more than a share of the loop's time. The share is smaller where a
#: partition has so many records to count: what is counted is old, and harm is found soonest by
#: catching up.
FLAGS_PER_TURN = 20
COMPARED_PER_TURN = 200  # flags that get nothing because nothing is new; a few microseconds each
LOOK_SHARE = 0.5
LOOK_SHARE_BEHIND = 0.1
BEHIND_RECORDS = 50_000
#: Where there are so many flags, or so much to count, that each is looked at less often than this,
#: people are told once. It is no fault of any of them.
TOLD_FROM_SECONDS = 5.0
#: Where nothing was read or looked at for so long, nobody waits for a turn.
STUCK_AFTER_SECONDS = 10.0
_LOOKS = "looks"
#: The reporter of flags whose totals cannot be read, which alone clears them.
_SHOWING = "showing evidence"


class Actuation(Protocol):
    """What the flag planes serve, as far as evidence has to say it."""

    def drift(self, rollout: Rollout) -> str | None:
        """Return which plane does not serve what was decided, None when all do."""

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each flag whose planes stand otherwise than before."""


class WatchView(NamedTuple):
    """Whether a live rollout of this replica is watched."""

    flag_key: str
    rollout: Rollout
    progress: Progress | None  # of the event partitions, as read with its totals; None: not yet
    read_at: float | None  # monotonic seconds of that
    handled_at: float | None = None  # when its worker last had handled all it got, saved
    trouble: str = ""  # why its worker handles none: stopped by a mistake, or nothing is saved


class _Turn(NamedTuple):
    """What the flags have in common that are looked at without a pause."""

    began: float  # monotonic seconds
    at: datetime  # the same in UTC
    progress: Progress
    read: AsOf  # `progress`, and when it was read: one object for all of them


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
        self.readings = ExternalReadings(queries, lambda: pool.with_external_metrics, clock)
        self.gates = GateQuestions(webhooks, lambda: pool.judged_gates, clock)
        self._clock = clock
        self._faults = faults
        self._saved = asyncio.Event()
        self._noted: set[str] = set()  # flags of which something else may be new
        self._known = KnownTotals()
        self._all_read_at = float("-inf")  # monotonic seconds
        self._asked_at = float("-inf")  # which totals have changed; monotonic seconds
        self._looks = DueLooks()
        self._turn_seconds = 0.0  # how long the last pass over all flags took
        self._began_at = clock.monotonic()  # the present pass
        self._flags_read = 0  # in the last pass
        self._got_on_at = clock.monotonic()  # when something was read or given last
        self._given: dict[str, Given] = {}  # by flag
        self._unread: set[str] = set()  # flags whose totals could not be read or used
        self._logger = structlog.get_logger()
        pool.on_stop(self.forget)
        pool.on_news(self._note)
        actuation.on_change(self._note)

    @property
    def turn_seconds(self) -> float:
        """How long a flag waits for its turn while all is well: the time between two looks at it.

        The first of one pass may be the last of the next. Time in which nothing gets on, as while
        Redis hangs, is no part of it.
        """
        if self._clock.monotonic() - self._got_on_at > STUCK_AFTER_SECONDS:
            return 0.0
        return self._turn_seconds + max(self._got_on_at - self._began_at, 0.0)

    def views(self) -> Sequence[WatchView]:
        """Return how well each rollout that runs here and has not ended is watched."""
        views = []
        broken, unsaved = self.pool.broken, self.pool.unsaved
        for flag_key, rollout in self.pool.rollouts.items():
            worker = self.pool.worker(flag_key)
            if worker is None or rollout.has_ended:
                continue
            progress, read_at = self._known.as_of(flag_key) or (None, None)
            trouble = unsaved.get(flag_key, "")
            if flag_key in broken:
                trouble = f"its worker stopped: {broken[flag_key]}"
            handled_at = self._handled_at(flag_key, worker, read_at)
            views.append(WatchView(flag_key, rollout, progress, read_at, handled_at, trouble))
        return views

    def _handled_at(self, flag_key: str, worker: FlagWorker, read_at: float | None) -> float | None:
        """Return when a worker last had nothing to handle; None: it has handled none yet."""
        given, handled_at = self._given.get(flag_key), worker.handled_at
        if handled_at is None or given is None or read_at is None or handled_at < given.at:
            return handled_at
        return max(handled_at, read_at)

    def totals_saved(self) -> None:
        """Note that new totals were saved here: they are to be read."""
        self._saved.set()

    def _note(self, flag_key: str) -> None:
        self._noted.add(flag_key)

    def forget(self, flag_key: str) -> None:
        """Forget a flag that runs here no longer; its next owner reads for itself."""
        self._given.pop(flag_key, None)
        self._known.want(flag_key, None)
        self._looks.forget(flag_key)
        self._clear_unread(flag_key)

    def reset(self) -> None:
        """Forget all flags, as a run begins."""
        for flag_key in list(self._unread):
            self._clear_unread(flag_key)
        self._known, self._looks = KnownTotals(), DueLooks()
        self._all_read_at = self._asked_at = float("-inf")
        self._given.clear()
        self._turn_seconds = 0.0

    async def run(self) -> None:
        """Read when new totals were saved, and once a second, until cancelled."""
        pause = READ_AT_MOST_EVERY_SECONDS
        while True:
            await asyncio.sleep(pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(READ_EVERY_SECONDS - pause, 0)):
                    await self._saved.wait()
            has_saved = self._saved.is_set()
            self._saved.clear()
            began = self._began_at = self._clock.monotonic()
            try:
                await self._read(has_saved=has_saved)
                self._faults.clear(Scope.PART, "totals")
                self._end_turn()
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

    def _end_turn(self) -> None:
        """Note that all flags had their turn, and tell people where that took long."""
        self._turn_seconds = max(self._got_on_at - self._began_at, 0.0)
        self._began_at = self._got_on_at
        if self._turn_seconds <= TOLD_FROM_SECONDS:
            self._faults.clear(Scope.PART, _LOOKS)
            return
        why = (
            f"each of {plural(self._flags_read, 'rollout')} is looked at only every "
            f"{self._turn_seconds:.0f} s, so harm is found that much later"
        )
        fix = (
            "wait while a backlog is counted; see whether Redis answers slowly; else add a "
            "replica, or end rollouts that nobody needs any more"
        )
        self._faults.report(Scope.PART, _LOOKS, why, fix)

    async def _read(self, *, has_saved: bool) -> None:
        """Read the totals that have changed, and give them and what else is new to the workers.

        Of a few flags all are read at once where this replica `has_saved` some: to ask first which
        have changed would take longer.
        """
        live, known = self.pool.rollouts, self._known
        now = self._clock.monotonic()
        reads_all = now - self._all_read_at >= READ_ALL_EVERY_SECONDS
        if reads_all:
            self._noted.update(live, known.wanted)
        self._follow_rollouts(live)
        self._flags_read = len(known.wanted)
        if not known.wanted:
            return
        keys = self.partitions.keys
        is_few = len(known.wanted) <= FLAGS_PER_TURN
        if has_saved and is_few and now - self._asked_at < READ_EVERY_SECONDS:
            await self._read_some(keys, dict(known.wanted), live)
            return
        read = await self._read_heads(keys)
        if reads_all:
            known.doubt(known.wanted)
            self._all_read_at = now
        waiting = stored_together(known.unknown)
        for at in range(0, len(waiting), FLAGS_PER_READ):
            some = waiting[at : at + FLAGS_PER_READ]
            wanted = {key: known.wanted[key] for key in some if key in known.wanted}
            await self._read_some(keys, wanted, live)
        await self._look(keys, live, read, set(waiting))

    async def _read_heads(self, keys: Sequence[str]) -> AsOf:
        """Return how far the partitions are, and note whose totals have changed since."""
        at = self._clock.monotonic()
        heads = await self._totals.heads(keys)
        read = Progress(tuple(head.progress for head in heads), len(keys), self._clock.now()), at
        self._known.take_heads(heads, read)
        self._asked_at, self._got_on_at = at, self._clock.monotonic()
        return read

    async def _look(
        self,
        keys: Sequence[str],
        live: Mapping[str, Rollout],
        read: AsOf,
        looked_at: set[str],
    ) -> None:
        """Give the totals that are known to the workers that may use them, but those `looked_at`.

        What is given with them is no older than a second: partitions would look silent.
        """
        known = self._known
        while True:
            if self._clock.monotonic() - read[1] >= READ_EVERY_SECONDS:
                read = await self._read_heads(keys)
            awake = self._looks.due(read[0], self._clock.now()) & known.wanted.keys()
            due = [*awake - known.unknown - looked_at]
            for at in range(0, len(due), FLAGS_PER_READ):
                some = due[at : at + FLAGS_PER_READ]
                totals = {key: known.totals[key] for key in some if key in known.totals}
                await self._give_all(live, totals, read, [*totals])
                looked_at.update(some)
                if self._clock.monotonic() - read[1] >= READ_EVERY_SECONDS:
                    break
            else:
                return

    def _follow_rollouts(self, live: Mapping[str, Rollout]) -> None:
        """Note which totals are to be known of the flags of which something was noted."""
        noted, self._noted = self._noted, set()
        for flag_key in noted:
            rollout = live.get(flag_key)
            if rollout is None or rollout.stage_index is None:
                self._known.want(flag_key, None)
                self._looks.forget(flag_key)
                self._clear_unread(flag_key)
            else:
                self._known.want(flag_key, (rollout.rollout_id, visits_to_read(rollout)))
                self._looks.wake(flag_key)

    async def _read_some(
        self, keys: Sequence[str], wanted: Mapping[str, Visits], live: Mapping[str, Rollout]
    ) -> None:
        """Read the totals of some flags, and give them to their workers, some at a time."""
        at = self._clock.monotonic()
        try:
            totals, partitions = await self._totals.read(keys, wanted)
        except OperatingTrouble:
            raise
        except Exception as mistake:  # perhaps one flag's totals: the others must stay watched
            self._logger.warning("totals_unreadable", error=repr(mistake))
            for flag_key, of_flag in wanted.items():
                await self._read_one(live[flag_key], keys, of_flag)
            return
        progress = Progress(tuple(partitions), len(keys), self._clock.now())
        self._got_on_at = self._clock.monotonic()
        await self._give_all(live, totals, (progress, at), [*wanted])

    async def _give_all(
        self,
        live: Mapping[str, Rollout],
        totals: Mapping[str, Mapping[int, VisitTotals]],
        read: AsOf,
        waiting: Sequence[str],
    ) -> None:
        """Give totals to the workers of some flags, some at a time."""
        lag = max((one.lag for one in read[0].partitions), default=0)
        share = LOOK_SHARE_BEHIND if lag > BEHIND_RECORDS else LOOK_SHARE
        given = compared = 0
        turn = self._begin_turn(read)
        for flag_key in waiting:
            given += self._give(live[flag_key], totals.get(flag_key, {}), turn)
            compared += 1
            if given >= FLAGS_PER_TURN or compared >= COMPARED_PER_TURN:
                await asyncio.sleep(0)  # the workers look
                seconds = self._clock.monotonic() - turn.began
                # Bounded: where something else held the loop, harm must not wait for ten times it.
                await asyncio.sleep(min(seconds * (1 / share - 1), READ_EVERY_SECONDS))
                given, compared, turn = 0, 0, self._begin_turn(read)

    def _begin_turn(self, read: AsOf) -> _Turn:
        """Return what the flags of one turn have in common."""
        now = self._got_on_at = self._clock.monotonic()
        return _Turn(now, self._clock.now(), read[0], read)

    async def _read_one(self, rollout: Rollout, keys: Sequence[str], visits: Visits) -> None:
        """Read one flag's totals alone, because those of all could not be read."""
        flag_key, at = rollout.flag_key, self._clock.monotonic()
        try:
            totals, progress = await self._totals.read(keys, {flag_key: visits})
        except OperatingTrouble:
            raise
        except Exception as mistake:  # this flag's alone
            self._report_unread(flag_key, mistake)
        else:
            read = Progress(tuple(progress), len(keys), self._clock.now())
            self._give(rollout, totals.get(flag_key, {}), self._begin_turn((read, at)))

    def _give(self, rollout: Rollout, visits: Mapping[int, VisitTotals], turn: _Turn) -> bool:
        """Give a flag's worker its totals, unless it got what says the same.

        Return whether it did.
        """
        flag_key, is_given = rollout.flag_key, False
        try:
            drift, gates = self._actuation.drift(rollout), self.gates.of(rollout)
            facts = Facts(visits, drift, self.readings.of(rollout), gates)
            worker = self.pool.worker(flag_key)
            if worker is not None:
                given = self._given.get(flag_key)
                if given is None or not given.is_enough(
                    rollout, facts, turn.progress, worker, turn.began, turn.at
                ):
                    is_given = True
                    evidence = facts.evidence(turn.progress, turn.at)
                    same_until = self._known.same_until(flag_key)
                    worker.inbox.put_totals(NewTotals(rollout.rollout_id, evidence, same_until))
                    given = Given(rollout, facts, turn.progress, turn.began)
                    self._given[flag_key] = given
                    self._looks.wake(flag_key)
                until = given.rests_until(worker, turn.at)
                if until is not None and not is_given:
                    self._looks.rest(rollout, until, turn.progress)
            self._known.take(flag_key, visits, turn.read)
        except Exception as mistake:  # of what is given with it; other flags are watched
            self._known.doubt([flag_key])
            self._report_unread(flag_key, mistake)
            return False
        self._clear_unread(flag_key)
        return is_given

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
