"""Sends the commands of many callers in few round trips.

A replica that takes over ten thousand flags begins ten thousand workers at once. Each reads what is
stored of its flag, and soon each flag has its report written. A call for each costs ten times what
its answer does.

Belongs here: which commands go together, and who gets which answers. Does not belong here: what
they say (`rollouts.py`, `reports.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Final, NamedTuple

from controller.adapters.redis.connection import RedisConnection, chunks
from controller.errors import BrokenInvariant, StoreUnavailable
from controller.text import plural

#: Callers of one round trip. A flag's hash has some kilobytes, with a thousand answers half a
#: megabyte.
CALLERS_PER_TRIP: Final = 20
#: Callers that get their answers before the loop's others have their turn: each goes on with them.
SETTLED_PER_TURN: Final = 4

Command = tuple[str | bytes | int, ...]
"""A command of Redis and its arguments."""

_Outcome = Sequence[Any] | Exception


class _Caller(NamedTuple):
    """Somebody who waits for answers."""

    purpose: str
    commands: Sequence[Command]
    answers: asyncio.Future[Sequence[Any]]


class GatheredCalls:
    """Makes calls that bear repeating; those that come in one turn of the event loop together."""

    def __init__(self, connection: RedisConnection, *, times_deadline: float = 1.0) -> None:
        """Each round trip takes `times_deadline` times the connection's deadline at most."""
        self._connection = connection
        self._times_deadline = times_deadline
        self._waiting: list[_Caller] = []
        self._trips: set[asyncio.Task[None]] = set()
        self._settling = asyncio.Lock()

    async def call(self, purpose: str, *commands: Command) -> Sequence[Any]:
        """Return the answers to commands, which are sent after this was called.

        Raises StoreUnavailable, and BrokenInvariant for a key that holds something else than the
        commands are for.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._begin)  # after all who call in the present turn of the loop
        caller = _Caller(purpose, commands, loop.create_future())
        self._waiting.append(caller)
        return await caller.answers

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        for some in chunks(waiting, CALLERS_PER_TRIP):
            trip = asyncio.create_task(self._send(some), name="gathered-calls")
            self._trips.add(trip)
            trip.add_done_callback(self._trips.discard)

    async def _send(self, callers: Sequence[_Caller]) -> None:
        """Send the commands of some callers, and give each its answers."""

        def queue(pipeline: Any) -> None:
            for caller in callers:
                for command in caller.commands:
                    pipeline.execute_command(*command)

        purpose = callers[0].purpose
        if len(callers) > 1:
            purpose += f" and {plural(len(callers) - 1, 'more call')}"
        try:
            outcomes = await self._outcomes(purpose, queue, callers)
            # One trip after the other, so that turns stay short: also where Redis is away, and ten
            # thousand callers learn it in the same moment.
            async with self._settling:
                for number, (caller, outcome) in enumerate(
                    zip(callers, outcomes, strict=True), start=1
                ):
                    _settle(caller, outcome)
                    if number % SETTLED_PER_TURN == 0:
                        await asyncio.sleep(0)
        finally:
            # This was cancelled, or everybody is answered. A caller is not cancelled with it: a
            # worker would end without a word.
            for caller in callers:
                _settle(caller, StoreUnavailable(f"{caller.purpose}: the call was given up"))

    async def _outcomes(
        self, purpose: str, queue: Callable[[Any], object], callers: Sequence[_Caller]
    ) -> Sequence[_Outcome]:
        """Return what comes of each call: answers, or what it raises."""
        try:
            rows = await self._connection.answers_to(
                purpose, queue, times_deadline=self._times_deadline
            )
        except Exception as trouble:  # of all of them, and each has to know
            return [trouble] * len(callers)
        outcomes: list[_Outcome] = []
        for caller in callers:
            own, rows = rows[: len(caller.commands)], rows[len(caller.commands) :]
            wrong = next((row for row in own if isinstance(row, Exception)), None)
            is_good = wrong is None
            outcomes.append(own if is_good else BrokenInvariant(f"{caller.purpose}: {wrong}"))
        return outcomes


def _settle(caller: _Caller, outcome: _Outcome) -> None:
    """Give a caller what came of its call, unless it has something or waits no more."""
    if caller.answers.done():
        return
    if isinstance(outcome, Exception):
        caller.answers.set_exception(copy(outcome))  # each raises its own
    else:
        caller.answers.set_result(outcome)
