"""Tells a cancellation of the present task from one that came from something it waits for.

A CancelledError may be another task's: of a worker that was stopped, or of a client's own task. And
client libraries send through `asyncio.wait_for`, which in Python 3.11 loses a cancellation that
comes as it finishes, and returns or raises what the finished call did. An `asyncio.TaskGroup` loses
one where a task of it fails meanwhile. In all these cases the count of the present task's
cancellations tells the truth.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Cancellation:
    """Whether the present task was cancelled since this was made."""

    def __init__(self) -> None:
        """Begin in the task that is to be followed."""
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()

    @property
    def has_come(self) -> bool:
        """Whether it was cancelled, also where no CancelledError says so any more."""
        return self._task is not None and self._task.cancelling() > self._before


def is_cancelled() -> bool:
    """Return whether the present task is to end: a CancelledError that it has caught is its own."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def take_back_cancellations() -> None:
    """Let the present task go on: nobody cancelled it, and what it has caught was not its own."""
    task = asyncio.current_task()
    while task is not None and task.cancelling() > 0:
        task.uncancel()


@contextmanager
def swallowed_cancellation_raised() -> Iterator[None]:
    """Raise CancelledError at the end of the block if a cancellation came in it and was swallowed.

    A task that was to stop would go on forever, and a deadline, which cancels once, would never
    end.
    """
    cancellation = Cancellation()
    try:
        yield
    except Exception as error:  # also the errors that would be retried
        if cancellation.has_come:
            raise asyncio.CancelledError from error
        raise
    if cancellation.has_come:
        raise asyncio.CancelledError


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Run an `asyncio.TaskGroup` that neither loses a cancellation nor leaves one of its own.

    Where its task is cancelled and a task of it fails before all have ended, a TaskGroup raises the
    failure alone. Whoever handles that and goes on would never end. Where a task of it fails after
    its block, it cancels its own task and takes that back only since Python 3.13: whoever handled
    the failure would be taken for cancelled, and end.
    """
    with swallowed_cancellation_raised():
        async with _WaitingGroup() as group:
            yield group
            await group.all_ended()  # in the block: what it cancels there, it takes back


class _WaitingGroup(asyncio.TaskGroup):
    """A TaskGroup whose tasks can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._unfinished: set[asyncio.Task[Any]] = set()

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task = super().create_task(coro, name=name, context=context)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    async def all_ended(self) -> None:
        """Return once no task runs any more."""
        while self._unfinished:
            one = next(iter(self._unfinished))  # all at once would keep those that have ended
            await asyncio.wait({one})
