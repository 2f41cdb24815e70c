"""A TCP proxy in a thread of its own, which takes away what stands behind it.

It can hang (connections stay open, not a byte passes), refuse, reset and be slow, for any protocol.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from enum import StrEnum
from typing import Any

from tests.brokers import free_port
from tests.servers import OwnServer

LOOPBACK = "127.0.0.1"
#: In each direction, for each piece that is read: a slow answer takes twice as long at least.
SLOW_SECONDS = 0.15
_ACCEPTED_SECONDS = 0.05


class Fault(StrEnum):
    """What happens to connections."""

    NONE = "none"
    HANG = "hang"  # accepted, and not a byte passes in either direction
    REFUSE = "refuse"  # nobody listens; open connections are closed
    RESET = "reset"  # cut with RST, at once and after each connect
    SLOW = "slow"  # everything passes, late


class TcpProxy(OwnServer):
    """Listens on `port` and passes on to `target_port`, unless told otherwise."""

    def __init__(self, target_port: int, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self._target_port = target_port
        self._fault = Fault.NONE
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._is_closing = False

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._run(self._apply(Fault.NONE))

    def stop(self) -> None:
        """Cut everything."""
        if self._thread.is_alive():
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def apply(self, fault: Fault) -> None:
        """Do this to all connections from now on."""
        self._run(self._apply(fault))

    def pass_to(self, target_port: int) -> None:
        """Pass new connections on to another port."""
        self._target_port = target_port

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _close(self) -> None:
        await self._stop_listening()
        self._is_closing = True
        await asyncio.sleep(_ACCEPTED_SECONDS)  # what was accepted just now is known by then
        await self._cut()

    async def _apply(self, fault: Fault) -> None:
        self._fault = fault
        if fault in (Fault.REFUSE, Fault.RESET):
            await self._cut()
        if fault is Fault.REFUSE:
            await self._stop_listening()
        elif self._server is None:
            self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)
        if fault is Fault.HANG:
            self._passing.clear()
        else:
            self._passing.set()

    async def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _cut(self) -> None:
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if self._fault is not Fault.RESET and not self._is_closing:
                await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            return  # its side has left, or it was cut: asyncio.streams would log it
        finally:
            self._connections.discard(task)
            self._end(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        up_reader, up_writer = await asyncio.open_connection(LOOPBACK, self._target_port)
        ways = [
            asyncio.ensure_future(self._pass_on(reader, up_writer)),
            asyncio.ensure_future(self._pass_on(up_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up_writer.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65_536):
                await self._passing.wait()
                if self._fault is Fault.SLOW:
                    await asyncio.sleep(SLOW_SECONDS)
                writer.write(piece)
                await writer.drain()

    def _end(self, writer: asyncio.StreamWriter) -> None:
        if self._fault is Fault.RESET:
            peer: socket.socket = writer.get_extra_info("socket")
            with suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
