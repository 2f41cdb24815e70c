"""A rollout that nobody sees: every tool says so at once, and its alert ends also after a kill."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from controller.settings import KafkaSettings
from schemas.terms import CommandVerb
from tests import cli_process
from tests.brokers import RedisServer
from tests.live import Client, DaemonProcess, quick_plan
from tests.patience import SLACK

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
HTML = {"accept": "text/html"}


async def told(client: Client, *severities: str, seconds: float) -> list[dict[str, Any]]:
    """Return the alerts `unwatched` once their severities are these."""
    deadline = time.monotonic() + seconds * SLACK
    found: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        events = [event["data"] for event in await client.read("rollout.alerts")]
        found = [one for one in events if one["kind"] == "unwatched"]
        if [one["severity"] for one in found] == list(severities):
            return found
        await asyncio.sleep(0.5)
    raise AssertionError(f"{severities} expected: {found}")


async def rolloutctl(kafka: KafkaSettings, *arguments: str) -> str:
    """Return what the command prints, on lines as long as they are."""
    code, out, err = await cli_process.rolloutctl(kafka, *arguments, COLUMNS="500")
    assert code == 0, err
    return " ".join(out.split())


async def test_an_alert_of_a_killed_replica_is_shown_and_ended_by_the_next(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """Redis hangs, `unwatched` comes, and the replica is killed: only Kafka knows of the alert.

    Terminal, API and page say it at once. While Redis hangs nobody says that it is over; when the
    next replica sees the rollout again, it does.
    """
    topics = KafkaSettings(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    stage = {"percent": 10, "bake": "1h", "settle": "1s", "max_bake": "3h"}
    async with (
        DaemonProcess(kafka, own_redis.url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        plan = quick_plan(FLAG, stages=[stage, {**stage, "percent": 100}])
        await client.command(CommandVerb.START, FLAG, plan=plan)
        status = await rolloutctl(topics, "status", FLAG)
        assert "UNWATCHED" not in status
        own_redis.pause()
        (alert,) = await told(client, "critical", seconds=25)
        nobody = "10 % is served and nobody sees what it does"

        for flags in ([], ["--daemon", daemon.url]):
            status = await rolloutctl(topics, "status", FLAG, *flags)
            assert "UNWATCHED since " in status
            assert nobody in status
            assert "to fix it" in status
            table = await rolloutctl(topics, "status", *flags)
            assert f"UNWATCHED: {nobody}" in table
        document = json.loads(await rolloutctl(topics, "status", FLAG, "--json"))
        assert document["unwatched"]["why"] == alert["summary"].removeprefix(f"{FLAG}: ")
        view = (await daemon.get(f"/api/v1/rollouts/{FLAG}")).json()
        assert nobody in view["summary"]["unwatched"]["why"]
        page = ""
        for _ in range(15):  # the order of the list is worked out every ten seconds
            page = " ".join((await daemon.get("/", HTML)).text.split())
            if "Needs you" in page:
                break
            await asyncio.sleep(1)
        assert "Needs you" in page
        assert f"unwatched: {nobody}" in page
        assert "Unwatched since" in (await daemon.get(f"/ui/rollouts/{FLAG}", HTML)).text

        daemon.kill9()
        daemon.spawn()
        await asyncio.sleep(5)
        own_redis.resume()
        found = await told(client, "critical", "info", seconds=90)
        assert found[0]["dedup_key"] == found[1]["dedup_key"]
        assert found[1]["summary"].startswith(f"{FLAG}: no longer unwatched")
        status = await rolloutctl(topics, "status", FLAG)
        assert "UNWATCHED" not in status
