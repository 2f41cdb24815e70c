"""Calls over HTTP that are cancelled at any moment, and what that leaves of the connections."""

from __future__ import annotations

import asyncio
import ssl
import time

import httpx
import pytest

from controller.adapters.http.bounded import read_answer
from controller.adapters.http.pool import CancellablePool
from tests.fault_server import Exchange, fault_server
from tests.patience import SLACK

#: Turns of the loop after which a call is cancelled. One takes about 20.
TURNS = 30
CALL_SECONDS = 5.0


async def slow(exchange: Exchange) -> None:
    """Answer in two pieces, as a busy server does, and close."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    await exchange.send(head)
    await asyncio.sleep(0)
    await exchange.send(b"ok")


async def call(client: httpx.AsyncClient, url: str) -> bytes:
    """Return what the server answers, as a plane or a channel asks."""
    response = await client.send(client.build_request("GET", url), stream=True)
    return await read_answer(response, 1_000)


@pytest.mark.parametrize("places", [1, 4])
async def test_a_call_that_is_cancelled_takes_no_place_from_later_ones(places: int) -> None:
    """At whatever await it is, and also where its answer has arrived in the same moment."""
    pool = CancellablePool(
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), httpx.Limits(max_connections=places)
    )
    async with (
        fault_server(slow) as server,
        httpx.AsyncClient(timeout=None, trust_env=False, transport=pool) as client,  # noqa: S113
    ):
        for turns in [*range(TURNS)] * 4:
            calls = [asyncio.create_task(call(client, server.url)) for _ in range(places)]
            for _ in range(turns):
                await asyncio.sleep(0)
            time.sleep(0.001)  # noqa: ASYNC251 - a loop that is late sees both at once
            for one in calls:
                one.cancel()
            await asyncio.wait(calls)
            async with asyncio.timeout(CALL_SECONDS * SLACK):
                assert await call(client, server.url) == b"ok"


async def test_other_calls_go_on_when_one_is_cancelled() -> None:
    """Their pool is closed after the last of them."""
    goes_on = asyncio.Event()

    async def waiting(exchange: Exchange) -> None:
        await goes_on.wait()
        await slow(exchange)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pool = CancellablePool(context, httpx.Limits(max_connections=2))
    async with (
        fault_server(waiting) as server,
        httpx.AsyncClient(timeout=None, trust_env=False, transport=pool) as client,  # noqa: S113
    ):
        first, second = (asyncio.create_task(call(client, server.url)) for _ in range(2))
        while server.open_exchanges < 2:
            await asyncio.sleep(0.001)
        first.cancel()
        await asyncio.wait([first])
        goes_on.set()
        async with asyncio.timeout(CALL_SECONDS * SLACK):
            assert await second == b"ok"
            assert await call(client, server.url) == b"ok"
