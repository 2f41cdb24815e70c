"""Bounds the memory of bodies that are on their way, so that slow senders keep nobody out."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from controller.web.answers import BodyRefused, read_body


class BodyRoom:
    """Room for bodies that have begun and are not complete.

    Where there is none left, the body that began first gives way: it is the slowest. Waiting costs
    no room, only what has come does, so that any number of slow senders leaves room for a fast one.
    """

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: of all bodies together; at least the longest single one."""
        self._most_bytes = most_bytes
        self._held: dict[asyncio.Timeout, int] = {}  # bytes of each, the oldest first

    @property
    def held_bytes(self) -> int:
        """How many bytes of bodies are held at the moment."""
        return sum(self._held.values())

    async def read(self, receive: Receive, max_bytes: int) -> bytes:
        """Return the whole body. Raises BodyRefused as `read_body`, and with 503 for want of room.

        A sender repeats a delivery that was answered 503.
        """
        place = asyncio.timeout(None)
        self._held[place] = 0
        try:
            async with place:
                return await read_body(
                    receive, max_bytes, grown=lambda count: self._grow(place, count)
                )
        except TimeoutError:
            raise BodyRefused(503, "too many slow deliveries at once: send it again") from None
        finally:
            self._held.pop(place, None)

    def _grow(self, place: asyncio.Timeout, count: int) -> None:
        if place not in self._held:
            return  # it gives way already
        self._held[place] += count
        now = asyncio.get_running_loop().time()
        while self.held_bytes > self._most_bytes:
            oldest = next(iter(self._held))
            del self._held[oldest]
            oldest.reschedule(now)
