"""Starts the parts in order, keeps them running, and stops them in bounded time whatever hangs.

Which parts there are, and their order, is `running/parts.py`.

A part that fails, by any exception, is restarted alone, with growing pauses. It is in the list of
faults until it has run for a while; the other parts go on. The reason is to fail static: a process
that ends serves no flags. The process ends by itself only when a part it cannot work without fails
again and again, when a step at the start does, and when a watchdog gives up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import structlog

from controller.cancellation import take_back_cancellations
from controller.errors import BadInput, OperatingTrouble, RolloutdError
from controller.health import Faults, Health, Scope
from controller.retrying import Backoff, until_done
from controller.running.watchdog import EXIT_CONSUMER_STUCK
from controller.settings import ShutdownSettings

#: Pauses between attempts of a step at the start, while what it needs is away. What is back is used
#: within the longest: nothing is judged before.
STEP_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=3.0)
#: First and longest pause before a part that failed is started again.
FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS = 1.0, 30.0
#: A part that has run for so long is healthy again.
HEALTHY_AFTER_SECONDS = 60.0
#: After so many failures of one part within so long, although it was restarted, the process ends: a
#: new one may work.
FAILURES_LIMIT, FAILURES_WITHIN_SECONDS = 5, 300.0
#: A step that has not ended for so long says whose answer it waits for, and for how long.
SLOW_STEP_SECONDS = 2.0
#: Unexpected failures of one step at the start, in about a minute. A passing trouble causes fewer.
STEP_FAILURES_LIMIT = 20
#: The exit status when an invariant does not hold: a new process may work; a person should check.
EXIT_BROKEN = 70


Loop = tuple[str, Callable[[], Awaitable[None]]]
"""A part that runs until it is cancelled, with its name."""


@dataclass(frozen=True, slots=True)
class StartStep:
    """One thing that must have worked before the next; repeated while what it needs is away."""

    component: str  # the health component that waits meanwhile
    name: str
    act: Callable[[], Awaitable[None]]
    needs: str = ""  # whose answer it waits for; empty: nobody's


@dataclass(frozen=True, slots=True)
class Parts:
    """What the supervisor starts, keeps running and stops."""

    steps: Sequence[StartStep]  # in order, before anything runs
    follow: Callable[[], Awaitable[None]]  # follows the state topic; runs for ever
    caught_up: Callable[[], Awaitable[None]]  # returns once the state topic was read to its end
    loops: Sequence[Loop]  # run for ever, once caught up
    drain: Callable[[], Awaitable[None]]  # takes no more work, saves what is in memory
    close: Sequence[tuple[str, Callable[[], Awaitable[None]]]]  # connections, all at once
    expendable: frozenset[str] = frozenset()  # loops without which flags are still served
    early: Sequence[Loop] = ()  # loops that run from the start


def names_of(*groups: Iterable[Loop]) -> frozenset[str]:
    """Return the names of loops."""
    return frozenset(name for group in groups for name, _ in group)


def lasting(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Return `work` as a part that goes on waiting when its work has ended by itself.

    A part that is drained ends so, while the process is about to end.
    """

    async def run() -> None:
        await work()
        await asyncio.Event().wait()

    return run


