"""Sign-outs in Redis: by session id, until when its cookie would have been valid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.shared_hash import SharedHash

#: As a session's id is made. Another field was not written by us.
_SESSION: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}")
#: Digits of a moment in Unix seconds.
MAX_MOMENT_DIGITS = 12


class RedisSignOuts:
    """Implements `controller.running.shared_sign_outs.SignOutStore`.

    Each call takes half the deadline at most, and raises StoreUnavailable.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._hash = SharedHash(connection, "signed-out")

    async def write(self, sessions: Mapping[str, int]) -> None:
        """Write until when these sessions would have lasted."""
        await self._hash.write({session: str(until) for session, until in sessions.items()})

    async def read(self) -> Mapping[str, int]:
        """Return every session that was ended before its time."""
        return {
            session.decode(): int(until)
            for session, until in (await self._hash.read()).items()
            if _SESSION.fullmatch(session) and until.isdigit() and len(until) <= MAX_MOMENT_DIGITS
        }

    async def drop(self, sessions: Iterable[str]) -> None:
        """Delete sessions whose time is over."""
        await self._hash.drop(sessions)
