"""A plan that asks a system of its own at each gate: only its `pass`, given in time, passes it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from schemas.terms import CommandStatus, CommandVerb
from tests.fault_server import fault_server
from tests.gate_webhooks import GAPS, GateService
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.notification_services import SECRET
from tests.patience import SLACK

pytestmark = pytest.mark.real_kafka

FLAG: Final = "checkout"
#: One of each kind: the integration test has them all.
BAD: Final = ("hang", "500", "redirect", "too large", "wrong type", "no JSON", "other word")


def settings(tmp_path: Path, url: str) -> str:
    """Return the path of a configuration with one endpoint."""
    endpoint = {"url": url, "secret": SECRET, "timeout_seconds": 1}
    path = tmp_path / "rolloutd.yaml"
    path.write_text(yaml.safe_dump({"gate_webhooks": {"endpoints": {"audit": endpoint}}}))
    return str(path)


def plan(**webhook: Any) -> Any:
    """Return a plan of two gates that asks the endpoint every second."""
    asked = {"endpoint": "audit", "every": "1s", **webhook}
    return quick_plan(FLAG, gate_webhooks=[asked], stages=_stages(50))


async def until_gap(daemon: DaemonProcess, kind: str, seconds: float = 60 * SLACK) -> None:
    """Return once the evidence has this gap, and no other of a webhook."""
    deadline, found = time.monotonic() + seconds, set[str]()
    while time.monotonic() < deadline:
        answer = await daemon.get(f"/api/v1/rollouts/{FLAG}/evidence")
        gaps = answer.json()["gaps"] if answer.status_code == 200 else []
        found = {one["kind"] for one in gaps if one["kind"].startswith("webhook_")}
        if found == {kind}:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not {kind} but {found}\n{daemon.log_tail()}")


async def until_asked(service: GateService, count: int, seconds: float = 60 * SLACK) -> None:
    """Return once the endpoint was asked so often."""
    deadline = time.monotonic() + seconds
    while len(service.asked) < count:
        assert time.monotonic() < deadline, f"asked {len(service.asked)} of {count} times"
        await asyncio.sleep(0.05)


async def test_only_its_pass_lets_a_gate_pass(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Each bad answer holds, `hold` holds, and a kill -9 in between forgets and repeats nothing."""
    service = GateService(BAD[0])
    async with fault_server(service.answer) as server:
        daemon = DaemonProcess(
            kafka,
            redis_url,
            tmp_path,
            prefix=topic_prefix,
            ROLLOUTD_CONFIG=settings(tmp_path, server.url),
        )
        async with daemon, Client(kafka, topic_prefix) as client:
            await client.command(CommandVerb.START, FLAG, plan=plan())
            async with Traffic(client, daemon, FLAG):
                await daemon.until(FLAG, lambda one: one["hold"] == "health")
                for mode in BAD:
                    service.mode = mode
                    await until_gap(daemon, GAPS[mode])
                    await _stays(daemon, service)
                service.mode = "hold"
                await daemon.until(FLAG, lambda one: one["hold"] == "webhook")
                await _stays(daemon, service)
                view = await daemon.get(f"/api/v1/rollouts/{FLAG}/evidence")
                (reply,) = view.json()["webhooks"]
                assert (reply["answer"], reply["words"]) == ("hold", "it is set to hold")

                service.mode = "hang"  # a question is under way when the process dies
                await until_asked(service, len(service.asked) + 1)
                daemon.kill9()
                service.mode = "pass"
                await asyncio.sleep(1)
                assert not [one for one in service.asked if one["percent"] == 50]
                daemon.spawn()
                await daemon.ready()
                await daemon.until(FLAG, lambda one: one["percent"] == 50)
                await daemon.until(FLAG, lambda one: one["phase"]["name"] == "completed")
            (complete,) = await client.decisions("complete", 1)
            (advance,) = await client.decisions("advance", 1)
    assert service.faults == []
    assert len(set(service.ids)) == len(service.ids)
    for decision in (advance, complete):
        (reply,) = decision["judgement"]["webhooks"]
        assert (reply["endpoint"], reply["answer"]) == ("audit", "pass")
        assert decision["gate_id"] in {one["gate_id"] for one in service.asked}
    assert advance["gate_id"] != complete["gate_id"]


async def _stays(daemon: DaemonProcess, service: GateService) -> None:
    """Let it be asked twice more, and check that the flag stays where it is."""
    await until_asked(service, len(service.asked) + 2)
    rollout = await daemon.rollout(FLAG)
    assert rollout is not None
    assert (rollout["percent"], service.mode) == (10, service.mode)


