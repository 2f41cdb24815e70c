"""A flood of commands for flags that nobody has: it costs nothing that stays, and holds up no honest roll back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import redis.asyncio

from schemas.terms import CommandVerb
from tests.live import Client, DaemonProcess, make_command, quick_plan

pytestmark = pytest.mark.real_kafka

FLOOD = 20_000
HONEST = "honest"


def resident_mb(daemon: DaemonProcess) -> float:
    """Return the daemon's resident memory."""
    assert daemon.process is not None
    return int(Path(f"/proc/{daemon.process.pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


async def keys_of(client: redis.asyncio.Redis, prefix: str) -> int:
    """Return how many keys the daemon has in Redis, the entries of its index of flags counted too."""
    return len(await client.keys(f"{prefix}*")) + int(await client.scard(f"{prefix}flags"))


async def test_commands_for_unknown_flags_cost_nothing_that_stays(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path, redis_client: redis.asyncio.Redis
) -> None:
    """Twenty thousand bare commands leave no key and no memory behind; each gets its answer, an honest one at once."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        stage = [{"percent": 100, "bake": "1h", "settle": "0.3s", "min_sample": 50}]
        plan = quick_plan(HONEST, stages=stage, guardrails=[{"metric": "error_rate", "limit": 0.2}])
        assert (await client.command(CommandVerb.START, HONEST, plan=plan)).status == "accepted"
        await asyncio.sleep(2)
        memory, keys = resident_mb(daemon), await keys_of(redis_client, topic_prefix)
        topic = f"{topic_prefix}rollout.commands"
        for number in range(FLOOD):
            await client.producer.send(topic, b'{"verb":"roll_back"}', f"junk-{number}".encode())
        await client.producer.flush()
        began = time.monotonic()
        await client.publish(make_command(CommandVerb.ROLL_BACK, HONEST))
        await daemon.until(HONEST, lambda one: one["phase"]["name"] == "rolled_back", 60)
        seconds = time.monotonic() - began
        deadline = time.monotonic() + 60
        while len(await client.records("rollout.results")) < FLOOD and time.monotonic() < deadline:
            await asyncio.sleep(1)
        assert len(await client.records("rollout.results")) >= FLOOD, "every command gets a result"
        print(
            f"honest roll back after {seconds:.2f} s; memory {memory:.0f} -> {resident_mb(daemon):.0f} MB; "
            f"keys {keys} -> {await keys_of(redis_client, topic_prefix)}"
        )
        assert await keys_of(redis_client, topic_prefix) <= keys + 2
        assert resident_mb(daemon) < memory + 40
        assert seconds < 10.0, "2 s on a quiet machine; it was two minutes"
        assert await daemon.stop() == 0
