"""Claims in Redis: by command partition, which replica works on it and when it last said so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.shared_hash import SharedHash

#: Digits of a partition's number. A longer field was not written by us.
MAX_PARTITION_DIGITS = 9


class RedisClaims:
    """Implements `controller.running.claims.ClaimStore`.

    Each call takes half the deadline at most, and raises StoreUnavailable.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._hash = SharedHash(connection, "claims")

    async def claim(self, values: Mapping[int, bytes]) -> None:
        """Write one value for each command partition."""
        await self._hash.write({str(partition): value for partition, value in values.items()})

    async def claims(self) -> Mapping[int, bytes]:
        """Return the newest claim of every command partition."""
        return {
            int(field): value
            for field, value in (await self._hash.read()).items()
            if field.isdigit() and len(field) <= MAX_PARTITION_DIGITS
        }

    async def drop_claims(self, partitions: Sequence[int]) -> None:
        """Delete the claims of command partitions."""
        await self._hash.drop(str(partition) for partition in partitions)
