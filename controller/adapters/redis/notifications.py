"""The notifier's book in Redis: one hash, written by the script of all fenced writes.

| key | what |
|---|---|
| `<prefix>notifications` | `version digest owner`, and the fields of the book, a hash |

Belongs here: its calls. Does not belong here: what the fields mean (`notifying/book.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from controller.adapters.redis.connection import FIELDS_PER_CALL, RedisConnection, chunks
from controller.notifying.notifier import Turn

_VERSION: Final = "version"
_OWNER: Final = "owner"
_OURS: Final = frozenset({b"version", b"owner", b"digest"})


class RedisNotifications:
    """Implements `controller.notifying.notifier.NotificationStore`."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    @property
    def _key(self) -> str:
        return f"{self._connection.prefix}notifications"

    async def turn(self) -> Turn:
        """Return who wrote last."""
        version, owner = await self._connection.call(
            "read whose turn it is to notify",
            lambda: self._connection.client.hmget(self._key, [_VERSION, _OWNER]),
            times_deadline=0.5,
        )
        return Turn(None if version is None else int(version), (owner or b"").decode())

    async def load(self) -> Mapping[bytes, bytes]:
        """Return every field of the book."""
        stored: Mapping[bytes, bytes] = await self._connection.call(
            "read the notifications",
            lambda: self._connection.client.hgetall(self._key),
            times_deadline=5.0,
        )
        return {name: value for name, value in stored.items() if name not in _OURS}

    async def save(
        self, owner: str, expected: int | None, fields: Mapping[str, bytes]
    ) -> int | None:
        """Write fields after version `expected`; None: somebody else has written since."""
        after = (expected or 0) + 1
        is_saved, version = await self._connection.fenced_save(
            self._key,
            fence=_VERSION,
            expected=expected,
            after=after,
            fields={_OWNER: owner.encode(), **fields},
            purpose="write the notifications",
        )
        return version if is_saved else None

    async def forget(self, fields: Sequence[str]) -> None:
        """Delete fields that were emptied."""
        for part in chunks(fields, FIELDS_PER_CALL):
            await self._connection.call(
                "drop notifications that were sent",
                partial(self._connection.client.hdel, self._key, *part),
                times_deadline=0.5,
            )