@pytest.mark.parametrize(
    ("on_fail", "phase", "percent"), [("pause", "paused", 10), ("roll_back", "rolled_back", 0)]
)
async def test_fail_does_what_the_plan_says(
    kafka: str,
    redis_url: str,
    topic_prefix: str,
    tmp_path: Path,
    on_fail: str,
    phase: str,
    percent: int,
) -> None:
    """By default a person decides; a person who resumes asks it about a new gate."""
    service = GateService("fail")
    async with fault_server(service.answer) as server:
        daemon = DaemonProcess(
            kafka,
            redis_url,
            tmp_path,
            prefix=topic_prefix,
            ROLLOUTD_CONFIG=settings(tmp_path, server.url),
        )
        async with daemon, Client(kafka, topic_prefix) as client:
            await client.command(CommandVerb.START, FLAG, plan=plan(on_fail=on_fail))
            async with Traffic(client, daemon, FLAG):
                document = await daemon.until(FLAG, lambda one: one["phase"]["name"] == phase)
                assert document["percent"] == percent
                (alert,) = await client.alerts(phase, 1)
                assert "gate webhook audit answers fail: it is set to fail" in json.dumps(alert)
                if phase == "paused":
                    service.mode = "pass"
                    await client.command(CommandVerb.RESUME, FLAG)
                    await daemon.until(FLAG, lambda one: one["percent"] == 50)
    gates = {one["gate_id"] for one in service.asked if one["percent"] == 10}
    assert len(gates) == (2 if phase == "paused" else 1)


async def test_a_start_is_told_of_an_endpoint_that_the_settings_do_not_have(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """At once, and not when the first bake is over."""
    daemon = DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix)
    async with daemon, Client(kafka, topic_prefix) as client:
        await client.command(CommandVerb.START, FLAG, plan=plan())
        (alert,) = await client.alerts("preflight", 1)
    assert "gate webhook audit has no address" in str(alert)


async def test_no_pass_outlives_the_plan_that_it_was_about(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Of two endpoints one holds the gate; `apply` asks the other again, whatever `every` is."""
    quick, slow = GateService("hold"), GateService("pass")
    path = tmp_path / "rolloutd.yaml"
    async with fault_server(quick.answer) as one, fault_server(slow.answer) as other:
        endpoints = {
            name: {"url": server.url, "secret": SECRET, "timeout_seconds": 1}
            for name, server in (("quick", one), ("slow", other))
        }
        path.write_text(yaml.safe_dump({"gate_webhooks": {"endpoints": endpoints}}))
        daemon = DaemonProcess(
            kafka, redis_url, tmp_path, prefix=topic_prefix, ROLLOUTD_CONFIG=str(path)
        )
        asked = [{"endpoint": "quick", "every": "1s"}, {"endpoint": "slow", "every": "30m"}]
        first = quick_plan(FLAG, gate_webhooks=asked, stages=_stages(50))
        changed = quick_plan(FLAG, gate_webhooks=asked, stages=_stages(80))
        async with daemon, Client(kafka, topic_prefix) as client:
            await client.command(CommandVerb.START, FLAG, plan=first)
            async with Traffic(client, daemon, FLAG):
                await until_asked(slow, 1)
                await until_asked(quick, 1)
                slow.mode = "hold"
                await _apply(client, daemon, changed)
                await until_asked(slow, 2)
                quick.mode = "pass"
                await until_asked(quick, len(quick.asked) + 2)
                stays = await daemon.rollout(FLAG)
    assert stays is not None
    assert stays["percent"] == 10, "the earlier `pass` was about another plan"
    before, after = slow.asked[:2]
    assert before["gate_id"] == after["gate_id"], "the gate has stayed open"
    assert before["plan"]["version"] != after["plan"]["version"]
    assert (before["next_percent"], after["next_percent"]) == (50, 80)


def _stages(second: int) -> list[dict[str, Any]]:
    """Return a stage of 10 % and one of another percentage."""
    return [
        {"percent": percent, "bake": "1s", "settle": "0.3s", "min_sample": 50, "max_bake": "10m"}
        for percent in (10, second)
    ]


async def _apply(client: Client, daemon: DaemonProcess, changed: Any) -> None:
    """Apply a plan; a hold may come in between, and then the revision is another one."""
    async with asyncio.timeout(60 * SLACK):
        while True:
            seen = await daemon.rollout(FLAG)
            assert seen is not None
            revision = seen["revision"]
            result = await client.command(
                CommandVerb.APPLY, FLAG, plan=changed, expected_revision=revision
            )
            if result.status is CommandStatus.ACCEPTED:
                return
