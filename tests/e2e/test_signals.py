"""Monitoring systems lower the flags of a real daemon, once each, and nothing raises them again."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.web.bucketing import Generation, bucketer
from schemas.terms import CommandVerb
from tests.brokers import LocalKafka
from tests.fault_server import Exchange, fault_server
from tests.live import Client, DaemonProcess, quick_plan
from tests.patience import SLACK
from tests.prometheus import watching

pytestmark = pytest.mark.real_kafka

TOKEN = "0123456789abcdef0123456789abcdef"
RULES = """\
version: 1
rules:
  - {name: down, when: {labels: {alertname: Down}}, flags: checkout-*, do: roll_back}
  - {name: slow, when: {labels: {alertname: Slow}}, flags: checkout-*, do: hold}
  - {name: storm, when: {labels: {alertname: Storm}}, flags: checkout-*, do: step_back}
  - {name: newest, when: {labels: {alertname: Sla}}, flags: recent, most: 1, do: roll_back}
"""
#: Kafka gives the partitions of a killed replica to the next one so soon.
QUICK_TO_REJOIN = {
    "ROLLOUTD_KAFKA__SESSION_TIMEOUT_SECONDS": "2",
    "ROLLOUTD_KAFKA__HEARTBEAT_INTERVAL_SECONDS": "0.5",
    "ROLLOUTD_KAFKA__REVOKE_SECONDS": "1",
}
STAGES = [{"percent": 10, "bake": "1h", "settle": "0s"}, {"percent": 100, "bake": "1h"}]


class Monitored(DaemonProcess):
    """A daemon with an endpoint for an Alertmanager."""

    def __init__(
        self, bootstrap: str, redis_url: str, directory: Path, prefix: str, **environ: str
    ) -> None:
        self.rules = directory / "rules.yaml"
        self.rules.write_text(RULES)
        config = directory / "rolloutd.yaml"
        config.write_text(
            f"hooks:\n"
            f"  rules_file: {self.rules}\n"
            f"  endpoints: {{prod: {{source: alertmanager, token: {TOKEN}}}}}\n"
        )
        super().__init__(
            bootstrap, redis_url, directory, prefix=prefix, ROLLOUTD_CONFIG=str(config), **environ
        )

    async def deliver(
        self, name: str, status: str = "firing", *, condition: str = "one", began: int = 0
    ) -> httpx.Response:
        """Deliver one alert as an Alertmanager does; `began` tells firings apart."""
        started = datetime.fromtimestamp(began or int(time.time()), UTC)
        alert = {
            "status": status,
            "labels": {"alertname": name, "service": "checkout"},
            "annotations": {"summary": f"{name} of checkout"},
            "startsAt": started.isoformat(),
            "fingerprint": condition,
        }
        async with httpx.AsyncClient() as client:
            return await client.post(
                f"{self.url}/hooks/alertmanager/prod",
                json={"version": "4", "alerts": [alert]},
                headers={"authorization": f"Bearer {TOKEN}"},
                timeout=5,
            )

    async def signals(self) -> list[dict[str, Any]]:
        """Return what it says of the newest signals."""
        found: list[dict[str, Any]] = (await self.get("/api/v1/signals")).json()["signals"]
        return found

    async def until_done(self, words: str, seconds: float = 30.0) -> dict[str, Any]:
        """Return the newest signal about which this was done."""
        deadline = time.monotonic() + seconds * SLACK
        while time.monotonic() < deadline:
            for one in await self.signals():
                if any(words in done for done in one["done"]):
                    return one
            await asyncio.sleep(0.05)
        raise AssertionError(f"never done: {words}: {await self.signals()}\n{self.log_tail()}")


async def start(client: Client, daemon: DaemonProcess, flag_key: str) -> None:
    """Start a rollout that stays in its first stage."""
    await client.command(CommandVerb.START, flag_key, plan=quick_plan(flag_key, stages=STAGES))
    await daemon.until(flag_key, lambda one: one["percent"] == 10)


async def test_an_alert_lowers_its_flags_and_recovery_raises_nothing(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Within a second of its arrival; other flags go on; repeats do nothing."""
    daemon = Monitored(kafka, redis_url, tmp_path, topic_prefix)
    async with daemon, Client(kafka, topic_prefix) as client:
        for flag_key in ("checkout-a", "checkout-b", "search"):
            await start(client, daemon, flag_key)
        began = int(time.time())
        sent_at = time.monotonic()
        assert (await daemon.deliver("Down", began=began)).status_code == 202
        for flag_key in ("checkout-a", "checkout-b"):
            await daemon.until(flag_key, lambda one: one["percent"] == 0)
        took = time.monotonic() - sent_at
        assert took < 1.0 * SLACK
        for _ in range(5):
            assert (await daemon.deliver("Down", began=began)).status_code == 202
        assert (await daemon.deliver("Down", "resolved", began=began)).status_code == 202
        over = await daemon.until_done("stays at 0 %")
        assert over["status"] == "resolved"
        for flag_key in ("checkout-a", "checkout-b"):
            ended = await daemon.rollout(flag_key)
            assert ended is not None
            assert (ended["phase"]["name"], ended["percent"]) == ("rolled_back", 0)
            assert ended["revision"] == 2
        other = await daemon.rollout("search")
        assert other is not None
        assert other["percent"] == 10
        alerts = await client.alerts("signal", 4)
        assert {one["flag"] for one in alerts} == {"checkout-a", "checkout-b"}
        assert "Most suspect: 1. checkout-" in alerts[0]["summary"]
        listed = _list(daemon)
        assert "Down of checkout" in listed
        assert "rolled back to 0 %" in listed


