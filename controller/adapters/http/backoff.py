"""When a system that failed may be called again: later and later, never by all replicas at once.

Belongs here: how long to wait. What counts as a failure is each adapter's to say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from controller.ports import Clock

# : An urgent call is let through this often while everything else waits: a rollback must not wait
# out somebody's bad minute.
URGENT_SECONDS = 1.0
# : What a server may ask us to wait at most, by Retry-After: a wrong clock of its must not silence
# us for a day.
MAX_ASKED_SECONDS = 600.0


def asked_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return how long Retry-After asks us to wait, given in seconds or as a date.

    None without a readable one.

    `headers` by names in lower case, or by any, as httpx has them.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
        return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


class Backoff:
    """Doubles the wait with each failure in a row, up to a limit.

    And draws half of it by chance.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        first_seconds: float,
        max_seconds: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` gives numbers in [0, 1)."""
        self._clock = clock
        self._first = first_seconds
        self._max = max_seconds
        self._chance = chance
        self._failures = 0
        self._until = 0.0  # monotonic
        self._tried_at = float("-inf")
        self._why = ""

    def why_waiting(self, *, is_urgent: bool = False) -> str | None:
        """Return why no call may be made now; None when one may."""
        now = self._clock.monotonic()
        if (
            self._failures == 0
            or now >= self._until
            or (is_urgent and now - self._tried_at >= URGENT_SECONDS)
        ):
            return None
        return f"not asked for another {self._until - now:.0f} s after: {self._why}"

    def failed(self, why: str, *, asked_seconds: float | None = None) -> None:
        """Learn of a failure.

        `asked_seconds` is how long the other side asked us to wait, None for not at all.
        """
        self._failures += 1
        self._why = why
        self._tried_at = self._clock.monotonic()
        wait = min(self._max, self._first * 2.0 ** min(self._failures - 1, 32)) * (
            0.5 + 0.5 * self._chance()
        )
        if asked_seconds is not None:
            wait = max(wait, min(asked_seconds, MAX_ASKED_SECONDS))
        self._until = self._tried_at + wait

    def worked(self) -> None:
        """Learn that it answers again."""
        self._failures = 0
