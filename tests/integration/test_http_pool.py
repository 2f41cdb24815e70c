"""Calls over HTTP that are cancelled at any moment, and what that leaves of the connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest

from controller.adapters.http.bounded import read_answer
from controller.adapters.http.pool import CancellablePool, make_client
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


def flooding(piece: bytes) -> tuple[str, Callable[[], None]]:
    """Return the address of a server that sends a piece for ever, and what ends it.

    In a thread of its own: one in our loop would be held up together with it, and send little.
    """
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.recv(65_536)
                    while True:
                        connection.sendall(piece)

    threading.Thread(target=serve, daemon=True).start()

    def end() -> None:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()

    return f"http://127.0.0.1:{listening.getsockname()[1]}/", end


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, "an interim response"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 10_000, "an interim response"),
        (b"HTTP/1.1 200 OK\r\na: b\r\n" + b" c\r\n" * 30_000, "16384 bytes of headers"),
    ],
    ids=["continue", "hints", "folded"],
)
async def test_no_server_holds_the_loop_up_before_it_answers(piece: bytes, why: str) -> None:
    """Interim responses had the loop for seconds at a time, and for as long as they came."""
    url, end = flooding(piece)
    client = make_client(ssl.create_default_context(), httpx.Limits(max_connections=1))
    try:
        with pytest.raises(httpx.RemoteProtocolError, match=why):
            async with asyncio.timeout(CALL_SECONDS * SLACK):
                await call(client, url)
    finally:
        end()
        await client.aclose()


async def test_hints_before_an_answer_and_bare_line_feeds_are_taken() -> None:
    """Of each answer on a connection that is kept."""

    async def hinting(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 3)
        await exchange.send(b"HTTP/1.1 200 OK\nContent-Length: 20000\n\n" + b"o" * 20_000)

    client = make_client(ssl.create_default_context(), httpx.Limits(max_connections=1))
    async with fault_server(hinting) as server, client:
        for _ in range(20):
            response = await client.send(client.build_request("GET", server.url), stream=True)
            assert await read_answer(response, 20_000) == b"o" * 20_000
