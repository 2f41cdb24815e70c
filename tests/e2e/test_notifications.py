"""A real daemon notifies people of what happens to its rollouts."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.terms import CommandVerb
from tests.admission import bearer, token_line
from tests.fault_server import Exchange, fault_server
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
ACCESS = "tokens:\n" + token_line("bot") + "grants:\n  - {role: operator, tokens: [bot]}\n"
STAGES = [{"percent": 10, "bake": "1h", "settle": "0s"}, {"percent": 100, "bake": "1h"}]


class Notified:
    """The services, and daemons that notify through them."""

    def __init__(self, bootstrap: str, redis_url: str, directory: Path, prefix: str) -> None:
        self.chat, self.pager, self.mine = Slack(), PagerDuty(), Receiver()
        self._at = (bootstrap, redis_url)
        self._directory = directory
        self._prefix = prefix
        self.rules = directory / "notifications.yaml"

    def daemon(self, **environ: str) -> DaemonProcess:
        """Return a replica; the services must be running."""
        self.rules.write_text(RULES)
        access = self._directory / "access.yaml"
        access.write_text(ACCESS)
        config = self._directory / "rolloutd.yaml"
        config.write_text(
            f"sign_in: {{access_file: {access}}}\n"
            f"notifications:\n"
            f"  rules_file: {self.rules}\n"
            f"  page_url: https://rollouts.example.com\n"
            f"  channels:\n"
            f"    chat: {{type: slack, token: {TOKEN}, place: C1, base_url: '{self.chat.url}'}}\n"
            f"    pager: {{type: pagerduty, token: {TOKEN}, base_url: '{self.pager.url}'}}\n"
            f"    mine: {{type: webhook, url: '{self.mine.url}/x', secret: {SECRET}}}\n"
        )
        return DaemonProcess(
            *self._at, self._directory, prefix=self._prefix, ROLLOUTD_CONFIG=str(config), **environ
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
            assert "there is no route or channel paymentz: routes are payments, rest" in said(wrong)
            await client.command(
                CommandVerb.RESTART,
                "checkout",
                plan=quick_plan("checkout", stages=STAGES, owner="payments"),
                reason="fixed",
            )
            # No channel waits for another: either may hear of the restart first.
            await until(lambda: notified.pager.incidents == {})
            await until(lambda: notified.told("started") == ["checkout", "checkout"])


async def test_who_takes_it_is_not_asked_again(
    notified: Notified, kafka: str, topic_prefix: str
) -> None:
    """By command; the rules are read again on SIGHUP, and bad ones are told."""
    async with running(notified.chat, notified.pager, notified.mine):
        daemon = notified.daemon()
        async with daemon, Client(kafka, topic_prefix) as client:
            notified.rules.write_text(RULES.replace("3s", "1h"))
            daemon.send(signal.SIGHUP)
            await start(client, daemon, "checkout", "payments")
            await start(client, daemon, "search", "payments")
            await client.command(CommandVerb.ROLL_BACK, "checkout", reason="5xx")
            await until(lambda: notified.told("rolled_back") == ["checkout"])
            (waits,) = (await standing(daemon))["incidents"]
            assert waits["next_to"] == ["pager"]
            other = await rolloutctl(daemon, "ack", "checkouts", "--daemon", daemon.url)
            assert "there is no open incident of checkouts to take" in said(other)
            words = ("ack", "checkout", "--issuer", "ada")
            took = await rolloutctl(daemon, *words, "--daemon", daemon.url)
            assert took.stdout.startswith("taken by ada: checkout/"), took.stderr
            again = await rolloutctl(daemon, *words, "--daemon", daemon.url)
            assert (again.returncode, "ada has taken it" in said(again)) == (1, True)
            await until(lambda: "Taken by ada" in str(notified.chat.replies()))
            # Now the older incident is due before the newer one, had nobody taken it.
            notified.rules.write_text(RULES)
            daemon.send(signal.SIGHUP)
            await client.command(CommandVerb.ROLL_BACK, "search", reason="5xx")
            await until(lambda: len(notified.pager.incidents) == 1)
            (paged,) = notified.pager.shown
            assert "Nobody has taken this: search" in paged["payload"]["summary"]
            listed = (await standing(daemon))["incidents"]
            assert [one["taken_by"] for one in listed] == ["", "ada"]
            assert listed[1]["next_at"] is None
            notified.rules.write_text("version: 1\nroutes: [{name: a, to: chatt}]\n")
            daemon.send(signal.SIGHUP)
            async with asyncio.timeout(20 * SLACK):
                while "there is no channel chatt" not in (await daemon.get("/readyz")).text:
                    await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "kills", [3, pytest.param(20, marks=pytest.mark.long)], ids=["few", "many"]
)
async def test_what_happens_while_the_daemon_is_killed_is_told_once(
    notified: Notified, kafka: str, topic_prefix: str, kills: int
) -> None:
    """Kill -9 again and again while news comes; each is told, and a repeat has the same id.

    Nobody takes it, so that the next ones are told of each, too.
    """
    flags = [f"flag-{number}" for number in range(4 * kills)]
    async with running(notified.chat, notified.pager, notified.mine):
        daemon = notified.daemon()
        async with Client(kafka, topic_prefix) as client:
            async with daemon:
                for flag_key in flags:
                    await start(client, daemon, flag_key, "payments")
            notified.mine.trouble = failing(3)
            for at in range(0, len(flags), 4):
                daemon = notified.daemon()
                await daemon.start()
                for flag_key in flags[at : at + 4]:
                    await client.command(CommandVerb.ROLL_BACK, flag_key, reason="bad")
                # From before anything is told until after the next ones are.
                await asyncio.sleep(random.Random(at).uniform(0, 5))
                daemon.kill9()
            async with notified.daemon():
                await until(lambda: sorted(notified.told("rolled_back")) == sorted(flags), 60)
                await until(lambda: len(notified.pager.incidents) == len(flags), 60)
    paged = {one["payload"]["component"] for one in notified.pager.shown}
    assert paged == set(flags)
    assert sorted(notified.told("rolled_back")) == sorted(flags)
    shown = str(notified.chat.shown)
    assert [one for one in flags if f"{one} rolled back" not in shown] == []


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


#: Puts itself in place of the name server: names below `hang.test` never have an answer.
NAME_SERVER = """\
import socket, threading

