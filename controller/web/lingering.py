"""Lets a client read an answer that comes before its request is complete.

Whoever closes a connection on which bytes still arrive resets it, and the client loses the answer:
it sees "connection reset" in place of "the body is longer than 262144 bytes". So what comes after
such an answer is read and thrown away for a while, and then the connection is closed.

Belongs here: how much is read for nothing, and for how long. Does not belong here: which answer
closes the connection (the header `connection: close`, in `answers.py`).
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Bytes that are read for nothing: more than any sender of ours puts into one request.
MOST_BYTES: Final = 32 * 1024 * 1024
#: In all: as long as a client may take for a head. And without a further byte: most clients notice
#: the answer at their next write.
MOST_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 2.0


_CLOSE: Final = (b"connection", b"close")


def lingering(app: ASGIApp) -> ASGIApp:
    """Return the application, whose early answers can be read."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            one = _Lingering(receive, send)
            await app(scope, one.receive, one.send)
        else:
            await app(scope, receive, send)

    return answer


class _Lingering:
    """One request with a body: `receive` and `send` stand before the server's own."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._may_come = True  # also from those who ask first (`Expect`): some do not wait
        self._receive = receive
        self._send = send
        self._is_closing = False

    async def receive(self) -> Message:
        """Return what comes next of the request."""
        message = await self._receive()
        self._may_come = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer; after the last one, wait for the client if that is needed."""
        if message["type"] == "http.response.start":
            self._is_closing = _CLOSE in message["headers"]
        elif self._is_closing and self._may_come and not message.get("more_body", False):
            await self._send({**message, "more_body": True})  # the client can read all of it
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        left = MOST_BYTES
        try:
            async with asyncio.timeout(MOST_SECONDS):
                while self._may_come and left > 0:
                    async with asyncio.timeout(IDLE_SECONDS):
                        left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            return  # a client that sends slowly, or for ever, is let go
