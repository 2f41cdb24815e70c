"""The network below httpcore, read in small pieces, so that no server can hold up the loop.

The parser above it is thorough and slow. Without these bounds, 64 KiB of one-byte chunks, of tiny
header lines or of interim responses (1xx, which we never request) would hold up the loop for a
fifth of a second, folded header lines for longer, and interim responses for as long as the server
likes: on a busy machine the loop had a turn every two seconds.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore

#: Bytes parsed between two turns of the loop. The worst that a server can send in as many, chunks
#: of one byte, takes about 20 ms.
PIECE_BYTES: Final = 4_096

#: Larger heads are refused. The cookies of a proxy fit, and a head of nothing but tiny lines is
#: parsed in about 20 ms.
HEAD_MAX_BYTES: Final = 8_192

#: How a connection may fail. ValueError and OSError are here because httpcore does not translate
#: every error below it, for example that of an impossible host name.
NETWORK_ERRORS: Final = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
    OSError,
    ValueError,
)

_INTERIM = re.compile(rb"HTTP/\d\.\d 1")
_END_OF_HEAD = re.compile(rb"\n\r?\n")  # as the parser above has it


def root_cause(error: BaseException) -> BaseException:
    """Return what the network said first.

    `connection refused` rather than `all connection attempts failed`.
    """
    while (cause := error.__cause__ or error.__context__) is not None:  # httpcore: `from None`
        error = cause
        while isinstance(error, BaseExceptionGroup):  # one per address of the host
            error = error.exceptions[0]
    return error


class BoundedNetwork(httpcore.AsyncNetworkBackend):
    """A network backend that connects like another one, with bounded streams."""

    def __init__(
        self,
        network: httpcore.AsyncNetworkBackend,
        *,
        head_max_bytes: int = HEAD_MAX_BYTES,
        most_interim: int = 0,
    ) -> None:
        """`head_max_bytes` of one response; `most_interim` responses that come before it."""
        self._network = network
        self._bounds = head_max_bytes, most_interim

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _BoundedStream(
            await self._network.connect_tcp(host, port, timeout, local_address, socket_options),
            self._bounds,
        )


class _BoundedStream(httpcore.AsyncNetworkStream):
    """A stream that reads little at a time, and only a response that begins with its own head."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, bounds: tuple[int, int]) -> None:
        self._stream = stream
        self._bounds = bounds
        self._begin()

    def _begin(self) -> None:
        self._head: bytes | None = b""  # as far as it has come; None: it is complete
        self._interim = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        piece = await self._stream.read(min(max_bytes, PIECE_BYTES), timeout)
        if self._head is not None:
            self._head = self._rest_of_head(self._head + piece)
        return piece

    def _rest_of_head(self, head: bytes) -> bytes | None:
        """Return what has come of a head that is not complete, None once it is."""
        head_max_bytes, most_interim = self._bounds
        while _INTERIM.match(head):
            if self._interim == most_interim:
                raise httpcore.RemoteProtocolError("an interim response, which was not requested")
            end = _END_OF_HEAD.search(head)
            if end is None:
                break
            head = head[end.end() :]
            self._interim += 1
        if _END_OF_HEAD.search(head, 0, head_max_bytes):
            return None
        if len(head) >= head_max_bytes:
            raise httpcore.RemoteProtocolError(f"more than {head_max_bytes} bytes of headers")
        return head

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._begin()  # what is read next answers this
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _BoundedStream(stream, self._bounds)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
