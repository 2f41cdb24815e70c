"""GET /ofrep/v1/sse: an event for OFREP clients when a flag changes, so that they need not poll.

An event names no flag and no percentage: the client evaluates again. So nothing is queued: a client
that missed three changes gets one event, for the last. Every stream begins with an event, because
something may have changed between a client's evaluation and its stream.

Source: open-feature/protocol, ADR 0008 and service/openapi.yaml 0.3.0; HTML standard, server-sent
events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from controller.telemetry import Metrics
from controller.web.answers import send_bytes, send_error
from controller.web.flags import FlagBoard

PATH = "/ofrep/v1/sse"

#: What a bulk evaluation says of the stream. Without an origin, clients use that of their request.
ADVERTISED = msgspec.json.encode(
    [{"type": "sse", "endpoint": {"requestUri": PATH}, "inactivityDelaySec": 120}]
)

#: Time after which a client that lost its stream comes back, at first.
_RECONNECT_MS = 1_000
_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events until its buffer is full
]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Times in seconds."""

    streams: int = 200
    heartbeat: float = 15.0  # a comment, so that proxies do not close a silent stream
    # between two events of one stream: many flags that change at once are one evaluation
    pause: float = 0.1
    slow: float = 5.0  # a client that has not taken what was sent by then is dropped


DEFAULT_LIMITS = StreamLimits()


class EventStreams:
    """All open streams, as a plain ASGI application."""

    def __init__(self, board: FlagBoard, metrics: Metrics, limits: StreamLimits) -> None:
        self._board = board
        self._limits = limits
        self._open_gauge = metrics.event_streams
        self._refused = metrics.event_streams_ended.of("refused")
        self._dropped = metrics.event_streams_ended.of("slow")
        self._open = 0
        self._ending = asyncio.Event()

    def end(self) -> None:
        """End every stream in order and refuse new ones, because the process stops.

        Clients come back at another replica.
        """
        self._ending.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one stream until its client leaves, falls behind, or we stop."""
        if self._open >= self._limits.streams or self._ending.is_set():
            self._refused.inc()
            why = (
                "stopping"
                if self._ending.is_set()
                else "as many streams are open as are allowed: poll, or try again"
            )
            await send_error(send, 503, why, (b"retry-after", b"30"))
            return
        if scope["method"] == "HEAD":
            await send_bytes(send, 200, b"", _HEADERS)
            return
        self._open += 1
        self._open_gauge.set(self._open)
        leaving = asyncio.create_task(_left(receive), name="event_stream_left")
        ending = asyncio.create_task(self._ending.wait(), name="event_stream_ending")
        try:
            with self._board.changes() as changed:
                await self._stream(send, changed, leaving, ending)
        except TimeoutError:
            self._dropped.inc()
            abort: Callable[[], None] | None = (
                scope.get("extensions", {}).get("rolloutd.abort", {}).get("call")
            )
            if abort is not None:
                abort()  # closing in order would wait for what the client does not take
                # Otherwise uvicorn would log an answer without an end.
                await asyncio.sleep(0)
        finally:
            self._open -= 1
            self._open_gauge.set(self._open)
            for task in (leaving, ending):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _stream(
        self, send: Send, changed: asyncio.Event, *leaving: asyncio.Task[Any]
    ) -> None:
        """Send events and heartbeats. Raises TimeoutError when the client does not take them."""
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send(send, _part(b"retry: %d\n\n" % _RECONNECT_MS))
        changed.set()
        while True:
            waiting = asyncio.create_task(changed.wait(), name="event_stream_change")
            await asyncio.wait(
                (waiting, *leaving),
                timeout=self._limits.heartbeat,
                return_when=asyncio.FIRST_COMPLETED,
            )
            waiting.cancel()
            if any(task.done() for task in leaving):
                break
            if changed.is_set() and self._board.why_not is None:
                changed.clear()
                await self._send(send, _part(self._event()))
                await asyncio.wait(
                    leaving, timeout=self._limits.pause, return_when=asyncio.FIRST_COMPLETED
                )
            else:
                # No event while the flags are not trusted; when they are again, that is a change.
                changed.clear()
                await self._send(send, _part(b": alive\n\n"))
        if not leaving[0].done():
            await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        async with asyncio.timeout(self._limits.slow):
            await send(message)

    def _event(self) -> bytes:
        _, tag = self._board.flagd_document()
        data = {
            "type": "refetchEvaluation",
            "etag": tag,
            "lastModified": int(self._board.changed_at.timestamp()),
        }
        return b"event: message\ndata: %b\n\n" % msgspec.json.encode(data)


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _left(receive: Receive) -> None:
    """Return once the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        continue
