"""Writes what this replica knows of its flags to where every replica can show it.

About once a second it compares what a flag's worker and planes say with what was written last, and
writes what is new. It looks at the flags of which somebody noted a change, and at each flag once a
minute all the same. Nothing waits for it and nothing is decided by it.

Belongs here: what is written, and when. Does not belong here: the form (`codec/reports.py`), the
keys (`adapters/redis/reports.py`), and reading (`report_reader.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Protocol

from controller.codec.reports import live_report, point_to_bytes, report_to_json
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from controller.core.thinning import Thinning
from controller.deciding.flag.news import FIX, REPORTS
from controller.errors import BrokenInvariant, OperatingTrouble, StoreUnavailable
from controller.health import Faults, Scope
from controller.ports import Clock, CourseKey, PlaneStanding, Reports
from controller.running.claims import replica_name
from controller.running.flag_summaries import RunningFlags
from schemas.report import MAX_POINTS, LiveReport

BEAT_SECONDS: Final = 1.0
#: With thousands of flags writing takes no more than this share of the time, as far as that leaves
#: a beat every few seconds: counting and deciding come first.
TIME_SHARE: Final = 0.05
LONGEST_BEAT_SECONDS: Final = 5.0
#: A judgement that says nothing but that time has passed is written so often.
QUIET_SECONDS: Final = 60.0
#: So often it is written that planes, which stand as they stood, were looked at again.
PLANES_QUIET_SECONDS: Final = 300.0
#: Both of a rollout that has ended: thousands of them may stand beside a few that run.
ENDED_QUIET_SECONDS: Final = 900.0
#: Flags written at a time: together they take one connection for one round trip, and the event loop
#: for a millisecond or two. Counting and deciding use the same.
AT_ONCE: Final = 16
#: Of those that have ended, so many are written in one beat.
ENDED_PER_BEAT: Final = 100
#: The reporter of troubles with writing.
_WRITER: Final = "writer"


class ReportedFlags(RunningFlags, Protocol):
    """The flags that run here, and which of them have news."""

    def on_news(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each flag that has another rollout document, or is judged again."""


