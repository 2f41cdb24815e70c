"""GET /ofrep/v1/sse: an event for OFREP clients when a flag changes, so that they need not poll.

An event names no flag and no percentage: the client evaluates again. So nothing is queued: a client
that missed three changes gets one event, for the last. Every stream begins with an event, because
something may have changed between a client's evaluation and its stream.

Source: open-feature/protocol, ADR 0008 and service/openapi.yaml 0.3.0; HTML standard, server-sent
events.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
from starlette.types import Receive, Scope, Send

from controller.telemetry import Metrics
from controller.web.flags import FlagBoard
from controller.web.streams import Count, OpenStream, Streams

PATH = "/ofrep/v1/sse"

#: What a bulk evaluation says of the stream. Without an origin, clients use that of their request.
ADVERTISED = msgspec.json.encode(
    [{"type": "sse", "endpoint": {"requestUri": PATH}, "inactivityDelaySec": 120}]
)

#: Time after which a client that lost its stream comes back, at first.
_RECONNECT_MS = 1_000


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
    """GET /ofrep/v1/sse: tells OFREP clients when flags change. Holds all open streams."""

    def __init__(self, board: FlagBoard, metrics: Metrics, limits: StreamLimits) -> None:
        self._board = board
        self._limits = limits
        count = Count(
            metrics.event_streams.set,
            metrics.event_streams_ended.of("refused").inc,
            metrics.event_streams_ended.of("slow").inc,
        )
        self._streams = Streams(limits.streams, limits.slow, count)

    def end(self) -> None:
        """End every stream in order and refuse new ones, because the process stops.

        Clients come back at another replica.
        """
        self._streams.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one stream until its client leaves, falls behind, or we stop."""
        await self._streams.serve(scope, receive, send, self._tell)

    async def _tell(self, stream: OpenStream) -> None:
        """Send events and heartbeats. Raises TimeoutError when the client does not take them."""
        await stream.write(b"retry: %d\n\n" % _RECONNECT_MS)
        with self._board.changes(stream.wake) as changed:
            changed.set()
            while True:
                await stream.wait(self._limits.heartbeat)
                if stream.is_over:
                    return
                is_news = changed.is_set() and self._board.why_not is None
                # No event while the flags are not trusted; when they are again, that is a change.
                changed.clear()
                if not is_news:
                    await stream.write(b": alive\n\n")
                    continue
                await stream.write(self._event())
                await asyncio.sleep(self._limits.pause)

    def _event(self) -> bytes:
        _, tag = self._board.flagd_document()
        data = {
            "type": "refetchEvaluation",
            "etag": tag,
            "lastModified": int(self._board.changed_at.timestamp()),
        }
        return b"event: message\ndata: %b\n\n" % msgspec.json.encode(data)
