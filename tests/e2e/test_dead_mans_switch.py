"""A monitoring service hears from a real daemon while it works, and not while it is cut off."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.brokers import LocalKafka, RedisServer
from tests.fault_server import Exchange, fault_server
from tests.live import DaemonProcess
from tests.patience import SLACK

pytestmark = pytest.mark.real_kafka


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
