"""Two environments on one Kafka and one Redis.

The second is refused, the first goes on untouched.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import redis.asyncio

from schemas.terms import CommandStatus, CommandVerb
from tests.live import Client, DaemonProcess, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
EXIT_CONFIG = 78
#: A stage long enough to stay in it.
STAGES = [{"percent": 1, "bake": "1h"}, {"percent": 100, "bake": "1h"}]


async def refused(daemon: DaemonProcess, seconds: float = 240.0) -> str:
    """Start a daemon that ends by itself because it is configured wrongly; return its log."""
    daemon.spawn()
    assert daemon.process is not None
    deadline = time.monotonic() + seconds
    while (code := daemon.process.poll()) is None:
        assert time.monotonic() < deadline, f"it runs:\n{daemon.log_tail()}"
        await asyncio.sleep(0.05)
    daemon._unguard()
    assert code == EXIT_CONFIG, daemon.log_tail()
    return daemon.log_path.read_text()


async def test_another_environment_on_our_redis_is_refused(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Staging with production's key prefix does not start, and says why.

    Production stays at 1 %.
    """
    staging = DaemonProcess(
        kafka,
        redis_url,
        tmp_path,
        prefix=f"{topic_prefix}staging.",
        ROLLOUTD_REDIS__KEY_PREFIX=topic_prefix,
        ROLLOUTD_ENVIRONMENT="staging",
    )
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as production,
        Client(kafka, topic_prefix) as operator,
    ):
        answer = await operator.command(
            CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES)
        )
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await production.until(FLAG, lambda document: document["percent"] == 1)
        why = await refused(staging)
        assert f"belongs to topic prefix '{topic_prefix}'" in why
        assert "set redis.key_prefix" in why
        document = await production.rollout(FLAG)
        assert document is not None
        assert (document["percent"], document["phase"]["name"]) == (1, "baking")
        answer = await operator.command(CommandVerb.ROLL_BACK, FLAG)
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await production.until(FLAG, lambda document: document["percent"] == 0)


@pytest.mark.rare
async def test_prefixes_that_nobody_set_differ(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """With nothing but topic prefixes, as Kafka needs them, staging's full promotion is its own."""
    no_prefix = {"ROLLOUTD_REDIS__KEY_PREFIX": ""}
    production = DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix, **no_prefix)
    staging = DaemonProcess(
        kafka,
        redis_url,
        tmp_path,
        prefix=f"{topic_prefix}staging.",
        ROLLOUTD_ENVIRONMENT="staging",
        **no_prefix,
    )
    for daemon in (production, staging):
        del daemon._environ["ROLLOUTD_REDIS__KEY_PREFIX"]
    async with (
        production,
        staging,
        Client(kafka, topic_prefix) as operator,
        Client(kafka, f"{topic_prefix}staging.") as tester,
    ):
        for client in (operator, tester):
            answer = await client.command(
                CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES)
            )
            assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await tester.command(CommandVerb.PROMOTE_FULL, FLAG, reason="tried")
        await staging.until(FLAG, lambda document: document["percent"] == 100)
        document = await production.rollout(FLAG)
        assert document is not None
        assert document["percent"] == 1
        (state,) = {event["source"] for event in await tester.read("rollout.state")}
        assert state == "/rolloutd/staging"
        assert {event["source"] for event in await tester.read("rollout.decisions")} == {state}
        assert {event["source"] for event in await tester.read("rollout.results")} == {state}


async def test_another_environment_on_our_topics_is_refused(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """On the same topics with a Redis of its own it is refused too; a former name is taken over."""
    own = f"own-{topic_prefix}"
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as production,
        Client(kafka, topic_prefix) as operator,
    ):
        await operator.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES))
        await production.until(FLAG, lambda document: document["percent"] == 1)
        assert await production.stop() == 0
    environ = {"ROLLOUTD_ENVIRONMENT": "live"}
    why = await refused(
        DaemonProcess(
            kafka,
            redis_url,
            tmp_path,
            prefix=topic_prefix,
            ROLLOUTD_REDIS__KEY_PREFIX=own,
            **environ,
        )
    )
    assert f"the rollout of {FLAG} of environment 'production'" in why
    assert "add it to former_environments" in why
    renamed = DaemonProcess(
        kafka,
        redis_url,
        tmp_path,
        prefix=topic_prefix,
        ROLLOUTD_FORMER_ENVIRONMENTS='["production"]',
        **environ,
    )
    async with renamed:
        document = await renamed.rollout(FLAG)
        assert document is not None
        assert document["percent"] == 1
    client = redis.asyncio.Redis.from_url(redis_url)
    assert await client.hget(f"{topic_prefix}identity", "environment") == b"live"
    await client.aclose()


@pytest.mark.rare
async def test_a_new_name_leaves_no_data_behind(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A renamed environment whose default prefix would change learns which prefix has its data."""
    production = DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix)
    renamed = DaemonProcess(
        kafka,
        redis_url,
        tmp_path,
        prefix=topic_prefix,
        ROLLOUTD_ENVIRONMENT="live",
        ROLLOUTD_FORMER_ENVIRONMENTS='["production"]',
    )
    for daemon in (production, renamed):
        del daemon._environ["ROLLOUTD_REDIS__KEY_PREFIX"]
    async with production, Client(kafka, topic_prefix) as operator:
        await operator.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES))
        await production.until(FLAG, lambda document: document["percent"] == 1)
        assert await production.stop() == 0
    why = await refused(renamed)
    kept = f"rolloutd:{topic_prefix}:production:"
    assert f"set redis.key_prefix to '{kept}'" in why
    renamed._environ["ROLLOUTD_REDIS__KEY_PREFIX"] = kept
    async with renamed:
        document = await renamed.rollout(FLAG)
        assert document is not None
        assert document["percent"] == 1
