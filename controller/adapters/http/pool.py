"""The connections of an HTTP client whose calls may be cancelled at any moment.

Every call of ours has one deadline, and `asyncio.timeout` cancels what is late. httpcore (1.0.9)
shields its cleaning up against the cancellation of anyio, and not against that of asyncio: a call
that is cancelled at an unlucky moment keeps its connection and its place in the pool. Once it has
happened as often as the pool has places, no call gets one, until the process is restarted. On a
busy machine that takes minutes with a server that answers about as late as the deadline.

So a call that was cancelled takes its pool with it: those that come later get a new one, and the
old one is closed when the calls that it still has have ended.

Belongs here: which pool a call gets, and what all our clients have alike. Does not belong here:
what is sent, and the deadlines.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Final, cast

import httpcore
import httpx

from controller.adapters.http.network import BoundedNetwork

#: Proxies add cookies and policies of their own, and some send hints before an answer.
_HEAD_MAX_BYTES: Final = 16_384
_MOST_INTERIM: Final = 8


class _Pool:
    """Connections, and how many calls use them."""

    def __init__(self, transport: httpx.AsyncHTTPTransport) -> None:
        self.transport = transport
        self.calls = 0


def _make_transport(verify: ssl.SSLContext, limits: httpx.Limits) -> httpx.AsyncHTTPTransport:
    """Return connections over the bounded network, which httpx has no argument for."""
    transport = httpx.AsyncHTTPTransport(verify=verify, limits=limits, trust_env=False)
    transport._pool._network_backend = BoundedNetwork(
        httpcore.AnyIOBackend(), head_max_bytes=_HEAD_MAX_BYTES, most_interim=_MOST_INTERIM
    )
    return transport


class CancellablePool(httpx.AsyncBaseTransport):
    """The transport of a client: pools of httpx, each until a call on it is cancelled."""

    def __init__(self, verify: ssl.SSLContext, limits: httpx.Limits) -> None:
        """`verify`: with which certificates. Nothing of the environment is used."""
        self._make = partial(_make_transport, verify, limits)
        self._pool = _Pool(self._make())
        self._closings: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pool = self._pool
        pool.calls += 1
        try:
            response = await pool.transport.handle_async_request(request)
        except BaseException as end:
            self._end_call(pool, is_sound=isinstance(end, httpx.HTTPError))
            raise
        stream = cast("httpx.AsyncByteStream", response.stream)
        response.stream = _Answer(stream, partial(self._end_call, pool))
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.transport.aclose()
        if self._closings:
            await asyncio.wait(self._closings)

    def _end_call(self, pool: _Pool, *, is_sound: bool) -> None:
        """Note that a call has ended; `is_sound`: it has given its connection back."""
        pool.calls -= 1
        if not is_sound and pool is self._pool:
            self._pool = _Pool(self._make())
        if pool is not self._pool and pool.calls == 0:
            closing = asyncio.get_running_loop().create_task(
                pool.transport.aclose(), name="close connections"
            )
            self._closings.add(closing)
            closing.add_done_callback(self._note_closed)

    def _note_closed(self, closing: asyncio.Task[None]) -> None:
        self._closings.discard(closing)
        if not closing.cancelled():
            closing.exception()  # nobody needs these connections


class _Answer(httpx.AsyncByteStream):
    """The body of an answer, which tells how the call has ended."""

    def __init__(self, stream: httpx.AsyncByteStream, end_call: Callable[..., None]) -> None:
        self._stream = stream
        self._end_call = end_call
        self._has_ended = False
        self._is_sound = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except asyncio.CancelledError:
            self._is_sound = False
            raise

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        except BaseException:
            self._is_sound = False
            raise
        finally:
            if not self._has_ended:
                self._has_ended = True
                self._end_call(is_sound=self._is_sound)


def make_client(
    verify: ssl.SSLContext,
    limits: httpx.Limits,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: httpx.Timeout | None = None,
) -> httpx.AsyncClient:
    """Return a client of ours: nothing packed, no redirect, nothing of the environment.

    Without `timeout` only the caller's deadline bounds a call.
    """
    # Otherwise loaded by the first call, which would hold up the loop for 0.15 s.
    importlib.import_module("anyio._backends._asyncio")
    return httpx.AsyncClient(
        headers={"Accept-Encoding": "identity", "User-Agent": "rolloutd", **(headers or {})},
        timeout=timeout,
        trust_env=False,
        follow_redirects=False,
        transport=CancellablePool(verify, limits),
    )
