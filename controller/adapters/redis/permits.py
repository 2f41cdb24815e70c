"""Lets as many calls to Redis be under way as there are connections; the others wait in order.

Belongs here: whose call is next, and for how long one waits. Does not belong here: the deadline of
a call that is under way (`connection.py`).

Ten thousand flags that begin at once ask Redis ten thousand times. Were the wait for a connection
part of a call's deadline, most of them would fail while Redis is well, ask again together, and fail
again: the daemon would report an outage that is none. So a call waits for as long as Redis answers
others, and its deadline begins when it is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Permits:
    """A fixed number of calls that may be under way; the longest waiting is next."""

    def __init__(self, number: int) -> None:
        self._free = asyncio.Semaphore(number)
        #: When Redis last answered a call, in seconds of the loop's clock; None: never.
        self.heard_at: float | None = None

    def hear(self) -> None:
        """Note that Redis has answered: it is worth waiting for."""
        self.heard_at = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def one(self, seconds: float) -> AsyncIterator[float]:
        """Hold a permit for the body; yield its deadline, in seconds of the loop's clock.

        That is `seconds` after the call came or after Redis answered any other, whichever is later
        when its turn comes. Raises TimeoutError when it passes before.
        """
        began = asyncio.get_running_loop().time()
        if self._free.locked():
            await self._wait(began, seconds)
        else:
            await self._free.acquire()  # returns at once
        try:
            yield self._deadline(began, seconds)
        finally:
            self._free.release()

    def _deadline(self, began: float, seconds: float) -> float:
        return seconds + (began if self.heard_at is None else max(began, self.heard_at))

    async def _wait(self, began: float, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        acquiring = loop.create_task(self._free.acquire())
        is_ours = False
        try:
            while not acquiring.done():
                left = self._deadline(began, seconds) - loop.time()
                if left <= 0:
                    raise TimeoutError
                await asyncio.wait([acquiring], timeout=left)
            is_ours = True
        finally:
            if not is_ours:
                self._give_up(acquiring)

    def _give_up(self, acquiring: asyncio.Task[bool]) -> None:
        """Leave the row, also where the permit came in the same moment."""

        def release(done: asyncio.Task[bool]) -> None:
            if not done.cancelled():
                self._free.release()

        acquiring.add_done_callback(release)
        acquiring.cancel()