def _list(daemon: DaemonProcess) -> str:
    """Return what `rolloutctl signal list` shows."""
    command = [str(Path(sys.executable).with_name("rolloutctl")), "signal", "list"]
    return subprocess.run(
        [*command, "--daemon", daemon.url], check=True, capture_output=True, text=True, timeout=60
    ).stdout


async def served_zero_at(daemon: DaemonProcess, flag_key: str) -> float:
    """Return the Unix time from which apps got control for a user of the treatment."""
    bucket = bucketer(flag_key, Generation.V3)
    user = next(f"user-{n}" for n in range(1_000_000) if bucket(f"user-{n}") < 10)
    url = f"{daemon.url}/ofrep/v1/evaluate/flags/{flag_key}"
    async with httpx.AsyncClient(timeout=5) as client:
        while True:
            asked_at = time.time()
            answer = await client.post(url, json={"context": {"targetingKey": user}})
            if answer.json()["variant"] == "off":
                return asked_at
            await asyncio.sleep(0.005)


def tell(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Print a figure, also where the test passes."""
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")


async def test_a_real_alertmanager_lowers_a_flag_when_the_app_breaks(
    kafka: str,
    redis_url: str,
    topic_prefix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prometheus probes an app whose events say nothing; when it answers again the flag stays."""
    is_broken = False

    async def app(exchange: Exchange) -> None:
        await exchange.answer(
            "no", status="503 Service Unavailable"
        ) if is_broken else await exchange.answer("yes")

    daemon = Monitored(kafka, redis_url, tmp_path, topic_prefix)
    async with daemon, Client(kafka, topic_prefix) as client, fault_server(app) as served:
        await start(client, daemon, "checkout-a")
        webhook = f"{daemon.url}/hooks/alertmanager/prod"
        with watching(f"{served.url}/", webhook, TOKEN, tmp_path):
            await asyncio.sleep(3)
            before = await daemon.rollout("checkout-a")
            assert before is not None
            assert before["percent"] == 10, "it answers"
            broke_at, is_broken = time.time(), True
            async with asyncio.timeout(60 * SLACK):
                zero_at = await served_zero_at(daemon, "checkout-a")
            is_broken = False
            await daemon.until_done("stays at 0 %", 60)
        ended = await daemon.rollout("checkout-a")
        assert ended is not None
        assert (ended["phase"]["name"], ended["percent"]) == ("rolled_back", 0)
        told = [one["data"] for one in await client.read("rollout.signals")]
        arrived = min(one["received_at"] for one in told if one["status"] == "firing")
        arrived_at = datetime.fromisoformat(arrived).timestamp()
        took = f"{(zero_at - arrived_at) * 1000:.0f} ms from the webhook to 0 % served"
        tell(capsys, f"{took}; {zero_at - broke_at:.1f} s after the app broke")
        assert zero_at - arrived_at < 1.0 * SLACK


async def test_a_gate_is_held_while_an_alert_fires_and_rules_are_read_again(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Frozen by the endpoint, and no longer when it is over. SIGHUP reads the rules."""
    daemon = Monitored(kafka, redis_url, tmp_path, topic_prefix)
    async with daemon, Client(kafka, topic_prefix) as client:
        await start(client, daemon, "checkout-a")
        began = int(time.time())
        await daemon.deliver("Slow", began=began)
        frozen = await daemon.until("checkout-a", lambda one: one["freeze"] is not None)
        assert frozen["freeze"]["issuer"] == "signal:alertmanager/prod"
        assert frozen["percent"] == 10
        await daemon.deliver("Slow", "resolved", began=began)
        await daemon.until("checkout-a", lambda one: one["freeze"] is None)

        daemon.rules.write_text("rules: [{name: x}]")
        daemon.send(signal.SIGHUP)
        async with asyncio.timeout(20 * SLACK):
            while not daemon.log_lines("signal_rules_refused"):
                await asyncio.sleep(0.1)
        daemon.rules.write_text(RULES.replace("name: down", "name: outage"))
        daemon.send(signal.SIGHUP)
        async with asyncio.timeout(20 * SLACK):
            while not daemon.log_lines("signal_rules_read"):
                await asyncio.sleep(0.1)
        await daemon.deliver("Down", began=began + 1)
        await daemon.until("checkout-a", lambda one: one["percent"] == 0)
        reasons = [one["reason"] for one in await client.decisions("roll_back", 1)]
        assert any("outage: alertmanager/prod says" in reason for reason in reasons)


async def test_the_flag_that_rose_last_goes_back_and_the_others_stay(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Of three that rose within the time, by a rule for one."""
    daemon = Monitored(kafka, redis_url, tmp_path, topic_prefix)
    async with daemon, Client(kafka, topic_prefix) as client:
        for flag_key in ("first", "second", "third"):
            await start(client, daemon, flag_key)
            await asyncio.sleep(1.1)
        await daemon.deliver("Sla")
        await daemon.until("third", lambda one: one["percent"] == 0)
        await daemon.until_done("third: rolled back")
        for flag_key in ("first", "second"):
            one = await daemon.rollout(flag_key)
            assert one is not None
            assert one["percent"] == 10


async def test_a_storm_over_several_replicas_acts_once(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Each condition may be read by another replica, and all of them at once."""
    replicas = [Monitored(kafka, redis_url, tmp_path, topic_prefix) for _ in range(2)]
    stages = [{"percent": percent, "bake": "1h", "settle": "0s"} for percent in (5, 10, 20, 50)]
    async with replicas[0] as one, replicas[1] as other, Client(kafka, topic_prefix) as client:
        flags = [f"checkout-{number}" for number in range(4)]
        for flag_key in flags:
            plan = quick_plan(flag_key, stages=stages)
            await client.command(CommandVerb.START, flag_key, plan=plan)
            await client.command(CommandVerb.PROMOTE, flag_key, to_stage="50%")
            for replica in (one, other):
                await replica.until(flag_key, lambda one: one["percent"] == 50)
        began = int(time.time())
        for first in range(0, 60, 20):
            answers = await asyncio.gather(
                *(
                    replica.deliver("Storm", condition=f"storm-{number}", began=began)
                    for number in range(first, first + 20)
                    for replica in (one, other)
                )
            )
            assert {answer.status_code for answer in answers} == {202}
        for flag_key in flags:
            await one.until(flag_key, lambda one: one["percent"] < 50)
        async with asyncio.timeout(60 * SLACK):  # until every condition was handled
            while len({each["condition"] for each in await one.signals()}) < 60:
                await asyncio.sleep(0.2)
        for flag_key in flags:
            lowered = await one.rollout(flag_key)
            assert lowered is not None
            assert (lowered["percent"], lowered["phase"]["name"]) == (20, "baking")


@pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=pytest.mark.long)])
async def test_a_crash_between_acceptance_and_action_loses_and_doubles_nothing(
    kafka: str,
    redis_url: str,
    topic_prefix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rounds: int,
) -> None:
    """What was answered with 2xx is acted on after the restart, and once, however often it comes.

    Also when its sender repeats it after the restart.
    """
    daemon = Monitored(kafka, redis_url, tmp_path, topic_prefix, **QUICK_TO_REJOIN)
    dice, killed_at = random.Random(1), dict[str, float]()
    async with daemon, Client(kafka, topic_prefix) as client:
        for number in range(rounds):
            flag_key = f"checkout-{number}"
            await start(client, daemon, flag_key)
            answer = await daemon.deliver("Down", condition=flag_key, began=number + 1)
            assert answer.status_code == 202
            # A tenth of a second is about what acting takes: kills meet each step of it.
            await asyncio.sleep(dice.choice((0.0, dice.uniform(0, 0.1))))
            daemon.kill9()
            killed_at[flag_key] = time.time()
            await daemon.start()
            again = await daemon.deliver("Down", condition=flag_key, began=number + 1)
            assert again.status_code == 202
            await daemon.until(flag_key, lambda one: one["percent"] == 0)
        async with asyncio.timeout(60 * SLACK):  # what is served may be ahead of its decision
            while killed_at.keys() - {
                one["flag"] for one in await client.decisions("roll_back", rounds)
            }:
                await asyncio.sleep(0.1)
        events = [
            one
            for one in await client.read("rollout.decisions")
            if one["data"]["kind"] == "roll_back"
        ]
        lowered = {(one["data"]["flag"], one["data"]["revision"]) for one in events}
        after = {
            one["data"]["flag"]
            for one in events
            if datetime.fromisoformat(one["time"]).timestamp() > killed_at[one["data"]["flag"]]
        }
        with capsys.disabled():
            sys.stdout.write(
                f"{rounds} kills, {len(after)} before the action: {len(lowered)} acts\n"
            )
        assert sorted(flag for flag, _ in lowered) == sorted(killed_at)
        assert after, "every kill came too late to prove anything"


async def test_what_kafka_does_not_take_is_not_accepted(
    own_kafka: LocalKafka, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """503 while it is frozen, within the time that senders wait; taken when it is back."""
    daemon = Monitored(own_kafka.bootstrap, redis_url, tmp_path, topic_prefix)
    async with daemon, Client(own_kafka.bootstrap, topic_prefix) as client:
        await start(client, daemon, "checkout-a")
        own_kafka.pause()
        try:
            began = time.monotonic()
            answer = await daemon.deliver("Down", began=7)
            assert answer.status_code == 503
            assert time.monotonic() - began < 2.0 * SLACK
            assert "send it again" in answer.json()["error"]
        finally:
            own_kafka.resume()
        deadline = time.monotonic() + 60 * SLACK
        while (await daemon.deliver("Down", began=7)).status_code != 202:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.5)
        await daemon.until("checkout-a", lambda one: one["percent"] == 0)
        text = json.dumps(await daemon.signals())
        assert "rolled back to 0 %" in text
    assert TOKEN not in daemon.log_path.read_text()