look_up = socket.getaddrinfo

def getaddrinfo(host, *how, **more):
    if "hang.test" in str(host):  # text or bytes
        threading.Event().wait()
    return look_up(host, *how, **more)

socket.getaddrinfo = getaddrinfo
"""


async def test_a_name_server_that_hangs_delays_no_flag_plane(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Lookups of a dozen channels took the threads that write files and metrics, for ever."""
    (tmp_path / "sitecustomize.py").write_text(NAME_SERVER)
    (tmp_path / "flags").mkdir()
    flags = tmp_path / "flags" / "flags.json"
    config = tmp_path / "rolloutd.yaml"
    channels = "".join(
        f"    c{number}: {{type: webhook, url: 'https://h{number}.hang.test', secret: {SECRET}}}\n"
        for number in range(12)
    )
    config.write_text(
        f"planes: {{files: {{edge: {{path: {flags}}}}}}}\n"
        f"dead_mans_switch: {{url: 'https://beat.hang.test', every_seconds: 5}}\n"
        f"notifications:\n  channels:\n{channels}"
    )
    daemon = DaemonProcess(
        kafka,
        redis_url,
        tmp_path,
        prefix=topic_prefix,
        ROLLOUTD_CONFIG=str(config),
        PYTHONPATH=str(tmp_path),
    )
    async with daemon, Client(kafka, topic_prefix) as client:
        await start(client, daemon, "checkout", "payments")
        await client.command(CommandVerb.ROLL_BACK, "checkout", reason="5xx")
        async with asyncio.timeout(60 * SLACK):
            while "no answer within" not in daemon.log_path.read_text():
                await asyncio.sleep(0.1)
        await start(client, daemon, "search", "finders")
        await until(lambda: '"search"' in flags.read_text())
        assert "rolloutd_notifications_total" in (await daemon.get("/metrics")).text
        assert await daemon.stop() == 0


