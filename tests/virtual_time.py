"""An event loop whose time is a number.

It jumps to the next timer when nothing is ready, so that no test ever sleeps.

Retries with backoff, deadlines and periods run as in production, in order and in no time; a test
that would wait for ever fails with `Stuck`. Only for code that does no real I/O: there is nothing
on a socket to wait for.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, ParamSpec

from tests.builders import T0

P = ParamSpec("P")


class Stuck(AssertionError):
    """Everything waits for something that will never come."""


class _NoWaiting(selectors.SelectSelector):
    """A selector that hands the time it would have waited to the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("nothing is ready and no timer is set")
        self.waited += max(timeout, 0.0)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that starts at 0 seconds."""

    def __init__(self) -> None:
        self._no_waiting = _NoWaiting()
        super().__init__(self._no_waiting)

    def time(self) -> float:
        return self._no_waiting.waited


class LoopClock:
    """The loop's time as `controller.ports.Clock`: `T0` and on."""

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a coroutine test on a loop of its own, in virtual time; it may take ten virtual hours."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(36_000):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(bounded())

    return run


async def settled() -> None:
    """Return once everything that is ready has run; no time goes by."""
    for _ in range(50):
        await asyncio.sleep(0)
