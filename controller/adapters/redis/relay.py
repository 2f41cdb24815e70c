"""The relay in Redis: by flag, the revision that a replica decided while Kafka was away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.shared_hash import SharedHash
from schemas.terms import NAME

#: Digits of a revision. A longer value was not written by us.
MAX_REVISION_DIGITS = 15


class RedisRelay:
    """Implements `controller.running.decision_relay.RelayStore`.

    Each call takes half the deadline at most, and raises StoreUnavailable.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._hash = SharedHash(connection, "relay")
        #: What was stored at the last reading, and what it says: mostly the same, once a second.
        self._read: tuple[Mapping[bytes, bytes], Mapping[str, int]] = ({}, {})

    async def write(self, revisions: Mapping[str, int]) -> None:
        """Write the revisions of these flags."""
        await self._hash.write({key: str(revision) for key, revision in revisions.items()})

    async def read(self) -> Mapping[str, int]:
        """Return the revision of every flag in the relay, the same object while it is the same."""
        stored = await self._hash.read()
        if stored == self._read[0]:
            return self._read[1]
        revisions: dict[str, int] = {}
        for name, value in stored.items():
            flag_key = name.decode(errors="replace")
            if NAME.match(flag_key) and value.isdigit() and len(value) <= MAX_REVISION_DIGITS:
                revisions[flag_key] = int(value)
        self._read = stored, revisions
        return revisions

    async def drop(self, flag_keys: Sequence[str]) -> None:
        """Delete flags from the relay."""
        await self._hash.drop(flag_keys)
