"""Time that stands until it is moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._now = start

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return (self._now - self._start).total_seconds()

    def advance(self, by: timedelta) -> datetime:
        """Move forward by `by` (at least 0) and return the new time."""
        if by < timedelta(0):
            raise ValueError("a clock never runs backwards")
        self._now += by
        return self._now
