"""The server on a real socket: it starts, refuses to be held on to, and stops in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from controller.errors import ConfigInvalid
from controller.web.answers import send_json
from controller.web.server import HttpServer


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `/` at once, `/hang` never, `/large` with more than a socket takes."""
    if scope["path"] == "/hang":
        await asyncio.get_running_loop().create_future()
    await send_json(send, 200, b"1" * (32 << 20) if scope["path"] == "/large" else b"1")


@contextlib.asynccontextmanager
async def running(
    max_connections: int = 100,
    head_seconds: float = 10.0,
    max_per_client: int = 0,
) -> AsyncIterator[HttpServer]:
    """A started server on a free port."""
    server = HttpServer(
        echo,
        port=0,
        max_connections=max_connections,
        head_seconds=head_seconds,
        max_per_client=max_per_client,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0.5)


async def connect(
    server: HttpServer, sent: bytes = b"", client: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection from a client's address and send these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(client, 0))
    writer.write(sent)
    return reader, writer


async def test_it_answers_at_once() -> None:
    """Started means connections are accepted.

    And small answers do not wait for the client's delayed ACK (40 ms).
    """
    async with (
        running() as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client,
    ):
        response = await client.get("/")
        seconds = []
        for _ in range(50):
            began = time.monotonic()
            await client.get("/")
            seconds.append(time.monotonic() - began)
    assert response.status_code == 200
    assert "server" not in response.headers
    # every answer would be late; on a busy machine some are
    assert sorted(seconds)[5] < 0.035


async def test_a_taken_port_is_the_operators_to_fix() -> None:
    """An address that cannot be had is a fault of the settings, with what to do.

    And never ends the process.
    """
    async with running() as server:
        with pytest.raises(ConfigInvalid) as raised:
            await HttpServer(echo, port=server.port).start()
        said = str(raised.value)
        assert f"127.0.0.1:{server.port} " in said
        assert "http.port in the settings file, or ROLLOUTD_HTTP__PORT" in said
    with pytest.raises(ConfigInvalid, match=r"http\.host"):
        await HttpServer(echo, host="192.0.2.1", port=0).start()
    with pytest.raises(ConfigInvalid):
        await HttpServer(echo, host="no such host", port=0).start()


async def test_it_starts_again_on_its_port() -> None:
    """A restart does not wait for the operating system to forget old connections."""
    async with running() as server:
        _, writer = await connect(server, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    again = HttpServer(echo, port=server.port)
    await again.start()
    await again.stop()
    writer.close()


async def test_it_leaves_signals_to_us() -> None:
    """Neither starting nor stopping touches the handlers, and a signal does not stop the server."""
    seen: list[int] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, seen.append, 1)
    try:
        async with running() as server, httpx.AsyncClient() as client:
            os.kill(os.getpid(), signal.SIGTERM)
            while not seen:
                await asyncio.sleep(0)
            assert (await client.get(f"http://127.0.0.1:{server.port}/")).status_code == 200
        os.kill(os.getpid(), signal.SIGTERM)
        while len(seen) < 2:
            await asyncio.sleep(0)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_it_stops_in_time_whatever_clients_do() -> None:
    """Hanging requests, half requests, idle connections and one that never reads.

    Stopped within the deadline, all closed.
    """
    server = HttpServer(echo, port=0)
    await server.start()
    request = b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n"
    sent = [
        b"",
        b"GE",
        request % b"/hang",
        request % b"/large",
        request % b"/",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
    ]
    clients = [await connect(server, data) for data in sent]
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await server.stop(2.0)
    assert time.monotonic() - started < 20
    with pytest.raises(ConnectionRefusedError):
        await connect(server)
    for reader, writer in clients:
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        writer.close()
    await server.stop()  # again, and nothing happens


async def test_connections_are_capped() -> None:
    """At the cap requests are answered 503, past it connections are closed.

    When others leave, all is well again.
    """
    async with running(max_connections=5) as server:
        idle = [await connect(server) for _ in range(4)]
        await asyncio.sleep(0.05)
        reader, writer = await connect(server, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
        writer.close()
        more = [await connect(server) for _ in range(3)]
        async with asyncio.timeout(60):  # one of them is past the cap
            await until_one_is_closed([reader for reader, _ in more])
        for _, writer in [*idle, *more]:
            writer.close()
        async with httpx.AsyncClient() as client, asyncio.timeout(60):
            while (await client.get(f"http://127.0.0.1:{server.port}/")).status_code != 200:
                await asyncio.sleep(0.02)


async def until_one_is_closed(readers: list[asyncio.StreamReader]) -> None:
    """Return once the server has closed one of the connections without an answer."""

    async def closed(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""

    waiting = [asyncio.create_task(closed(reader)) for reader in readers]
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HANGING = b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n"


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """Return the status line of the next answer, and read it to its end; empty when closed."""
    async with asyncio.timeout(60):
        status, length = await reader.readline(), 0
        while status and (line := await reader.readline()) not in (b"\r\n", b""):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        if status:
            await reader.readexactly(length)
    return status


async def test_idle_connections_give_way() -> None:
    """Clients that keep connections open and ping now and then do not lock out a newcomer."""
    async with running(max_connections=10) as server:
        held = [await connect(server, REQUEST) for _ in range(9)]
        for reader, _ in held:
            assert b" 200 " in await answer_of(reader)
        for _round in range(3):
            reader, writer = await connect(server, REQUEST)
            assert b" 200 " in await answer_of(reader)
            held.append((reader, writer))
        gone = [await answer_of(reader) for reader, _ in held[:3]]
        held[-1][1].write(REQUEST)
        assert b" 200 " in await answer_of(held[-1][0])
        for _, writer in held:
            writer.close()
    assert gone == [b"", b"", b""], "the oldest idle ones give way"


async def test_half_requests_give_way_to_whole_ones() -> None:
    """Connections that dribble a request are closed for a newcomer; those that work are not."""
    async with running(max_connections=10) as server:
        working = await connect(server, HANGING)
        slow = [await connect(server, b"GET / HTTP/1.1\r\nho") for _ in range(8)]
        await asyncio.sleep(1.1)
        for _round in range(4):
            reader, writer = await connect(server, REQUEST)
            assert b" 200 " in await answer_of(reader)
            writer.close()
        assert not working[0].at_eof()
        for _, writer in [working, *slow]:
            writer.close()


async def test_one_client_leaves_room_for_others() -> None:
    """A client with as many requests under way as one may have is refused, others are answered."""
    async with running(max_connections=100, max_per_client=3) as server:
        held = [await connect(server, HANGING) for _ in range(3)]
        await asyncio.sleep(0.05)
        reader, writer = await connect(server, REQUEST)
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 503")
        writer.close()
        reader, writer = await connect(server, REQUEST, client="127.0.0.2")
        assert b" 200 " in await answer_of(reader)
        writer.close()
        held[0][1].close()
        async with asyncio.timeout(60):  # a place that was left is free
            while True:
                reader, writer = await connect(server, REQUEST)
                if b" 200 " in await answer_of(reader):
                    break
                writer.close()
                await asyncio.sleep(0.02)
        again, more = await connect(server, REQUEST)
        assert b" 200 " in await answer_of(again), "its own idle connection gave way"
        for each in (writer, more, *(writer for _, writer in held)):
            each.close()


async def test_probes_have_a_port_of_their_own() -> None:
    """With every connection of the main port busy, a server beside it still answers."""
    async with running(max_connections=10) as main, running(max_connections=10) as ops:
        held = [await connect(main, HANGING) for _ in range(9)]
        await asyncio.sleep(0.05)
        reader, writer = await connect(main, REQUEST)
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 503")
        probe, asking = await connect(ops, REQUEST)
        assert b" 200 " in await answer_of(probe)
        for each in (writer, asking, *(writer for _, writer in held)):
            each.close()


async def test_requests_sent_ahead_are_few() -> None:
    """Thousands of requests in one packet are not taken apart in one turn of the loop."""
    async with running() as server:
        reader, writer = await connect(server, REQUEST * 7_000)
        answers = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                while part := await reader.read(65_536):
                    answers += part
        writer.close()
        assert answers.count(b"HTTP/1.1 200") == answers.count(b"HTTP/1.1") == 17
        assert answers.count(b"connection: close") == 1
        reader, writer = await connect(server, REQUEST * 10)
        for _ in range(10):
            assert b" 200 " in await answer_of(reader)
        writer.close()


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (REQUEST * 20, [b"200"] * 17),
        (REQUEST * 3 + b"nonsense\r\n\r\n", [b"200"] * 3),
        (b"nonsense\r\n\r\n", [b"400"]),
    ],
)
async def test_answers_come_in_the_order_of_the_requests(
    sent: bytes, statuses: list[bytes]
) -> None:
    """No refusal of what came later is taken for the answer to the first request."""
    async with running() as server:
        reader, writer = await connect(server, sent)
        answers = b""
        async with asyncio.timeout(60):
            while part := await reader.read(65_536):
                answers += part
        writer.close()
    assert [one[:3] for one in answers.split(b"HTTP/1.1 ")[1:]] == statuses


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost"]
)
async def test_a_request_must_come_in_time(sent: bytes) -> None:
    """A connection that asks nothing, or begins a request and dribbles, is given up.

    Also after an answered one.
    """
    async with running(head_seconds=0.2) as server:
        reader, writer = await connect(server, sent)
        async with asyncio.timeout(60):
            answer = b""
            while part := await reader.read(4_096):
                answer += part
                with contextlib.suppress(ConnectionError):
                    writer.write(b"x")
        writer.close()
    assert b"HTTP/1.1 408 " in answer


