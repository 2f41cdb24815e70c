"""The same tests on the memory adapter and on the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from controller.adapters.memory import MemoryRollouts, MemoryTotals
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.totals import RedisTotals
from controller.ports import Rollouts, Totals


@pytest.fixture
async def redis_store(redis_url: str, topic_prefix: str) -> AsyncIterator[RedisConnection]:
    """A store of the test's own in the shared Redis."""
    store = RedisConnection.connect(redis_url, prefix=topic_prefix)
    yield store
    await store.close()


@pytest.fixture(params=["memory", "redis"])
def totals(request: pytest.FixtureRequest) -> Totals:
    """Each `Totals` there is."""
    if request.param == "memory":
        return MemoryTotals()
    return RedisTotals(request.getfixturevalue("redis_store"))


@pytest.fixture(params=["memory", "redis"])
def rollouts(request: pytest.FixtureRequest) -> Rollouts:
    """Each `Rollouts` there is."""
    if request.param == "memory":
        return MemoryRollouts()
    return RedisRollouts(request.getfixturevalue("redis_store"))
