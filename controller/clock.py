"""The real clock behind `controller.ports.Clock`."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


class SystemClock:
    """Wall time as it was at start, carried on by the monotonic clock.

    A wall clock that is set, by hand or by NTP, therefore shortens no bake and moves no deadline within this process;
    `drift` says how far off it has become. A process that starts anew reads the wall clock afresh, and the rollouts'
    own times keep it from going back.
    """

    def __init__(
        self,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at `wall()`, which must be UTC-aware; `monotonic` returns seconds and never falls."""
        self._wall = wall
        self._monotonic = monotonic
        self._started_at = wall()
        self._start = monotonic()

    def now(self) -> datetime:
        return self._started_at + timedelta(seconds=self._monotonic() - self._start)

    def monotonic(self) -> float:
        return self._monotonic()

    def drift(self) -> timedelta:
        """Return how far the wall clock is ahead of us: about zero unless somebody set it or the machine slept."""
        return self._wall() - self.now()