class Standings(Protocol):
    """How the planes of the flags that run here stand; `actuating/reconciler.py`."""

    def standings(self, flag_key: str) -> Sequence[PlaneStanding] | None:
        """Return those of one flag, None when it runs elsewhere."""

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each flag whose planes stand otherwise than before."""


@dataclass(slots=True)
class _Written:
    """What was written last of one flag."""

    rollout: Rollout
    judgement: Judgement | None
    planes: Sequence[PlaneStanding]
    at: float  # monotonic seconds
    looked_at: float  # when it was compared for the last time although nobody had noted a change
    course: CourseKey | None = None
    thinning: Thinning | None = None


class ReportWriter:
    """Keeps the reports of the flags that run here up to date."""

    def __init__(
        self,
        running: ReportedFlags,
        planes: Standings,
        reports: Reports,
        clock: Clock,
        faults: Faults,
    ) -> None:
        """Follow what changes in `running` and `planes`; nothing is written before `run`."""
        self._running = running
        self._standings = planes
        self._reports = reports
        self._clock = clock
        self._faults = faults
        self._replica = replica_name()
        self._written: dict[str, _Written] = {}  # in the order of `looked_at`
        self._noted: set[str] = set()  # flags of which something may be new
        running.on_news(self._note)
        planes.on_change(self._note)

    def _note(self, flag_key: str) -> None:
        self._noted.add(flag_key)

    async def run(self) -> None:
        """Write again and again until cancelled. While Redis is away, nothing is written."""
        while True:
            began = self._clock.monotonic()
            await self.beat()
            pause = (self._clock.monotonic() - began) * (1 / TIME_SHARE - 1)
            await asyncio.sleep(min(max(pause, BEAT_SECONDS), LONGEST_BEAT_SECONDS))

    async def beat(self) -> None:
        """Write what is new of every flag that runs here."""
        rollouts = self._running.rollouts
        for flag_key in self._written.keys() - rollouts.keys():
            del self._written[flag_key]  # another replica writes it now
        live: list[Rollout] = []
        ended: list[Rollout] = []
        for count, flag_key in enumerate(self._begin_looks(rollouts), start=1):
            rollout = rollouts.get(flag_key)
            if rollout is not None and self._is_due(flag_key, rollout):
                (ended if rollout.has_ended else live).append(rollout)
            if count % 100 == 0:
                await asyncio.sleep(0)
        # A replica that takes over ten thousand ended flags shows the live ones at once.
        due = [*live, *ended[:ENDED_PER_BEAT]]
        self._noted.update(rollout.flag_key for rollout in ended[ENDED_PER_BEAT:])
        trouble: BaseException | None = None
        mistake: BaseException | None = None  # of ours, at one flag: the others are written first
        for at in range(0, len(due), AT_ONCE):
            outcomes = await asyncio.gather(
                *map(self._write, due[at : at + AT_ONCE]), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, OperatingTrouble | BrokenInvariant):
                    trouble = outcome  # perhaps of this flag's key alone: the others go on
                elif outcome is not None:
                    mistake = outcome
            if isinstance(trouble, StoreUnavailable) and len(outcomes) == _failed(outcomes):
                self._noted.update(rollout.flag_key for rollout in due[at:])
                break  # Redis is away: the next beat tries again
        if trouble is not None:
            self._faults.report(Scope.DEPENDENCY, REPORTS, str(trouble), FIX, reporter=_WRITER)
        else:
            self._faults.clear(Scope.DEPENDENCY, REPORTS, reporter=_WRITER)
        if mistake is not None:
            raise mistake

    def own_report(self, flag_key: str) -> LiveReport | None:
        """Return the report on a flag as it is at this moment, None when it runs elsewhere."""
        rollout = self._running.rollouts.get(flag_key)
        if rollout is None:
            return None
        return self._report(rollout, self._running.judgement_of(flag_key), self._planes(flag_key))

    def _begin_looks(self, rollouts: Mapping[str, Rollout]) -> Collection[str]:
        """Return the flags to be compared, and forget them.

        They are those that were noted, those that are new here, and those that nobody has noted for
        a minute: a change that was not noted is written late, and not never.
        """
        flag_keys, self._noted = self._noted, set()
        flag_keys |= rollouts.keys() - self._written.keys()
        now = self._clock.monotonic()
        oldest = takewhile(
            lambda item: now - item[1].looked_at >= QUIET_SECONDS, self._written.items()
        )
        for flag_key, written in list(oldest):
            written.looked_at = now
            self._written[flag_key] = self._written.pop(flag_key)  # to the end
            flag_keys.add(flag_key)
        return flag_keys

    def _is_due(self, flag_key: str, rollout: Rollout) -> bool:
        written = self._written.get(flag_key)
        if written is None or written.rollout is not rollout:
            return True
        judgement, planes = self._running.judgement_of(flag_key), self._planes(flag_key)
        if _has_judgement_changed(written.judgement, judgement):
            return True
        if _have_planes_changed(written.planes, planes):
            return True
        age = self._clock.monotonic() - written.at
        ended = ENDED_QUIET_SECONDS if rollout.has_ended else 0.0
        if judgement is not written.judgement and age >= max(QUIET_SECONDS, ended):
            return True
        return age >= max(PLANES_QUIET_SECONDS, ended) and planes != written.planes

    def _report(
        self, rollout: Rollout, judgement: Judgement | None, planes: Sequence[PlaneStanding]
    ) -> LiveReport:
        at, replica = self._clock.now(), self._replica
        return live_report(rollout, judgement, planes, at=at, replica=replica)

    def _planes(self, flag_key: str) -> Sequence[PlaneStanding]:
        return self._standings.standings(flag_key) or ()

    async def _write(self, rollout: Rollout) -> None:
        flag_key = rollout.flag_key
        judgement = self._running.judgement_of(flag_key)
        written = self._written.get(flag_key)
        planes = self._planes(flag_key)
        at = self._clock.monotonic()
        now = _Written(rollout, judgement, planes, at=at, looked_at=at)
        if written is not None:
            now.course, now.thinning = written.course, written.thinning
        report = report_to_json(self._report(rollout, judgement, now.planes))
        points: dict[int, bytes] = {}
        gone: Sequence[int] = ()
        if judgement is not None and judgement.visit == rollout.visit_index:
            thinning = await self._thinning(now, rollout, judgement)
            second = int(judgement.at.timestamp())
            is_decided = written is not None and written.rollout is not rollout
            if thinning.takes(second, is_turning_point=is_decided):
                percent = rollout.visits[judgement.visit].percent
                points = {second: point_to_bytes(percent, judgement)}
                gone = thinning.add(second)
        try:
            await self._reports.write(flag_key, report, now.course, points, gone)
        except BaseException:
            self._written.pop(flag_key, None)  # what was written is not known: read it again
            raise
        self._written.pop(flag_key, None)
        self._written[flag_key] = now  # at the end

    async def _thinning(self, now: _Written, rollout: Rollout, judgement: Judgement) -> Thinning:
        """Return which points of the present visit are kept, also those written before us."""
        course = CourseKey(rollout.rollout_id, judgement.visit)
        if now.thinning is None or now.course != course:
            stored = await self._reports.course(rollout.flag_key, course)
            now.course, now.thinning = course, Thinning(MAX_POINTS, stored)
        return now.thinning


def _has_judgement_changed(before: Judgement | None, now: Judgement | None) -> bool:
    """Return whether a judgement is to be written after the one that was written last."""
    if before is now:
        return False
    if before is None or now is None:
        return True
    return _without_times(before) != _without_times(now)


def _have_planes_changed(before: Sequence[PlaneStanding], now: Sequence[PlaneStanding]) -> bool:
    """Return whether planes stand otherwise, whenever they were looked at."""
    return len(before) != len(now) or any(
        (one.plane, one.percent, one.decided_percent, one.why)
        != (other.plane, other.percent, other.decided_percent, other.why)
        for one, other in zip(before, now, strict=False)
    )


def _without_times(judgement: Judgement) -> tuple[object, ...]:
    """Return what a judgement says, without what changes as time passes alone."""
    return (
        judgement.visit,
        judgement.batches,
        judgement.exposures,
        judgement.harm,
        judgement.replies,
        [gap.kind for gap in judgement.gaps],
        [(one.metric, one.harm, one.safe, one.e_value, one.arms) for one in judgement.metrics],
    )


def _failed(outcomes: Sequence[object]) -> int:
    return sum(isinstance(outcome, BaseException) for outcome in outcomes)
