"""When a system that failed may be called again."""

from __future__ import annotations

import pytest

from controller.adapters.http.cooldown import MAX_REQUESTED_SECONDS, URGENT_SECONDS, Cooldown
from tests.builders import T0


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> object:
        return T0

    def monotonic(self) -> float:
        return self.seconds


def make_cooldown(clock: SetClock, chance: float = 1.0) -> Cooldown:
    """Return one that begins with a second and ends with thirty."""
    return Cooldown(clock, first_seconds=1.0, max_seconds=30.0, chance=lambda: chance)  # type: ignore[arg-type]


def waits(cooldown: Cooldown, clock: SetClock) -> float:
    """Return how long it has to be waited now, to a hundredth of a second."""
    began, hundredths = clock.seconds, 0
    while cooldown.why_waiting() is not None:
        hundredths += 1
        clock.seconds = began + hundredths / 100
    return round(clock.seconds - began, 2)


def test_the_wait_doubles_up_to_its_limit_and_starts_over() -> None:
    """1, 2, 4, 8, 16, 30, 30 s after failures in a row; a success takes it back to 1 s."""
    clock = SetClock()
    cooldown = make_cooldown(clock)
    seen = []
    for _ in range(7):
        cooldown.failed("it is away")
        seen.append(waits(cooldown, clock))
    assert seen == [1, 2, 4, 8, 16, 30, 30]
    cooldown.worked()
    assert cooldown.why_waiting() is None
    cooldown.failed("again")
    assert waits(cooldown, clock) == 1


def test_half_of_the_wait_is_chance() -> None:
    """Replicas that failed together do not come back together."""
    clock = SetClock()
    cooldown = make_cooldown(clock, chance=0.0)
    cooldown.failed("it is away")
    assert waits(cooldown, clock) == 0.5


@pytest.mark.parametrize(
    ("asked", "waited"), [(0.0, 1.0), (20.0, 20.0), (1e9, MAX_REQUESTED_SECONDS)]
)
def test_what_the_other_side_asks_for_is_kept_within_reason(asked: float, waited: float) -> None:
    """Retry-After lengthens the wait, never shortens it, and not beyond ten minutes."""
    clock = SetClock()
    cooldown = make_cooldown(clock)
    cooldown.failed("slower", requested_seconds=asked)
    assert waits(cooldown, clock) == waited


def test_an_urgent_call_goes_through_once_a_second() -> None:
    """A rollback does not wait out a long pause, and is no storm either."""
    clock = SetClock()
    cooldown = make_cooldown(clock)
    for _ in range(10):
        cooldown.failed("it is away")
    assert "no request for another 30 s after: it is away" in (
        cooldown.why_waiting(is_urgent=True) or ""
    )
    clock.seconds += URGENT_SECONDS
    assert cooldown.why_waiting(is_urgent=True) is None
    assert cooldown.why_waiting() is not None
