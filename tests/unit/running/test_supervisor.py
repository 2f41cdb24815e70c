"""Start and stop, with parts that wait, fail and hang; signals are real, time is virtual."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from controller.errors import BrokenInvariant, ConfigInvalid, EventLogUnavailable
from controller.health import Faults, Health, Scope
from controller.running.supervisor import (
    EXIT_BROKEN,
    FAILURES_LIMIT,
    STEP_FAILURES_LIMIT,
    Parts,
    StartStep,
    Supervisor,
)
from controller.running.watchdog import EXIT_CONSUMER_STUCK
from controller.settings import ShutdownSettings
from tests.builders import T0
from tests.virtual_time import in_virtual_time, settled

SETTINGS = ShutdownSettings()


class Daemon:
    """Parts that write down what happens to them."""

    def __init__(self, **parts: Any) -> None:
        self.story: list[str] = []
        self.ended: list[int] = []
        self.health = Health(["kafka", "state"])
        self.faults = Faults(lambda: T0)
        fields: dict[str, Any] = {
            "steps": [StartStep("kafka", "preparing topics", self.does("prepare"))],
            "follow": self.runs("follow"),
            "caught_up": self.does("caught up"),
            "loops": [("ingest", self.runs("ingest")), ("workers", self.runs("workers"))],
            "drain": self.does("drain"),
            "close": [("kafka", self.does("close kafka")), ("redis", self.does("close redis"))],
        }
        self.parts = Parts(**{**fields, **parts})
        # The last resort waits in a thread, for real seconds: far more than a test takes.
        self.supervisor = Supervisor(
            self.health,
            SETTINGS,
            self.faults,
            end_process=self.ended.append,
        )

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
                return await self.supervisor.run(self.parts)
            finally:
                ticking.cancel()


async def _tick() -> None:
    while True:
        await asyncio.sleep(0.3)


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
    """What was decided is known before anything runs.

    After SIGTERM work is drained before loops end and connections close.
    """
    daemon = Daemon()
    running = asyncio.create_task(daemon.run())
    await settled()
    assert daemon.story == ["prepare", "follow", "caught up", "ingest", "workers"]
    assert daemon.health.is_working
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
    assert not daemon.health.is_working
    send(signal.SIGTERM)
    assert await running == 0


@in_virtual_time
async def test_surroundings_that_are_away_at_start_are_waited_for() -> None:
    """A step is repeated with growing pauses until Kafka is there.

    No crash loop, and health says what is missing.
    """
    tries: list[float] = []

    async def prepare() -> None:
        tries.append(asyncio.get_running_loop().time())
        if len(tries) < 8:
            named = "preparing topics: " if len(tries) > 1 else ""  # the adapter may say it too
            raise EventLogUnavailable(f"{named}no broker")

    daemon = Daemon(steps=[StartStep("kafka", "preparing topics", prepare)])
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(1)
    assert len(tries) > 1
    assert daemon.health.components["kafka"].why_not == "preparing topics: no broker"
    assert daemon.story == []
    await asyncio.sleep(120)
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert pauses == pytest.approx([0.5, 1, 2, 3, 3, 3, 3], abs=0.01)
    assert daemon.health.is_working
    send(signal.SIGINT)
    assert await running == 0


@in_virtual_time
async def test_a_step_that_hangs_names_what_it_waits_for() -> None:
    """It raises nothing, so nobody else says why the replica does not start."""
    answered = asyncio.Event()

    async def prepare() -> None:
        await answered.wait()

    daemon = Daemon(steps=[StartStep("kafka", "preparing topics", prepare, "Kafka")])
    running = asyncio.create_task(daemon.supervisor.run(daemon.parts))
    await asyncio.sleep(7)
    why = daemon.health.components["kafka"].why_not
    assert why == "preparing topics: no answer from Kafka for 6 s"
    daemon.health.not_ready("kafka", "the certificate has expired")
    await asyncio.sleep(7)
    assert daemon.health.components["kafka"].why_not == "the certificate has expired"
    answered.set()
    await asyncio.sleep(3)
    assert daemon.health.components["kafka"].why_not is None
    daemon.supervisor.give_up("enough")
    await running


@in_virtual_time
async def test_a_signal_during_start_stops_the_waiting() -> None:
    """SIGTERM while Kafka is away at start ends the process as quickly, with code 0."""

    async def prepare() -> None:
        raise EventLogUnavailable("no broker")

    daemon = Daemon(steps=[StartStep("kafka", "preparing topics", prepare)])
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(30)
    send(signal.SIGTERM)
    assert await running == 0
    assert set(daemon.story) == {"drain", "close kafka", "close redis"}


@in_virtual_time
async def test_everything_hanging_is_left_behind_in_bounded_time() -> None:
    """With a drain and connections that never end the process stops within two deadlines."""
    daemon = Daemon(drain=hang)
    daemon.parts = Parts(  # the same, but with connections that hang
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


class Failing:
    """A part that fails at the times it is told to, and then runs."""

    def __init__(self, *errors: BaseException | None, after_seconds: float = 0.0) -> None:
        self.errors = list(errors)
        self.after_seconds = after_seconds
        self.starts: list[float] = []

    async def __call__(self) -> None:
        """Fail, end (None), or run for ever once no errors are left."""
        self.starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.after_seconds)
        if not self.errors:
            await asyncio.Event().wait()
        error = self.errors.pop(0)
        if error is not None:
            raise error


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("a mistake of ours"),
        BrokenInvariant("totals do not add up"),
        ExceptionGroup("tasks", [KeyError("deep inside")]),
        asyncio.CancelledError(),
        None,
    ],
    ids=["mistake", "invariant", "group", "cancelled inside", "ended"],
)
def test_a_part_that_fails_is_restarted_alone(error: BaseException | None) -> None:
    """Whatever ends a part, its siblings are not touched, it runs again after a second.

    And it is shown for a minute.
    """

    @in_virtual_time
    async def story() -> None:
        part = Failing(error)
        daemon = Daemon()
        daemon = Daemon(loops=[("ingest", daemon.runs("ingest")), ("workers", part)])
        running = asyncio.create_task(daemon.run())
        await asyncio.sleep(5)
        assert part.starts == pytest.approx([0, 1], abs=0.1)
        fault = daemon.faults.of(Scope.PART, "workers")
        assert fault is not None
        assert fault.times == 1
        assert daemon.health.is_alive
        assert not any("cancelled" in line for line in daemon.story)
        await asyncio.sleep(60)
        assert daemon.faults.of(Scope.PART, "workers") is None
        send(signal.SIGTERM)
        assert await running == 0

    story()


@in_virtual_time
async def test_a_part_whose_own_task_a_library_cancelled_is_restarted() -> None:
    """A group or a deadline that leaves its cancellation behind ends no part without a word."""
    starts: list[int] = []

    async def part() -> None:
        task = asyncio.current_task()
        assert task is not None
        starts.append(task.cancelling())
        if len(starts) == 1:
            task.cancel()
        await asyncio.Event().wait()

    daemon = Daemon()
    daemon = Daemon(loops=[("ingest", daemon.runs("ingest")), ("notifications", part)])
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(5)
    assert starts == [0, 0]
    assert daemon.faults.of(Scope.PART, "notifications") is not None
    send(signal.SIGTERM)
    assert await running == 0


@in_virtual_time
async def test_a_part_that_fails_again_and_again_ends_the_process() -> None:
    """After five failures within five minutes the process ends in order with 70."""
    part = Failing(*[ZeroDivisionError("a mistake of ours")] * 100)
    daemon = Daemon(loops=[("workers", part)])
    assert await daemon.run() == EXIT_BROKEN
    assert part.starts == pytest.approx([0, 1, 3, 7, 15], abs=0.1)
    assert len(part.starts) == FAILURES_LIMIT
    assert not daemon.health.is_alive
    assert "workers failed 5 times" in daemon.health.trouble[0]
    assert "drain" in daemon.story


@in_virtual_time
async def test_a_part_that_fails_now_and_then_goes_on_for_ever() -> None:
    """A failure every eighty seconds is reported each time and ends nothing.

    The pauses do not grow.
    """
    part = Failing(*[ZeroDivisionError("now and then")] * 20, after_seconds=80)
    daemon = Daemon(loops=[("workers", part)])
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(700)
    assert daemon.health.is_alive
    assert {round(later - earlier) for earlier, later in pairwise(part.starts)} == {81}
    send(signal.SIGTERM)
    assert await running == 0


@in_virtual_time
async def test_an_expendable_part_never_ends_the_process() -> None:
    """What flags do without may fail for ever: every 30 s it is tried again."""
    part = Failing(*[ValueError("no model")] * 1_000)
    daemon = Daemon(loops=[("explainer", part)], expendable=frozenset({"explainer"}))
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(120)
    assert daemon.health.is_alive
    assert 6 < len(part.starts) < 12
    send(signal.SIGTERM)
    assert await running == 0


@in_virtual_time
async def test_a_step_that_fails_by_a_mistake_is_tried_again() -> None:
    """An unexpected failure at start may be of the moment.

    `STEP_FAILURES_LIMIT` in a row are not: the exit code is 70.
    """
    passing, lasting = Failing(*[KeyError("x")] * 3), Failing(*[KeyError("x")] * 100)
    passing.errors.append(None)
    daemon = Daemon(steps=[StartStep("kafka", "preparing topics", passing)])
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(60)
    assert daemon.health.is_working
    assert daemon.faults.current == ()
    send(signal.SIGTERM)
    assert await running == 0
    daemon = Daemon(steps=[StartStep("kafka", "preparing topics", lasting)])
    assert await daemon.run() == EXIT_BROKEN
    assert len(lasting.starts) == STEP_FAILURES_LIMIT


@in_virtual_time
async def test_a_bad_configuration_is_fatal_at_start() -> None:
    """What only an operator can change is raised at once, after an orderly stop."""
    daemon = Daemon(steps=[StartStep("kafka", "looking", Failing(ConfigInvalid("wrong Redis")))])
    with pytest.RaisesGroup(ConfigInvalid):  # the group is the test's own
        await daemon.run()
    assert "close redis" in daemon.story


@in_virtual_time
async def test_what_was_decided_is_followed_before_redis_is_there() -> None:
    """The state topic is read right after Kafka was reached.

    Flags are served while later steps wait.
    """

    async def no_redis() -> None:
        raise EventLogUnavailable("no Redis")

    other = Daemon()  # lends its story
    daemon = Daemon(
        steps=[StartStep("kafka", "x", other.does("prepare")), StartStep("state", "y", no_redis)],
        follow=other.runs("follow"),
        early=[("visibility", other.runs("visibility"))],
    )
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(30)
    assert sorted(other.story) == ["follow", "prepare", "visibility"]
    assert not daemon.health.has_started
    send(signal.SIGTERM)
    assert await running == 0


@in_virtual_time
async def test_giving_up_has_an_exit_code_of_its_own() -> None:
    """A consumer beyond repair ends the process in order.

    With the code that asks for a fresh start, and health is red.
    """
    daemon = Daemon()
    running = asyncio.create_task(daemon.run())
    await settled()
    daemon.supervisor.give_up("the consumer is stuck")
    assert await running == EXIT_CONSUMER_STUCK
    assert not daemon.health.is_alive
    assert "drain" in daemon.story


@in_virtual_time
async def test_a_hangup_stops_nothing() -> None:
    """A terminal that is closed sends SIGHUP; the daemon runs on."""
    daemon = Daemon()
    running = asyncio.create_task(daemon.run())
    await settled()
    send(signal.SIGHUP)
    await asyncio.sleep(1)
    assert not running.done()
    send(signal.SIGTERM)
    assert await running == 0


@in_virtual_time
async def test_the_last_resort_is_set_before_anything_is_waited_for() -> None:
    """A thread that needs no loop ends the process after both deadlines, whatever hangs.

    Also after `run` has returned.
    """
    set_for: list[tuple[float, int]] = []
    daemon = Daemon()
    daemon.supervisor._end_at_the_latest = lambda seconds, code: set_for.append((seconds, code))  # type: ignore[method-assign]
    running = asyncio.create_task(daemon.run())
    await settled()
    send(signal.SIGTERM)
    await running
    assert set_for == [(SETTINGS.drain_seconds + SETTINGS.close_seconds + 0.3, 0)]
