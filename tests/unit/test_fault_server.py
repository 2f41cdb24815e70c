"""The server of faults that tests use leaves nothing behind, whoever comes at its end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from tests.fault_server import close_at_once, fault_server


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_of_the_last_moment_is_closed(turns: int) -> None:
    """Its handler may not have begun: a socket that stays open fails the next test's teardown."""
    async with fault_server(close_at_once) as server:
        at = urlsplit(server.url)
        client = socket.create_connection((at.hostname, at.port), timeout=5)
        for _ in range(turns):
            await asyncio.sleep(0)
    with client, suppress(ConnectionResetError):
        assert client.recv(1) == b""
