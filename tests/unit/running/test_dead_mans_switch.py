"""The dead man's switch: the service hears from a replica exactly while it does its work."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from controller.adapters.memory import ManualClock
from controller.errors import HeartbeatUnheard
from controller.health import Faults, Health, Scope
from controller.running.dead_mans_switch import SWITCH, DeadMansSwitch, why_silent
from tests.builders import T0
from tests.virtual_time import in_virtual_time


class Service:
    """A monitoring service, and what the replica knows of itself."""

    def __init__(self) -> None:
        self.faults = Faults(ManualClock(T0).now)
        self.heard = 0
        self.is_away = False
        self.why_not: str | None = None
        self.switch = DeadMansSwitch(
            self.call, lambda: self.why_not, self.faults, every_seconds=30.0
        )

    async def call(self) -> None:
        """Hear, unless it is away."""
        if self.is_away:
            raise HeartbeatUnheard("hc.example answered 503")
        self.heard += 1

    @property
    def told(self) -> list[str]:
        """What is said of the switch on /readyz and in doctor."""
        return [one.why for one in self.faults.current if one.scope is Scope.DEPENDENCY]


async def test_it_calls_while_there_is_work_done_and_is_silent_otherwise() -> None:
    """That it falls silent, and why, is logged once; and that it is over."""
    service = Service()
    with capture_logs() as lines:
        await service.switch.beat()
        service.why_not = "kafka: no broker answers"
        for _ in range(3):
            await service.switch.beat()
        assert service.heard == 1
        service.why_not = None
        await service.switch.beat()
    assert service.heard == 2
    assert [line["event"] for line in lines] == [
        "dead_mans_switch_silent",
        "dead_mans_switch_heard_again",
    ]
    assert lines[0]["why"] == "kafka: no broker answers"
    assert service.told == []


async def test_one_lost_call_is_nothing_and_the_second_in_a_row_is_told() -> None:
    """Then the service is about to page for nothing. It is over with the next call."""
    service = Service()
    service.is_away = True
    await service.switch.beat()
    assert service.told == []
    await service.switch.beat()
    assert service.told == ["its monitoring service does not hear from us: hc.example answered 503"]
    assert service.faults.current[0].name == SWITCH
    service.is_away = False
    await service.switch.beat()
    assert service.told == []


@in_virtual_time
async def test_a_service_that_answers_slowly_hears_as_often() -> None:
    """The time of a call was added to that between two: 50 s in place of 30 s."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    called: list[float] = []

    async def answer_slowly() -> None:
        called.append(round(loop.time() - began))
        await asyncio.sleep(20 if len(called) < 4 else 45)

    faults = Faults(ManualClock(T0).now)
    switch = DeadMansSwitch(answer_slowly, lambda: None, faults, every_seconds=30.0)
    with suppress(TimeoutError):
        async with asyncio.timeout(170):
            await switch.run()
    assert called == [0, 30, 60, 90, 135]


def test_silence_has_a_reason() -> None:
    """A part that is required waits, only a restart helps, or nobody watches a rollout."""
    health = Health(["kafka", "redis"], ["advisor"])
    assert why_silent(health, {}) == "kafka: not started; redis: not started"
    health.ready("kafka")
    health.ready("redis")
    assert why_silent(health, {}) is None, "a model is not required"
    assert why_silent(health, {"b": "x", "a": "y"}) == "nobody watches a, b"
    many = dict.fromkeys("edcba", "x")
    assert why_silent(health, many) == "nobody watches a, b, c and 2 more"
    health.not_ready("redis", "no answer")
    assert why_silent(health, many) == "redis: no answer"
    health.broken("the consumer is stuck")
    assert why_silent(health, {}) == "the consumer is stuck"


@pytest.mark.parametrize("planted", [RuntimeError("planted"), HeartbeatUnheard("hc.example")])
async def test_it_ends_for_no_answer_but_for_a_mistake_of_ours(planted: Exception) -> None:
    """What is a mistake ends the part, which the supervisor names and starts again."""
    service = Service()

    async def fail() -> None:
        raise planted

    switch = DeadMansSwitch(fail, lambda: None, service.faults, every_seconds=30.0)
    if isinstance(planted, HeartbeatUnheard):
        await switch.beat()
        return
    with pytest.raises(RuntimeError, match="planted"):
        await switch.beat()
