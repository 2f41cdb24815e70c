"""Answering a plain request in the turn of the loop that read it, without an ASGI application.

Apps wait for their evaluations, and most of the time of one went into what is around it: a task,
the router, the middleware, and the messages between them. Here the parser is the same, and the
answer has the same bytes. Whatever is not a plain success goes to the application, which is given
the request as it came.

Belongs here: which requests are plain, as far as HTTP goes. Does not belong here: what is answered.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: How long the rest of a request is waited for before the application gets it. Many clients send
#: head and body in two packets, one right after the other.
_HELD_SECONDS = 0.05


class AnswersAtOnce(Protocol):
    """What answers plain requests of the method POST."""

    #: What the addresses of such requests begin with.
    prefix: bytes
    #: The application answers requests with longer bodies.
    max_body_bytes: int

    def takes(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
        """Return whether a request with this head may be answered here.

        Names of headers are in lower case.
        """

    def answer(self, url: bytes, body: bytes) -> tuple[bytes, bytes] | None:
        """Return the head of a success after its status line and date, and its body.

        None: the application answers. Then nothing must have been counted or logged.
        """


class AtOnceProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which holds a plain request back until it is whole and then answers it.

    It must be the last of what was read: requests sent ahead, and what is no HTTP, find the
    application at work on those before them, and its queue is bounded.
    """

    at_once: AnswersAtOnce | None = None
    _held: bytearray | None = None  # the body so far of the request that is held back
    _is_whole = False
    _held_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._held is None:
            return
        if not self._is_whole:
            if self._held_timer is None:
                self._held_timer = self.loop.call_later(_HELD_SECONDS, self._pass_on)
        elif self.transport.is_closing() or not self._answer(bytes(self._held)):
            self._pass_on()

    def on_message_begin(self) -> None:
        self._pass_on()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._is_plain():
            self._held = bytearray()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
            return
        self._held += body
        assert self.at_once is not None
        if len(self._held) > min(self.at_once.max_body_bytes, HIGH_WATER_LIMIT):
            self._pass_on()

    def on_message_complete(self) -> None:
        if self._held is None:
            super().on_message_complete()
        else:
            self._is_whole = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._pass_on()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self._pass_on()  # a request under way is answered; an idle connection is closed
        super().shutdown()

    def _is_plain(self) -> bool:
        """Return whether nothing about this head, or this connection, needs the application."""
        at_once, parser = self.at_once, self.parser
        before: RequestResponseCycle | None = self.cycle  # uvicorn's type leaves the None out
        return (
            at_once is not None
            and self.url.startswith(at_once.prefix)
            and (before is None or before.response_complete)
            and not self.expect_100_continue
            and not self.flow.write_paused
            and not self._is_full()
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and at_once.takes(self.url, self.headers)
        )

    def _is_full(self) -> bool:
        """Return whether uvicorn answers 503 to this request."""
        limit = self.limit_concurrency
        return limit is not None and max(len(self.connections), len(self.tasks)) >= limit

    def _answer(self, body: bytes) -> bool:
        """Answer the request that is held back; return False when the application has to."""
        assert self.at_once is not None
        answer = self.at_once.answer(self.url, body)
        if answer is None:
            return False
        self._release()
        head = [b"HTTP/1.1 200 OK\r\n"]
        for name, value in self.server_state.default_headers:
            head += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*head, *answer)))
        self.on_response_complete()
        return True

    def _pass_on(self) -> None:
        """Give the application what is held back, as if it had come just now."""
        is_whole, held = self._is_whole, self._release()
        if held is not None:
            super().on_headers_complete()
            if held:
                super().on_body(bytes(held))
            if is_whole:
                super().on_message_complete()

    def _release(self) -> bytearray | None:
        """Hold nothing back any more; return what was."""
        held, self._held, self._is_whole = self._held, None, False
        if self._held_timer is not None:
            self._held_timer.cancel()
            self._held_timer = None
        return held
