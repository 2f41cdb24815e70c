"""The network below httpcore, read in small pieces, so that no server can hold up the loop.

The parser above it is thorough and slow. Without these bounds, 64 KiB of one-byte chunks, of tiny
header lines or of interim responses (1xx, which we never request) would hold up the loop for a
fifth of a second, and interim responses for as long as the server likes.
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

    def __init__(self, network: httpcore.AsyncNetworkBackend) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _BoundedStream(
            await self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        )


class _BoundedStream(httpcore.AsyncNetworkStream):
    """A stream that reads little at a time, and only a response that begins with its own head."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head: bytes | None = b""  # as far as it has come; None: it is complete

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        piece = await self._stream.read(min(max_bytes, PIECE_BYTES), timeout)
        if self._head is not None:
            self._head += piece
            if _INTERIM.match(self._head):
                raise httpcore.RemoteProtocolError("an interim response, which was not requested")
            if b"\r\n\r\n" in self._head[:HEAD_MAX_BYTES]:
                self._head = None
            elif len(self._head) >= HEAD_MAX_BYTES:
                raise httpcore.RemoteProtocolError(f"more than {HEAD_MAX_BYTES} bytes of headers")
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _BoundedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
