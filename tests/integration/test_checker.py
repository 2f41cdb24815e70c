"""The checker over a real Redis: what is missed is said once, also through crashes and outages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.turns import RedisTurnStore
from controller.checking.checker import Checker
from controller.checking.checks_file import Check
from controller.clock import SystemClock
from controller.errors import EventLogUnavailable, NotMeasured
from controller.health import Faults, Scope
from controller.turns import Pulse
from schemas.signal import Signal
from schemas.terms import MeasurementGap

CLOCK = SystemClock()


class World:
    """Checkers of one environment, a monitoring system, and the topic of signals."""

    def __init__(self, connection: RedisConnection) -> None:
        self.store = RedisTurnStore(connection, "checks")
        self.value: float | None = 1.0
        self.burns: dict[str, float] = {}
        self.said: list[Signal] = []
        self.is_kafka_away = False
        self.looks = 0
        self.faults = Faults(CLOCK.now)
        self.checks: Sequence[Check] = [check()]
        self._replicas = itertools.count(1)

    async def value_of(self) -> float:
        """Return what the system measures."""
        self.looks += 1
        await asyncio.sleep(0)
        if self.value is None:
            raise NotMeasured(MeasurementGap.NO_DATA, "no series")
        return self.value

    async def store_signals(self, signals: Sequence[Signal]) -> None:
        """Take signals, unless Kafka is away."""
        if self.is_kafka_away:
            raise EventLogUnavailable("no broker answers")
        self.said += signals

    @contextlib.asynccontextmanager
    async def replica(self) -> AsyncIterator[asyncio.Task[None]]:
        """Run a replica; at the end it is stopped."""
        world = self

        class Measures:
            """Asks the world."""

            async def value(self, _check: Check) -> float:
                return await world.value_of()

            async def query(self, query: str) -> float:
                return world.burns[query.partition("[")[2].rstrip("]")]

            async def close(self) -> None:
                pass

        class Inlet:
            """The topic."""

            async def store(self, signals: Sequence[Signal]) -> None:
                await world.store_signals(signals)

        name = f"replica-{next(self._replicas)}"
        checker = Checker(
            self.store,
            Measures(),
            Inlet(),
            lambda: self.checks,
            name,
            CLOCK,
            self.faults,
            Pulse(beat=0.05, free_after=0.4),
        )
        task = asyncio.create_task(checker.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    def statuses(self) -> list[str]:
        """Return what was said, each signal once."""
        return [one.status.value for one in {one.id: one for one in self.said}.values()]


def check(**overrides: Any) -> Check:
    """Return a quick check of availability."""
    fields: dict[str, Any] = {
        "name": "up",
        "prometheus": "up",
        "at_least": 1,
        "again": "1h",
        "service": "checkout",
    }
    made = Check.model_validate({**fields, **overrides})
    return made.model_copy(update={"every": timedelta(milliseconds=50)})


@pytest.fixture
async def world(store: RedisConnection) -> World:
    """An empty one."""
    return World(store)


async def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.02)


async def test_what_is_missed_is_said_once_and_when_it_is_over(world: World) -> None:
    """With its service; by one replica of two."""
    async with world.replica(), world.replica():
        await until(lambda: world.looks > 5)
        assert world.said == []
        world.value = 0.0
        await until(lambda: len(world.said) == 1)
        seen = world.looks
        await until(lambda: world.looks > seen + 10)
        world.value = 1.0
        await until(lambda: len(world.said) == 2)
    assert world.statuses() == ["firing", "resolved"]
    first = world.said[0]
    assert (first.hook, first.condition, first.service) == ("checks/rolloutd", "up", "checkout")
    assert first.title == "up is missed: 0, objective: at least 1"


async def test_no_number_is_a_fault_and_no_signal(world: World) -> None:
    """Silence neither fires nor ends anything."""
    async with world.replica():
        world.value = None
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "check/up") is not None)
        fault = world.faults.of(Scope.DEPENDENCY, "check/up")
        assert fault is not None
        assert "no data: no series" in str(fault)
        world.value = 0.0
        await until(lambda: len(world.said) == 1)
        assert world.faults.of(Scope.DEPENDENCY, "check/up") is None
        world.value = None
        seen = world.looks
        await until(lambda: world.looks > seen + 10)
    assert world.statuses() == ["firing"]


async def test_a_restart_knows_what_fires(world: World) -> None:
    """It is not said anew, and its end is."""
    world.value = 0.0
    async with world.replica():
        await until(lambda: len(world.said) == 1)
    async with world.replica():
        seen = world.looks
        await until(lambda: world.looks > seen + 10)
        assert len(world.said) == 1
        world.value = 1.0
        await until(lambda: len(world.said) == 2)
    assert world.statuses() == ["firing", "resolved"]


async def test_while_kafka_is_away_it_waits(world: World) -> None:
    """And is said once afterwards, under one id."""
    world.value, world.is_kafka_away = 0.0, True
    async with world.replica():
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "checks") is not None)
        world.is_kafka_away = False
        await until(lambda: len(world.said) >= 1)
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "checks") is None)
        seen = world.looks
        await until(lambda: world.looks > seen + 5)
    assert world.statuses() == ["firing"]


async def test_it_fires_anew_so_that_the_next_flag_comes(world: World) -> None:
    """While it is missed, with a beginning of its own."""
    world.checks = [check(again="1s")]
    world.value = 0.0
    async with world.replica():
        await until(lambda: len(world.said) == 3)
    assert len({one.id for one in world.said}) == 3
    assert len({one.started_at for one in world.said}) == 3


async def test_a_budget_burns_when_both_windows_do(world: World) -> None:
    """A burst that is over and a slow leak alone fire nothing."""
    burn = {"errors": "e[{window}]", "objective": 99.0}
    world.checks = [check(prometheus=None, burn_rate=burn, at_least=None, misses=1, of=1)]
    calm = dict.fromkeys(("5m", "30m", "1h", "6h", "3d"), 0.0)
    world.burns = {**calm, "1h": 0.2, "5m": 0.0, "6h": 0.05, "30m": 0.0}
    async with world.replica():
        await asyncio.sleep(0.5)
        assert world.said == []
        world.burns = {**world.burns, "5m": 0.2}
        await until(lambda: len(world.said) == 1)
        assert "burns its budget 20 times as fast as allowed over 1h (limit 14.4)" in (
            world.said[0].title
        )
        world.burns = calm
        await until(lambda: len(world.said) == 2)
    assert world.statuses() == ["firing", "resolved"]


async def test_a_check_that_is_removed_is_forgotten(world: World) -> None:
    """With its fault."""
    world.value = None
    async with world.replica():
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "check/up") is not None)
        world.checks = []
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "check/up") is None)
        assert await world.store.load() == {}
