"""Asking a real Redis for the time: what answers, what does not, and how long that takes."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from controller.adapters.redis.claims import RedisClaims
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.sign_outs import RedisSignOuts
from controller.errors import StoreUnavailable
from tests.brokers import RedisServer


async def test_redis_says_what_time_it_is(own_redis: RedisServer) -> None:
    """Within a second of this machine's time, which is Redis's machine too.

    And it counts as an answer.
    """
    store = RedisConnection.connect(own_redis.url)
    assert store.heard_at is None
    before = datetime.now(UTC)
    at = await store.ask_time()
    slack = timedelta(seconds=1)
    assert before - slack <= at <= datetime.now(UTC) + slack
    heard_at = store.heard_at
    assert heard_at is not None
    assert abs(asyncio.get_running_loop().time() - heard_at) < 60
    await store.close()


async def test_claims_are_kept_one_field_for_each_partition(own_redis: RedisServer) -> None:
    """What was written last is read, by others too; what is no partition is passed over."""
    store, other = RedisConnection.connect(own_redis.url), RedisConnection.connect(own_redis.url)
    assert await RedisClaims(store).claims() == {}
    await RedisClaims(store).claim({0: b"1 a", 3: b"1 a"})
    await RedisClaims(other).claim({3: b"2 b", 5: b"2 b"})
    await store.client.hset("rolloutd:claims", "strange", "x")
    assert await RedisClaims(store).claims() == {0: b"1 a", 3: b"2 b", 5: b"2 b"}
    await RedisClaims(store).drop_claims([0, 5, 7])
    assert await RedisClaims(other).claims() == {3: b"2 b"}
    await store.close()
    await other.close()


async def test_sign_outs_are_kept_one_field_for_each_session(own_redis: RedisServer) -> None:
    """What no replica of ours wrote is passed over."""
    store, other = RedisConnection.connect(own_redis.url), RedisConnection.connect(own_redis.url)
    assert await RedisSignOuts(store).read() == {}
    await RedisSignOuts(store).write({"a-_9": 1_800_000_000})
    await RedisSignOuts(other).write({"b": 5})
    strange = {"a b": "5", "c": "x", "d": "9" * 13, b"\xff": "5", "e" * 65: "5"}
    await store.client.hset("rolloutd:signed-out", mapping=strange)
    assert await RedisSignOuts(other).read() == {"a-_9": 1_800_000_000, "b": 5}
    await RedisSignOuts(store).drop(["b", "never"])
    assert await RedisSignOuts(other).read() == {"a-_9": 1_800_000_000}
    await store.close()
    await other.close()


async def test_a_redis_that_hangs_is_given_up_in_time(own_redis: RedisServer) -> None:
    """No answer is trouble within half a call's deadline, and does not count as one."""
    store = RedisConnection.connect(own_redis.url, deadline_seconds=8.0, try_seconds=1.0)
    await store.ask_time()
    heard_at = store.heard_at
    own_redis.pause()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="ask Redis for the time"):
        await store.ask_time()
    assert time.monotonic() - began < 8
    assert store.heard_at == heard_at
    own_redis.resume()
    await store.ask_time()
    assert store.heard_at != heard_at
    await store.close()
