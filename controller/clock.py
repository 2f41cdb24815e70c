"""The real clock behind `controller.ports.Clock`, and how it agrees with other machines' clocks.

Decisions are compared with times that other machines wrote: when a stage began, when an event
happened, when a partition was last reported. So their time is not one machine's wall clock, but
what most clocks say: this machine's, Redis's, and the brokers', once they are known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

#: While time has to go back it passes at half speed: it never stands still and never falls.
BACK_AT_RATE: Final = 0.5
#: A small correction forward is spread: what waits for a time waits at most a tenth less.
FORWARD_AT_RATE: Final = 0.1
WALL: Final = "wall"  # this machine's own wall clock, in `AgreedClock.skews`
STORE: Final = "redis"
BROKER: Final = "kafka"


class SystemClock:
    """Wall time as it was at start, carried on by the monotonic clock.

    A wall clock that is set, by hand or by NTP, therefore shortens no bake and moves no deadline
    within this process; `drift` returns how far off it is. A new process reads the wall clock
    again, and the rollouts' own times keep it from going back.
    """

    def __init__(
        self,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at `wall()`, which must be UTC-aware.

        `monotonic` returns seconds and never falls.
        """
        self._wall = wall
        self._monotonic = monotonic
        self._started_at = wall()
        self._start = monotonic()

    def now(self) -> datetime:
        return self._started_at + timedelta(seconds=self._monotonic() - self._start)

    def monotonic(self) -> float:
        return self._monotonic()

    def drift(self) -> timedelta:
        """Return how far the wall clock is ahead of this clock.

        About zero unless it was set or the machine was suspended.
        """
        return self._wall() - self.now()


class _Local(Protocol):
    """What `AgreedClock` needs of the clock below it; `SystemClock` has it."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...

    def drift(self) -> timedelta: ...


class AgreedClock:
    """Time that most clocks agree on, carried on by the monotonic clock: `controller.ports.Clock`.

    Of three clocks (this machine's, Redis's, the brokers') the middle one counts, so that one wrong
    clock moves nothing. Of two the earlier one counts: a stage must not begin in the future of the
    events that are to be counted for it. When they disagree by more than `max_skew_seconds` and no
    majority says which is wrong, time goes on as it did, or from the start at the earlier one; and
    `why_not` says so, for nothing must be raised by a time that is in doubt.

    Never runs backwards once `compare` was called, which is before anything is decided: a
    correction back is made by passing at half speed. A correction forward within the tolerance, a
    Redis that fails over to a replica with a better clock, say, is made by passing a tenth faster.
    A larger one is made at once, and so is any that follows a disagreement, during which nothing
    was raised: it shortens no bake that began in it.
    """

    def __init__(self, local: _Local, *, max_skew_seconds: float = 5.0) -> None:
        self._local = local
        self.max_skew_seconds = max_skew_seconds
        self._ahead: dict[str, float] = {}  # by clock: seconds ahead of `local`, as last compared
        self._offset = 0.0  # of this clock to `local`, as it was at `_moved_at`
        self._target = 0.0
        self._moved_at = local.monotonic()
        self._is_jump = False  # a correction forward is made at once
        self._has_agreed = False
        self._was_compared = False
        self.compared_at: float | None = None
        """When Redis's clock was compared last, in monotonic seconds."""

    def now(self) -> datetime:
        return self._local.now() + timedelta(seconds=self._move())

    def monotonic(self) -> float:
        return self._local.monotonic()

    def compare(self, against: str, at: datetime, asked_at: float, answered_at: float) -> None:
        """Record another clock's time: `at`, between two moments of our monotonic clock.

        An answer that took longer than the tolerance is ignored.
        """
        if answered_at - asked_at > self.max_skew_seconds:
            return
        since = self._local.monotonic() - (asked_at + answered_at) / 2
        self.note(against, (at - self._local.now()).total_seconds() + since)
        if against == STORE:
            self.compared_at = answered_at

    def note(self, against: str, ahead_seconds: float | None) -> None:
        """Record how far another clock is ahead of our uncorrected time; None: not known."""
        was_in_doubt = self._spread() > self.max_skew_seconds
        if ahead_seconds is None:
            self._ahead.pop(against, None)
        else:
            self._ahead[against] = ahead_seconds
        self._ahead[WALL] = self._local.drift().total_seconds()
        offset = self._move()
        is_first = len(self._ahead) >= 2 and not self._was_compared
        self._target = self._agreed(offset)
        is_in_doubt = was_in_doubt or self._spread() > self.max_skew_seconds
        is_large = self._target - offset > self.max_skew_seconds
        self._is_jump = is_in_doubt or is_large
        if is_first:
            self._was_compared = True
            self._offset = self._target  # nothing was decided yet: no need to approach it

    def skews(self) -> Mapping[str, float]:
        """Return by clock how many seconds it is ahead of this one; safe in another thread."""
        offset = self._offset
        return {against: ahead - offset for against, ahead in list(self._ahead.items())}

    def why_not(self) -> str | None:
        """Return why nothing should be raised by this time, None while the clocks agree."""
        if not self._was_compared:
            return "this replica's clock has not been compared with Redis's yet"
        ahead = dict(self._ahead)
        if self._spread() <= self.max_skew_seconds:
            return None
        offset = self._move()
        differences = ", ".join(
            f"{_NAMES.get(against, against)} is {abs(seconds - offset):.1f} s "
            f"{'ahead' if seconds > offset else 'behind'}"
            for against, seconds in sorted(ahead.items())
            if abs(seconds - offset) > 0.05
        )
        return f"the clocks disagree by more than {self.max_skew_seconds:g} s: {differences}"

    def _spread(self) -> float:
        """Return by how much the clocks that are known differ at most."""
        ahead = list(self._ahead.values())
        return max(ahead) - min(ahead) if ahead else 0.0

    def _agreed(self, offset: float) -> float:
        """Return the offset that the clocks agree on; `offset` is that of now."""
        ahead = sorted(self._ahead.values())
        if len(ahead) < 2:
            return offset
        middle = ahead[(len(ahead) - 1) // 2]
        near = [one for one in ahead if abs(one - middle) <= self.max_skew_seconds]
        if 2 * len(near) > len(ahead):
            self._has_agreed = True
            return middle
        return offset if self._has_agreed else ahead[0]

    def _move(self) -> float:
        """Bring the offset closer to where it should be, and return it."""
        now = self._local.monotonic()
        if self._target < self._offset:
            slowed = self._offset - BACK_AT_RATE * (now - self._moved_at)
            self._offset = max(self._target, slowed)
        elif not self._is_jump:
            quickened = self._offset + FORWARD_AT_RATE * (now - self._moved_at)
            self._offset = min(self._target, quickened)
        else:
            self._offset = self._target
        self._moved_at = now
        return self._offset


_NAMES: Final = {
    WALL: "this machine's clock",
    STORE: "Redis's clock",
    BROKER: "the brokers' clock",
}
