"""The checker over a real Redis: what is missed is said once, also through crashes and outages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.turns import RedisTurnStore
from controller.checking.checker import Checker
from controller.checking.checks_file import Check
from controller.checking.objectives import CheckState
from controller.clock import SystemClock
from controller.errors import EventLogUnavailable, NotMeasured
from controller.health import Faults, Scope
from controller.turns import Pulse
from schemas.signal import Signal
from schemas.terms import MeasurementGap, SignalStatus

CLOCK = SystemClock()


class World:
    """Checkers of one environment, a monitoring system, and the topic of signals."""

    def __init__(self, connection: RedisConnection) -> None:
        self.store = RedisTurnStore(connection, "checks")
        self.value: float | None = 1.0
        self.burns: Mapping[str, float | None] = {}
        self.said: list[Signal] = []
        self.is_kafka_away = False
        self.is_kafka_slow = False
        self.looks = 0
        self.mistake_in = ""  # the check that meets a mistake of ours
        self.faults = Faults(CLOCK.now)
        self.checks: Sequence[Check] = [check()]
        self._replicas = itertools.count(1)

    async def value_of(self, check: Check) -> float:
        """Return what the system measures."""
        self.looks += 1
        await asyncio.sleep(0)
        if self.mistake_in == check.name:
            raise OverflowError("int too large to convert to float")
        if self.value is None:
            raise NotMeasured(MeasurementGap.NO_DATA, "no series")
        return self.value

    async def store_signals(self, signals: Sequence[Signal]) -> None:
        """Take signals, unless Kafka is away."""
        if self.is_kafka_away:
            raise EventLogUnavailable("no broker answers")
        self.said += signals
        if self.is_kafka_slow:
            raise EventLogUnavailable("no acknowledgement in time")

    @contextlib.asynccontextmanager
    async def replica(self, faults: Faults | None = None) -> AsyncIterator[asyncio.Task[None]]:
        """Run a replica, where given with faults of its own; at the end it is stopped."""
        world = self

        class Measures:
            """Asks the world."""

            async def value(self, check: Check) -> float:
                return await world.value_of(check)

            async def query(self, query: str) -> float:
                share = world.burns[query.partition("[")[2].rstrip("]")]
                if share is None:
                    raise NotMeasured(MeasurementGap.NOT_A_NUMBER, "it answers NaN")
                return share

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
            faults or self.faults,
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


@pytest.mark.parametrize("is_met", [False, True])
async def test_an_emptied_redis_lets_nothing_be_said_twice_or_never_end(
    world: World, store: RedisConnection, is_met: bool
) -> None:
    """What fires goes on as the same firing, and its end is said, also where it came just then."""
    async with world.replica():
        world.value = 0.0
        await until(lambda: len(world.said) == 1)
        await store.client.flushdb()
        world.value = 1.0 if is_met else 0.0
        seen = world.looks
        await until(lambda: world.looks > seen + 10)
        world.value = 1.0
        await until(lambda: world.statuses()[-1] == "resolved")
    assert world.statuses() == ["firing", "resolved"]
    assert world.said[0].started_at == world.said[-1].started_at


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


async def test_a_mistake_in_one_check_stops_no_other(world: World) -> None:
    """It has no number, with a fault of its own; the others go on."""
    world.checks = [check(), check(name="other")]
    world.mistake_in = "other"
    async with world.replica() as replica:
        world.value = 0.0
        await until(lambda: len(world.said) == 1)
        fault = world.faults.of(Scope.DEPENDENCY, "check/other")
        assert "a mistake of rolloutd: OverflowError" in str(fault)
        assert not replica.done()
    assert [one.condition for one in world.said] == ["up"]


async def test_a_restart_knows_what_fires(world: World) -> None:
    """It is not said again, and its end is."""
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


async def test_a_damaged_check_begins_anew_and_the_others_go_on(world: World) -> None:
    """What it had to say cannot be read; whether it fires is decided by the next looks."""
    world.checks = [check(), check(name="other")]
    unsaid = '{"unknown":' + "[" * 5_000
    state = CheckState(fires_since=CLOCK.now(), unsaid=unsaid)
    await world.store.save("", None, {"check|up": msgspec.json.encode(state)})
    world.value = 0.0
    async with world.replica():
        await until(lambda: {one.condition for one in world.said} == {"up", "other"})
        assert world.faults.of(Scope.DEPENDENCY, "checks") is None


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


@pytest.mark.parametrize("is_anew", [False, True])
async def test_what_kafka_acknowledges_too_late_is_no_second_firing(
    world: World, is_anew: bool
) -> None:
    """It was stored all the same: with an id of its own, each try would take one more flag."""
    world.checks = [check(misses=1)]
    if is_anew:
        earlier = CLOCK.now() - timedelta(hours=2)
        fires = CheckState(fires_since=earlier, missed_since=earlier, fired_at=earlier)
        await world.store.save("", None, {"check|up": msgspec.json.encode(fires)})
    world.value, world.is_kafka_slow = 0.0, True
    async with world.replica():
        await until(lambda: len(world.said) >= 2, 30.0)
    async with world.replica():  # nor is it one after a restart
        tries = len(world.said)
        await until(lambda: len(world.said) > tries)
        world.is_kafka_slow = False
        tries = len(world.said)
        await until(lambda: len(world.said) > tries)
        seen = world.looks
        await until(lambda: world.looks > seen + 5)
        assert len({one.id for one in world.said}) == 1
        world.value = 1.0
        await until(lambda: world.said[-1].status is SignalStatus.RESOLVED)
    assert world.statuses() == ["firing", "resolved"]


async def test_a_firing_that_could_not_be_said_for_long_is_looked_at_anew(world: World) -> None:
    """What was missed before a long outage says nothing of now; its end is said all the same."""
    world.checks = [check(again="1s")]
    world.value, world.is_kafka_away = 0.0, True
    async with world.replica():
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "checks") is not None)
    await asyncio.sleep(1.1)  # longer than `again`
    world.value, world.is_kafka_away = 1.0, False
    async with world.replica():
        await until(lambda: len(world.said) == 1)
    assert world.statuses() == ["resolved"]


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


async def test_a_window_without_a_number_hides_no_other_that_burns(world: World) -> None:
    """A service without a request for half an hour still burns its budget over three days."""
    burn = {"errors": "e[{window}]", "objective": 99.0}
    world.checks = [check(prometheus=None, burn_rate=burn, at_least=None, misses=1, of=1)]
    calm = dict.fromkeys(("5m", "30m", "1h", "6h", "3d"), 0.0)
    world.burns = {**calm, "5m": None}
    async with world.replica():
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "check/up") is not None)
        assert world.said == []  # no number is neither good nor bad
        world.burns = {**world.burns, "6h": 0.05, "3d": 0.02}
        await until(lambda: len(world.said) == 1)
        assert "burns its budget 2 times as fast as allowed over 3d (limit 1)" in (
            world.said[0].title
        )
        world.burns = dict.fromkeys(calm, None)
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "check/up") is not None)
        world.burns = {**calm}
        await until(lambda: len(world.said) == 2)
    assert world.statuses() == ["firing", "resolved"]


async def test_faults_of_a_replica_end_with_its_turn(world: World) -> None:
    """Else its page tells for ever of what another replica has long found in order."""
    mine, world.value = Faults(CLOCK.now), None
    async with world.replica(mine):
        await until(lambda: mine.of(Scope.DEPENDENCY, "check/up") is not None)
        turn = await world.store.turn()
        while await world.store.save("another", turn.version, {}) is None:
            turn = await world.store.turn()
        await until(lambda: mine.of(Scope.DEPENDENCY, "check/up") is None)


async def test_a_replica_that_waits_has_no_fault_of_a_turn_that_another_has(world: World) -> None:
    """Its Redis was away for a moment; now another replica checks."""
    mine = Faults(CLOCK.now)
    mine.report(Scope.DEPENDENCY, "checks", "checks wait: Redis is away", "see Redis")
    async with world.replica():
        await until(lambda: world.looks > 1)
        async with world.replica(mine):
            await until(lambda: mine.of(Scope.DEPENDENCY, "checks") is None)
            assert (await world.store.turn()).owner == "replica-1"


async def test_a_check_that_is_removed_is_forgotten(world: World) -> None:
    """With its fault."""
    world.value = None
    async with world.replica():
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "check/up") is not None)
        world.checks = []
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "check/up") is None)
        assert await world.store.load() == {}


async def test_a_check_that_is_removed_while_it_fires_is_over(world: World) -> None:
    """Else what it holds stays frozen for ever; also where Kafka is away just then."""
    world.value = 0.0
    async with world.replica():
        await until(lambda: len(world.said) == 1)
        world.is_kafka_away, world.checks = True, []
        await until(lambda: world.faults.of(Scope.DEPENDENCY, "checks") is not None)
        assert len(await world.store.load()) == 1
        world.is_kafka_away = False
        await until(lambda: len(world.said) == 2)
        seen = world.said[-1]
        assert (seen.condition, seen.title.partition(":")[0]) == ("up", "up is no longer checked")
        async with asyncio.timeout(20.0):
            while await world.store.load():
                await asyncio.sleep(0.02)
    assert world.statuses() == ["firing", "resolved"]