async def test_a_head_has_a_limit() -> None:
    """A request whose headers do not end is refused before it costs memory."""
    async with running() as server:
        reader, writer = await connect(server, b"GET / HTTP/1.1\r\nhost: x\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 4 << 20 and not reader.at_eof():
                writer.write(b"x-filler: " + b"y" * 8_192 + b"\r\n")
                sent += 8_204
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()
    assert sent < 4 << 20


CHUNKED = b"POST /%b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_what_follows_a_body_is_no_header() -> None:
    """A proxy removes from the head what only it may say, and perhaps not from trailers.

    `Authorization` after the body was taken for the request's own.
    """
    seen: list[list[bytes]] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            continue
        seen.append([name for name, _ in scope["headers"]])
        await send_json(send, 200, b"1")

    server = HttpServer(note, port=0)
    await server.start()
    try:
        for parts in (1, 2):
            trailer = b"0\r\nauthorization: Bearer x\r\nx-forwarded-groups: admins\r\n\r\n"
            reader, writer = await connect(server, CHUNKED % b"" + b"2\r\n{}\r\n")
            await asyncio.sleep(0.1 * (parts - 1))
            writer.write(trailer)
            assert b" 200 " in await reader.readline()
            writer.close()
    finally:
        await server.stop(0.5)
    assert seen == [[b"host", b"transfer-encoding"]] * 2


@pytest.mark.parametrize("path", [b"", b"hang"])
@pytest.mark.parametrize(
    "piece",
    [b"a: b\r\n" * 1_000, b"a" * 4_096],
    ids=["many trailers", "one trailer"],
)
async def test_trailers_have_a_limit(path: bytes, piece: bytes) -> None:
    """They were kept, so that one connection took 150 MB a second, also after its answer."""
    async with running() as server:
        reader, writer = await connect(server, CHUNKED % path + b"0\r\nx: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 4 << 20 and not reader.at_eof():
                writer.write(piece)
                sent += len(piece)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()
    assert sent < 4 << 20


async def test_a_body_in_small_pieces_has_no_such_limit() -> None:
    """The sizes of its chunks come alone; together they are longer than trailers may be."""
    got = 0

    async def count(_scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal got
        while True:
            message = await receive()
            got += len(message.get("body", b""))
            if not message.get("more_body"):
                return await send_json(send, 200, b"1")

    server = HttpServer(count, port=0)
    await server.start()
    try:
        reader, writer = await connect(server, CHUNKED % b"")
        extension = b";" + b"e" * 8_000
        for _ in range(20):
            for part in (b"1" + extension + b"\r\n", b"x\r\n"):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()
    finally:
        await server.stop(0.5)
    assert got == 20


async def test_the_listener_names_its_protocol() -> None:
    """Asyncio turns Nagle's algorithm off only for sockets that say they are TCP."""
    listener = HttpServer(echo, port=0)._bind()
    with listener:
        assert listener.proto == socket.IPPROTO_TCP
