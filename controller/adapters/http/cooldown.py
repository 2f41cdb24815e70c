"""Delays calls to a system that failed: longer each time, never by all replicas at once.

Belongs here: how long to wait. What counts as a failure is for each adapter to say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from controller.ports import Clock

#: How often an urgent call is made while all others wait. A rollback must not wait until the other
#: system has recovered.
URGENT_SECONDS: Final = 1.0
#: The longest wait that a server can request by Retry-After. A server with a wrong clock must not
#: stop our calls for a day.
MAX_REQUESTED_SECONDS: Final = 600.0


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the wait that a Retry-After header requests, in seconds or as a date.

    None without a readable header. `headers` are by name in lower case, or by any case, as in
    httpx.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
        return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


class Cooldown:
    """The wait after failures: it doubles with each one in a row, up to a limit; half is random.

    It does not repeat calls: it says whether the next one may be made.
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
        self._tried_at = float("-inf")  # monotonic
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
        return f"no request for another {self._until - now:.0f} s after: {self._why}"

    def failed(self, why: str, *, requested_seconds: float | None = None) -> None:
        """Record a failure; `requested_seconds` is the wait that the other side requested."""
        self._failures += 1
        self._why = why
        self._tried_at = self._clock.monotonic()
        wait = min(self._max, self._first * 2.0 ** min(self._failures - 1, 32)) * (
            0.5 + 0.5 * self._chance()
        )
        if requested_seconds is not None:
            wait = max(wait, min(requested_seconds, MAX_REQUESTED_SECONDS))
        self._until = self._tried_at + wait

    def worked(self) -> None:
        """Record a success: the next call may be made at once."""
        self._failures = 0
