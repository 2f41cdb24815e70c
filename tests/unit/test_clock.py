"""The real clock, driven by made-up hands."""

from datetime import UTC, datetime, timedelta

from controller.clock import SystemClock

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
