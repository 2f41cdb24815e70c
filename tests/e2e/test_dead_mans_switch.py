"""A monitoring service hears from a real daemon while it works, and not while it is cut off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from schemas.terms import CommandVerb
from tests.brokers import LocalKafka, RedisServer
from tests.fault_server import Exchange, fault_server
from tests.live import Client, DaemonProcess, quick_plan
from tests.patience import SLACK

pytestmark = pytest.mark.real_kafka


async def hang(_exchange: Exchange) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def trickle(exchange: Exchange) -> None:
    """Answer a byte at a time, for ever."""
    await exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await exchange.send(b".")
        await asyncio.sleep(0.1)


async def fail(exchange: Exchange) -> None:
    """Answer that it is broken."""
    await exchange.answer("no", status="500 Internal Server Error")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (hang, "127.0.0.1: no answer within 4 s"),
        (trickle, "127.0.0.1: no answer within 4 s"),
        (fail, "127.0.0.1 answered 500"),
    ],
)
async def test_a_service_that_does_not_answer_is_a_fault_and_delays_nothing(
    kafka: str,
    redis_url: str,
    topic_prefix: str,
    tmp_path: Path,
    script: Callable[[Exchange], Awaitable[None]],
    why: str,
) -> None:
    """On /readyz and in the metrics after the second call; it is over when it answers."""
    is_well = False

    async def answer(exchange: Exchange) -> None:
        await (exchange.answer("OK") if is_well else script(exchange))

    async with fault_server(answer) as service, Client(kafka, topic_prefix) as client:
        daemon = DaemonProcess(
            kafka,
            redis_url,
            tmp_path,
            prefix=topic_prefix,
            ROLLOUTD_DEAD_MANS_SWITCH__URL=f"{service.url}/f4d7c0de",
            ROLLOUTD_DEAD_MANS_SWITCH__EVERY_SECONDS="5",
            ROLLOUTD_DEAD_MANS_SWITCH__TIMEOUT_SECONDS="4",
        )

        async def has_faults(count: int) -> bool:
            metrics = (await daemon.get("/metrics")).text
            return f'rolloutd_faults{{scope="dependency"}} {count}.0' in metrics

        async def until_faults(count: int) -> None:
            async with asyncio.timeout(30 * SLACK):
                while not await has_faults(count):
                    await asyncio.sleep(0.1)

        async with daemon:
            await client.command(CommandVerb.START, "checkout", plan=quick_plan("checkout"))
            await daemon.until("checkout", lambda one: one["percent"] > 0)
            await until_faults(1)
            (fault,) = (await daemon.standing())["faults"]
            assert fault["name"] == "dead_mans_switch"
            assert fault["reason"] == f"its monitoring service does not hear from us: {why}"
            assert "f4d7c0de" not in str(fault)
            assert (await daemon.standing())["working"]
            # While a call hangs.
            calls = len(service.requests)
            while len(service.requests) == calls:
                await asyncio.sleep(0.05)
            began = time.monotonic()
            await client.command(CommandVerb.ROLL_BACK, "checkout", reason="bad")
            await daemon.until("checkout", lambda one: one["percent"] == 0)
            assert time.monotonic() - began < 2 * SLACK
            is_well = True
            await until_faults(0)
        # A call that held the loop would do so until its timeout, of 4 s; a busy machine holds a
        # start for a quarter of a second.
        stalls = [line["duration_ms"] for line in daemon.log_lines("loop_stalled")]
        assert all(stall < 2_000 for stall in stalls), stalls


async def test_silence_begins_with_an_outage_and_ends_with_it(
    own_kafka: LocalKafka, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """Redis hangs: nobody counts. And a daemon that was killed says nothing."""
    heard: list[float] = []

    async def hear(exchange: Exchange) -> None:
        heard.append(time.monotonic())
        await exchange.answer("OK")

    async def heard_after(at: float, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if heard and heard[-1] > at:
                return True
            await asyncio.sleep(0.1)
        return False

    async with fault_server(hear) as service:
        daemon = DaemonProcess(
            own_kafka.bootstrap,
            own_redis.url,
            tmp_path,
            prefix=topic_prefix,
            ROLLOUTD_DEAD_MANS_SWITCH__URL=f"{service.url}/f4d7c0de",
            ROLLOUTD_DEAD_MANS_SWITCH__EVERY_SECONDS="5",
        )
        async with daemon:
            assert await heard_after(0.0, 10 * SLACK)
            own_redis.pause()
            try:
                while (await daemon.standing())["working"]:
                    await asyncio.sleep(0.1)
                silent_from = time.monotonic()
                assert not await heard_after(silent_from, 11.0), "it does no work"
            finally:
                own_redis.resume()
            back_at = time.monotonic()
            assert await heard_after(back_at, 20 * SLACK)
            daemon.kill9()
            killed_at = time.monotonic()
            assert not await heard_after(killed_at + 0.5, 6.0)
        text = daemon.log_path.read_text()
    assert "f4d7c0de" not in text
    assert "dead_mans_switch_silent" in text
