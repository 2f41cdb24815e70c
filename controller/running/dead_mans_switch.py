"""Calls an address as long as rolloutd does its work, so that somebody else notices when not.

A daemon that is dead, or cut off from Kafka, cannot raise an alert. A monitoring service that hears
nothing any more can. It hears something only while this replica counts and decides, and no rollout
is without somebody who watches it: so any replica that works keeps it quiet, and none does while
guardrails are blind.

Belongs here: when to call, and what stands in the way. Does not belong here: the call itself
(`adapters/heartbeat_address.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from controller.errors import OperatingTrouble
from controller.health import Faults, Health, Scope

SWITCH: Final = "dead_mans_switch"
#: The first call that is not heard may be lost on its way. The second in a row is told.
TOLD_AFTER: Final = 2
#: What keeps it silent is named for this many rollouts.
_NAMED: Final = 3
_FIX: Final = (
    "the service will page though rolloutd works: check dead_mans_switch.url, and the way there "
    "from this machine"
)

log = structlog.get_logger(__name__)


def why_silent(health: Health, unwatched: Mapping[str, str]) -> str | None:
    """Return why the service must not hear from this replica; None while it does its work.

    `unwatched` are rollouts that nobody watches, each with the reason.
    """
    if health.trouble:
        return "; ".join(health.trouble)
    waiting = [
        f"{one.name}: {one.why_not}"
        for one in health.components.values()
        if one.is_required and one.why_not is not None
    ]
    if waiting:
        return "; ".join(waiting)
    if not unwatched:
        return None
    named = ", ".join(sorted(unwatched)[:_NAMED])
    more = len(unwatched) - _NAMED
    return f"nobody watches {named}" + (f" and {more} more" if more > 0 else "")


class DeadMansSwitch:
    """Calls while `why_silent` returns None."""

    def __init__(
        self,
        call: Callable[[], Awaitable[None]],
        why_not: Callable[[], str | None],
        faults: Faults,
        *,
        every_seconds: float,
    ) -> None:
        """`call` raises OperatingTrouble where it was not heard."""
        self._call = call
        self._why_not = why_not
        self._faults = faults
        self._every_seconds = every_seconds
        self._is_silent = False
        self._unheard = 0  # calls in a row

    async def run(self) -> None:
        """Call every few seconds, the first time at once, until cancelled.

        From one call to the next, however slowly the service answers: it knows one period.
        """
        loop = asyncio.get_running_loop()
        while True:
            next_at = loop.time() + self._every_seconds
            await self.beat()
            await asyncio.sleep(max(0.0, next_at - loop.time()))

    async def beat(self) -> None:
        """Call once, or keep silent, and tell when that changes."""
        why = self._why_not()
        if why is not None:
            if not self._is_silent:
                log.warning("dead_mans_switch_silent", why=why)
            self._is_silent = True
            return
        if self._is_silent:
            log.info("dead_mans_switch_heard_again")
        self._is_silent = False
        try:
            await self._call()
        except OperatingTrouble as trouble:
            self._unheard += 1
            if self._unheard >= TOLD_AFTER:
                why = f"its monitoring service does not hear from us: {trouble}"
                self._faults.report(Scope.DEPENDENCY, SWITCH, why, _FIX)
            return
        self._unheard = 0
        self._faults.clear(Scope.DEPENDENCY, SWITCH)
