"""Calling the address of a monitoring service, on a real socket."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller.adapters.heartbeat_address import HeartbeatAddress
from controller.errors import ConfigInvalid, HeartbeatUnheard
from controller.settings.dead_mans_switch import DeadMansSwitchSettings
from tests.brokers import free_port
from tests.fault_server import Exchange, fault_server

SECRET = "f4d7c0de"
SETTINGS = DeadMansSwitchSettings(timeout_seconds=0.5)


def answering(status: str, **headers: str) -> Callable[[Exchange], Awaitable[None]]:
    """Return a script with one answer."""

    async def script(exchange: Exchange) -> None:
        await exchange.answer("OK", status=status, headers=headers)

    return script


async def hang(exchange: Exchange) -> None:
    """Answer with one byte and no more."""
    await exchange.send(b"H")
    await asyncio.sleep(60)


async def flood(exchange: Exchange) -> None:
    """Send a body without end."""
    await exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await exchange.send(bytes(65_536))


async def say_nonsense(exchange: Exchange) -> None:
    """Answer with what is no HTTP, and with the secret in it."""
    await exchange.send(f"220 {exchange.request.line}\r\n\r\n".encode())


async def reset(exchange: Exchange) -> None:
    """Cut the connection."""
    await exchange.reset()


async def called(address: str) -> None:
    """Call once."""
    async with HeartbeatAddress(address, SETTINGS) as heartbeat:
        await heartbeat.call()


async def refused(address: str, why: str) -> None:
    """Call once, unheard. What is raised holds nothing of the secret, also in a traceback."""
    with pytest.raises(HeartbeatUnheard, match=why) as raised:
        await called(address)
    words = "".join(traceback.format_exception_only(raised.value))
    assert SECRET not in words
    assert raised.value.__context__ is None or raised.value.__suppress_context__


async def test_a_call_is_one_get_of_the_very_address() -> None:
    """Any 2xx has heard. The query is part of the address, as Uptime Kuma's push has one."""
    async with fault_server(answering("204 No Content")) as server:
        await called(f"{server.url}/api/push/{SECRET}?status=up&msg=OK")
        await called(f"{server.url}/api/push/{SECRET}?status=up&msg=OK")
    lines = [request.line for request in server.requests]
    assert lines == [f"GET /api/push/{SECRET}?status=up&msg=OK HTTP/1.1"] * 2
    assert server.requests[0].headers["user-agent"] == "rolloutd"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (answering("404 Not Found"), "127.0.0.1 answered 404"),
        (answering("503 Away"), "127.0.0.1 answered 503"),
        # A followed redirect would give the secret to another host.
        (answering("302 Found", Location=f"http://127.0.0.1:9/{SECRET}"), "answered 302"),
        (answering("200 OK", **{"Content-Encoding": "gzip"}), "a compressed answer"),
        (hang, "no answer within 0.5 s"),
        (flood, "longer than 65536 bytes"),
        (say_nonsense, "RemoteProtocolError"),
        (reset, "ReadError"),
    ],
)
async def test_what_has_not_heard_is_named_without_the_address(
    script: Callable[[Exchange], Awaitable[None]], why: str
) -> None:
    """The host and the trouble; the rest of the address is a secret."""
    async with fault_server(script) as server:
        await refused(f"{server.url}/{SECRET}", why)


async def test_a_service_that_is_away_is_named() -> None:
    """Nobody listens there."""
    await refused(f"http://127.0.0.1:{free_port()}/{SECRET}", r"127\.0\.0\.1: ConnectError")


def test_an_authority_that_cannot_be_read_is_refused_at_the_start(tmp_path: Path) -> None:
    """Not at the first call."""
    settings = DeadMansSwitchSettings(ca_file=tmp_path / "missing.pem")
    with pytest.raises(ConfigInvalid, match="dead_mans_switch: ca_file cannot be used"):
        HeartbeatAddress("https://hc.example", settings)
