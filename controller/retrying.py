"""Repeats a call while something outside does not answer.

Belongs here: the pauses between tries, the loop, and that a cancellation always ends it. Does not
belong here: which error is worth another try, and who is told about it. Both are the caller's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from controller.cancellation import swallowed_cancellation_raised

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries. Each is twice the one before, up to a limit.

    `jitter` is the share of a pause that is left to chance, in [0, 1]: with 0.5 a pause lasts
    between half of its length and all of it. Many clients then do not come back at one moment.
    """

    first_seconds: float
    longest_seconds: float
    jitter: float = 0.0

    def pauses(self) -> Iterator[float]:
        """Yield the seconds of each pause, without end."""
        pause = self.first_seconds
        while True:
            yield pause * random.uniform(1 - self.jitter, 1)
            pause = min(2 * pause, self.longest_seconds)


def steady(seconds: float) -> Backoff:
    """Return pauses that are all of one length."""
    return Backoff(seconds, seconds)


async def until_done(
    call: Callable[[], Awaitable[T]],
    *,
    trouble: type[E] | tuple[type[E], ...],
    backoff: Backoff,
    report: Callable[[E, float], None],
) -> T:
    """Return what `call` returns, repeated until it raises no `trouble`.

    `call` must be idempotent: a try that raised may have been carried out. `report` receives each
    error and the seconds until the next try. It may raise, which ends the repetition. Every other
    exception of `call` passes through, and a cancellation ends the repetition even where `call`
    swallowed it.
    """
    pauses = backoff.pauses()
    while True:
        try:
            with swallowed_cancellation_raised():
                return await call()
        except trouble as error:
            pause = next(pauses)
            report(error, pause)
        await asyncio.sleep(pause)
