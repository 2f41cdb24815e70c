"""Asks Redis for the time once a second, which shows whether it answers and clocks agree.

Belongs here: when to ask, and what is done with the answer. Does not belong here: how clocks agree
(`controller/clock.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, Protocol

import structlog

from controller.errors import OperatingTrouble
from controller.health import Faults, Scope
from controller.ports import ClockReading

ASK_EVERY_SECONDS: Final = 1.0
CLOCKS: Final = "clocks"
_REMEDY: Final = (
    "nothing is raised until they agree: check time synchronization (chronyc tracking) on this "
    "machine, on Redis's and on the brokers'"
)

log = structlog.get_logger(__name__)


class ComparedClock(Protocol):
    """A clock that is compared with others; `controller.clock.AgreedClock` is one."""

    def monotonic(self) -> float: ...

    def compare(self, against: str, at: datetime, asked_at: float, answered_at: float) -> None: ...

    def note(self, against: str, ahead_seconds: float | None) -> None: ...

    def why_not(self) -> str | None: ...


class RedisHeartbeat:
    """Compares clocks for as long as `run` runs; `trouble` is why Redis did not answer last."""

    def __init__(
        self,
        clock: ComparedClock,
        faults: Faults,
        *,
        ask: Callable[[], Awaitable[datetime]],
        read_broker: Callable[[], ClockReading | None],
    ) -> None:
        """`ask` returns Redis's time or raises OperatingTrouble.

        `read_broker` returns the newest reading of the brokers' clock, None for none.
        """
        self._clock = clock
        self._faults = faults
        self._ask = ask
        self._read_broker = read_broker
        self.trouble: str | None = None

    async def run(self) -> None:
        """Ask once a second until cancelled. Redis being away is reported elsewhere."""
        while True:
            try:
                await self.beat()
            except OperatingTrouble as trouble:
                log.debug("heartbeat_missed", error=str(trouble))
            await asyncio.sleep(ASK_EVERY_SECONDS)

    async def beat(self) -> None:
        """Ask once. Raises OperatingTrouble."""
        asked_at = self._clock.monotonic()
        try:
            at = await self._ask()
        except OperatingTrouble as trouble:
            self.trouble = str(trouble)
            raise
        self.trouble = None
        self._clock.compare("redis", at, asked_at, self._clock.monotonic())
        broker = self._read_broker()
        if broker is None:
            self._clock.note("kafka", None)
        else:
            self._clock.compare("kafka", broker.at, broker.asked_at, broker.answered_at)
        why = self._clock.why_not()
        if why is None:
            self._faults.clear(Scope.CLOCK, CLOCKS)
        else:
            self._faults.report(Scope.CLOCK, CLOCKS, why, _REMEDY)
