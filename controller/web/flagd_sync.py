"""flagd's gRPC sync source, `flagd.sync.v1.FlagSyncService`: a snapshot, and one for each change.

For flagd itself (`--sources` with `"provider":"grpc"`) and for providers that evaluate in the app's
own process. Nothing is queued: a client gets the newest document, however many there were in
between. While the flags are not trusted nothing is sent and new streams are refused, so flagd keeps
what it has.

The three messages are written by hand, which is shorter than generated code: nothing of a request
is needed, and an answer is one text. `GetMetadata` is left out on purpose: clients work without it,
but fail on an empty answer to it.

A client that sends no request, or takes no answer, keeps its call open: gRPC cannot end a call
while a message of it waits. So requests are not awaited, and each client may have so many calls. On
the wire every method is a stream; a unary call is one of a single message.

Source: open-feature/flagd-schemas, flagd/sync/v1/sync.proto.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from controller.errors import ConfigInvalid
from controller.web.addresses import cannot_listen
from controller.web.clients import client_of
from controller.web.flags import FlagBoard

SERVICE = "flagd.sync.v1.FlagSyncService"
SELECTOR = "flagd-selector"

#: Interval of pings, which detect clients that disappeared. Clients may ping as often as they like:
#: flagd's Python provider pings as often as gRPC lets it, once a second, and does not come back for
#: minutes from a GOAWAY with `too_many_pings`. Its flags would stay as they are for so long.
PING_MS = 30_000
#: Requests hold at most a name and a selector.
MAX_REQUEST_BYTES = 65_536
#: Calls beyond the streams: each fetches all flags once.
MAX_FETCHES = 16
#: Connections beyond one for each stream. Without a bound, idle ones take every file descriptor of
#: the process, and then nobody can connect, neither to the other ports.
MORE_CONNECTIONS = 56
#: A connection that speaks no HTTP/2 by then is closed.
HANDSHAKE_MS = 10_000
#: A connection without a call for so long is closed; its client connects again when it calls.
IDLE_MS = 60_000
#: Calls that are open for longer than this at the end are cut.
GRACE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class SyncAddress:
    """Where to listen, and with which certificate."""

    host: str = "127.0.0.1"
    port: int = 0  # 0 takes a free one
    certificate_file: Path | None = None  # None: no TLS
    key_file: Path | None = None
    max_streams: int = 200
    max_per_client: int = 0  # calls of one client address at the same time; 0: no limit


class FlagdSyncServer:
    """Serves the board's document over gRPC between `start` and `stop`."""

    def __init__(self, board: FlagBoard, address: SyncAddress, *, flag_set_id: str) -> None:
        """Listen nowhere yet.

        Raises ConfigInvalid when grpcio is not installed, or certificates cannot be read.
        """
        try:
            self._grpc: Any = importlib.import_module("grpc")
            importlib.import_module("grpc.aio")
        except ImportError as error:
            raise ConfigInvalid(
                "flagd_sync.port is set, and grpcio is not installed: pip install 'rolloutd[grpc]'"
            ) from error
        self._board = board
        self._address = address
        self._flag_set_id = flag_set_id
        self._streams = 0
        self._calls: Counter[str] = Counter()  # by client
        self._server: Any = None
        self._credentials = self._read_credentials()
        self.port = address.port

    async def start(self) -> None:
        """Return once calls are accepted. Raises ConfigInvalid for an address that is not free."""
        grpc, address = self._grpc, self._address
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # a port that is in use must be an error
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_allowed_incoming_connections", address.max_streams + MORE_CONNECTIONS),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.keepalive_time_ms", PING_MS),
                ("grpc.keepalive_timeout_ms", PING_MS // 3),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 0),  # no limit
            ],
            maximum_concurrent_rpcs=address.max_streams + MAX_FETCHES,
        )
        handlers = {
            "SyncFlags": grpc.stream_stream_rpc_method_handler(self._sync_flags),
            "FetchAllFlags": grpc.stream_stream_rpc_method_handler(self._fetch_all_flags),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        where = (
            f"[{address.host}]:{address.port}"
            if ":" in address.host
            else f"{address.host}:{address.port}"
        )
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(where)
            else:
                self.port = self._server.add_secure_port(where, self._credentials)
        except RuntimeError as error:
            raise ConfigInvalid(
                cannot_listen(where, "flagd_sync.host", "flagd_sync.port")
            ) from error
        await self._server.start()

    async def stop(self) -> None:
        """End every stream and stop listening."""
        if self._server is not None:
            await self._server.stop(GRACE_SECONDS)

    # --- calls ---

    async def _sync_flags(self, _requests: Any, context: Any) -> AsyncIterator[bytes]:
        await self._check(context)
        if self._streams >= self._address.max_streams:
            await self._refuse(context, "as many streams are open as are allowed")
        self._streams += 1
        try:
            with self._place(context), self._board.changes() as changed:
                sent: str | None = None
                while True:
                    body, tag = self._board.flagd_document()
                    if self._board.why_no_document is None and tag != sent:
                        await context.write(_message(body))
                        sent = tag
                    await changed.wait()
                    changed.clear()
        finally:
            self._streams -= 1
        yield b""  # never reached; it makes this a stream for grpc.aio

    async def _fetch_all_flags(self, _requests: Any, context: Any) -> AsyncIterator[bytes]:
        await self._check(context)
        with self._place(context):
            yield _message(self._board.flagd_document()[0])

    @contextmanager
    def _place(self, context: Any) -> Iterator[None]:
        """Count a call of its client while it lasts."""
        client = _client_of(context)
        self._calls[client] += 1
        try:
            yield
        finally:
            self._calls[client] -= 1
            if not self._calls[client]:
                del self._calls[client]

    async def _check(self, context: Any) -> None:
        """End the call unless it can be answered."""
        codes = self._grpc.StatusCode
        if (why_not := self._board.why_no_document) is not None:
            await context.abort(codes.UNAVAILABLE, why_not)
        selector = dict(context.invocation_metadata() or ()).get(SELECTOR, "")
        name, _, flag_set = str(selector).partition("=")
        if name.strip() == "flagSetId" and flag_set.strip() != self._flag_set_id:
            await context.abort(codes.NOT_FOUND, f"there is one flag set here: {self._flag_set_id}")
        limit = self._address.max_per_client
        if limit and self._calls[_client_of(context)] >= limit:
            await self._refuse(context, f"one address may have {limit} calls at the same time")

    async def _refuse(self, context: Any, why: str) -> None:
        await context.abort(self._grpc.StatusCode.RESOURCE_EXHAUSTED, why)

    def _read_credentials(self) -> Any:
        address = self._address
        if address.certificate_file is None:
            return None
        try:
            certificate = address.certificate_file.read_bytes()
            key = (address.key_file or address.certificate_file).read_bytes()
        except OSError as error:
            raise ConfigInvalid(
                f"flagd_sync: certificate_file or key_file cannot be read: {error}"
            ) from error
        return self._grpc.ssl_server_credentials([(key, certificate)])


def _client_of(context: Any) -> str:
    """Return the client of a call: gRPC writes its address as `ipv6:%5B::1%5D:4711`."""
    host = unquote(context.peer()).partition(":")[2].rpartition(":")[0]
    return client_of((host.strip("[]"), 0))


def _message(flag_configuration: bytes) -> bytes:
    """Return a SyncFlagsResponse; a FetchAllFlagsResponse is the same.

    The document is field 1, length-delimited.
    """
    length, rest = bytearray(), len(flag_configuration)
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return b"\x0a" + bytes(length) + flag_configuration
