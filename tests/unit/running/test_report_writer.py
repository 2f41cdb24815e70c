"""What a replica writes of its flags, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from controller.adapters.memory import ManualClock, MemoryReports
from controller.codec.reports import report_from_json
from controller.core.judging.judgement import Gap, Judgement
from controller.core.rollout import Completed, Rollout
from controller.deciding.flag.news import REPORTS
from controller.errors import BrokenInvariant
from controller.health import Faults, Scope
from controller.ports import CourseKey, PlaneStanding
from controller.running.report_writer import (
    ENDED_PER_BEAT,
    ENDED_QUIET_SECONDS,
    PLANES_QUIET_SECONDS,
    QUIET_SECONDS,
    ReportWriter,
)
from schemas.report import MAX_POINTS
from schemas.terms import Arm, HealthGap
from tests.builders import T0, make_judgement, make_plan, make_rollout

FLAG = "new-checkout"
SECOND = timedelta(seconds=1)


class Replica:
    """One flag, its newest judgement and the standings of its planes."""

    def __init__(self, store: MemoryReports) -> None:
        self.flags: dict[str, Rollout] = {FLAG: make_rollout()}
        self.judgement: Judgement | None = None
        self.planes: list[PlaneStanding] = []
        self.listeners: list[Callable[[str], None]] = []
        self.store = store
        self.writes = 0
        self.faults = Faults(lambda: T0)
        write = store.write

        async def counted(*arguments: object, **named: object) -> None:
            self.writes += 1
            await write(*arguments, **named)  # type: ignore[arg-type]

        store.write = counted  # type: ignore[method-assign]
        self.clock = ManualClock(T0)
        self.writer = ReportWriter(self, self, store, self.clock, self.faults)

    @property
    def rollouts(self) -> Mapping[str, Rollout]:
        """The flags that run here."""
        return self.flags

    def judgement_of(self, flag_key: str) -> Judgement | None:
        """Return the newest judgement."""
        return self.judgement if flag_key in self.flags else None

    def standings(self, flag_key: str) -> Sequence[PlaneStanding] | None:
        """Return how the planes stand."""
        return self.planes if flag_key in self.flags else None

    def on_news(self, listener: Callable[[str], None]) -> None:
        """Call it with the flag when its rollout or judgement is another."""
        self.listeners.append(listener)

    on_change = on_news

    def tell(self, flag_key: str = FLAG) -> None:
        """Tell that something is new of a flag."""
        for listener in self.listeners:
            listener(flag_key)

    async def judge(self, seconds: int) -> None:
        """Judge the evidence this long after `T0`, a context more for each second, and write."""
        exposures = {Arm.TREATMENT: 1000 + seconds, Arm.CONTROL: 9000}
        self.judgement = make_judgement(at=T0 + seconds * SECOND, exposures=exposures)
        self.tell()
        await self.writer.beat()


@pytest.fixture
def replica() -> Replica:
    """A replica that has written nothing yet."""
    return Replica(MemoryReports())


def course(rollout: Rollout) -> CourseKey:
    """Return the first visit's course."""
    return CourseKey(rollout.rollout_id, 0)


async def test_a_report_is_written_when_something_is_new(replica: Replica) -> None:
    """A rollout, a judgement, a plane that stands otherwise; else nothing."""
    await replica.writer.beat()
    assert replica.writes == 1
    await replica.writer.beat()
    assert replica.writes == 1
    await replica.judge(1)
    assert replica.writes == 2
    replica.planes = [PlaneStanding("ofrep", True, 1.0, 1.0, None, None, T0)]
    replica.tell()
    await replica.writer.beat()
    await replica.writer.beat()
    assert replica.writes == 3
    stored = await replica.store.read(FLAG)
    assert stored is not None
    report = report_from_json(stored)
    assert report.judgement is not None
    assert (report.judgement.at, report.planes[0].plane) == (T0 + SECOND, "ofrep")
    assert report == replica.writer.own_report(FLAG)


async def test_what_says_nothing_new_is_written_seldom(replica: Replica) -> None:
    """Of thousands of rollouts that bake in silence, each second some are judged.

    Their planes are looked at every few seconds, and stand as they stood.
    """
    judged = make_judgement(at=T0)
    standing = PlaneStanding("ofrep", True, 1.0, 1.0, None, None, T0)
    for second in range(2 * int(QUIET_SECONDS)):
        at = T0 + second * SECOND
        replica.judgement = replace(judged, at=at)
        replica.planes = [replace(standing, looked_at=at)]
        replica.tell()
        await replica.writer.beat()
        replica.clock.advance(SECOND)
    assert replica.writes == 2
    report = replica.writer.own_report(FLAG)
    assert report is not None
    assert report.planes[0].checked_at == replica.planes[0].looked_at
    replica.planes = [replace(standing, is_converged=False, why="it serves 5 %")]
    replica.tell()
    await replica.writer.beat()
    assert replica.writes == 3
    gap = Gap(HealthGap.NO_TRAFFIC, "no context was exposed")
    replica.judgement = replace(judged, at=T0 + 2 * QUIET_SECONDS * SECOND, gaps=(gap,))
    replica.tell()
    await replica.writer.beat()
    assert replica.writes == 4


