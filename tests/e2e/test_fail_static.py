"""What is served right after a start, with real servers that do not answer then."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.terms import CommandVerb
from tests.brokers import LocalKafka, RedisServer
from tests.live import Client, DaemonProcess, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
USERS = [f"user-{number}" for number in range(200)]
AT_HALF = [{"percent": 50, "bake": "300s", "settle": "1s", "min_sample": 50, "max_bake": "400s"}]


async def evaluated(daemon: DaemonProcess, user: str, http: httpx.AsyncClient) -> dict[str, Any]:
    """Return OFREP's answer for one user; empty where there is none."""
    path = f"{daemon.url}/ofrep/v1/evaluate/flags/{FLAG}"
    try:
        answer = await http.post(path, json={"context": {"targetingKey": user}}, timeout=2)
    except httpx.HTTPError:
        return {}
    return answer.json() if answer.status_code == 200 else {}


async def served(daemon: DaemonProcess, users: Sequence[str] = USERS) -> dict[str, Any]:
    """Return the variant of each user who gets one."""
    async with httpx.AsyncClient() as http:
        answers = {user: await evaluated(daemon, user, http) for user in users}
    return {user: answer["variant"] for user, answer in answers.items() if answer}


async def until_served(daemon: DaemonProcess, reason: str, seconds: float = 90.0) -> dict[str, Any]:
    """Return the first answer with this reason. Raises AssertionError with the log's end."""
    deadline = time.monotonic() + seconds
    async with httpx.AsyncClient() as http:
        while (answer := await evaluated(daemon, USERS[0], http)).get("reason") != reason:
            assert time.monotonic() < deadline, f"last: {answer}\n{daemon.log_tail()}"
            await asyncio.sleep(0.02)
        return answer


async def until_kept(directory: Path, percent: float, seconds: float = 30.0) -> None:
    """Return once the only file below holds the flag at this percentage.

    It is written some time after what it holds is served: half a second, and as long as the disk
    takes.
    """
    deadline = time.monotonic() + seconds
    while True:
        content = "".join(path.read_text() for path in directory.glob("last-known/*.jsonl"))
        documents = [json.loads(line) for line in content.splitlines() if line.startswith("{")]
        kept = {one["flag"]: one["percent"] for one in documents if "flag" in one}
        if kept == {FLAG: percent}:
            return
        assert time.monotonic() < deadline, content
        await asyncio.sleep(0.02)


@asynccontextmanager
async def watched(daemon: DaemonProcess) -> AsyncIterator[list[dict[str, Any]]]:
    """Collect every answer to one user after another, from now on."""
    answers: list[dict[str, Any]] = []

    async def watch() -> None:
        async with httpx.AsyncClient() as http:
            while True:
                for user in USERS:
                    answer = await evaluated(daemon, user, http)
                    if answer:
                        answers.append({"user": user, **answer})
                    else:
                        await asyncio.sleep(0.005)

    task = asyncio.create_task(watch())
    try:
        yield answers
    finally:
        task.cancel()
        await asyncio.wait([task])


async def start_at_half(client: Client, daemon: DaemonProcess) -> dict[str, Any]:
    """Start a rollout that stays at 50 %, and return each user's variant."""
    await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=AT_HALF))
    await daemon.until(FLAG, lambda document: document["percent"] == 50)
    variants = await served(daemon)
    assert set(variants.values()) == {"on", "off"}
    return variants


async def test_a_restart_in_an_outage_of_everything_changes_no_variant(
    own_kafka: LocalKafka, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """By its file, then with Redis, then with Kafka: each user keeps the variant throughout."""
    daemon = DaemonProcess(own_kafka.bootstrap, own_redis.url, tmp_path, prefix=topic_prefix)
    async with daemon, Client(own_kafka.bootstrap, topic_prefix) as client:
        before = await start_at_half(client, daemon)
        await until_kept(tmp_path, 50)
        daemon.kill9()
        own_kafka.pause()
        own_redis.pause()
        try:
            async with watched(daemon) as answers:
                daemon.spawn()
                first = await until_served(daemon, "STALE")
                assert await served(daemon) == before
                body = await daemon.standing()
                listed = (await daemon.get("/rollouts")).json()
                own_redis.resume()
                for _ in range(3):
                    assert await served(daemon) == before
                own_kafka.resume()
                await until_served(daemon, "SPLIT")
                await daemon.ready()
                assert await served(daemon) == before
        finally:
            own_redis.resume()
            own_kafka.resume()
    assert (body["ready"], body["starting"], body["working"]) == (True, True, False)
    assert first["metadata"]["stale_since"] == listed["stale_since"]
    assert [one["flag"] for one in listed["rollouts"]] == [FLAG]
    assert {one["variant"] == before[one["user"]] for one in answers} == {True}


@pytest.mark.rare
async def test_a_roll_back_elsewhere_is_known_after_a_restart_without_kafka(
    own_kafka: LocalKafka, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """The file of a replica that was away says 50 %; Redis knows better, and is asked first."""
    away, other = (
        DaemonProcess(own_kafka.bootstrap, own_redis.url, tmp_path / name, prefix=topic_prefix)
        for name in ("away", "other")
    )
    for name in ("away", "other"):
        (tmp_path / name).mkdir()
    async with away, other, Client(own_kafka.bootstrap, topic_prefix) as client:
        await start_at_half(client, away)
        await until_kept(tmp_path / "away", 50)
        away.kill9()
        await client.command(CommandVerb.ROLL_BACK, FLAG)
        other.kill9()
        own_kafka.pause()
        try:
            async with watched(away) as answers:
                away.spawn()
                await until_served(away, "STALE")
                assert set((await served(away)).values()) == {"off"}
        finally:
            own_kafka.resume()
    assert {one["variant"] for one in answers} == {"off"}


@pytest.mark.rare
async def test_a_decision_of_another_replica_is_served_while_kafka_is_away(
    own_kafka: LocalKafka, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """It is saved in Redis, and the brokers cannot carry it; here `max_bake` makes it."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = (
        DaemonProcess(own_kafka.bootstrap, own_redis.url, tmp_path / name, prefix=topic_prefix)
        for name in ("one", "other")
    )
    stages = [{**AT_HALF[0], "bake": "6s", "max_bake": "7s"}]
    async with one, other, Client(own_kafka.bootstrap, topic_prefix) as client:
        plan = quick_plan(FLAG, stages=stages)
        await client.command(CommandVerb.START, FLAG, plan=plan)
        for daemon in (one, other):
            await daemon.until(FLAG, lambda document: document["percent"] == 50)
        own_kafka.pause()
        try:
            for daemon in (one, other):
                await daemon.until(FLAG, lambda document: document["phase"]["name"] == "paused")
        finally:
            own_kafka.resume()
