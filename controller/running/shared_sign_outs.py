"""Tells the other replicas through Redis which sessions people ended, and hears of theirs.

A session is a signed cookie that every replica can read by itself, so nothing is asked at a
request. Only that it was ended before its time has to be known everywhere.

Belongs here: when to write and read. Does not belong here: what an ended session may not do
(`web/access/`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final, Protocol

from controller.errors import OperatingTrouble
from controller.health import Faults, Scope, redis_fix

#: A session that was ended elsewhere is void here after this time at the latest.
BEAT_SECONDS: Final = 2.0
SIGN_OUTS: Final = "sign_outs"
_FIX: Final = redis_fix(
    "the key of the sign-outs",
    "a session that is ended on one replica is still one on the others",
)


class SignOutStore(Protocol):
    """Where sign-outs are kept; `adapters/redis/sign_outs.py`. Each call raises StoreUnavailable.

    Sessions go by id; moments are Unix seconds.
    """

    async def write(self, sessions: Mapping[str, int]) -> None:
        """Write until when these sessions would have lasted."""

    async def read(self) -> Mapping[str, int]:
        """Return every session that was ended before its time."""

    async def drop(self, sessions: Iterable[str]) -> None:
        """Delete sessions whose time is over."""


class EndedSessions(Protocol):
    """What this replica knows of ended sessions; `web/access/signed_out.py`."""

    @property
    def untold(self) -> Mapping[str, int]:
        """What other replicas were not told yet."""

    def told(self, sessions: Mapping[str, int]) -> None:
        """Note that other replicas can read these."""

    def heard(self, sessions: Mapping[str, int], now: int) -> None:
        """Note what all replicas can read; what is missing there is untold again.

        Sessions whose time is over are forgotten.
        """


class SharedSignOuts:
    """Writes the sign-outs of this replica and reads those of all."""

    def __init__(
        self,
        ended: EndedSessions,
        store: SignOutStore,
        now: Callable[[], datetime],
        faults: Faults,
    ) -> None:
        self._ended = ended
        self._store = store
        self._now = now
        self._faults = faults

    async def run(self) -> None:
        """Write and read every two seconds until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> None:
        """Write and read once. What Redis does not take is written at a later beat."""
        now = int(self._now().timestamp())
        try:
            if untold := self._ended.untold:
                await self._store.write(untold)
                self._ended.told(untold)
            known = await self._store.read()
            self._ended.heard(known, now)
            if over := [session for session, until in known.items() if until < now]:
                await self._store.drop(over)
        except OperatingTrouble as trouble:
            self._faults.report(
                Scope.DEPENDENCY, SIGN_OUTS, f"sign-outs are not shared: {trouble}", _FIX
            )
        else:
            self._faults.clear(Scope.DEPENDENCY, SIGN_OUTS)