async def test_that_planes_were_looked_at_again_is_written_more_seldom(replica: Replica) -> None:
    """A quiet rollout is judged every few minutes; its planes stand as they stood."""
    replica.judgement = make_judgement(at=T0)
    standing = PlaneStanding("ofrep", True, 1.0, 1.0, None, None, T0)
    for second in range(int(PLANES_QUIET_SECONDS) + 1):
        replica.planes = [replace(standing, looked_at=T0 + second * SECOND)]
        await replica.writer.beat()
        assert replica.writes == (1 if second < PLANES_QUIET_SECONDS else 2)
        replica.clock.advance(SECOND)


async def test_of_rollouts_that_have_ended_it_is_written_more_seldom(replica: Replica) -> None:
    """Their planes are looked at as before, and a report that somebody deleted comes back."""
    ended = [make_rollout(plan=make_plan(flag_key=f"flag-{n}")) for n in range(300)]
    replica.flags = {one.flag_key: replace(one, phase=Completed(T0)) for one in ended}
    for second in range(0, 3 * int(ENDED_QUIET_SECONDS), 5):
        looked_at = T0 + second * SECOND
        replica.planes = [PlaneStanding("ofrep", True, 1.0, 1.0, None, None, looked_at)]
        await replica.writer.beat()
        replica.clock.advance(5 * SECOND)
    assert len(ended) < replica.writes <= 3 * len(ended)


async def test_a_course_has_a_bounded_number_of_points(replica: Replica) -> None:
    """However long a stage bakes."""
    for second in range(4 * MAX_POINTS):
        await replica.judge(second)
    points = await replica.store.course(FLAG, course(replica.flags[FLAG]))
    first = int(T0.timestamp())
    assert MAX_POINTS // 2 <= len(points) <= MAX_POINTS
    assert min(points) == first
    assert max(points) >= first + 4 * MAX_POINTS - 5


async def test_a_course_ends_with_what_was_decided(replica: Replica) -> None:
    """In the second of the last point, or between two lines: else harm would seem not proven."""
    flag = replica.flags[FLAG]
    for seconds, updated in ((3, 4), (4 * MAX_POINTS + 1, 4 * MAX_POINTS + 2)):
        for second in range(seconds + 1):
            await replica.judge(second)
        replica.flags[FLAG] = replace(flag, revision=flag.revision + updated)
        replica.judgement = make_judgement(
            at=T0 + (seconds + 0.5) * SECOND, exposures={Arm.TREATMENT: 77, Arm.CONTROL: 7}
        )
        replica.tell()
        await replica.writer.beat()
        points = await replica.store.course(FLAG, course(flag))
        last = max(points)
        assert last == int(T0.timestamp()) + seconds
        assert b"77" in points[last]


async def test_a_replica_that_takes_over_goes_on_with_the_course(replica: Replica) -> None:
    """Its points join those that are there."""
    for second in range(10):
        await replica.judge(second)
    other = Replica(replica.store)
    for second in range(10, 20):
        await other.judge(second)
    assert len(await replica.store.course(FLAG, course(replica.flags[FLAG]))) == 20


async def test_a_failed_write_is_told_and_repeated(replica: Replica) -> None:
    """Nothing waits for Redis, and nothing of the course is lost for good."""
    await replica.judge(0)
    replica.store.outage.is_down = True
    await replica.judge(1)
    fault = replica.faults.of(Scope.DEPENDENCY, REPORTS)
    assert fault is not None
    assert "ops/security.md" in fault.fix
    replica.store.outage.is_down = False
    await replica.writer.beat()
    assert replica.faults.of(Scope.DEPENDENCY, REPORTS) is None
    assert len(await replica.store.course(FLAG, course(replica.flags[FLAG]))) == 2


async def test_a_flag_that_left_is_written_by_another(replica: Replica) -> None:
    """And when it comes back, everything is new."""
    await replica.judge(0)
    flag = replica.flags.pop(FLAG)
    await replica.judge(1)
    assert replica.writes == 1
    assert replica.writer.own_report(FLAG) is None
    replica.flags[FLAG] = flag
    await replica.writer.beat()
    assert replica.writes == 2


