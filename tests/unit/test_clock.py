"""The real clock, driven by made-up hands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from controller.clock import AgreedClock, SystemClock
from controller.core.events import Ticked
from controller.core.machine import decide
from controller.core.rollout import Baking, Gating
from tests.builders import MINUTE, T0, make_command, make_rollout, make_visit

START = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)


class Hands:
    """A wall clock and a monotonic one, both set by the test."""

    def __init__(self) -> None:
        self.wall = START
        self.seconds = 1000.0

    def make(self) -> SystemClock:
        """Return a clock that reads these hands."""
        return SystemClock(lambda: self.wall, lambda: self.seconds)


def test_time_passes_as_the_monotonic_clock_says() -> None:
    """An hour of monotonic time is an hour."""
    hands = Hands()
    clock = hands.make()
    hands.seconds += 3600
    assert clock.now() == START + timedelta(hours=1)
    assert clock.monotonic() == 4600.0


def test_setting_the_wall_clock_changes_nothing_but_the_drift() -> None:
    """A wall clock set an hour back or a day ahead moves no deadline, and shows as drift."""
    hands = Hands()
    clock = hands.make()
    hands.wall -= timedelta(hours=1)
    assert clock.now() == START
    assert clock.drift() == timedelta(hours=-1)
    hands.wall += timedelta(days=1)
    assert clock.now() == START
    assert clock.drift() == timedelta(hours=23)


def test_the_real_clock_is_utc_and_never_runs_backwards() -> None:
    """Read a thousand times in a row it never falls, and it agrees with the system's."""
    clock = SystemClock()
    times = [clock.now() for _ in range(1000)]
    assert times == sorted(times)
    assert times[0].tzinfo is UTC
    assert abs(clock.drift()) < timedelta(seconds=5)


# --- clocks of several machines ---


class World:
    """True time, and machines whose clocks are wrong by as much as the test says."""

    def __init__(self) -> None:
        self.true = START
        self.errors = {"redis": 0.0, "kafka": 0.0}

    def passes(self, seconds: float) -> None:
        """Let true time pass."""
        self.true += timedelta(seconds=seconds)

    def replica(self, error_seconds: float) -> Replica:
        """Start a process on a machine whose wall clock is wrong by so much."""
        return Replica(self, error_seconds)


class Replica:
    """One process with an agreed clock."""

    def __init__(self, world: World, error_seconds: float) -> None:
        self.world = world
        self.error_seconds = error_seconds
        self.clock = AgreedClock(SystemClock(self.wall, self.monotonic))

    def wall(self) -> datetime:
        """Return what this machine's wall clock says."""
        return self.world.true + timedelta(seconds=self.error_seconds)

    def monotonic(self) -> float:
        """Return seconds that nobody can set."""
        return (self.world.true - START).total_seconds()

    def compare(self, *, with_broker: bool = False) -> None:
        """Compare with Redis, which answers within 10 ms.

        And with the brokers where they are known.
        """
        said = self.world.true + timedelta(seconds=self.world.errors["redis"])
        self.clock.compare("redis", said, self.monotonic() - 0.005, self.monotonic() + 0.005)
        if with_broker:
            at = self.world.true + timedelta(seconds=self.world.errors["kafka"])
            self.clock.compare("kafka", at, self.monotonic() - 0.005, self.monotonic() + 0.005)

    def error(self) -> float:
        """Return by how much the agreed time is wrong."""
        return (self.clock.now() - self.world.true).total_seconds()


@pytest.mark.parametrize("error", [86_400.0, 300.0, 6.0, -6.0, -86_400.0])
def test_a_machine_whose_clock_is_wrong_goes_by_the_others(error: float) -> None:
    """With Redis and the brokers agreeing, it decides by the right time, and raises nothing."""
    replica = World().replica(error)
    replica.compare(with_broker=True)
    assert replica.error() == pytest.approx(0, abs=0.02)
    assert "this machine's clock is" in (replica.clock.why_not() or "")
    assert replica.clock.skews()["wall"] == pytest.approx(error, abs=0.02)


