"""The stream of changes, one ASGI message at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from controller.telemetry import Metrics
from controller.web.event_stream import PATH, EventStreams, StreamLimits
from tests.builders import make_rollout
from tests.unit.web.conftest import Surface

QUICK = StreamLimits(streams=2, heartbeat=0.05, pause=0.0, slow=0.05)
SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": PATH, "headers": []}


class Client:
    """One stream: what was sent to it, and how it leaves."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.is_reading = True
        self.aborted = False
        self._gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if not self.is_reading:
            await asyncio.get_running_loop().create_future()
        self.sent.put_nowait(message)

    def leave(self) -> None:
        """Close the connection."""
        self._gone.set()

    def abort(self) -> None:
        """Lose the connection."""
        self.aborted = True

    async def next(self) -> bytes:
        """Return what comes next."""
        async with asyncio.timeout(60):
            message = await self.sent.get()
        body: bytes = message.get("body", b"")
        return body

    async def event(self) -> dict[str, Any]:
        """Return the next event's data, heartbeats left out."""
        while not (body := await self.next()).startswith(b"event: message\n"):
            assert body in (b"", b": alive\n\n", b"retry: 1000\n\n")
        data: dict[str, Any] = json.loads(body.partition(b"data: ")[2])
        assert body.endswith(b"\n\n")
        return data


@asynccontextmanager
async def opened(streams: EventStreams, client: Client) -> AsyncIterator[asyncio.Task[None]]:
    """Run one stream."""
    scope = {**SCOPE, "extensions": {"rolloutd.abort": {"call": client.abort}}}
    task = asyncio.ensure_future(streams(scope, client.receive, client.send))
    try:
        yield task
    finally:
        client.leave()
        await asyncio.wait([task], timeout=5)
        assert task.done()


@pytest.fixture
def streams(surface: Surface) -> EventStreams:
    """Streams of the surface's board, impatient ones."""
    return EventStreams(surface.board, surface.metrics, QUICK)


def gauge(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return a metric's value."""
    return metrics.registry.get_sample_value(f"rolloutd_{name}", labels)


async def test_a_client_is_told_at_once_and_of_each_change(
    surface: Surface, streams: EventStreams
) -> None:
    """The first event comes with the stream, another with a change.

    Many changes meanwhile are one event.
    """
    client = Client()
    async with opened(streams, client):
        first = await client.event()
        assert first == {
            "type": "refetchEvaluation",
            "etag": surface.board.flagd_document()[1],
            "lastModified": 1767603600,
        }
        for revision in range(2, 12):
            surface.board.update(make_rollout(revision=revision, percent=float(revision)))
        second = await client.event()
        assert second["etag"] == surface.board.flagd_document()[1] != first["etag"]
        assert await client.next() == b": alive\n\n"
        assert gauge(surface.metrics, "event_streams") == 1
    assert gauge(surface.metrics, "event_streams") == 0


async def test_a_document_that_changes_nothing_tells_nobody(
    surface: Surface, streams: EventStreams
) -> None:
    """An older revision and a repeated one are no news."""
    client = Client()
    async with opened(streams, client):
        await client.event()
        surface.board.update(make_rollout(revision=1))
        surface.board.update(make_rollout(revision=0, percent=50.0))
        assert await client.next() == b": alive\n\n"


async def test_nobody_is_told_of_what_cannot_be_trusted(
    surface: Surface, streams: EventStreams
) -> None:
    """While the board doubts itself an event would only cause evaluations that are refused.

    The end of the doubt is news.
    """
    client = Client()
    async with opened(streams, client):
        await client.event()
        surface.board.doubt("reading again")
        surface.board.update(make_rollout(revision=2, percent=50.0))
        assert await client.next() == b": alive\n\n"
        surface.board.trust()
        assert (await client.event())["etag"] == surface.board.flagd_document()[1]


async def test_a_client_that_does_not_read_is_dropped(
    surface: Surface, streams: EventStreams
) -> None:
    """What it does not take within the time is not waited for, and the connection is cut."""
    client = Client()
    async with opened(streams, client) as stream:
        await client.event()
        client.is_reading = False
        surface.board.update(make_rollout(revision=2, percent=50.0))
        await asyncio.wait([stream], timeout=5)
        assert stream.done()
        assert client.aborted
    assert gauge(surface.metrics, "event_streams_ended_total", why="slow") == 1


async def test_more_streams_than_allowed_are_refused(
    surface: Surface, streams: EventStreams
) -> None:
    """The third client of two gets 503 and may poll; when one leaves there is room again."""
    one, other, third = Client(), Client(), Client()
    async with opened(streams, one):
        async with opened(streams, other):
            await one.event()
            await other.event()
            async with opened(streams, third):
                assert (await third.sent.get())["status"] == 503
        fourth = Client()
        async with opened(streams, fourth):
            await fourth.event()
    assert gauge(surface.metrics, "event_streams_ended_total", why="refused") == 1


async def test_stopping_ends_every_stream_in_order(streams: EventStreams) -> None:
    """Streams end as whole answers, so that clients come back at once, to another replica.

    New ones are refused.
    """
    client, late = Client(), Client()
    async with opened(streams, client) as stream:
        await client.event()
        streams.end()
        await asyncio.wait([stream], timeout=5)
        assert stream.done()
        last = None
        while not client.sent.empty():
            last = client.sent.get_nowait()
        assert last is not None
        assert last["more_body"] is False
    async with opened(streams, late):
        assert (await late.sent.get())["status"] == 503


async def test_bulk_evaluations_say_where_the_stream_is(client: httpx.AsyncClient) -> None:
    """Clients find the stream beside the flags; asked for its head only, it answers and ends."""
    answer = await client.post(
        "/ofrep/v1/evaluate/flags", json={"context": {"targetingKey": "user-1"}}
    )
    assert answer.json()["eventStreams"] == [
        {"type": "sse", "endpoint": {"requestUri": "/ofrep/v1/sse"}, "inactivityDelaySec": 120}
    ]
    head = await client.head("/ofrep/v1/sse")
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream")


async def test_an_evaluation_caused_by_another_replicas_event_waits_for_the_change(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """Told by one replica and asking another, a client gets the change once it is there.

    And an answer in a second anyway.
    """
    body = {"context": {"targetingKey": "user-1"}}
    told = int(make_rollout().updated_at.timestamp()) + 60
    asking = asyncio.ensure_future(
        client.post(f"/ofrep/v1/evaluate/flags?flagConfigLastModified={told}", json=body)
    )
    await asyncio.sleep(0.05)
    assert not asking.done()
    newer = make_rollout(revision=2, percent=100.0)
    surface.board.update(
        make_rollout(revision=2, percent=100.0, updated_at=newer.updated_at.replace(minute=1))
    )
    assert (await asking).json()["flags"][0]["value"] is True
    for odd in ("x", "-1", "9" * 40, ""):
        assert (
            await client.post(f"/ofrep/v1/evaluate/flags?flagConfigLastModified={odd}", json=body)
        ).status_code == 200
