"""An HTTP server that does what it is told, well or badly, byte by byte, on a real socket.

A script is an async function of one `Exchange`: by the time it runs the request has been read; it
writes whatever it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Script = Callable[["Exchange"], Awaitable[None]]

GOOD_ANSWER: dict[str, Any] = {
    "verdict": "proceed",
    "confidence": 80,
    "reasons": ["error_rate is alike in both arms"],
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent."""

    line: str  # POST /v1/chat/completions HTTP/1.1
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class Exchange:
    """One connection with one request."""

    def __init__(self, server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.request = request
        self._writer = writer

    async def send(self, raw: bytes) -> None:
        """Send bytes as they are; returns once the client's side has taken them."""
        self._writer.write(raw)
        await self._writer.drain()
        self.server.sent_bytes += len(raw)

    async def answer(
        self, body: bytes | str, *, status: str = "200 OK", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole response.

        JSON unless `headers` say otherwise, a header of None value is left out.
        """
        content = body.encode() if isinstance(body, str) else body
        fields = {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.send(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + content)

    async def reset(self) -> None:
        """Cut the connection with RST, as a crashing server or a firewall does."""
        peer: socket.socket = self._writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


@dataclass(slots=True)
class FaultServer:
    """A running server, and what it has seen."""

    url: str
    script: Script  # may be replaced while running
    requests: list[Request] = field(default_factory=list)
    sent_bytes: int = 0  # handed to the network
    open_exchanges: int = 0
    most_open: int = 0


@contextlib.asynccontextmanager
async def fault_server(
    script: Script, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[FaultServer]:
    """Serve on a free port of loopback, with TLS if told how.

    At the end everything still going on is cut off.
    """
    tasks: set[asyncio.Task[None]] = set()
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.add(writer)
        running.open_exchanges += 1
        running.most_open = max(running.most_open, running.open_exchanges)
        try:
            request = await _read_request(reader)
            running.requests.append(request)
            await running.script(Exchange(running, request, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client has had enough: often the point of the test
        except asyncio.CancelledError:
            return  # the end of the test; asyncio.streams would log a cancelled handler
        finally:
            running.open_exchanges -= 1
            tasks.discard(task)
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    running = FaultServer(
        f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.sockets[0].getsockname()[1]}",
        script,
    )
    try:
        yield running
    finally:
        # First it accepts no more: a connection that has no transport yet when the listener is
        # closed, or no handler yet at the end, would never be closed.
        for accepting in listener.sockets:
            asyncio.get_running_loop().remove_reader(accepting.fileno())
        await _turns()
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await _turns()  # the sockets are closed


async def _turns() -> None:
    """Let the event loop do what is ready, and what follows from that."""
    for _ in range(10):
        await asyncio.sleep(0)


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.rstrip("\r\n").split("\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (each.partition(":") for each in fields)
    }
    return Request(line, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


# --- scripts ---


def completion(content: Any = None, *, finish_reason: Any = "stop") -> str:
    """Return the body of a chat completion.

    `content` that is no text is written as JSON, None is a good answer.
    """
    answer = GOOD_ANSWER if content is None else content
    message = {
        "role": "assistant",
        "content": answer if isinstance(answer, str) else json.dumps(answer),
    }
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return json.dumps(
        {"id": "chatcmpl-1", "object": "chat.completion", "model": "tiny", "choices": [choice]}
    )


def chat_response(content: Any = None, *, done_reason: Any = "stop", **fields: Any) -> str:
    """Return the body of an answer as Ollama's `/api/chat` words it.

    `content` as for `completion`, `fields` are added.
    """
    answer = GOOD_ANSWER if content is None else content
    message = {
        "role": "assistant",
        "content": answer if isinstance(answer, str) else json.dumps(answer),
    }
    said = {"model": "tiny", "created_at": "2026-11-21T03:00:00Z", "message": message, "done": True}
    return json.dumps(
        {**said, "done_reason": done_reason, "prompt_eval_count": 600, "eval_count": 40, **fields}
    )


def answering(body: bytes | str, *, status: str = "200 OK", **headers: str) -> Script:
    """Answer everything alike; header names with `_` for `-`."""

    async def script(exchange: Exchange) -> None:
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        await exchange.answer(body, status=status, headers=named)

    return script


def advising(content: Any = None, *, finish_reason: Any = "stop") -> Script:
    """Answer with a completion in the dialect of the address that was asked."""

    async def script(exchange: Exchange) -> None:
        if "/api/chat" in exchange.request.line:
            await exchange.answer(chat_response(content, done_reason=finish_reason))
        else:
            await exchange.answer(completion(content, finish_reason=finish_reason))

    return script


def repeating(
    piece: bytes, *, head: bytes = b"", times: int | None = None, pause_seconds: float = 0.0
) -> Script:
    """Send `head`, then `piece` again and again: for ever, or `times` times."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(head)
        count = 0
        while times is None or count < times:
            await exchange.send(piece)
            await asyncio.sleep(pause_seconds)
            count += 1

    return script


async def hang(exchange: Exchange) -> None:
    """Take the request and say nothing."""
    await asyncio.get_running_loop().create_future()


async def hang_in_body(exchange: Exchange) -> None:
    """Promise a body and send half a sentence of it."""
    await exchange.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
        b'500\r\n\r\n{"choices": ['
    )
    await asyncio.get_running_loop().create_future()


async def reset(exchange: Exchange) -> None:
    """Cut the connection in place of an answer."""
    await exchange.reset()


async def reset_in_body(exchange: Exchange) -> None:
    """Cut the connection in the middle of an answer."""
    await exchange.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    )
    await exchange.reset()


async def close_at_once(exchange: Exchange) -> None:
    """Close the connection without a word."""
