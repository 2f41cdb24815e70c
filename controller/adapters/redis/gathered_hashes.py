"""Reads whole hashes: those that are asked for together in few round trips.

A replica that takes over ten thousand flags begins ten thousand workers at once, and each reads
what is stored of its flag. A call for each costs ten times what its answer does.

Belongs here: which reads go together, and who gets what. Does not belong here: what a hash says
(`rollouts.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Final, NamedTuple

from controller.adapters.redis.connection import RedisConnection, chunks
from controller.errors import BrokenInvariant
from controller.text import plural

#: Hashes of one round trip. A flag's has some kilobytes, with a thousand answers half a megabyte.
HASHES_PER_CALL: Final = 20
#: Answers given out before the loop's others have their turn: whoever gets one goes on with it.
GIVEN_PER_TURN: Final = 4


class _Wanted(NamedTuple):
    """A hash that somebody waits for."""

    key: str
    name: str  # what it is of, for messages
    answer: asyncio.Future[Mapping[bytes, bytes]]


class GatheredHashes:
    """Reads hashes; an own read for each caller, made after the call."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._waiting: list[_Wanted] = []
        self._reading: set[asyncio.Task[None]] = set()
        self._giving = asyncio.Lock()

    async def read(self, key: str, name: str) -> Mapping[bytes, bytes]:
        """Return a hash, empty where there is none; `name` says of what, for messages.

        Raises StoreUnavailable, and BrokenInvariant for a key that holds something else.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._begin)  # after all who ask in the present turn of the loop
        wanted = _Wanted(key, name, loop.create_future())
        self._waiting.append(wanted)
        return await wanted.answer

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        for some in chunks(waiting, HASHES_PER_CALL):
            task = asyncio.create_task(self._read_some(some), name="gathered-hashes")
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read_some(self, some: Sequence[_Wanted]) -> None:
        """Read some hashes, and give each to whoever waits for it."""

        def queue(pipeline: Any) -> None:
            for wanted in some:
                pipeline.hgetall(wanted.key)

        purpose = f"load {some[0].name}"
        if len(some) > 1:
            purpose += f" and {plural(len(some) - 1, 'more flag')}"
        try:
            rows = await self._connection.read_rows(purpose, queue)
            async with self._giving:  # one after the other, so that turns stay short
                for number, (wanted, row) in enumerate(zip(some, rows, strict=True), start=1):
                    _give(wanted, row)
                    if number % GIVEN_PER_TURN == 0:
                        await asyncio.sleep(0)
        except Exception as trouble:  # of all of them, and each has to know
            for wanted in some:
                if not wanted.answer.done():
                    wanted.answer.set_exception(copy(trouble))
        finally:
            for wanted in some:
                wanted.answer.cancel()  # only where this was ended before


def _give(wanted: _Wanted, row: Mapping[bytes, bytes] | Exception) -> None:
    """Give one answer to whoever waits for it, unless nobody does any more."""
    if wanted.answer.done():
        return
    if isinstance(row, Exception):
        wanted.answer.set_exception(BrokenInvariant(f"load {wanted.name}: {row}"))
    else:
        wanted.answer.set_result(row)
