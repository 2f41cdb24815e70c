"""The same tests on the memory adapter and on the real one."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator

import pytest

from controller.adapters.memory import MemoryFlagUses, MemoryReports, MemoryRollouts, MemoryTotals
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.flag_uses import RedisFlagUses
from controller.adapters.redis.reports import RedisReports
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.totals import RedisTotals
from controller.adapters.unleash.plane import UnleashPlane
from controller.clock import SystemClock
from controller.ports import FlagUseStore, Reports, Rollouts, Totals
from tests.unleash.fake import FakeUnleash
from tests.unleash.given import make_settings
from tests.unleash.server import INSTALLED_VARIABLE, Console


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


@pytest.fixture(params=["memory", "redis"])
def reports(request: pytest.FixtureRequest) -> Reports:
    """Each `Reports` there is."""
    if request.param == "memory":
        return MemoryReports()
    return RedisReports(request.getfixturevalue("redis_store"), keep_seconds=60)


@pytest.fixture(params=["memory", "redis"])
def flag_uses(request: pytest.FixtureRequest) -> FlagUseStore:
    """Each `FlagUseStore` there is."""
    if request.param == "memory":
        return MemoryFlagUses()
    return RedisFlagUses(request.getfixturevalue("redis_store"))


@pytest.fixture(params=["fake", *(["real"] if INSTALLED_VARIABLE in os.environ else [])])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Address of each Unleash there is."""
    if request.param == "real":
        yield request.getfixturevalue("real_unleash").url
        return
    async with FakeUnleash().running() as fake:
        yield fake.url


@pytest.fixture
async def console(url: str) -> AsyncIterator[Console]:
    """A person in the console."""
    person = Console(url)
    yield person
    await person.close()


@pytest.fixture
def flag_key() -> str:
    """A key that no other test uses."""
    return f"flag-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def plane(url: str) -> AsyncIterator[UnleashPlane]:
    """The plane under test."""
    made = UnleashPlane(make_settings(url), SystemClock())
    yield made
    await made.close()