async def test_a_mute_survives_a_crash_and_a_machine_takes_what_is_told_then(
    notified: Notified, kafka: str, topic_prefix: str
) -> None:
    """By command with a daemon's address; another replica knows it after kill -9."""
    async with running(notified.chat, notified.pager, notified.mine):
        daemon = notified.daemon()
        async with Client(kafka, topic_prefix) as client:
            await daemon.start()
            await start(client, daemon, "checkout", "payments")
            await until(lambda: notified.told("started") == ["checkout"])
            words = ("--for", "2h", "--reason", "the database moves", "--critical")
            muted = await rolloutctl(daemon, "mute", "checkout", *words, "--daemon", daemon.url)
            assert "flags checkout. `rolloutctl notify unmute" in muted.stdout, muted.stderr
            await client.command(CommandVerb.ROLL_BACK, "checkout", reason="5xx")
            await daemon.until("checkout", lambda one: one["percent"] == 0)
            async with asyncio.timeout(20 * SLACK):
                while not (await standing(daemon))["incidents"]:
                    await asyncio.sleep(0.1)
            daemon.kill9()
            other = notified.daemon()
            async with other:
                found = await standing(other)
                assert [one["about"] for one in found["mutes"]] == ["flags checkout"]
                assert found["incidents"][0]["muted_until"] is not None
                assert notified.told("rolled_back") == []
                ended = await rolloutctl(other, "unmute", "checkout", "--daemon", other.url)
                assert ended.stdout == "not muted any more: checkout\n", ended.stderr
                await until(lambda: notified.told("rolled_back") == ["checkout"], 60)
                answer = await post(other, flag="checkout", by="ada")
                assert answer.status_code == 200, answer.text
                taken = [one["taken_by"] for one in answer.json()["incidents"]]
                assert taken == ["ada (token:bot)"]
                await until(lambda: "Taken by ada (token:bot)" in str(notified.chat.replies()))
                page = (await other.get("/ui/incidents", {"accept": "text/html"})).text
                assert "Somebody looks after every open incident." in page


async def test_no_mute_reaches_the_dead_mans_switch(
    notified: Notified, kafka: str, topic_prefix: str
) -> None:
    """It goes on while all that there is is muted."""
    beats: list[float] = []

    async def hear(exchange: Exchange) -> None:
        beats.append(time.monotonic())
        await exchange.answer("OK")

    services = running(notified.chat, notified.pager, notified.mine)
    async with services, fault_server(hear) as switch:
        daemon = notified.daemon(
            ROLLOUTD_DEAD_MANS_SWITCH__URL=f"{switch.url}/f4d7c0de",
            ROLLOUTD_DEAD_MANS_SWITCH__EVERY_SECONDS="5",
        )
        async with daemon:
            words = ("--for", "2h", "--reason", "x", "--critical")
            muted = await rolloutctl(daemon, "mute", "*", *words, "--daemon", daemon.url)
            assert muted.returncode == 0, muted.stderr
            before = len(beats)
            await until(lambda: len(beats) >= before + 2, 40)


def said(ended: subprocess.CompletedProcess[str]) -> str:
    """Return what a command complained of, on one line."""
    return " ".join(ended.stderr.split())


async def standing(daemon: DaemonProcess) -> Any:
    """Return how notifying stands."""
    return (await daemon.get("/api/v1/notifications")).json()


async def post(daemon: DaemonProcess, **document: str) -> httpx.Response:
    """Take incidents, as a machine does."""
    address = f"{daemon.url}/api/v1/notifications/acknowledge"
    async with httpx.AsyncClient() as client:
        return await client.post(address, json=document, headers=bearer("bot"))
