"""A wrong command by any Kafka client is shown wherever an operator looks, with the reason."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from controller.settings import KafkaSettings
from schemas.terms import CommandVerb
from tests import cli_process
from tests.live import Client, DaemonProcess, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
HTML = {"accept": "text/html"}
NOT_JSON, UNKNOWN_FLAG, UNKNOWN_VERB = "not JSON", "has no rollout", "verb"


async def until(shows: Callable[[], Awaitable[str]], *words: str) -> str:
    """Return what is shown once all words are in it."""
    deadline, shown = time.monotonic() + 30, ""
    while time.monotonic() < deadline:
        shown = " ".join((await shows()).split())
        if all(word in shown for word in words):
            return shown
        await asyncio.sleep(0.5)
    raise AssertionError(f"{words} expected: {shown}")


async def test_what_is_no_good_command_is_shown_everywhere(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """No JSON, a flag without a rollout, and a verb that there is not: as a script would send them.

    In the list of commands, on the page, in the log, and of the flag in its status.
    """
    topics = KafkaSettings(bootstrap_servers=kafka, topic_prefix=topic_prefix)

    async def printed(*arguments: str) -> str:
        _, out, err = await cli_process.rolloutctl(topics, *arguments, COLUMNS="500")
        return out + err

    stage = {"percent": 10, "bake": "1h", "settle": "1s", "max_bake": "3h"}
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        plan = quick_plan(FLAG, stages=[stage, {**stage, "percent": 100}])
        await client.command(CommandVerb.START, FLAG, plan=plan)
        producer = AIOKafkaProducer(bootstrap_servers=kafka)
        await producer.start()
        for key, value in (
            (FLAG, b"roll it back!"),
            ("new-chekout", b'{"verb": "roll_back"}'),
            (FLAG, b'{"verb": "explode"}'),
        ):
            await producer.send_and_wait(topics.topic("commands"), value, key.encode())
        await producer.stop()

        async def listed() -> str:
            return await printed("commands")

        text = await until(listed, "accepted start new-checkout by ", "new-chekout", "unknown verb")
        assert "rollback new-chekout by unnamed: the flag has no rollout" in text
        assert "no JSON" in text or "JSON" in text
        refused = await printed("commands", "--refused", "--json")
        events = [json.loads(line) for line in refused.splitlines()]
        assert sorted(str(one["data"]["flag"]) for one in events) == sorted(
            ["None", FLAG, "new-chekout"]
        )
        assert all(one["data"]["status"] == "rejected" for one in events)
        assert "last refused" in await printed("status", FLAG)
        assert "unknown verb" in await printed("commands", FLAG, "--since", "1h")
        assert "no command in the last 1s" in await printed("commands", FLAG, "--since", "1s")

        async def fleet() -> str:
            return (await daemon.get("/", HTML)).text

        by = '<span class="dim">by <bdi>unnamed</bdi></span></li>'
        why = "<bdi>new-chekout</bdi>: <span><bdi>the flag has no rollout"
        page = await until(fleet, "Refused commands", why, by, "JSON")
        assert "This replica is in trouble" not in page

        async def rollout() -> str:
            return (await daemon.get(f"/ui/rollouts/{FLAG}", HTML)).text

        await until(rollout, "refused: a command")
        results = (await daemon.get(f"/api/v1/rollouts/{FLAG}/results")).json()["results"]
        assert [one["data"]["status"] for one in results] == ["rejected", "accepted"]
        lines = daemon.log_lines("command_refused")
        assert {line.get("flag_key") for line in lines} == {None, "new-chekout"}
        assert all(line["reason"] for line in lines)
