"""One hash that all replicas share, on a real Redis: who sets a field first has set it."""

from __future__ import annotations

import asyncio

import redis.asyncio

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.shared_hash import SharedHash


async def test_of_many_that_set_a_field_at_once_one_wins(
    redis_client: redis.asyncio.Redis,
) -> None:
    """Each is told whose it is; the winner's second try is told the same."""
    shared = SharedHash(RedisConnection(redis_client, prefix="t:", deadline_seconds=20), "signals")
    values = [f"replica {number}".encode() for number in range(20)]
    told = await asyncio.gather(*(shared.set_new("claim", one, "fence") for one in values))
    assert len(set(told)) == 1
    for value in values:
        assert await shared.set_new("claim", value, "fence") == told[0]
    assert (await shared.read())[b"claim"] == told[0]
    await shared.drop(["claim", "fence"])
    assert await shared.set_new("claim", b"another", "fence") == b"another"
