"""Whatever blinds the guardrails of a live stage is said.

In /readyz, in the metrics, and as an alert.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from schemas.terms import CommandVerb
from tests.brokers import LocalKafka, RedisServer
from tests.chaos.failing_release import FailingRelease
from tests.live import Client, DaemonProcess, quick_plan
from tests.patience import SLACK

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
#: What is promised.
SEEN_WITHIN = 5.0
ALERTED_WITHIN = 15.0


async def until(holds: Callable[[], Awaitable[bool]], seconds: float, what: str) -> float:
    """Return after how many seconds something held."""
    began = time.monotonic()
    while time.monotonic() - began < seconds * SLACK:
        if await holds():
            return time.monotonic() - began
        await asyncio.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


async def start(client: Client) -> None:
    """Bring the flag to its first stage, where it stays for an hour."""
    stages = [
        {"percent": percent, "bake": "1h", "settle": "1s", "max_bake": "3h"}
        for percent in (10, 100)
    ]
    await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=stages))


async def unwatched(client: Client) -> list[str]:
    """Return the severities of the alerts so far."""
    alerts = [event["data"] for event in await client.read("rollout.alerts")]
    return [alert["severity"] for alert in alerts if alert["kind"] == "unwatched"]


@pytest.mark.parametrize("trouble", ["is full", pytest.param("hangs", marks=pytest.mark.rare)])
async def test_a_store_that_fails_is_seen_and_alerted(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path, trouble: str
) -> None:
    """Redis hanging or full: degraded and still serving, and people are called.

    Back again, that is said too.
    """
    admin = redis.asyncio.Redis.from_url(own_redis.url)
    async with (
        DaemonProcess(kafka, own_redis.url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await start(client)

        async def works() -> bool:
            return bool((await daemon.standing())["working"])

        await until(works, 20, "working at first")
        if trouble == "hangs":
            own_redis.pause()
        else:
            await admin.config_set("maxmemory", 1)

        async def is_degraded() -> bool:
            return not await works()

        await until(is_degraded, SEEN_WITHIN, "working is false")

        async def is_alerted() -> bool:
            return await unwatched(client) == ["critical"]

        await until(is_alerted, ALERTED_WITHIN, "an alert")
        body = await daemon.standing()
        assert body["ready"] is True
        saves = body["components"]["saves"]
        assert "was last saved" in saves["reason"]
        assert body["components"]["redis"]["ready"] is (trouble == "is full")
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{daemon.url}/readyz")).status_code == 200
            assert (await http.get(f"{daemon.url}/readyz?strict=1")).status_code == 503
            assert (await http.get(f"{daemon.ops_url}/livez")).status_code == 200
        assert await percent(daemon) == 10
        metrics = (await daemon.get("/metrics")).text
        assert "rolloutd_unwatched_rollouts 1.0" in metrics
        assert 'rolloutd_component_ready{component="saves"} 0.0' in metrics
        if trouble == "hangs":
            own_redis.resume()
        else:
            await admin.config_set("maxmemory", 0)
        await until(works, 30, "working again")

        async def is_over() -> bool:
            return await unwatched(client) == ["critical", "info"]

        await until(is_over, ALERTED_WITHIN, "word that it is over")
    await admin.aclose()


async def percent(daemon: DaemonProcess) -> float:
    """Return what is served."""
    document = await daemon.rollout(FLAG)
    assert document is not None
    return float(document["percent"])


async def answer(daemon: DaemonProcess) -> dict[str, Any]:
    """Return one evaluation."""
    async with httpx.AsyncClient() as http:
        path = f"{daemon.url}/ofrep/v1/evaluate/flags/{FLAG}"
        body: dict[str, Any] = (
            await http.post(path, json={"context": {"targetingKey": "ann"}})
        ).json()
        return body


@pytest.mark.rare
async def test_brokers_that_hang_are_seen_and_the_lease_runs_out(
    own_kafka: LocalKafka, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """With frozen brokers the last decision is served, after the lease as stale.

    Thawed, all is as before.
    """
    environ = {"ROLLOUTD_HTTP__LEASE_SECONDS": "6"}
    async with (
        DaemonProcess(
            own_kafka.bootstrap, redis_url, tmp_path, prefix=topic_prefix, **environ
        ) as daemon,
        Client(own_kafka.bootstrap, topic_prefix) as client,
    ):
        await start(client)

        async def works() -> bool:
            return bool((await daemon.standing())["working"])

        await until(works, 20, "working at first")
        before = await answer(daemon)
        own_kafka.pause()

        async def kafka_is_away() -> bool:
            components = (await daemon.standing())["components"]
            return not components["kafka"]["ready"]

        async def is_stale() -> bool:
            return bool((await answer(daemon))["reason"] == "STALE")

        try:
            await until(kafka_is_away, SEEN_WITHIN, "kafka is not ready")
            await until(is_stale, 12, "answers are stale")
            body = await daemon.standing()
            assert body["ready"] is True
            assert "no broker has said" in body["components"]["serving"]["reason"]
            stale = await answer(daemon)
            assert stale["value"] == before["value"]
            assert stale["metadata"]["stale_since"]
        finally:
            own_kafka.resume()
        await until(works, 40, "working again")
        assert await answer(daemon) == before


@pytest.mark.rare
async def test_a_restart_without_redis_serves_and_calls_for_help(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """Started while Redis is away, a replica serves what the state topic says.

    And says that nobody watches.
    """
    async with (
        DaemonProcess(kafka, own_redis.url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await start(client)
        await daemon.until(FLAG, lambda document: document["percent"] == 10)
        before = await answer(daemon)
        assert await daemon.stop() == 0
        own_redis.pause()
        daemon.spawn()

        async def serves() -> bool:
            try:
                return await answer(daemon) == before
            except httpx.HTTPError:
                return False

        await until(serves, 20, "the last decision is served")
        body = await daemon.standing()
        assert (body["ready"], body["starting"], body["working"]) == (True, True, False)
        assert "Redis" in body["components"]["redis"]["reason"]

        async def is_alerted() -> bool:
            return await unwatched(client) == ["critical"]

        await until(is_alerted, 60, "an alert")
        own_redis.resume()
        await daemon.ready()

        async def is_over() -> bool:
            return await unwatched(client) == ["critical", "info"]

        await until(is_over, ALERTED_WITHIN, "word that it is over")
        assert await answer(daemon) == before


@pytest.mark.rare
async def test_strangers_who_take_the_commands_are_seen(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Foreign members of our group own every partition of the commands: nobody runs the flag."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
        FailingRelease(client, daemon) as release,
    ):
        await asyncio.sleep(5)  # longer than a claim takes to be known
        strangers = [
            AIOKafkaConsumer(
                f"{topic_prefix}rollout.commands",
                bootstrap_servers=kafka,
                group_id=f"{topic_prefix}rolloutd.commands",
                client_id=f"a-stranger-{number}",  # the assignor goes by name
                partition_assignment_strategy=(RangePartitionAssignor,),
                enable_auto_commit=False,
            )
            for number in range(4)
        ]
        try:
            await asyncio.gather(*(stranger.start() for stranger in strangers))

            async def all_are_taken() -> bool:
                metrics = (await daemon.get("/metrics")).text
                return 'rolloutd_partitions_owned{topic="commands"} 0.0' in metrics

            await until(all_are_taken, 30, "no command partition is the daemon's")
            release.fail()
            noticed = await release.is_noticed(ALERTED_WITHIN)
            assert noticed.how == "alert"
            body = await daemon.standing()
            assert body["degraded"] is True
            whys = [one["reason"] for one in body["faults"] if one["reporter"] == "visibility"]
            assert len(whys) == 1
            assert "no replica runs this flag" in whys[0]
            await asyncio.sleep(20)
            assert await unwatched(client) == ["critical"]
        finally:
            await asyncio.gather(*(stranger.stop() for stranger in strangers))
        await daemon.until("release", lambda document: document["phase"]["name"] == "rolled_back")
        async with asyncio.timeout(ALERTED_WITHIN * SLACK):
            while await unwatched(client) != ["critical", "info"]:
                await asyncio.sleep(0.5)
