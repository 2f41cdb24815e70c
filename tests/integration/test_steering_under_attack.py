"""A real daemon that is steered while commands, documents and topics are not as they should be."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
import redis.asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from typer.testing import CliRunner

from controller.cli.daemon import app
from schemas.terms import CommandStatus, CommandVerb
from tests.live import Client, DaemonProcess, make_command, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
FLOOD = 20_000


def slow_plan(flag: str) -> object:
    """Return a plan that stays in its first stage."""
    return quick_plan(flag, stages=[{"percent": 10, "bake": "1h"}, {"percent": 100, "bake": "1h"}])


def resident(daemon: DaemonProcess) -> int:
    """Return the bytes of memory that a daemon holds."""
    assert daemon.process is not None
    return int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]) * 4096


async def flood(client: Client, count: int) -> None:
    """Write what anybody can: bare roll backs of flags that do not exist."""
    topic = f"{client.prefix}rollout.commands"
    sent = [
        await client.producer.send(topic, b'{"verb":"roll_back"}', f"nobody-{number}".encode())
        for number in range(count)
    ]
    await asyncio.gather(*sent)


@pytest.mark.rare
async def test_a_flood_of_commands_for_no_flag_costs_nothing_that_stays(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """After 20,000 unknown commands a rollback works in seconds, and memory comes back."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        answer = await client.command(CommandVerb.START, FLAG, plan=slow_plan(FLAG))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        store = redis.asyncio.Redis.from_url(redis_url)
        rss = resident(daemon)
        await flood(client, FLOOD)
        began = time.monotonic()
        await client.publish(make_command(CommandVerb.ROLL_BACK, FLAG))
        await daemon.until(FLAG, lambda document: document["percent"] == 0)
        took = time.monotonic() - began
        for _ in range(600):
            if len(await client.records("rollout.results")) >= FLOOD + 2:
                break
            await asyncio.sleep(0.5)
        answered = time.monotonic() - began
        await asyncio.sleep(2)
        grown = (resident(daemon) - rss) / 2**20
        stalls = [line["duration_ms"] for line in daemon.log_lines("loop_stalled")]
        figures = (
            f"rolled back after {took:.2f} s, all answered after {answered:.1f} s, "
            f"+{grown:.1f} MB, stalls {stalls}"
        )
        (tmp_path / "figures.txt").write_text(figures)
        stored = [key async for key in store.scan_iter(f"{topic_prefix}*")]
        assert [key for key in stored if b"nobody-" in key] == []
        assert await store.scard(f"{topic_prefix}flags") == 1
        assert took < 30, figures  # goal: 2 s; `make siege` measures it on a quiet machine
        assert grown < 60, figures
        began = time.monotonic()
        assert await daemon.stop() == 0
        assert time.monotonic() - began < 30
        await store.aclose()


async def test_roll_back_works_when_the_command_topic_gets_more_partitions(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """From 4 to 6 while it runs.

    Every flag is rolled back, by old and new senders, and no command goes round in circles.
    """
    flags = [f"flag-{number}" for number in range(6)]
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        for flag in flags:
            await client.command(CommandVerb.START, flag, plan=slow_plan(flag))
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        try:
            await admin.start()
            await admin.create_partitions({f"{topic_prefix}rollout.commands": NewPartitions(6)})
        finally:
            await admin.close()
        for flag in flags[:3]:  # this sender has not heard of it
            await client.publish(make_command(CommandVerb.ROLL_BACK, flag))
        async with Client(kafka, topic_prefix) as fresh:
            for flag in flags[3:]:
                await fresh.publish(make_command(CommandVerb.ROLL_BACK, flag))
        for flag in flags:
            await daemon.until(flag, lambda document: document["percent"] == 0, 60)
        await asyncio.sleep(15)
        assert len(await client.records("rollout.commands")) <= 3 * len(flags)
        assert (await daemon.get("/readyz")).status_code == 200


async def test_one_unreadable_document_stops_its_flag_alone_also_at_start(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A newer release's document, and one that is damaged.

    The daemon starts, the others obey, `repair flag` ends it.
    """
    flags = ("newer", "damaged", "good")
    store = redis.asyncio.Redis.from_url(redis_url)
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        for flag in flags:
            await client.command(CommandVerb.START, flag, plan=slow_plan(flag))
        assert await daemon.stop() == 0
        key = f"{topic_prefix}ro:{{newer}}"
        document = json.loads(await store.hget(key, "document") or b"")
        newer = json.dumps(document | {"schema_version": 99, "revision": 50}).encode()
        await store.hset(key, "document", newer)
        await store.hset(
            f"{topic_prefix}ro:{{damaged}}",
            "document",
            json.dumps(document | {"revision": 50, "visits": 7}),
        )
        await daemon.start()
        assert (
            await client.command(CommandVerb.ROLL_BACK, "good")
        ).status is CommandStatus.ACCEPTED
        refused = await client.command(CommandVerb.ROLL_BACK, "newer")
        assert refused.status is CommandStatus.REJECTED
        assert "schema_version 99" in refused.reason
        assert await store.hget(key, "document") == newer
        assert (
            await client.command(CommandVerb.ROLL_BACK, "damaged")
        ).status is CommandStatus.ACCEPTED
        environ = {"ROLLOUTD_REDIS__URL": redis_url, "ROLLOUTD_REDIS__KEY_PREFIX": topic_prefix}
        environ["ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS"] = kafka
        said = await asyncio.to_thread(
            CliRunner().invoke, app, ["repair", "flag", "newer", "--yes"], env=environ
        )
        assert said.exit_code == 0, said.output
        assert "schema_version 99" in said.output
        assert "newer is discarded" in said.output
        deadline = time.monotonic() + 60
        while (
            answer := await client.command(CommandVerb.ROLL_BACK, "newer")
        ).status is CommandStatus.REJECTED:
            assert time.monotonic() < deadline, answer.reason
            await asyncio.sleep(1)
        assert await daemon.stop() == 0
    await store.aclose()


async def test_a_command_that_cannot_be_counted_with_is_refused(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A start whose traffic underflows to nothing ends no process.

    It is answered or set aside, and the next one works.
    """
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        plan = {
            "name": "p",
            "flag": FLAG,
            "stages": [{"percent": 10, "bake": "1h"}],
            "traffic": 5e-324,
        }
        poison = {"verb": "start", "issuer": "me", "plan": plan}
        topic = f"{topic_prefix}rollout.commands"
        await client.producer.send_and_wait(topic, json.dumps(poison).encode(), FLAG.encode())
        answer = await client.command(CommandVerb.START, FLAG, plan=slow_plan(FLAG))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        assert await daemon.stop() == 0
