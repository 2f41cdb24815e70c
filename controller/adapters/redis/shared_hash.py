"""One small hash in Redis that all replicas write and read: fields in, fields out.

Belongs here: its calls. Does not belong here: what the fields mean (`claims.py`, `relay.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from controller.adapters.redis.connection import FIELDS_PER_CALL, RedisConnection, chunks


class SharedHash:
    """A hash under the environment's prefix.

    Each call takes half the deadline at most, and raises StoreUnavailable.
    """

    def __init__(self, connection: RedisConnection, name: str) -> None:
        """`name`: of its key, behind the prefix; in errors, too."""
        self._connection = connection
        self._name = name

    @property
    def _key(self) -> str:
        return f"{self._connection.prefix}{self._name}"

    async def write(self, mapping: Mapping[str, str | bytes]) -> None:
        """Set these fields."""
        for names in chunks(mapping, FIELDS_PER_CALL):
            fields = {name: mapping[name] for name in names}
            await self._connection.call(
                f"write the {self._name}",
                partial(self._connection.client.hset, self._key, mapping=fields),
                times_deadline=0.5,
            )

    async def set_new(self, name: str, value: bytes, fence: str) -> bytes:
        """Set a field that is not there; return what it has then: this, or what it had.

        Of several that set it at once one wins, and each is told which. `fence` is a field of its
        own that says that the first one was set; drop both together.
        """
        is_set, _ = await self._connection.fenced_save(
            self._key,
            fence=fence,
            expected=None,
            after=1,
            fields={name: value},
            purpose=f"write the {self._name}",
        )
        if is_set:
            return value
        stored: bytes | None = await self._connection.call(
            f"read the {self._name}",
            partial(self._connection.client.hget, self._key, name),
            times_deadline=0.5,
        )
        return value if stored is None else stored

    async def read(self) -> Mapping[bytes, bytes]:
        """Return all fields."""
        stored: Mapping[bytes, bytes] = await self._connection.call(
            f"read the {self._name}",
            lambda: self._connection.client.hgetall(self._key),
            times_deadline=0.5,
        )
        return stored

    async def drop(self, names: Iterable[str]) -> None:
        """Delete these fields."""
        for part in chunks(names, FIELDS_PER_CALL):
            await self._connection.call(
                f"drop fields of the {self._name}",
                partial(self._connection.client.hdel, self._key, *part),
                times_deadline=0.5,
            )
