"""A flag is retired: nothing of it is left but its audit log, also after a crash."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import redis.asyncio

from schemas.terms import CommandStatus, CommandVerb
from tests.live import Client, DaemonProcess, quick_plan

FLAGS = [f"flag-{number}" for number in range(3)]
FLAG = FLAGS[0]


async def until(holds: Callable[[], Awaitable[bool]], what: str, seconds: float = 60.0) -> None:
    """Return once `holds` says so. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if await holds():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not so in {seconds:.0f} s: {what}")


async def test_a_retired_flag_is_gone_everywhere_and_starts_again(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Redis, metrics and OFREP are as before it; a kill changes nothing; a start goes on."""
    store = redis.asyncio.Redis.from_url(redis_url)

    async def keys() -> set[str]:
        found = {key.decode() async for key in store.scan_iter(f"{topic_prefix}*", count=1000)}
        of_flags = {key for key in found if any(flag in key for flag in FLAGS)}
        return {key for key in of_flags if not key.endswith(":retired")}

    async def series() -> list[str]:
        metrics = (await daemon.get("/metrics")).text
        return [line for line in metrics.splitlines() if 'flag_key="flag-' in line]

    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):

        async def no_new_keys() -> bool:
            return not await keys()

        async def no_series() -> bool:
            return not await series()

        revisions = {}
        for flag in FLAGS:
            answer = await client.command(CommandVerb.START, flag, plan=quick_plan(flag))
            assert answer.status is CommandStatus.ACCEPTED, answer.reason
            refused = await client.command(CommandVerb.RETIRE, flag)
            assert refused.status is CommandStatus.REJECTED
            await client.command(CommandVerb.ABORT, flag)
        assert await daemon.ofrep_status(FLAG) == 200
        assert await series()
        for flag in FLAGS:
            answer = await client.command(CommandVerb.RETIRE, flag)
            assert answer.status is CommandStatus.ACCEPTED, answer.reason
            revisions[flag] = answer.revision
        await until(no_new_keys, "keys in Redis")
        await until(no_series, "series of metrics")
        assert await daemon.ofrep_status(FLAG) == 404
        await client.decisions("retire", len(FLAGS))
        decisions = await client.read("rollout.decisions")
        assert [one["data"]["kind"] for one in decisions if one["data"]["flag"] == FLAG] == [
            "start",
            "abort",
            "retire",
        ]

        daemon.kill9()
        await daemon.start()
        assert await daemon.ofrep_status(FLAG) == 404
        await a_late_document_changes_nothing(daemon, client)
        answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        assert answer.revision == revisions[FLAG] + 1
        assert (await daemon.until(FLAG, lambda _: True))["revision"] >= answer.revision
    await store.aclose()


async def a_late_document_changes_nothing(daemon: DaemonProcess, client: Client) -> None:
    """An old document that is written behind the tombstone does not bring the flag back."""
    old = [value for *_, value in await client.records("rollout.state") if value]
    of_flag = [value for value in old if f'"{FLAG}"'.encode() in value]
    topic = f"{client.prefix}rollout.state"
    await client.producer.send_and_wait(topic, of_flag[-1], FLAG.encode())

    async def is_buried_again() -> bool:
        records = await client.records("rollout.state")
        return len([value for *_, value in records if not value]) > len(FLAGS)

    await until(is_buried_again, "a second tombstone")
    assert await daemon.ofrep_status(FLAG) == 404
