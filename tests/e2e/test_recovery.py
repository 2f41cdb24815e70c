"""What `ops/running.md` says of backup, recovery and upgrade, tried on real servers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import redis.asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.state import SCHEMA_VERSION
from schemas.terms import CommandStatus, CommandVerb
from tests.fleet_life import until
from tests.live import Client, DaemonProcess, quick_plan
from tests.whole_topics import read_topic

LIVE, ENDED, GONE = "live-flag", "ended-flag", "retired-flag"
_STAGES = [{"percent": 50, "bake": "9m", "settle": "0s", "min_sample": 50}]


async def lived(client: Client) -> None:
    """Leave one flag in a stage, one that has ended and one that was retired."""
    for flag in (LIVE, ENDED, GONE):
        answer = await client.command(
            CommandVerb.START, flag, plan=quick_plan(flag, stages=_STAGES)
        )
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
    for flag in (ENDED, GONE):
        await client.command(CommandVerb.ABORT, flag)
    answer = await client.command(CommandVerb.RETIRE, GONE)
    assert answer.status is CommandStatus.ACCEPTED, answer.reason


async def served(daemon: DaemonProcess, flag: str) -> int | None:
    """Return the percentage of the flag's document, None where there is none."""
    document = await daemon.rollout(flag)
    return None if document is None else document["percent"]


async def forget(redis_url: str, prefix: str) -> None:
    """Lose everything that Redis has of a daemon."""
    async with redis.asyncio.Redis.from_url(redis_url) as store:
        keys = [key async for key in store.scan_iter(f"{prefix}*", count=1000)]
        assert keys
        await store.delete(*keys)


async def expect_as_before(daemon: DaemonProcess) -> None:
    """Expect the three flags as `lived` left them."""

    async def is_live() -> bool:
        return await served(daemon, LIVE) == 50

    await until(is_live, "the live flag is at 50 %", 60)
    assert await served(daemon, ENDED) == 0
    assert await daemon.ofrep_status(GONE) == 404


async def test_a_lost_redis_needs_an_empty_one_and_nothing_else(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Each rollout is restored from the state topic; only a live one is reported, as a warning."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await lived(client)
        assert await daemon.stop() == 0
        await forget(redis_url, topic_prefix)
        await daemon.start()
        await expect_as_before(daemon)
        (alert,) = await client.alerts("flag_broken", 1)
        assert (alert["flag"], alert["severity"]) == (LIVE, "warning")
        answer = await client.command(CommandVerb.ROLL_BACK, LIVE)
        assert answer.status is CommandStatus.ACCEPTED, answer.reason


async def test_a_copy_of_the_state_topic_is_a_backup(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Both lost, the copied records bring every rollout back; without them there is none."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await lived(client)
        backup = await read_topic(kafka, f"{topic_prefix}rollout.state")
        assert await daemon.stop() == 0
        await forget(redis_url, topic_prefix)
        await made_again(kafka, f"{topic_prefix}rollout.state")
        for last_known in (tmp_path / "last-known").glob("last-known-*"):
            last_known.unlink()
        await daemon.start()
        assert await daemon.ofrep_status(LIVE) == 404
        assert await daemon.stop() == 0
        for one in backup:
            await client.producer.send_and_wait(
                f"{topic_prefix}rollout.state", one.value, one.key, headers=list(one.headers)
            )
        await daemon.start()
        await expect_as_before(daemon)


async def made_again(kafka: str, topic: str) -> None:
    """Lose a compacted topic, and create it empty."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    try:
        await admin.start()
        await admin.delete_topics([topic])

        async def is_created() -> bool:
            compact = {"cleanup.policy": "compact"}
            made = await admin.create_topics([NewTopic(topic, 4, 1, topic_configs=compact)])
            return not made.topic_errors[0][1]

        await until(is_created, "the topic is made again", 60)
    finally:
        await admin.close()


async def test_stored_formats_of_before_are_read_and_those_of_later_are_named(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A document of a newer release stops its flag alone, and /readyz says what to do."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
        redis.asyncio.Redis.from_url(redis_url) as store,
    ):
        await lived(client)
        assert await daemon.stop() == 0
        for flag, version in ((LIVE, SCHEMA_VERSION - 1), (ENDED, SCHEMA_VERSION + 1)):
            key = f"{topic_prefix}ro:{{{flag}}}"
            stored = await store.hget(key, "document")
            assert stored is not None
            document = json.loads(stored)
            document["schema_version"] = version
            if version < SCHEMA_VERSION:
                document = {k: v for k, v in document.items() if k not in ("authors", "four_eyes")}
            await store.hset(key, "document", json.dumps(document))
        await daemon.start()

        async def is_live() -> bool:
            return await served(daemon, LIVE) == 50

        await until(is_live, "the document of an earlier release is read", 60)

        async def is_named() -> bool:
            faults = (await daemon.standing())["faults"]
            why = [one["reason"] for one in faults if one["name"] == ENDED]
            return any(re.search(f"schema_version {SCHEMA_VERSION + 1}", one) for one in why)

        await until(is_named, "the document of a newer release is named", 60)
        answer = await client.command(CommandVerb.ROLL_BACK, LIVE)
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
