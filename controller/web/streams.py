"""Streams of server-sent events that stay open: how many there may be, and how each one ends.

Belongs here: limits, clients that leave or fall behind, and the end of the process. Does not belong
here: what is sent (`event_stream.py`, `page/live.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from controller.web.answers import send_bytes, send_error

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events until its buffer is full
]


@dataclass(frozen=True, slots=True)
class Count:
    """What is told of streams: how many are open, that one was refused, that one was too slow."""

    opened: Callable[[int], object] = lambda _: None
    refused: Callable[[], object] = lambda: None
    dropped: Callable[[], object] = lambda: None


@dataclass(slots=True, eq=False)
class OpenStream:
    """One stream, for those who write it. `wake` is set when there is something to do.

    That is at least when it is over: its client has left, or we stop.
    """

    send: Send
    slow_seconds: float
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False
    has_left: bool = False

    def end(self) -> None:
        """Let the stream end."""
        self.is_over = True
        self.wake.set()

    async def wait(self, seconds: float) -> None:
        """Return when it was woken, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wake.wait()

    async def begin(self) -> None:
        """Send the head of the answer."""
        await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})

    async def write(self, body: bytes) -> None:
        """Send events. Raises TimeoutError when the client does not take them."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def finish(self) -> None:
        """End the answer in order, unless the client has left."""
        if not self.has_left:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, message: dict[str, Any]) -> None:
        async with asyncio.timeout(self.slow_seconds):
            await self.send(message)


class Streams:
    """All open streams of one kind."""

    def __init__(self, most: int, slow_seconds: float, count: Count | None = None) -> None:
        """`most` streams at once; a client that takes nothing for `slow_seconds` is dropped."""
        self._most = most
        self._slow_seconds = slow_seconds
        self._count = count or Count()
        self._open: set[OpenStream] = set()
        self._is_ending = False

    def end(self) -> None:
        """End every stream in order and refuse new ones, because the process stops."""
        self._is_ending = True
        for stream in self._open:
            stream.end()

    async def serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        write: Callable[[OpenStream], Awaitable[None]],
    ) -> None:
        """Answer one stream with `write` until it returns, its client falls behind, or we stop."""
        if len(self._open) >= self._most or self._is_ending:
            self._count.refused()
            why = (
                "stopping"
                if self._is_ending
                else "as many streams are open as are allowed: poll, or try again"
            )
            await send_error(send, 503, why, (b"retry-after", b"30"))
            return
        if scope["method"] == "HEAD":
            await send_bytes(send, 200, b"", HEADERS)
            return
        stream = OpenStream(send, self._slow_seconds)
        self._open.add(stream)
        self._count.opened(len(self._open))
        leaving = asyncio.create_task(_note_leaving(receive, stream), name="event_stream_left")
        try:
            await stream.begin()
            await write(stream)
            await stream.finish()
        except TimeoutError:
            self._count.dropped()
            abort: Callable[[], None] | None = (
                scope.get("extensions", {}).get("rolloutd.abort", {}).get("call")
            )
            if abort is not None:
                abort()  # closing in order would wait for what the client does not take
                # Otherwise uvicorn would log an answer without an end.
                await asyncio.sleep(0)
        finally:
            self._open.discard(stream)
            self._count.opened(len(self._open))
            leaving.cancel()
            with suppress(asyncio.CancelledError):
                await leaving


async def _note_leaving(receive: Receive, stream: OpenStream) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    stream.has_left = True
    stream.end()