async def test_what_nobody_noted_is_written_all_the_same(replica: Replica) -> None:
    """Most flags are compared when a change is noted; each is once a minute, by the way."""
    asked: list[str] = []
    standings = replica.standings

    def counted(flag_key: str) -> Sequence[PlaneStanding] | None:
        asked.append(flag_key)
        return standings(flag_key)

    replica.standings = counted  # type: ignore[method-assign]
    replica.flags["quiet"] = make_rollout(flag_key="quiet")
    await replica.writer.beat()
    replica.planes = [PlaneStanding("ofrep", True, 1.0, 1.0, None, None, T0)]
    asked.clear()
    for _ in range(int(QUIET_SECONDS) - 1):
        replica.clock.advance(SECOND)
        await replica.writer.beat()
    assert (replica.writes, asked) == (2, [])
    replica.clock.advance(SECOND)
    await replica.writer.beat()
    assert replica.writes == 4


async def test_what_is_told_while_it_is_written_is_written_next(replica: Replica) -> None:
    """The judgement of the moment was written, and another one came meanwhile."""
    write = replica.store.write

    async def slow(*arguments: object, **named: object) -> None:
        replica.store.write = write  # type: ignore[method-assign]
        replica.judgement = make_judgement(at=T0 + 2 * SECOND, exposures={Arm.CONTROL: 7})
        replica.tell()
        await write(*arguments, **named)  # type: ignore[arg-type]

    replica.store.write = slow  # type: ignore[method-assign]
    await replica.judge(1)
    await replica.writer.beat()
    stored = await replica.store.read(FLAG)
    assert stored is not None
    report = report_from_json(stored)
    assert report.judgement is not None
    assert report.judgement.at == T0 + 2 * SECOND


async def test_what_redis_did_not_take_is_written_when_it_is_back(replica: Replica) -> None:
    """Of many flags, those too that were not even tried."""
    for number in range(20):
        replica.flags[f"flag-{number}"] = make_rollout(flag_key=f"flag-{number}")
    await replica.writer.beat()
    assert replica.writes == 21
    for flag_key, rollout in replica.flags.items():
        replica.flags[flag_key] = replace(rollout, revision=rollout.revision + 1)
        replica.tell(flag_key)
    replica.store.outage.is_down = True
    await replica.writer.beat()
    replica.store.outage.is_down = False
    replica.writes = 0
    await replica.writer.beat()
    assert replica.writes == 21


async def test_live_rollouts_do_not_wait_for_ended_ones(replica: Replica) -> None:
    """A replica that takes over thousands of flags writes the live ones first, others by and by."""
    live = replica.flags.pop(FLAG)
    ended = replace(live, phase=Completed(T0))
    for number in range(3 * ENDED_PER_BEAT):
        flag_key = f"flag-{number}"
        replica.flags[flag_key] = replace(ended, flag_key=flag_key)
    replica.flags[FLAG] = live
    await replica.writer.beat()
    assert await replica.store.read(FLAG) is not None
    assert replica.writes == ENDED_PER_BEAT + 1
    for _ in range(3):
        await replica.writer.beat()
    assert replica.writes == 3 * ENDED_PER_BEAT + 1


def refuse_one_of_many(replica: Replica, error: Exception) -> None:
    """Let 20 more flags run, and let writes of the first raise an error."""
    for number in range(20):
        replica.flags[f"flag-{number}"] = make_rollout(flag_key=f"flag-{number}")
    write = replica.store.write

    async def refusing(flag_key: str, *arguments: object) -> None:
        if flag_key == FLAG:
            raise error
        await write(flag_key, *arguments)  # type: ignore[arg-type]

    replica.store.write = refusing  # type: ignore[assignment,method-assign]


async def test_one_flags_bad_key_stops_no_other(replica: Replica) -> None:
    """Somebody wrote to a flag's key: that flag alone is not written, and it is told."""
    refuse_one_of_many(replica, BrokenInvariant("WRONGTYPE"))
    await replica.writer.beat()
    assert replica.writes == 20
    assert replica.faults.of(Scope.DEPENDENCY, REPORTS) is not None


async def test_a_mistake_at_one_flag_leaves_no_other_unwritten(replica: Replica) -> None:
    """It ends the part, which reports it and begins again; behind it everything is written."""
    refuse_one_of_many(replica, KeyError(FLAG))
    with pytest.raises(KeyError):
        await replica.writer.beat()
    assert replica.writes == 20


@pytest.mark.parametrize(("seconds", "pause"), [(0.001, 1.0), (0.1, 1.9), (3.0, 5.0)])
async def test_writing_takes_a_small_share_of_the_time(
    seconds: float, pause: float, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twentieth, as far as that leaves a beat every few seconds."""
    pauses: list[float] = []

    async def beat() -> None:
        replica.clock.advance(timedelta(seconds=seconds))

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(replica.writer, "beat", beat)
    monkeypatch.setattr("controller.running.report_writer.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await replica.writer.run()
    assert pauses == pytest.approx([pause] * 3)
