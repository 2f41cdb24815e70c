"""Starts the parts in order, keeps them running, and stops them in bounded time whatever hangs.

The order is the point. Up: what was decided is known before anything is counted or decided. Down: no new work, a last save,
then the connections. What the parts are is `controller/bootstrap.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import structlog

from controller.errors import OperatingTrouble, RolloutdError
from controller.health import Health
from controller.service.watchdog import EXIT_CONSUMER_STUCK
from controller.settings import ShutdownSettings

#: First and longest wait between attempts to reach what is away at start.
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.5, 10.0
EXIT_BROKEN = 70  # an invariant does not hold; the supervisor above us should start afresh and a person should look


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that must have worked before the next: repeated while its surroundings are away."""

    component: str  # the health component that waits meanwhile
    name: str
    act: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the supervisor moves."""

    steps: Sequence[Step]  # in order, before anything runs
    follow: Callable[[], Awaitable[None]]  # the state topic; runs for ever
    caught_up: Callable[[], Awaitable[None]]  # returns once the state topic was read to its end
    loops: Sequence[tuple[str, Callable[[], Awaitable[None]]]]  # run for ever, once caught up
    drain: Callable[[], Awaitable[None]]  # stop taking work, save what is in hand
    close: Sequence[tuple[str, Callable[[], Awaitable[None]]]]  # connections, all at once
    on_hangup: Callable[[], None] = field(default=lambda: None)


class Supervisor:
    """Runs the daemon between start and stop."""

    def __init__(
        self, parts: Parts, health: Health, settings: ShutdownSettings, *, end_process: Callable[[int], object] = os._exit
    ) -> None:
        """`end_process` is the last resort: it takes an exit code and asks nobody."""
        self._end_process = end_process
        self._parts = parts
        self._health = health
        self._settings = settings
        self._stopping = asyncio.Event()
        self._why_exit: tuple[int, str] | None = None
        self._log = structlog.get_logger()

    def give_up(self, reason: str) -> None:
        """End the process: a consumer is beyond repair. Whoever supervises us starts afresh."""
        self._health.broken(reason)
        self._why_exit = (EXIT_CONSUMER_STUCK, reason)
        self._stopping.set()

    async def run(self) -> int:
        """Run until a signal or a failure; return the exit code: 0 after a signal."""
        with_signals = self._catch_signals()
        work = asyncio.create_task(self._work(), name="daemon")
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        failure = work.exception() if work.done() and not work.cancelled() else None
        seconds = self._settings.drain_seconds + self._settings.close_seconds + 0.3
        # Not called off: what this returns to has tasks to cancel and threads to join, and those may hang as well.
        self._end_at_the_latest(seconds, self._exit_code(failure))
        await self._shut_down(work)
        for signal_number in with_signals:
            asyncio.get_running_loop().remove_signal_handler(signal_number)
        if failure is not None:
            raise failure
        return self._exit_code(None)

    def _exit_code(self, failure: BaseException | None) -> int:
        if failure is not None:
            return EXIT_BROKEN
        return 0 if self._why_exit is None else self._why_exit[0]

    def _catch_signals(self) -> list[signal.Signals]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._parts.on_hangup)
        return [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]

    def _stop(self, number: signal.Signals) -> None:
        """Begin to stop; asked a second time, stop at once: everything we have not saved is counted again."""
        if self._stopping.is_set():
            self._log.warning("stopped_at_once", signal=number.name)
            self._end_process(0)
        self._log.info("stop_asked", signal=number.name)
        self._stopping.set()

    async def _work(self) -> NoReturn:
        """Bring everything up in order, then run it all. Ends only by an exception."""
        for step in self._parts.steps:
            await self._persist(step)
        async with asyncio.TaskGroup() as running:
            running.create_task(_forever(self._parts.follow), name="state_feed")
            self._health.not_ready("state", "reading what was decided so far")
            await self._parts.caught_up()
            self._health.ready("state")
            for name, loop in self._parts.loops:
                running.create_task(_forever(loop), name=name)
            self._log.info("daemon_started")
        raise RolloutdError("every part has ended, which none should")

    async def _persist(self, step: Step) -> None:
        """Repeat a step until its surroundings are there: no crash loop, and nothing is acted on before they are."""
        wait = FIRST_RETRY_SECONDS
        while True:
            self._health.not_ready(step.component, step.name)
            try:
                await step.act()
            except OperatingTrouble as trouble:
                self._health.not_ready(step.component, str(trouble))
                self._log.warning("waiting", step=step.name, error=str(trouble), retry_seconds=wait)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_RETRY_SECONDS)
                continue
            self._health.ready(step.component)
            return

    async def _shut_down(self, work: asyncio.Task[NoReturn]) -> None:
        """Drain under one deadline, then close everything under another."""
        if not work.done():
            await self._bounded("drain", self._parts.drain, self._settings.drain_seconds)
            work.cancel()
            await asyncio.wait([work], timeout=0.2)
        await asyncio.gather(*(self._bounded(name, close, self._settings.close_seconds) for name, close in self._parts.close))
        self._log.info("daemon_stopped")

    async def _bounded(self, name: str, act: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Do one thing of the shutdown. Nothing it raises or waits for keeps the others from being done."""
        try:
            async with asyncio.timeout(seconds):
                await act()
        except TimeoutError:
            self._log.warning("stop_incomplete", part=name, seconds=seconds)
        except Exception as error:  # the edge of a dying process: said, and the next part is stopped
            self._log.warning("stop_failed", part=name, error_type=type(error).__name__, error=str(error))

    def _end_at_the_latest(self, seconds: float, code: int) -> None:
        """End the process then, even if the event loop hangs by then: a thread needs no loop."""
        timer = threading.Timer(seconds, self._end_process, [code])
        timer.daemon = True
        timer.start()


async def _forever(loop: Callable[[], Awaitable[None]]) -> None:
    await loop()
    raise RolloutdError(f"{loop!r} ended, which it should not")
