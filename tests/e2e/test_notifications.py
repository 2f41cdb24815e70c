"""A real daemon notifies people of what happens to its rollouts."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from schemas.terms import CommandVerb
from tests.live import Client, DaemonProcess, quick_plan
from tests.notification_services import (
    SECRET,
    TOKEN,
    PagerDuty,
    Receiver,
    Slack,
    failing,
    hanging,
    running,
)
from tests.patience import SLACK

pytestmark = pytest.mark.real_kafka

RULES = """\
version: 1
routes:
  - name: payments
    when: {owners: payments, severity: info}
    to: [chat, mine]
    escalation: on-call
  - {name: rest, to: [mine]}
escalations:
  - {name: on-call, severity: warning, steps: [{after: 3s, to: [pager]}]}
"""
STAGES = [{"percent": 10, "bake": "1h", "settle": "0s"}, {"percent": 100, "bake": "1h"}]


class Notified:
    """The services, and daemons that notify through them."""

    def __init__(self, bootstrap: str, redis_url: str, directory: Path, prefix: str) -> None:
        self.chat, self.pager, self.mine = Slack(), PagerDuty(), Receiver()
        self._at = (bootstrap, redis_url)
        self._directory = directory
        self._prefix = prefix
        self.rules = directory / "notifications.yaml"

    def daemon(self) -> DaemonProcess:
        """Return a replica; the services must be running."""
        self.rules.write_text(RULES)
        config = self._directory / "rolloutd.yaml"
        config.write_text(
            f"notifications:\n"
            f"  rules_file: {self.rules}\n"
            f"  page_url: https://rollouts.example.com\n"
            f"  channels:\n"
            f"    chat: {{type: slack, token: {TOKEN}, place: C1, base_url: '{self.chat.url}'}}\n"
            f"    pager: {{type: pagerduty, token: {TOKEN}, base_url: '{self.pager.url}'}}\n"
            f"    mine: {{type: webhook, url: '{self.mine.url}/x', secret: {SECRET}}}\n"
        )
        return DaemonProcess(
            *self._at, self._directory, prefix=self._prefix, ROLLOUTD_CONFIG=str(config)
        )

    def told(self, kind: str) -> list[str]:
        """Return the flags of which some news was told to the receiver."""
        return [one["data"]["flag"] for one in self.mine.shown if one["data"]["kind"] == kind]


@pytest.fixture
def notified(kafka: str, redis_url: str, tmp_path: Path, topic_prefix: str) -> Notified:
    """The services, not running yet."""
    return Notified(kafka, redis_url, tmp_path, topic_prefix)


async def until(is_so: Any, seconds: float = 20.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds * SLACK):
        while not is_so():
            await asyncio.sleep(0.05)


async def rolloutctl(daemon: DaemonProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `rolloutctl notify` as an operator does, while the services answer."""
    command = [str(Path(sys.executable).with_name("rolloutctl")), "notify", *words]
    return await asyncio.to_thread(
        subprocess.run,
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=daemon.environ,
    )


async def start(client: Client, daemon: DaemonProcess, flag_key: str, owner: str) -> None:
    """Start a rollout that stays in its first stage."""
    plan = quick_plan(flag_key, stages=STAGES, owner=owner)
    await client.command(CommandVerb.START, flag_key, plan=plan)
    await daemon.until(flag_key, lambda one: one["percent"] == 10)


async def test_people_hear_are_asked_again_and_hear_that_it_is_over(
    notified: Notified, kafka: str, topic_prefix: str
) -> None:
    """Chat at once, the pager when nobody comes; the next rollout ends it."""
    async with running(notified.chat, notified.pager, notified.mine):
        daemon = notified.daemon()
        async with daemon, Client(kafka, topic_prefix) as client:
            await start(client, daemon, "checkout", "payments")
            await start(client, daemon, "search", "finders")
            await until(lambda: notified.told("started") == ["checkout"])
            await client.command(CommandVerb.ROLL_BACK, "checkout", reason="5xx since 03:00")
            await until(lambda: notified.told("rolled_back") == ["checkout"])
            await until(lambda: "5xx since 03:00" in str(notified.chat.replies()))
            (texts,) = notified.chat.replies().values()
            assert "started" in texts[0]
            await until(lambda: len(notified.pager.incidents) == 1)
            listed = await rolloutctl(daemon, "list", "--daemon", daemon.url)
            assert "chat, mine, pager" in " ".join(listed.stdout.split())
            tried = await rolloutctl(daemon, "test", "payments", "--daemon", daemon.url)
            assert (tried.returncode, tried.stdout) == (0, "chat: taken\nmine: taken\n")
            wrong = await rolloutctl(daemon, "test", "paymentz", "--daemon", daemon.url)
            assert wrong.returncode == 1
            assert "is there such a route or channel?" in wrong.stderr
            await client.command(
                CommandVerb.RESTART,
                "checkout",
                plan=quick_plan("checkout", stages=STAGES, owner="payments"),
                reason="fixed",
            )
            await until(lambda: notified.pager.incidents == {})
            assert notified.told("started") == ["checkout", "checkout"]


