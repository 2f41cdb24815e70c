"""Start and stop, with parts that wait, fail and hang; signals are real, time is virtual."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from controller.errors import EventLogUnavailable
from controller.health import Health
from controller.service.supervisor import EXIT_BROKEN, Parts, Step, Supervisor
from controller.service.watchdog import EXIT_CONSUMER_STUCK
from controller.settings import ShutdownSettings
from tests.virtual_time import in_virtual_time, settled

SETTINGS = ShutdownSettings()


class Daemon:
    """Parts that write down what happens to them."""

    def __init__(self, **parts: Any) -> None:
        self.story: list[str] = []
        self.ended: list[int] = []
        self.health = Health(["kafka", "state"])
        fields: dict[str, Any] = {
            "steps": [Step("kafka", "preparing topics", self.does("prepare"))],
            "follow": self.runs("follow"),
            "caught_up": self.does("caught up"),
            "loops": [("ingest", self.runs("ingest")), ("workers", self.runs("workers"))],
            "drain": self.does("drain"),
            "close": [("kafka", self.does("close kafka")), ("redis", self.does("close redis"))],
            "on_hangup": lambda: self.story.append("hangup"),
        }
        # The last resort waits in a thread, for real seconds: far more than a test takes.
        self.supervisor = Supervisor(Parts(**{**fields, **parts}), self.health, SETTINGS, end_process=self.ended.append)

    def does(self, what: str) -> Callable[[], Awaitable[None]]:
        """Return something that is done at once."""

        async def act() -> None:
            await asyncio.sleep(0)
            self.story.append(what)

        return act

    def runs(self, what: str) -> Callable[[], Awaitable[None]]:
        """Return something that runs until it is cancelled."""

        async def run() -> None:
            self.story.append(what)
            try:
                await asyncio.Event().wait()
            finally:
                self.story.append(f"{what} cancelled")

        return run

    async def run(self) -> int:
        """Run, in a loop that virtual time does not find idle: a signal may come at any moment."""
        async with asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(_tick())
            try:
                return await self.supervisor.run()
            finally:
                ticking.cancel()


async def _tick() -> None:
    while True:
        await asyncio.sleep(0.1)


async def hang() -> None:
    """Wait for ever."""
    await asyncio.Event().wait()


async def hang_stubbornly() -> None:
    """Wait for ever, whoever cancels."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


def send(number: signal.Signals) -> None:
    """Send a signal to ourselves."""
    os.kill(os.getpid(), number)


@in_virtual_time
async def test_up_in_order_and_down_in_order() -> None:
    """What was decided is known before anything runs; after SIGTERM work is drained before loops end and connections close."""
    daemon = Daemon()
    running = asyncio.create_task(daemon.run())
    await settled()
    assert daemon.story == ["prepare", "follow", "caught up", "ingest", "workers"]
    assert daemon.health.is_ready
    daemon.story.clear()
    send(signal.SIGTERM)
    assert await running == 0
    assert daemon.story[0] == "drain"
    assert set(daemon.story[1:4]) == {"follow cancelled", "ingest cancelled", "workers cancelled"}
    assert set(daemon.story[4:]) == {"close kafka", "close redis"}


@in_virtual_time
async def test_nothing_runs_before_the_state_topic_is_read() -> None:
    """Until every document was read nothing is counted or decided, and the process is not ready."""
    daemon = Daemon(caught_up=hang)
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(60)
    assert daemon.story == ["prepare", "follow"]
    assert not daemon.health.is_ready
    send(signal.SIGTERM)
    assert await running == 0


@in_virtual_time
async def test_surroundings_that_are_away_at_start_are_waited_for() -> None:
    """A step is repeated with growing pauses until Kafka is there; no crash loop, and health says what is missing."""
    tries: list[float] = []

    async def prepare() -> None:
        tries.append(asyncio.get_running_loop().time())
        if len(tries) < 8:
            raise EventLogUnavailable("no broker")

    daemon = Daemon(steps=[Step("kafka", "preparing topics", prepare)])
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(1)
    assert daemon.health.components["kafka"].why_not == "no broker"
    assert daemon.story == []
    await asyncio.sleep(120)
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 10, 10], abs=0.01)
    assert daemon.health.is_ready
    send(signal.SIGINT)
    assert await running == 0


@in_virtual_time
async def test_a_signal_during_start_stops_the_waiting() -> None:
    """SIGTERM while Kafka is away at start ends the process as quickly, with code 0."""

    async def prepare() -> None:
        raise EventLogUnavailable("no broker")

    daemon = Daemon(steps=[Step("kafka", "preparing topics", prepare)])
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(30)
    send(signal.SIGTERM)
    assert await running == 0
    assert set(daemon.story) == {"drain", "close kafka", "close redis"}