@pytest.mark.parametrize("error", [86_400.0, -86_400.0])
@pytest.mark.parametrize("which", ["redis", "kafka"])
def test_one_other_clock_that_is_wrong_moves_nothing(which: str, error: float) -> None:
    """A Redis or a broker a day off is outvoted by the other two, and named."""
    world = World()
    replica = world.replica(0.0)
    replica.compare(with_broker=True)
    world.errors[which] = error
    for _ in range(100):
        world.passes(5)
        replica.compare(with_broker=True)
        assert replica.error() == pytest.approx(0, abs=0.02)
    assert ("Redis's" if which == "redis" else "the brokers'") in (replica.clock.why_not() or "")


def test_of_two_clocks_the_earlier_counts() -> None:
    """A visit must not begin in the future of the events.

    With Redis alone, ahead is never believed.
    """
    for error in (3.0, 300.0, 86_400.0):
        ahead = World().replica(error)
        ahead.compare()
        assert ahead.error() == pytest.approx(0, abs=0.02)
    world = World()
    world.errors["redis"] = 300.0
    right = world.replica(0.0)
    right.compare()
    assert right.error() == pytest.approx(0, abs=0.02)
    assert right.clock.why_not() is not None


def test_within_the_tolerance_nothing_is_held_up() -> None:
    """A few seconds are noise: the earlier clock counts, and raising goes on."""
    replica = World().replica(4.0)
    assert replica.clock.why_not() is not None  # not compared yet
    replica.compare()
    assert replica.clock.why_not() is None
    assert replica.error() == pytest.approx(0, abs=0.02)


def test_a_clock_that_goes_wrong_later_changes_nothing_without_a_majority() -> None:
    """Once they agreed, time goes on as it did, whichever of two clocks is set to another day."""
    for which in ("redis", "wall"):
        for error in (86_400.0, -86_400.0):
            world = World()
            replica = world.replica(0.0)
            replica.compare()
            if which == "redis":
                world.errors["redis"] = error
            else:
                replica.error_seconds = error
            for _ in range(50):
                world.passes(5)
                replica.compare()
                assert replica.error() == pytest.approx(0, abs=0.02)
                assert replica.clock.why_not() is not None


def test_time_never_runs_backwards_and_never_stands_still() -> None:
    """A correction of an hour back is made by passing at half speed."""
    world = World()
    replica = world.replica(3_600.0)
    world.errors["redis"] = 3_600.0
    replica.compare()
    world.errors["redis"] = 0.0
    world.errors["kafka"] = 0.0
    before = replica.clock.now()
    for _ in range(1_500):
        world.passes(5)
        replica.compare(with_broker=True)
        now = replica.clock.now()
        assert 2.4 < (now - before).total_seconds() < 5.1
        before = now
    assert replica.error() == pytest.approx(0, abs=0.02)


def test_a_machine_that_slept_is_right_again_at_the_next_comparison() -> None:
    """Its monotonic clock stood still meanwhile; its wall clock and Redis agree."""
    world = World()
    replica = world.replica(0.0)
    replica.compare()
    slept = AgreedClock(SystemClock(lambda: world.true, lambda: 10.0))
    slept.compare("redis", world.true, 10.0, 10.0)
    world.passes(3_600)
    slept.compare("redis", world.true, 10.0, 10.0)
    assert slept.now() == world.true
    assert slept.why_not() is None


def test_an_answer_that_took_too_long_says_nothing() -> None:
    """Redis hanging for longer than the tolerance is no clock."""
    replica = World().replica(0.0)
    replica.clock.compare("redis", START + timedelta(days=1), 990.0, 1_000.0)
    assert replica.clock.compared_at is None
    assert replica.clock.why_not() is not None


