"""Redis is asked for the time, and what becomes of its answer."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from controller.adapters.memory import ManualClock
from controller.clock import AgreedClock
from controller.errors import StoreUnavailable
from controller.health import Faults, Scope
from controller.ports import ClockReading
from controller.running.redis_heartbeat import CLOCKS, RedisHeartbeat


class Machine(ManualClock):
    """A clock that nobody sets."""

    def drift(self) -> timedelta:
        """Return none."""
        return timedelta(0)


class Redis:
    """Answers with its own time, or not."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.ahead = timedelta(0)
        self.is_down = False

    async def time(self) -> datetime:
        """Return the time there."""
        if self.is_down:
            raise StoreUnavailable("no answer within 1 s")
        return self.machine.now() + self.ahead


async def test_a_disagreement_is_a_fault_until_it_is_over() -> None:
    """Clocks that differ are named, with what to do; once they agree the fault is gone."""
    machine = Machine()
    redis = Redis(machine)
    clock, faults = AgreedClock(machine), Faults(machine.now)
    pulse = RedisHeartbeat(clock, faults, ask=redis.time, read_broker=lambda: None)
    redis.ahead = timedelta(seconds=31)
    await pulse.beat()
    fault = faults.of(Scope.CLOCK, CLOCKS)
    assert fault is not None
    assert "Redis's clock is 31.0 s ahead" in fault.why
    assert "time synchronization" in fault.fix
    redis.ahead = timedelta(0)
    await pulse.beat()
    assert faults.current == ()
    assert clock.why_not() is None


async def test_the_brokers_clock_counts_once_it_is_known() -> None:
    """Of three clocks the middle one counts: here this machine is the wrong one."""
    machine = Machine()
    redis = Redis(machine)
    clock = AgreedClock(machine)

    def read() -> ClockReading:
        return ClockReading(
            machine.now() - timedelta(seconds=60), machine.monotonic(), machine.monotonic()
        )

    pulse = RedisHeartbeat(clock, Faults(machine.now), ask=redis.time, read_broker=read)
    redis.ahead = timedelta(seconds=-60)
    await pulse.beat()
    assert clock.now() == machine.now() - timedelta(seconds=60)


async def test_an_outage_of_redis_is_remembered_until_it_answers() -> None:
    """Why Redis did not answer is kept for /readyz."""
    machine = Machine()
    redis = Redis(machine)
    pulse = RedisHeartbeat(
        AgreedClock(machine), Faults(machine.now), ask=redis.time, read_broker=lambda: None
    )
    redis.is_down = True
    with pytest.raises(StoreUnavailable):
        await pulse.beat()
    assert pulse.trouble == "no answer within 1 s"
    redis.is_down = False
    await pulse.beat()
    assert pulse.trouble is None
