"""A real Prometheus sees that an objective is missed; flags that rose lately go back one by one."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path

import pytest

from schemas.terms import CommandVerb
from tests.e2e.test_signals import served_zero_at, tell
from tests.fault_server import Exchange, fault_server
from tests.live import Client, DaemonProcess, quick_plan
from tests.patience import SLACK
from tests.prometheus import scraping

pytestmark = pytest.mark.real_kafka

CHECKS = """\
version: 1
checks:
  - name: checkout-available
    prometheus: app_available
    at_least: 0.99
    every: 1s
    misses: 2
    of: 3
    again: 6s
    service: checkout
"""
RULES = """\
version: 1
rules:
  - name: newest-first
    when: {hooks: checks/*}
    flags: recent
    within: 30m
    most: 1
    order: newest
    do: roll_back
"""
STAGES = [{"percent": 10, "bake": "1h", "settle": "0s"}, {"percent": 100, "bake": "1h"}]


@pytest.mark.rare
async def test_the_newest_of_three_flags_goes_back_first(
    kafka: str,
    redis_url: str,
    topic_prefix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a look in between; once it is met again the third stays, and nothing rises."""
    available = ["1"]

    async def metrics(exchange: Exchange) -> None:
        text = f"app_available {available[0]}\n"
        await exchange.answer(text, headers={"Content-Type": "text/plain; version=0.0.4"})

    (tmp_path / "checks.yaml").write_text(CHECKS)
    (tmp_path / "rules.yaml").write_text(RULES)
    async with fault_server(metrics) as app:
        target = app.url.removeprefix("http://")
        with scraping([target], tmp_path) as prometheus:
            config = tmp_path / "rolloutd.yaml"
            config.write_text(
                f"hooks: {{rules_file: {tmp_path / 'rules.yaml'}}}\n"
                f"checks:\n"
                f"  file: {tmp_path / 'checks.yaml'}\n"
                f"  prometheus: {{url: '{prometheus.url}'}}\n"
            )
            daemon = DaemonProcess(
                kafka, redis_url, tmp_path, prefix=topic_prefix, ROLLOUTD_CONFIG=str(config)
            )
            async with daemon, Client(kafka, topic_prefix) as client:
                for flag_key in ("oldest", "middle", "newest"):
                    plan = quick_plan(flag_key, stages=STAGES)
                    await client.command(CommandVerb.START, flag_key, plan=plan)
                    await daemon.until(flag_key, lambda one: one["percent"] == 10)
                    await asyncio.sleep(0.2)
                await asyncio.sleep(5)
                assert [await _percent(daemon, one) for one in ("oldest", "newest")] == [10, 10]
                missed_at, available[0] = time.time(), "0.5"
                zero_at = await served_zero_at(daemon, "newest")
                await daemon.until("newest", lambda one: one["percent"] == 0)
                first = time.monotonic()
                told = [one["data"] for one in await client.read("rollout.signals")]
                arrived = min(one["received_at"] for one in told if one["status"] == "firing")
                took = zero_at - datetime.fromisoformat(arrived).timestamp()
                after = zero_at - missed_at
                figure = f"{took * 1000:.0f} ms from the signal to 0 % served"
                tell(capsys, f"{figure}; {after:.1f} s after the objective was missed")
                assert took < 1.0 * SLACK
                assert await _percent(daemon, "middle") == 10
                await daemon.until("middle", lambda one: one["percent"] == 0)
                assert time.monotonic() - first > 3
                available[0] = "1"
                await asyncio.sleep(12 * SLACK)
                assert [await _percent(daemon, one) for one in ("oldest", "middle", "newest")] == [
                    10,
                    0,
                    0,
                ]
                signals = (await daemon.get("/api/v1/signals")).json()["signals"]
                assert signals[0]["title"].startswith("checkout-available is met again: 1")


async def _percent(daemon: DaemonProcess, flag_key: str) -> float:
    found = await daemon.rollout(flag_key)
    assert found is not None
    percent: float = found["percent"]
    return percent
