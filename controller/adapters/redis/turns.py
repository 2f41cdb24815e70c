"""What belongs to a turn in Redis: one hash, written by the script of all fenced writes.

| key | what |
|---|---|
| `<prefix>notifications` | `version digest owner`, and the fields of the notifier's book, a hash |
| `<prefix>checks` | the same for the states of the checks |

Belongs here: its calls. Does not belong here: what the fields mean (`notifying/book.py`,
`checking/objectives.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from controller.adapters.redis.connection import FIELDS_PER_CALL, RedisConnection, chunks
from controller.turns import Turn

#: Only what is empty still: a call that comes late must not take what was written again since.
_FORGET: Final = """#!lua
for _, field in ipairs(ARGV) do
  if redis.call('HGET', KEYS[1], field) == '' then redis.call('HDEL', KEYS[1], field) end
end
return 1
"""
_VERSION: Final = "version"
_OWNER: Final = "owner"
_OURS: Final = frozenset({b"version", b"owner", b"digest"})


class RedisTurnStore:
    """Implements `controller.turns.TurnStore`."""

    def __init__(self, connection: RedisConnection, name: str) -> None:
        """`name`: of its key, behind the prefix; in errors, too."""
        self._connection = connection
        self._name = name

    @property
    def _key(self) -> str:
        return f"{self._connection.prefix}{self._name}"

    async def turn(self) -> Turn:
        """Return who wrote last."""
        version, owner = await self._connection.call(
            f"read whose turn it is: {self._name}",
            lambda: self._connection.client.hmget(self._key, [_VERSION, _OWNER]),
            times_deadline=0.5,
        )
        return Turn(None if version is None else int(version), (owner or b"").decode())

    async def load(self) -> Mapping[bytes, bytes]:
        """Return every field of the book."""
        stored: Mapping[bytes, bytes] = await self._connection.call(
            f"read the {self._name}",
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
            purpose=f"write the {self._name}",
        )
        return version if is_saved else None

    async def forget(self, fields: Sequence[str]) -> None:
        """Delete fields that are empty."""
        for part in chunks(fields, FIELDS_PER_CALL):
            await self._connection.call(
                f"drop fields of the {self._name}",
                partial(self._connection.client.eval, _FORGET, 1, self._key, *part),
                times_deadline=0.5,
            )