async def test_who_takes_it_is_not_asked_again(
    notified: Notified, kafka: str, topic_prefix: str
) -> None:
    """By command; the rules are read again on SIGHUP, and bad ones are told."""
    async with running(notified.chat, notified.pager, notified.mine):
        daemon = notified.daemon()
        async with daemon, Client(kafka, topic_prefix) as client:
            notified.rules.write_text(RULES.replace("3s", "6s"))
            daemon.send(signal.SIGHUP)
            await start(client, daemon, "checkout", "payments")
            await client.command(CommandVerb.ROLL_BACK, "checkout", reason="5xx")
            await until(lambda: notified.told("rolled_back") == ["checkout"])
            took = await rolloutctl(daemon, "ack", "checkout", "--issuer", "ada")
            assert took.stdout.startswith("taken by ada: checkout.")
            notified.rules.write_text("version: 1\nroutes: [{name: a, to: chatt}]\n")
            daemon.send(signal.SIGHUP)

            async def fault() -> bool:
                found = (await daemon.get("/readyz")).text
                return "there is no channel chatt" in found

            async with asyncio.timeout(20 * SLACK):
                while not await fault():
                    await asyncio.sleep(0.1)
            await asyncio.sleep(8)
            assert notified.pager.incidents == {}
            listed = (await daemon.get("/api/v1/notifications")).json()
            assert [one["taken_by"] for one in listed["incidents"]] == ["ada"]


async def test_what_happens_while_the_daemon_is_killed_is_told_once(
    notified: Notified, kafka: str, topic_prefix: str
) -> None:
    """Kill -9 again and again while news comes; each is told, and a repeat has the same id."""
    flags = [f"flag-{number}" for number in range(12)]
    async with running(notified.chat, notified.pager, notified.mine):
        daemon = notified.daemon()
        async with Client(kafka, topic_prefix) as client:
            async with daemon:
                for flag_key in flags:
                    await start(client, daemon, flag_key, "finders")
            notified.mine.trouble = failing(3)
            for at in range(0, 12, 4):
                daemon = notified.daemon()
                await daemon.start()
                for flag_key in flags[at : at + 4]:
                    await client.command(CommandVerb.ROLL_BACK, flag_key, reason="bad")
                await asyncio.sleep(0.05 * at)
                daemon.kill9()
            async with notified.daemon():
                await until(lambda: sorted(notified.told("rolled_back")) == sorted(flags), 60)
                await asyncio.sleep(3)
    assert sorted(notified.told("rolled_back")) == sorted(flags)


async def test_a_breach_is_acted_on_at_once_while_a_channel_hangs(
    notified: Notified, kafka: str, topic_prefix: str
) -> None:
    """No decision waits for a message."""
    async with running(notified.chat, notified.pager, notified.mine):
        for service in (notified.chat, notified.pager, notified.mine):
            service.trouble = hanging(1000)
        daemon = notified.daemon()
        async with daemon, Client(kafka, topic_prefix) as client:
            for number in range(20):
                await start(client, daemon, f"flag-{number}", "payments")
            began = time.monotonic()
            await client.command(CommandVerb.ROLL_BACK, "flag-0", reason="bad")
            await daemon.until("flag-0", lambda one: one["percent"] == 0)
            assert time.monotonic() - began < 2 * SLACK
            found = (await daemon.get("/api/v1/notifications")).json()
            assert sum(one["waiting"] for one in found["channels"]) > 0
