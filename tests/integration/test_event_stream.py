"""The stream of changes on real sockets.

How soon a change is heard, who is dropped, and that stopping waits for nobody.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.types import Receive, Scope, Send

from controller.health import Health
from controller.telemetry import Metrics
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from controller.web.server import HttpServer
from tests.builders import make_rollout
from tests.reports import no_reports


class Served:
    """A trusted board with one flag behind the real server."""

    def __init__(self) -> None:
        self.board = FlagBoard(generation=Generation.V3)
        self.board.update(make_rollout())
        self.board.trust()
        app = make_app(
            self.board,
            Health(()),
            Metrics(version="1"),
            describe=lambda rollout: b"{}",
            reports=no_reports(),
        )
        self.streams = app.state.event_streams
        self.server = HttpServer(app, port=0)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask for the stream."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(b"GET /ofrep/v1/sse HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        return reader, writer


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    """Run the server."""
    served = Served()
    await served.server.start()
    try:
        yield served
    finally:
        served.streams.end()
        await served.server.stop(1.0)


async def event(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return the next event's data."""
    async with asyncio.timeout(60):
        while not (line := await reader.readline()).startswith(b"data: "):
            assert line, "the stream ended"
    data: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    return data


async def test_a_change_is_heard_at_once_by_everybody() -> None:
    """Fifty clients hear of a change, each long before it would have polled.

    With the tag of what is served now.
    """
    async with serving() as served:
        connections = [await served.connect() for _ in range(50)]
        for reader, _ in connections:
            await event(reader)
        await asyncio.sleep(0.15)  # the pause after the first event
        served.board.update(make_rollout(revision=2, percent=0.0))
        started = time.monotonic()
        heard = await asyncio.gather(*(event(reader) for reader, _ in connections))
        assert {one["etag"] for one in heard} == {served.board.flagd_document()[1]}
        assert time.monotonic() - started < 20  # it measures 0.01 s; a poll comes after 60 s
        for _, writer in connections:
            writer.close()


async def test_stopping_waits_for_no_stream() -> None:
    """With twenty streams open the server is down long before its deadline.

    And each client sees its stream end as a whole.
    """
    async with serving() as served:
        connections = [await served.connect() for _ in range(20)]
        for reader, _ in connections:
            await event(reader)
        started = time.monotonic()
        served.streams.end()
        await served.server.stop(60.0)
        assert time.monotonic() - started < 30  # it measures 0.1 s
        for reader, writer in connections:
            async with asyncio.timeout(60):
                assert (await reader.read()).endswith(b"0\r\n\r\n")
            writer.close()


async def test_a_client_that_does_not_read_can_be_cut_off() -> None:
    """The server lets an application drop a connection whose client reads nothing."""
    has_given_up = asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            async with asyncio.timeout(0.2):
                while True:
                    await send(
                        {"type": "http.response.body", "body": b"x" * 65_536, "more_body": True}
                    )
        except TimeoutError:
            scope["extensions"]["rolloutd.abort"]["call"]()
            has_given_up.set()

    server = HttpServer(flood, port=0)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        async with asyncio.timeout(60):
            await has_given_up.wait()
            with suppress(ConnectionError):
                while await reader.read(1 << 20):
                    continue  # what the kernel had; then the connection is gone
        writer.close()
    finally:
        await server.stop(1.0)
