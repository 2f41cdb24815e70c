"""The installed daemon on real Kafka and Redis.

A rollout that runs by itself, and one that is stopped.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest

from schemas.terms import CommandStatus, CommandVerb
from tests.brokers import free_port
from tests.live import Client, DaemonProcess, Traffic, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"


async def test_a_healthy_release_reaches_everybody(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A started release without harm passes every gate and completes."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        # Each user counts once for a stage: with few users the evidence could end before the proof.
        async with Traffic(client, daemon, FLAG, per_second=800, users=200_000):
            await daemon.until(FLAG, lambda doc: doc["percent"] == 50, 300)
            evidence = (await daemon.get(f"/api/v1/rollouts/{FLAG}/evidence")).json()
            assert [metric["metric"] for metric in evidence["metrics"]] == ["error_rate"]
            document = await daemon.until(
                FLAG,
                lambda doc: doc["phase"]["name"] in ("completed", "rolled_back", "paused"),
                300,
            )
        assert document["phase"]["name"] == "completed", document
        decisions = await client.until_read(
            "rollout.decisions", lambda found: any(one["to_percent"] == 100 for one in found)
        )
        rises = [
            (one["from_percent"], one["to_percent"])
            for one in decisions
            if one["to_percent"] > one["from_percent"]
        ]
        assert rises == [(0, 10), (10, 50), (50, 100)]
        assert all(
            one["judgement"]["verdict"] == "pass" for one in decisions if one["kind"] == "advance"
        )
        assert await daemon.stop() == 0


async def test_a_harmful_release_is_rolled_back(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Errors in treatment bring the flag to 0 % without gate, advice or person.

    With an alert that counts the harm.
    """
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG))
        async with Traffic(client, daemon, FLAG, error_rates={"on": 0.5, "off": 0.05}):
            document = await daemon.until(
                FLAG, lambda doc: doc["phase"]["name"] == "rolled_back", 30
            )
        assert document["percent"] == 0
        (alert,) = await client.alerts("rolled_back", 1)
        assert alert["harm"]["failed_requests"] > 0
        flags = (await daemon.get("/flagd/flags.json")).json()["flags"]
        assert flags[FLAG]["targeting"]["fractional"][0][1] == 0


async def test_an_audience_is_served_and_nobody_else(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """All of staff get the new layout over OFREP, others the old one, uncounted.

    A kill takes it from staff too.
    """
    plan = quick_plan(
        FLAG,
        audiences={"staff": [{"attribute": "email", "ends_with": "@corp.example"}]},
        variants={"values": {"on": {"layout": 2}, "off": {"layout": 1}}},
        stages=[
            {"percent": 100, "bake": "1h", "audience": "staff"},
            {"percent": 100, "bake": "1h"},
        ],
    )
    people = {"ann": {"email": "ann@corp.example"}, "bob": {"email": "bob@home.example"}, "cid": {}}
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):

        async def served() -> dict[str, tuple[str, int]]:
            found = {}
            async with httpx.AsyncClient() as http:
                for name, attributes in people.items():
                    asked = {"context": {"targetingKey": name, **attributes}}
                    answer = (
                        await http.post(f"{daemon.url}/ofrep/v1/evaluate/flags/{FLAG}", json=asked)
                    ).json()
                    found[name] = (answer["variant"], answer["value"]["layout"])
            return found

        answer = await client.command(CommandVerb.START, FLAG, plan=plan)
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        document = await daemon.until(FLAG, lambda doc: doc["phase"]["name"] == "baking")
        assert (document["percent"], document["stage_percent"]) == (0, 100)
        assert await served() == {
            "ann": ("on", 2),
            "bob": ("unassigned", 1),
            "cid": ("unassigned", 1),
        }
        await client.command(CommandVerb.ROLL_BACK, FLAG)
        await daemon.until(FLAG, lambda doc: doc["phase"]["name"] == "rolled_back")
        assert await served() == {"ann": ("off", 1), "bob": ("off", 1), "cid": ("off", 1)}


async def test_probes_are_answered_on_a_port_of_their_own(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """With every connection of the main port taken, health, readiness and metrics are answered."""
    ops = free_port()
    daemon = DaemonProcess(
        kafka,
        redis_url,
        tmp_path,
        prefix=topic_prefix,
        ROLLOUTD_HTTP__OPS_PORT=str(ops),
        ROLLOUTD_HTTP__MAX_CONNECTIONS="10",
        ROLLOUTD_HTTP__MAX_EVENT_STREAMS="9",
        ROLLOUTD_HTTP__MAX_CONNECTIONS_PER_CLIENT="0",
    )
    async with daemon, httpx.AsyncClient() as http, contextlib.AsyncExitStack() as stack:
        for _ in range(9):  # streams are never idle, so none of them gives way
            await stack.enter_async_context(http.stream("GET", f"{daemon.url}/ofrep/v1/sse"))
        async with httpx.AsyncClient() as probe:
            assert (await probe.get(f"{daemon.url}/healthz")).status_code == 503
            for path in ("/healthz", "/readyz", "/metrics"):
                answer = await probe.get(f"http://127.0.0.1:{ops}{path}")
                assert answer.status_code == 200, path
            assert (await probe.get(f"http://127.0.0.1:{ops}/rollouts")).status_code == 404