@pytest.mark.parametrize("error", [86_400.0, 301.0, -301.0, -86_400.0])
@pytest.mark.parametrize("with_broker", [True, False])
def test_a_takeover_shortens_no_bake(error: float, *, with_broker: bool) -> None:
    """A replica whose clock is a day off ends a bake when its time has come, not before.

    Nor much later, once the brokers' clock is known; without it a clock that is behind may be the
    right one.
    """
    world = World()
    first = world.replica(0.0)
    first.compare(with_broker=with_broker)
    rollout = make_rollout(
        phase=Baking(stage=0, until=first.clock.now() + timedelta(minutes=11)),
        visits=(make_visit(entered_at=first.clock.now(), counts_from=first.clock.now() + MINUTE),),
        started_at=first.clock.now(),
        updated_at=first.clock.now(),
    )
    world.passes(300)
    second = world.replica(error)
    second.compare(with_broker=with_broker)
    for seconds in range(300, 1_200, 5):
        after, _ = decide(rollout, Ticked(), second.clock.now())
        assert after is not None
        if seconds < 655:
            assert isinstance(after.phase, Baking), f"ended after {seconds} s"
        if isinstance(after.phase, Gating):
            break
        world.passes(5)
        second.compare(with_broker=with_broker)
    else:
        assert error < 0, "it never ended"
        assert not with_broker
    assert second.clock.why_not() is not None, "and nothing is raised meanwhile"


@pytest.mark.parametrize("error", [86_400.0, 301.0, 4.0])
def test_no_visit_begins_in_the_future(error: float) -> None:
    """A stage that a replica enters whose clock is ahead counts from now on.

    Not from its tomorrow.
    """
    world = World()
    replica = world.replica(error)
    replica.compare()
    now = replica.clock.now()
    rollout, _ = decide(make_rollout(), make_command("promote", issued_at=now), now)
    assert rollout is not None
    assert rollout.visits[-1].stage == 1
    assert rollout.visits[-1].entered_at <= max(world.true, T0) + timedelta(seconds=0.1)


def test_a_wall_clock_that_is_set_does_not_take_the_brokers_with_it() -> None:
    """What the brokers said a while ago still holds when somebody sets this machine's clock."""
    world = World()
    replica = world.replica(0.0)
    replica.compare(with_broker=True)
    said = (world.true, replica.monotonic() - 0.005, replica.monotonic() + 0.005)
    world.passes(60)
    replica.error_seconds = 86_400.0
    replica.compare()
    replica.clock.compare("kafka", *said)
    assert replica.error() == pytest.approx(0, abs=0.02)
    assert "this machine's clock is 86400.0 s ahead" in (replica.clock.why_not() or "")


@pytest.mark.parametrize("with_broker", [True, False])
def test_a_fail_over_within_the_tolerance_shortens_no_bake_by_a_jump(*, with_broker: bool) -> None:
    """Redis fails over from 4 s behind to the right time.

    Time passes a little faster until it is right.
    """
    world = World()
    replica = world.replica(0.0)
    world.errors["redis"] = -4.0
    world.errors["kafka"] = -4.0
    replica.compare(with_broker=with_broker)
    assert replica.error() == pytest.approx(-4, abs=0.02)
    world.passes(60)
    replica.compare(with_broker=with_broker)
    world.errors["redis"] = 0.0
    world.errors["kafka"] = 0.0
    before = replica.clock.now()
    for _ in range(60):
        world.passes(1)
        replica.compare(with_broker=with_broker)
        now = replica.clock.now()
        assert (now - before).total_seconds() <= 1.2
        assert replica.clock.why_not() is None
        before = now
    assert replica.error() == pytest.approx(0, abs=0.02)


def test_a_correction_forward_that_ends_a_disagreement_is_made_at_once() -> None:
    """Nothing was raised while it lasted, and events of now must not lie in the future."""
    world = World()
    replica = world.replica(0.0)
    world.errors["redis"] = -4.0
    replica.compare()
    replica.error_seconds = 300.0
    replica.compare()
    assert replica.clock.why_not() is not None
    replica.error_seconds = world.errors["redis"] = 0.0
    replica.compare()
    assert replica.clock.why_not() is None
    assert replica.error() == pytest.approx(0, abs=0.02)
