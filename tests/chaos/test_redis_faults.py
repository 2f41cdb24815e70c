"""Redis is full, hangs, is slow, is restored or damaged while a release fails: no silence."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.brokers import RedisServer
from tests.chaos.failing_release import FailingRelease
from tests.chaos.test_kafka_operations import releasing
from tests.patience import SLACK

pytestmark = pytest.mark.real_kafka


async def degraded_components(
    release: FailingRelease, within_seconds: float = 6.0
) -> dict[str, str]:
    """Return the components that /readyz says do not work, once there is one."""
    body: dict[str, Any] = {}
    for _ in range(int(within_seconds * SLACK / 0.2)):
        body = await release.readiness()
        trouble = {
            name: part["reason"] for name, part in body["components"].items() if not part["ready"]
        }
        if body["degraded"] and trouble:
            return trouble
        await asyncio.sleep(0.2)
    raise AssertionError(f"nothing said within {within_seconds:g} s: {body}")


@pytest.mark.rare
async def test_a_full_redis_is_said_and_survived(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """Without memory Redis takes no totals.

    People are alerted, and once there is memory the release is rolled back.
    """
    async with (
        releasing(kafka, own_redis.url, topic_prefix, tmp_path) as release,
        redis.asyncio.Redis.from_url(own_redis.url) as client,
    ):
        await client.config_set("maxmemory", "1")
        release.fail()
        noticed = await release.is_noticed()
        assert noticed.how in ("alert", "rolled_back")
        assert await degraded_components(release)
        await client.config_set("maxmemory", "0")
        await release.daemon.until(
            release.flag_key, lambda one: one["phase"]["name"] == "rolled_back"
        )


async def test_a_redis_that_hangs_is_said_and_survived(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """While Redis answers nothing the alert goes through Kafka alone."""
    async with releasing(kafka, own_redis.url, topic_prefix, tmp_path) as release:
        own_redis.pause()
        try:
            release.fail()
            noticed = await release.is_noticed()
            assert noticed.how == "alert"
            assert "redis" in await degraded_components(release)
        finally:
            own_redis.resume()
        await release.daemon.until(
            release.flag_key, lambda one: one["phase"]["name"] == "rolled_back"
        )


@pytest.mark.rare
async def test_a_redis_that_takes_two_seconds_an_answer(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """A server that stalls for two seconds repeatedly delays a rollback or is reported."""
    async with (
        releasing(kafka, own_redis.url, topic_prefix, tmp_path) as release,
        redis.asyncio.Redis.from_url(own_redis.url) as client,
    ):
        busy = asyncio.create_task(_keep_busy(client))
        try:
            release.fail()
            await release.is_noticed()
        finally:
            busy.cancel()
            await asyncio.wait([busy])


async def _keep_busy(client: redis.asyncio.Redis) -> None:
    """Hold the server's one thread for two seconds at a time."""
    while True:
        await client.client_pause(2_000)
        await asyncio.sleep(2.05)


@pytest.mark.rare
async def test_a_redis_that_falls_back_to_an_old_copy(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """After a failover to a stale replica the percentage is the last decided.

    And failures are still seen.
    """
    async with releasing(kafka, own_redis.url, topic_prefix, tmp_path) as release:
        own_redis.kill9()
        copy = tmp_path / "copy"
        shutil.copytree(own_redis.directory, copy)
        own_redis.start()
        await asyncio.sleep(3)
        own_redis.kill9()
        shutil.rmtree(own_redis.directory)
        shutil.copytree(copy, own_redis.directory)
        own_redis.start()
        release.fail()
        await release.is_noticed(within_seconds=15.0)


@pytest.mark.rare
@pytest.mark.parametrize(
    "damage",
    [
        "partition_field",
        "document",
        "partition_format",
        "type",
    ],
)
async def test_damage_stops_what_is_damaged_and_says_so(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path, damage: str
) -> None:
    """One damaged field of a partition or another flag's document blinds nobody silently.

    Nor does a restart.
    """
    async with (
        releasing(kafka, own_redis.url, topic_prefix, tmp_path) as release,
        redis.asyncio.Redis.from_url(own_redis.url) as client,
    ):
        release.daemon.kill9()  # first, as its next save would write over what is damaged here
        partition = (await client.keys(f"{topic_prefix}agg:*outcomes/1*"))[0]
        if damage == "partition_field":
            await client.hset(partition, "counted", "many")
        elif damage == "partition_format":
            await client.hset(partition, "format", "99")
        elif damage == "document":
            await client.hset(
                f"{topic_prefix}ro:{{other}}",
                mapping={"document": '{"schema_version":99}', "token": "7"},
            )
            await client.sadd(f"{topic_prefix}flags", "other")
        else:
            await client.delete(partition)
            await client.set(partition, "not a hash")
        await release.daemon.start()
        release.fail()
        await release.is_noticed(within_seconds=25.0)  # a killed member's session lasts 10 s
        body = await release.readiness()
        assert body["faults"], "what was damaged is named"