@in_virtual_time
async def test_everything_hanging_is_left_behind_in_bounded_time() -> None:
    """With a drain and connections that never end the process stops within its two deadlines, and closes what it can."""
    daemon = Daemon(drain=hang)
    daemon.supervisor._parts = Parts(  # the same, but with connections that hang
        steps=(),
        follow=daemon.runs("follow"),
        caught_up=daemon.does("caught up"),
        loops=(),
        drain=hang,
        close=[("kafka", hang), ("redis", daemon.does("close redis")), ("http", hang)],
    )
    running = asyncio.create_task(daemon.run())
    await settled()
    began = asyncio.get_running_loop().time()
    send(signal.SIGTERM)
    assert await running == 0
    took = asyncio.get_running_loop().time() - began
    assert took <= SETTINGS.drain_seconds + SETTINGS.close_seconds + 0.3 < 5
    assert "close redis" in daemon.story


@in_virtual_time
async def test_a_failing_close_does_not_keep_others_open() -> None:
    """A part that cannot be closed is said; the rest is closed, and the exit code is 0."""

    async def fail() -> None:
        raise OSError("no such socket")

    daemon = Daemon(drain=fail)
    running = asyncio.create_task(daemon.run())
    await settled()
    send(signal.SIGTERM)
    assert await running == 0
    assert {"close kafka", "close redis"} <= set(daemon.story)


@in_virtual_time
async def test_a_second_signal_ends_at_once() -> None:
    """Asked again while it drains, the process ends then and there, with code 0."""
    daemon = Daemon(drain=hang)
    running = asyncio.create_task(daemon.run())
    await settled()
    send(signal.SIGTERM)
    await asyncio.sleep(0.3)
    assert daemon.ended == []
    send(signal.SIGINT)
    await asyncio.sleep(0.3)
    assert daemon.ended == [0]
    await running


@in_virtual_time
async def test_a_part_that_breaks_stops_everything_and_is_raised() -> None:
    """A loop that ends by a mistake takes the others down in order, and whoever started us sees the mistake."""

    async def broken() -> None:
        await asyncio.sleep(1)
        raise ZeroDivisionError("a mistake of ours")

    daemon = Daemon()
    daemon.supervisor._parts = Parts(
        steps=(),
        follow=daemon.runs("follow"),
        caught_up=daemon.does("caught up"),
        loops=[("ingest", daemon.runs("ingest")), ("workers", broken)],
        drain=daemon.does("drain"),
        close=[("redis", daemon.does("close redis"))],
    )
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await daemon.run()
    assert "ingest cancelled" in daemon.story
    assert daemon.story[-1] == "close redis"
    assert daemon.supervisor._exit_code(ZeroDivisionError()) == EXIT_BROKEN


@in_virtual_time
async def test_a_loop_that_ends_is_a_mistake() -> None:
    """None of the loops may end on its own: silence is not success."""
    daemon = Daemon(loops=[("ingest", _at_once)])
    with pytest.raises(ExceptionGroup):
        await daemon.run()


async def _at_once() -> None:
    return


@in_virtual_time
async def test_giving_up_has_an_exit_code_of_its_own() -> None:
    """A consumer beyond repair ends the process in order, with the code that asks for a fresh start, and health is red."""
    daemon = Daemon()
    running = asyncio.create_task(daemon.run())
    await settled()
    daemon.supervisor.give_up("the consumer is stuck")
    assert await running == EXIT_CONSUMER_STUCK
    assert not daemon.health.is_alive
    assert "drain" in daemon.story


@in_virtual_time
async def test_hangup_is_told_and_stops_nothing() -> None:
    """SIGHUP reaches whoever wants it; the daemon runs on."""
    daemon = Daemon()
    running = asyncio.create_task(daemon.run())
    await settled()
    send(signal.SIGHUP)
    await asyncio.sleep(1)
    assert "hangup" in daemon.story
    assert not running.done()
    send(signal.SIGTERM)
    assert await running == 0


@in_virtual_time
async def test_the_last_resort_is_set_before_anything_is_waited_for() -> None:
    """A thread that needs no loop ends the process after both deadlines, whatever hangs, also after `run` has returned."""
    set_for: list[tuple[float, int]] = []
    daemon = Daemon()
    daemon.supervisor._end_at_the_latest = lambda seconds, code: set_for.append((seconds, code))  # type: ignore[method-assign]
    running = asyncio.create_task(daemon.run())
    await settled()
    send(signal.SIGTERM)
    await running
    assert set_for == [(SETTINGS.drain_seconds + SETTINGS.close_seconds + 0.3, 0)]
