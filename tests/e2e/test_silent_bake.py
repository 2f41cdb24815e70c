"""A bake without telemetry, on real Kafka and Redis: told, acted on, and told when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.plan import PlanDocument
from schemas.terms import CommandVerb
from tests.live import Client, DaemonProcess, Traffic, quick_plan

#: What is over is told a minute after it was told at the earliest.
pytestmark = [pytest.mark.real_kafka, pytest.mark.rare]


def long_bake(flag: str, **fields: Any) -> PlanDocument:
    """Return a plan whose first stage bakes for an hour, with a short grace time."""
    stage = {"percent": 10, "bake": "1h", "settle": "0.3s", "min_sample": 50, "max_bake": "2h"}
    return quick_plan(flag, stages=[stage], fresh_within="2s", health_grace="3s", **fields)


async def _alerts(client: Client, flag: str) -> Sequence[dict[str, Any]]:
    events = [event["data"] for event in await client.read("rollout.alerts")]
    return [alert for alert in events if alert["flag"] == flag and alert["kind"] != "unwatched"]


async def _alerts_with_end(client: Client, flag: str) -> Sequence[dict[str, Any]]:
    """Return the alerts once the last tells an end: they are published after the document."""
    async with asyncio.timeout(60):
        while (alerts := await _alerts(client, flag))[-1]["severity"] != "info":
            await asyncio.sleep(0.1)
    return alerts


async def test_a_silent_bake_is_told_rolled_back_where_the_plan_says_so_and_told_when_it_is_over(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Two flags whose apps send nothing: one waits and is told of, the other is at 0 %.

    When the apps of the first send again, that is told too, with the same key for the pager. The
    decisions have what was counted.
    """
    waits, rolls_back = "waits", "rolls-back"
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await client.command(CommandVerb.START, waits, plan=long_bake(waits))
        plan = long_bake(rolls_back, health={"no_traffic": "roll_back"})
        await client.command(CommandVerb.START, rolls_back, plan=plan)
        held = await daemon.until(waits, lambda doc: doc["hold"] == "health", 60)
        assert held["phase"]["name"] == "baking"
        assert held["phase"]["stage"] == held["visits"][0]["stage"] == 1
        # On busy cores what is counted may be stale for as long before that.
        await daemon.until(waits, lambda doc: "no_traffic" in doc["told_gaps"], 60)
        gone = await daemon.until(rolls_back, lambda doc: doc["percent"] == 0, 60)
        assert gone["phase"]["reason"].startswith("no_traffic")
        async with Traffic(client, daemon, waits):
            released = await daemon.until(waits, lambda doc: doc["hold"] is None, 180)
        assert released["phase"]["name"] == "baking"
        await client.alerts("rolled_back", 1)
        *before, last = [alert["kind"] for alert in await _alerts(client, rolls_back)]
        assert last == "rolled_back"
        assert set(before) <= {"health_gap"}  # stale before that, as above
        *all_told, over = await _alerts_with_end(client, waits)
        told = all_told[-1]
        assert {(one["kind"], one["severity"]) for one in all_told} == {("health_gap", "warning")}
        assert (over["kind"], over["severity"]) == ("health_gap", "info")
        assert {one["dedup_key"] for one in all_told} == {over["dedup_key"]}
        assert told["stage"] == over["stage"] == 1
        assert over["harm"]["exposed_contexts"] > 0
        await client.command(CommandVerb.ABORT, waits, reason="seen enough")
        await client.decisions("abort", 1)
        decisions = [event["data"] for event in await client.read("rollout.decisions")]
        ours = [one for one in decisions if one["flag"] == waits]
        assert [one["kind"] for one in ours][-1] == "abort"
        assert ours[-1]["judgement"]["exposures"]["treatment"] > 0
        assert {one["stage"] for one in ours} <= {1, None}
