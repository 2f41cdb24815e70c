"""Claims in Redis: by command partition, which replica works on it and when it last said so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller.adapters.redis.connection import RedisConnection

#: Digits of a partition's number. A longer field was not written by us.
MAX_PARTITION_DIGITS = 9


class RedisClaims:
    """Implements `controller.running.claims.ClaimStore`.

    Each call takes half the deadline at most, and raises StoreUnavailable.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    @property
    def _key(self) -> str:
        return f"{self._connection.prefix}claims"

    async def claim(self, partitions: Sequence[int], value: bytes) -> None:
        """Write one value for each command partition."""
        mapping = {str(partition): value for partition in partitions}
        await self._connection.call(
            "claim partitions",
            lambda: self._connection.client.hset(self._key, mapping=mapping),
            times_deadline=0.5,
        )

    async def claims(self) -> Mapping[int, bytes]:
        """Return the newest claim of every command partition."""
        stored: Mapping[bytes, bytes] = await self._connection.call(
            "read the claims",
            lambda: self._connection.client.hgetall(self._key),
            times_deadline=0.5,
        )
        return {
            int(field): value
            for field, value in stored.items()
            if field.isdigit() and len(field) <= MAX_PARTITION_DIGITS
        }

    async def drop_claims(self, partitions: Sequence[int]) -> None:
        """Delete the claims of command partitions."""
        fields = [str(partition) for partition in partitions]
        await self._connection.call(
            "drop claims",
            lambda: self._connection.client.hdel(self._key, *fields),
            times_deadline=0.5,
        )