class Supervisor:
    """Runs the daemon between start and stop."""

    def __init__(
        self,
        health: Health,
        settings: ShutdownSettings,
        faults: Faults,
        on_hangup: Callable[[], object] = lambda: None,
        *,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        """`on_hangup` is called on SIGHUP, which ends nothing.

        `end_process` is the last resort: it ends the process at once with an exit code.
        """
        self._on_hangup = on_hangup
        self._faults = faults
        self._end_process = end_process
        self._health = health
        self._settings = settings
        self._stopping = asyncio.Event()
        self._is_ending = False  # whether parts are cancelled, to end
        self._why_exit: tuple[int, str] | None = None
        self._logger = structlog.get_logger()

    def give_up(self, reason: str, code: int = EXIT_CONSUMER_STUCK) -> None:
        """End the process in order: only a new one can help. The first reason counts."""
        self._health.broken(reason)
        if self._why_exit is None:
            self._why_exit = (code, reason)
            self._logger.error("process_given_up", reason=reason, code=code)
        self._stopping.set()

    async def run(self, parts: Parts) -> int:
        """Run until a signal, or until given up; return the exit code: 0 after a signal.

        Raises BadInput for what an operator has to change before any start can succeed.
        """
        with_signals = self._catch_signals()
        work = asyncio.create_task(self._work(parts), name="daemon")
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        failure = work.exception() if work.done() and not work.cancelled() else None
        if failure is not None and not isinstance(failure, BadInput):
            self._logger.error("process_failed", exc_info=failure)
            self.give_up(f"{type(failure).__name__}: {failure}", EXIT_BROKEN)
        seconds = self._settings.drain_seconds + self._settings.close_seconds + 0.3
        # Not called off: what this returns to has tasks to cancel and threads to join, and those
        # may hang as well.
        self._end_at_the_latest(seconds, self._exit_code(failure))
        await self._shut_down(parts, work)
        for signal_number in with_signals:
            asyncio.get_running_loop().remove_signal_handler(signal_number)
        if isinstance(failure, BadInput):
            raise failure
        return self._exit_code(failure)

    def _exit_code(self, failure: BaseException | None) -> int:
        if failure is not None:
            return EXIT_BROKEN
        return 0 if self._why_exit is None else self._why_exit[0]

    def _catch_signals(self) -> list[signal.Signals]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)  # a closed terminal ends nothing
        return [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]

    def _stop(self, number: signal.Signals) -> None:
        """Begin to stop; at a second signal, stop at once.

        Everything that is not saved is counted again.
        """
        if self._stopping.is_set():
            self._logger.warning("stopped_at_once", signal=number.name)
            self._end_process(0)
        self._logger.info("stop_asked", signal=number.name)
        self._stopping.set()

    async def _work(self, parts: Parts) -> NoReturn:
        """Bring everything up in order, then run it all. Ends only by an exception."""
        running: set[asyncio.Task[None]] = set()

        def start(name: str, loop: Callable[[], Awaitable[None]]) -> None:
            is_expendable = name in parts.expendable
            keeping = self._keep_running(name, loop, is_expendable=is_expendable)
            running.add(asyncio.create_task(keeping, name=name))

        # Not a TaskGroup, in which one failure ends all.
        try:
            for name, loop in parts.early:
                start(name, loop)
            for step in parts.steps[:1]:
                await self._persist(step)
            # Before the other steps: what was decided is served although Redis is away.
            start("state_feed", parts.follow)
            caught_up = StartStep(
                "state", "reading what was decided so far", parts.caught_up, "Kafka"
            )
            for step in (*parts.steps[1:], caught_up):
                await self._persist(step)
            for name, loop in parts.loops:
                start(name, loop)
            self._health.others_wait_for("")
            self._health.is_running = True
            self._logger.info("daemon_started")
            await asyncio.Event().wait()
        finally:
            self._is_ending = True
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)
        raise RolloutdError("unreachable: parts run until they are cancelled")

    async def _keep_running(
        self, name: str, loop: Callable[[], Awaitable[None]], *, is_expendable: bool
    ) -> None:
        """Run one part until cancelled; when it ends, report that and start it again.

        Nothing that a part raises leaves this method, so that no part ends another.
        """
        clock = asyncio.get_running_loop()
        failed_at: deque[float] = deque(maxlen=FAILURES_LIMIT)
        wait = FIRST_RESTART_SECONDS
        while True:
            began = clock.time()
            healthy = clock.call_later(HEALTHY_AFTER_SECONDS, self._faults.clear, Scope.PART, name)
            error: BaseException = RolloutdError(f"{name} ended, which it should not")
            try:
                await loop()
            except asyncio.CancelledError as cancelled:
                if self._is_ending:
                    raise
                # Of something inside the part, also where a library left it to this task: a failure
                # like any other. A part that ended here would be missing without a word.
                take_back_cancellations()
                error = cancelled
            except Exception as failure:
                error = failure
            finally:
                healthy.cancel()
            now = clock.time()
            if now - began >= HEALTHY_AFTER_SECONDS:
                wait = FIRST_RESTART_SECONDS
            failed_at.append(now)
            why = _described(error)
            is_hopeless = (
                not is_expendable
                and len(failed_at) == FAILURES_LIMIT
                and now - failed_at[0] <= FAILURES_WITHIN_SECONDS
            )
            if self._stopping.is_set():
                return  # what it needs is being closed
            self._logger.error("part_failed", part=name, retry_seconds=wait, exc_info=error)
            fix = "it is restarted; the log has the traceback under part_failed"
            self._faults.report(Scope.PART, name, why, fix)
            if is_hopeless:
                within = round(now - failed_at[0])
                self.give_up(
                    f"{name} failed {FAILURES_LIMIT} times within {within} s, at last by {why}",
                    EXIT_BROKEN,
                )
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_RESTART_SECONDS)

    async def _persist(self, step: StartStep) -> None:
        """Repeat a step until what it needs is there: no crash loop.

        What an operator has to change is raised. Any other mistake may be of the moment, so it is
        tried again too, but not for ever.
        """
        failures = 0

        def report(error: Exception, pause: float) -> None:
            nonlocal failures
            if isinstance(error, BadInput):
                raise error
            why = str(error)
            if isinstance(error, OperatingTrouble):
                self._logger.warning("waiting", step=step.name, error=why, retry_seconds=pause)
            else:
                failures += 1
                if failures >= STEP_FAILURES_LIMIT:
                    raise error
                why = _described(error)
                self._logger.error(
                    "step_failed", step=step.name, retry_seconds=pause, exc_info=error
                )
                self._faults.report(Scope.PART, step.name, why, "it is tried again")
            is_named = why.startswith(f"{step.name}: ")
            self._health.not_ready(step.component, why if is_named else f"{step.name}: {why}")

        self._health.not_ready(step.component, step.name)
        self._health.others_wait_for(step.needs)
        waiting = asyncio.create_task(self._name_wait(step), name=f"wait:{step.name}")
        try:
            await until_done(step.act, trouble=Exception, backoff=STEP_BACKOFF, report=report)
        finally:
            waiting.cancel()
        self._faults.clear(Scope.PART, step.name)
        self._health.ready(step.component)

    async def _name_wait(self, step: StartStep) -> None:
        """Say whose answer a step waits for, until cancelled: one that hangs raises nothing."""
        clock = asyncio.get_running_loop()
        began, said = clock.time(), step.name
        while step.needs:
            await asyncio.sleep(SLOW_STEP_SECONDS)
            if self._health.components[step.component].why_not != said:
                continue  # the step itself knows better what is wrong
            said = f"{step.name}: no answer from {step.needs} for {clock.time() - began:.0f} s"
            self._health.not_ready(step.component, said)

    async def _shut_down(self, parts: Parts, work: asyncio.Task[NoReturn]) -> None:
        """Drain under one deadline, then close everything under another."""
        if not work.done():
            await self._bounded("drain", parts.drain, self._settings.drain_seconds)
            work.cancel()
            await asyncio.wait([work], timeout=0.2)
        await asyncio.gather(
            *(
                self._bounded(name, close, self._settings.close_seconds)
                for name, close in parts.close
            )
        )
        self._logger.info("daemon_stopped")

    async def _bounded(self, name: str, act: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Do one thing of the shutdown: nothing that it raises or waits for delays the others."""
        try:
            async with asyncio.timeout(seconds):
                await act()
        except TimeoutError:
            self._logger.warning("stop_incomplete", part=name, seconds=seconds)
        except (
            Exception
        ) as error:  # the process is about to end: logged, and the next part is stopped
            self._logger.warning(
                "stop_failed", part=name, error_type=type(error).__name__, error=str(error)
            )

    def _end_at_the_latest(self, seconds: float, code: int) -> None:
        """End the process after so long, even if the event loop hangs: a thread needs no loop."""
        timer = threading.Timer(seconds, self._end_process, [code])
        timer.daemon = True
        timer.start()


def _described(error: BaseException) -> str:
    """Return an exception in one short line; of a group, its first exception."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:300]
