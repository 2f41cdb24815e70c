"""The HTTP server: uvicorn, with limits on everything that a client can hold.

With a certificate, a connection takes its place first, and then has its handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from controller.errors import ConfigInvalid
from controller.web.addresses import cannot_listen
from controller.web.at_once import AnswersAtOnce, AtOnceProtocol
from controller.web.clients import client_of
from controller.web.lingering import lingering
from controller.web.tls import (
    CLIENT_CERTIFICATE,
    Certificate,
    FailedHandshakes,
    client_names,
    shake_hands,
)

#: Seconds that an idle connection is kept between two requests: longer than the 5 s at which flagd
#: polls.
_KEEP_ALIVE_SECONDS = 15
#: At the limit, a connection that has sent no whole request for this long gives way to a new one.
_SILENT_SECONDS = 1.0
#: Requests sent ahead on one connection. HTTP clients send none; thousands in one packet would be
#: parsed in one turn of the loop. Those beyond are not read: the connection closes after the
#: answers to the others.
_MAX_AHEAD = 16
#: Longest head of a request, apart from the bytes of its first read (at most 256 KiB). We use no
#: cookies.
_MAX_HEAD_BYTES = 32 * 1024
#: Bytes in a row of a body that has begun and none of which are content: sizes of chunks, and what
#: follows the last one. The parser keeps the latter until it is complete.
_MAX_EMPTY_BYTES = 32 * 1024
#: Answer to a client that holds as many connections as one may.
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: "
    b"close\r\ncontent-length: 0\r\n\r\n"
)
#: Part of the time of `stop` for closing connections after the requests under way were cancelled.
_CLOSING_SECONDS = 0.5


class _Seats:
    """Which clients hold the connections, and which connection gives way to a new one.

    Connections that wait for their client (for its first request, or the next) are kept in the
    order in which they began to wait. Those with a request under way never give way.
    """

    def __init__(self, limit: int, per_client: int) -> None:
        """`per_client` is the number of connections that one client may hold; 0: no limit."""
        self._limit = limit
        self._per_client = per_client
        self._held: Counter[str] = Counter()
        self._waiting: dict[_Protocol, float] = {}  # since when, oldest first

    def take(self, connection: _Protocol) -> bool:
        """Give a new connection a place; return False when this client may have no more."""
        client = connection.client_key
        self._held[client] += 1
        is_welcome = not self._per_client or self._held[client] <= self._per_client
        if not is_welcome:
            is_welcome = self._give_way(connection, client)
        elif len(connection.connections) >= self._limit:
            self._give_way(connection)
        self.wait(connection)
        return is_welcome

    def leave(self, connection: _Protocol) -> None:
        """Free a connection's place; a second call changes nothing."""
        self._waiting.pop(connection, None)
        client = connection.client_key
        if client in self._held and not connection.has_left:
            connection.has_left = True
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]

    def wait(self, connection: _Protocol) -> None:
        """Record that the connection waits for its client."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = connection.loop.time()

    def work(self, connection: _Protocol) -> None:
        """Record that the connection has a request under way."""
        self._waiting.pop(connection, None)

    def _give_way(self, newcomer: _Protocol, client: str | None = None) -> bool:
        """Close the connection that has waited longest, of `client` if one is given.

        Return False when none may be closed.
        """
        silent_since = newcomer.loop.time() - _SILENT_SECONDS
        for connection, since in self._waiting.items():
            is_idle = connection.is_idle or since <= silent_since
            if is_idle and (client is None or connection.client_key == client):
                break
        else:
            return False
        self.leave(connection)
        connection.connections.discard(connection)
        if connection.transport.get_write_buffer_size():
            connection.transport.abort()
        else:
            connection.transport.close()
        return True


class _Protocol(AtOnceProtocol):
    """uvicorn's protocol with bounds on a request's head, on idling and on connections."""

    seats: _Seats
    client_key = ""
    has_left = False
    head_seconds = 10.0
    certificate: Certificate | None = None
    failed_handshakes: FailedHandshakes
    _handshake: asyncio.Task[None] | None = None
    _client_names: frozenset[str] = frozenset()  # of the certificate that the client has shown
    _is_ending = False  # what comes now is not read: the connection closes after its answers
    _is_in_head = False
    _head_bytes = 0
    _is_in_body = False
    _has_content = False  # of its body, in what is read now
    _empty_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    # uvicorn narrows the type of the transport.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client_key = client_of(self.client)
        if not self.seats.take(self):
            self._say(_TOO_MANY)
            self.transport.close()
        elif self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            # At the limit uvicorn still answers 503. Beyond it each connection would cost a file
            # descriptor.
            transport.abort()
        else:
            self._start_timer()
            if self.certificate is not None:
                transport.pause_reading()  # the handshake reads, and not we
                self._handshake = self.loop.create_task(
                    self._encrypt(transport, self.certificate), name="tls_handshake"
                )

    async def _encrypt(self, transport: asyncio.Transport, certificate: Certificate) -> None:
        """Go on encrypted. A client that cannot is let go: without TLS it gets no answer."""
        try:
            # The other half is for the head: the timer that we started runs for both.
            encrypted, first = await shake_hands(
                transport, self, certificate, self.head_seconds / 2
            )
        except (OSError, EOFError) as error:
            self.failed_handshakes.note(self.client_key, error)
            transport.abort()
            # asyncio tells nobody of a connection that ends in its handshake, and its place would
            # never be free again.
            self._handshake = None
            self.connection_lost(error)
            return
        self.transport, self.flow, self.scheme = encrypted, FlowControl(encrypted), "https"
        self._handshake = None
        self._client_names = client_names(encrypted)
        if first:
            self.data_received(first)

    def _say(self, answer: bytes) -> None:
        """Send a whole answer, where the client can read it already."""
        if self.certificate is None or self.scheme == "https":
            self.transport.write(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.seats.leave(self)
        if self._handshake is not None:
            self._handshake.cancel()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """True between an answer and the next request."""
        return self.timeout_keep_alive_task is not None

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._has_content = False
        super().data_received(data)
        if not self._is_in_head:
            # The usual case: the head came in one piece, and no timer was needed.
            self._stop_timer()
            self._bound_body(len(data))
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._give_up(b"431 Request Header Fields Too Large")
        elif self._head_timer is None:
            self._start_timer()

    def _bound_body(self, length: int) -> None:
        """Refuse a body that goes on without content; `length` is that of what was read."""
        if not self._is_in_body:
            return
        self._empty_bytes = 0 if self._has_content else self._empty_bytes + length
        if self._empty_bytes > _MAX_EMPTY_BYTES:
            self._is_ending = True
            self.send_400_response("a body without content, or with long trailers")

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MAX_AHEAD:
            raise httptools.HttpParserError("too many requests sent ahead")
        self._is_in_head = True
        self._head_bytes = self._empty_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = {
            "rolloutd.abort": {"call": self.transport.abort},
            CLIENT_CERTIFICATE: {"names": self._client_names},
        }

    def send_400_response(self, msg: str) -> None:
        """Refuse what was read; whole requests before it are answered first.

        An answer comes in the order of the requests, so a 400 now would be taken for that to the
        first of them. After the last one the connection closes, and clients send the rest again.
        """
        before: RequestResponseCycle | None = self.cycle  # uvicorn's type leaves the None out
        if before is None or before.response_complete or before.more_body:
            super().send_400_response(msg)
        else:
            self._is_ending = True
            before.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header of the head, and no trailer.

        uvicorn adds both to one list: a proxy removes from the head what only it may say (who
        somebody is, their groups, a certificate), and perhaps not from what follows the body.
        """
        if self._is_in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._has_content = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        self._is_in_head, self._is_in_body = False, True
        self.seats.work(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.is_idle:
            self.seats.wait(self)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not read: closing in order would wait for it
        else:
            super().timeout_keep_alive_handler()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(
            self.head_seconds, self._give_up, b"408 Request Timeout"
        )

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self, status: bytes) -> None:
        self._stop_timer()
        self._say(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling.

    It would take SIGTERM from us and raise it again at its end.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()


class HttpServer:
    """Serves `app` on `host`:`port` between `start` and `stop`.

    Port 0 takes a free one; `port` then says which.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        max_connections: int = 1_000,
        max_per_client: int = 0,
        head_seconds: float = 10.0,
        keep_alive_seconds: int = _KEEP_ALIVE_SECONDS,
        backlog: int = 512,
        settings: tuple[str, str] = ("http.host", "http.port"),
        certificate: Certificate | None = None,
        handshake_failed: Callable[[str], object] = lambda _: None,
        at_once: AnswersAtOnce | None = None,
    ) -> None:
        """Listen nowhere yet.

        `head_seconds` bounds the time from connecting, or from a request's first byte, to the end
        of its head. `max_per_client` bounds the connections of one client address, 0: no bound.
        `settings` names those of host and port, for an operator whose address is not free.
        `certificate`: speak TLS, and nothing else; `handshake_failed` is told why one did.
        `at_once` answers plain requests, as `app` would; None: `app` answers all.
        """
        self._app = app
        self._at_once = at_once
        self._host = host
        self._port = port
        self._max_connections = max_connections
        self._max_per_client = max_per_client
        self._head_seconds = head_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._settings = settings
        self._backlog = backlog
        self._certificate = certificate
        self._failed_handshakes = FailedHandshakes(handshake_failed)
        self._uvicorn: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def connections(self) -> int:
        """How many connections are open, those in their handshake too."""
        return 0 if self._uvicorn is None else len(self._uvicorn.server_state.connections)

    async def start(self) -> None:
        """Return once connections are accepted.

        Raises ConfigInvalid for an address that is not free.
        """
        listener = self._bind()
        self._port = listener.getsockname()[1]
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                lingering(self._app),
                http=type(
                    "_BoundedProtocol",
                    (_Protocol,),
                    {
                        "head_seconds": self._head_seconds,
                        "certificate": self._certificate,
                        "failed_handshakes": self._failed_handshakes,
                        "at_once": self._at_once,
                        "seats": _Seats(self._max_connections, self._max_per_client),
                    },
                ),
                loop="none",  # the caller's
                lifespan="off",
                ws="none",
                interface="asgi3",
                log_config=None,  # logging is set up by the daemon
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=self._max_connections,
                timeout_keep_alive=self._keep_alive_seconds,
                timeout_graceful_shutdown=3,
                backlog=self._backlog,
            )
        )
        self._task = asyncio.create_task(
            self._uvicorn.serve(sockets=[listener]), name="http_server"
        )
        started = asyncio.create_task(self._uvicorn.has_started.wait(), name="http_server_started")
        try:
            await asyncio.wait((self._task, started), return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
        if self._task.done():
            await self._task  # raises why it did not start

    async def stop(self, deadline_seconds: float = 4.0) -> None:
        """Stop accepting, and let requests under way finish.

        It returns within `deadline_seconds`, whatever the clients do.
        """
        if self._uvicorn is None or self._task is None:
            return
        server, task = self._uvicorn, self._task
        self._uvicorn = self._task = None
        server.config.timeout_graceful_shutdown = max(1, int(deadline_seconds - _CLOSING_SECONDS))
        server.should_exit = True
        try:
            async with asyncio.timeout(deadline_seconds):
                await task
        except TimeoutError:
            pass  # the task was cancelled with the wait; open connections are cut below
        for connection in list(server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _bind(self) -> socket.socket:
        """Return a listening socket. Raises ConfigInvalid with the fix."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # The protocol is named because asyncio sets TCP_NODELAY only then; without it each answer
        # waits 40 ms for an ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
            listener.listen(self._backlog)
            return listener
        except (OSError, OverflowError) as error:
            listener.close()
            where = f"{self._host}:{self._port} ({error})"
            raise ConfigInvalid(cannot_listen(where, *self._settings)) from error
