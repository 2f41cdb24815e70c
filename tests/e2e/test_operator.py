"""The installed `rolloutctl` against a real daemon, Kafka and Redis.

What an operator types, sees and gets as exit codes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controller.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_NO_RESULT,
    EXIT_REJECTED,
    EXIT_UNREACHABLE,
)
from schemas.result import Result
from tests.live import Client, DaemonProcess, Traffic, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
#: The machine may be busy; what is waited for comes within a second on one that is not.
PATIENCE = "60"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed


class Operator:
    """A person at a shell."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self._environ = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("ROLLOUTD_")
            },
            "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "ROLLOUTD_KAFKA__TOPIC_PREFIX": prefix,
            "TERM": "xterm-256color",
        }

    async def spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a call."""
        program = str(Path(sys.executable).with_name("rolloutctl"))
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            program,
            *arguments,
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )

    async def __call__(self, *arguments: str) -> Outcome:
        """Return how a call ended.

        Nothing that is piped has colour, and no log line is among it.
        """
        process = await self.spawn(*arguments)
        out, err = (text.decode() for text in await process.communicate())
        assert "\x1b" not in out + err
        assert "Traceback" not in err, err
        assert process.returncode is not None
        return Outcome(process.returncode, out, err)


@pytest.fixture
def rolloutctl(kafka: str, topic_prefix: str) -> Operator:
    """The command, pointed at this test's topics."""
    return Operator(kafka, topic_prefix)


@pytest.fixture
async def daemon(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[DaemonProcess]:
    """A running daemon."""
    async with DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as process:
        yield process


def write_plan(directory: Path, flag_key: str = FLAG, **stage: Any) -> str:
    """Write a plan whose first stage is as told, and return the file's name."""
    plan = quick_plan(flag_key).model_dump(mode="json")
    plan["stages"][0].update(max_bake="3h", **stage)
    path = directory / f"{flag_key}.json"
    path.write_text(json.dumps(plan))
    return str(path)


async def expect_history(rolloutctl: Operator) -> None:
    """Expect each decision of the rollout below, and its alert, from the audit log."""
    newest = await rolloutctl("decisions", FLAG)
    lines = newest.out.splitlines()
    assert [line.split()[2] for line in lines if not line.startswith(" ")] == [
        "start",
        "pause",
        "resume",
        "hold",
        "resume",
        "roll",
    ]
    last = await rolloutctl("decisions", FLAG, "--last", "1", "--json")
    assert (last.document["type"], last.document["data"]["kind"]) == (
        "io.rolloutd.decision.v1",
        "roll_back",
    )
    alerts = await rolloutctl("alerts", FLAG)
    assert "critical" in alerts.out
    assert re.search("rolled back from 10 % to 0 % by [^:]+: it smells", alerts.out)


async def expect_drafts(rolloutctl: Operator) -> None:
    """Expect an explanation and a changelog of the rollout below, from the template."""
    story = await rolloutctl("explain", FLAG)
    assert story.code == 0, story.err
    told = " ".join(story.out.split())
    assert "it smells (by " in told
    assert "A person or a system requested it: " in told
    assert "from the built-in template, no model" in story.out
    written = await rolloutctl("changelog", FLAG, "--since", "1d")
    assert written.code == 0, written.err
    assert f"## {FLAG}" in written.out
    assert "**roll back** 10 % → 0 %" in written.out
    assert (await rolloutctl("changelog", "--since", "2001-01-01", "--json")).document[
        "author"
    ] == "template"
    assert (await rolloutctl("changelog", FLAG, "--since", "2999-01-01")).code == EXIT_REJECTED


async def test_a_rollout_is_steered_from_the_shell(
    daemon: DaemonProcess, rolloutctl: Operator, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Start, pause, resume, refuse, freeze, roll back.

    Each verb is answered, and status shows what it led to.
    """
    started = await rolloutctl(
        "start", write_plan(tmp_path, bake="1h"), "--as", "ada", "--timeout", PATIENCE
    )
    assert started.code == 0, started.err
    assert started.out.startswith(f"accepted  start {FLAG} (revision 1)\n")
    assert "baking, 10 % served, stage 1 of 3, revision 1" in started.out

    table = await rolloutctl("status")
    assert table.out.splitlines()[1].split()[:3] == [FLAG, "baking", "1/3"]

    paused = await rolloutctl(
        "pause", FLAG, "--reason", "lunch", "--as", "ada", "--timeout", PATIENCE
    )
    assert paused.code == 0, paused.err
    view = await rolloutctl("status", FLAG)
    assert "safe to advance? no: an operator paused it: lunch" in view.out
    assert "pause by ada" in view.out

    stale = await rolloutctl("resume", FLAG, "--expected-revision", "1", "--timeout", PATIENCE)
    assert stale.code == EXIT_REJECTED
    assert "stale: revision 1 was expected, it is 2" in stale.out

    resumed = await rolloutctl("resume", FLAG, "--timeout", PATIENCE, "--json")
    assert (resumed.code, resumed.document["status"], resumed.document["revision"]) == (
        0,
        "accepted",
        3,
    )
    Result.model_validate(resumed.document)

    frozen = await rolloutctl(
        "freeze", "--all", "--reason", "incident 7", "--timeout", PATIENCE, "--json"
    )
    assert [json.loads(line)["flag"] for line in frozen.out.splitlines()] == [FLAG]
    state = (await rolloutctl("status", FLAG, "--json")).document
    assert state["safe_to_advance"] == "no"
    assert "incident 7" in state["frozen"]
    assert state["state"]["revision"] == 4
    assert (await rolloutctl("unfreeze", "--all", "--timeout", PATIENCE)).code == 0

    back = await rolloutctl("rollback", FLAG, "--reason", "it smells", "--timeout", PATIENCE)
    assert back.code == 0
    assert "rolled back, 0 % served" in back.out
    assert (
        await rolloutctl("promote", FLAG, "--reason", "again", "--timeout", PATIENCE)
    ).code == EXIT_REJECTED

    none = await rolloutctl("freeze", "--all", "--reason", "x")
    assert (none.code, "no rollout to freeze; one that starts later is not" in none.err) == (
        0,
        True,
    )
    table = await rolloutctl("history", FLAG)
    assert table.out.splitlines()[1].split("it smells ")[1].startswith("(by ")

    await expect_history(rolloutctl)
    await expect_drafts(rolloutctl)


async def test_an_approval_is_bound_to_what_was_seen(
    daemon: DaemonProcess, rolloutctl: Operator, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Approving shows what stands and approves exactly that.

    A revision seen earlier is refused as stale.
    """
    plan = write_plan(tmp_path, approval="required")
    async with Client(kafka, topic_prefix) as client:
        assert (await rolloutctl("start", plan, "--timeout", PATIENCE)).code == 0
        async with Traffic(client, daemon, FLAG, per_second=400):
            waiting = await daemon.until(
                FLAG, lambda document: document["phase"]["name"] == "awaiting_approval"
            )
            stale = await rolloutctl(
                "approve", FLAG, "--expected-revision", "1", "--timeout", PATIENCE
            )
            assert (stale.code, "stale" in stale.out) == (EXIT_REJECTED, True), stale.out
            approved = await rolloutctl(
                "approve", FLAG, "--reason", "looks good", "--timeout", PATIENCE
            )
    assert approved.code == 0, approved.out + approved.err
    assert "safe to advance? yes" in approved.out
    assert f"approving revision {waiting['revision']}" in " ".join(approved.out.split())
    assert "PROVEN SAFE?" in approved.out
    assert f"accepted  approve {FLAG} (revision {waiting['revision'] + 1})" in approved.out


@pytest.mark.rare
async def test_an_id_given_twice_is_carried_out_once(
    daemon: DaemonProcess, rolloutctl: Operator, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Repeating a command with its id gives the same answer again, and one decision."""
    plan = write_plan(tmp_path, bake="1h")
    assert (await rolloutctl("start", plan, "--timeout", PATIENCE)).code == 0
    calls = [
        await rolloutctl("step-back", FLAG, "--id", "order-66", "--timeout", PATIENCE, "--json")
        for _ in range(2)
    ]
    calls += [
        await rolloutctl(
            "promote",
            FLAG,
            "--reason",
            "a test",
            "--id",
            "order-67",
            "--timeout",
            PATIENCE,
            "--json",
        )
        for _ in range(2)
    ]
    assert [call.code for call in calls] == [EXIT_REJECTED, EXIT_REJECTED, 0, 0]
    assert calls[0].out == calls[1].out
    assert calls[2].out == calls[3].out
    kinds = [
        json.loads(line)["data"]["kind"]
        for line in (await rolloutctl("decisions", FLAG, "--json")).out.splitlines()
    ]
    assert (kinds[0], kinds.count("advance")) == ("start", 1)


async def test_a_watcher_sees_what_happens_and_leaves_quietly(
    daemon: DaemonProcess, rolloutctl: Operator, tmp_path: Path
) -> None:
    """Watch tells where things stand, then each transition once, with what to do.

    Ctrl-C exits 130 without a word.
    """
    assert (
        await rolloutctl("start", write_plan(tmp_path, bake="1h"), "--timeout", PATIENCE)
    ).code == 0
    watcher = await rolloutctl.spawn("watch", FLAG)
    assert watcher.stdout is not None
    async with asyncio.timeout(60):
        first = (await watcher.stdout.readline()).decode()
        assert first.startswith(f"now       {FLAG}  baking, 10 % served")
        assert (await rolloutctl("kill", FLAG, "--timeout", PATIENCE)).code == 0
        lines = [(await watcher.stdout.readline()).decode() for _ in range(2)]
        assert [line.split()[0] for line in lines] == ["decision", "alert"]
        assert "roll back" in lines[0]
        assert "find the cause" in lines[1]
        watcher.send_signal(signal.SIGINT)
        out, err = await watcher.communicate()
    assert (watcher.returncode, out, err) == (EXIT_INTERRUPTED, b"", b"")


@pytest.mark.rare
async def test_without_a_daemon_the_outcome_is_unknown_and_later_carried_out(
    daemon: DaemonProcess, rolloutctl: Operator, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """No result in time exits 3 and says how to ask again.

    The daemon, once back, carries the command out, once.
    """
    assert (
        await rolloutctl("start", write_plan(tmp_path, bake="1h"), "--timeout", PATIENCE)
    ).code == 0
    assert await daemon.stop() == 0
    call = await rolloutctl("pause", FLAG, "--id", "night-1", "--timeout", "1")
    assert call.code == EXIT_NO_RESULT
    assert "may still be carried out" in call.err
    assert "--id night-1" in call.err
    raising = await rolloutctl("unfreeze", FLAG, "--timeout", "1")
    assert "within 10 minutes of being sent" in raising.err
    unknown = await rolloutctl("pause", FLAG, "--id", "night-1", "--timeout", "1", "--json")
    assert (unknown.code, unknown.document["status"]) == (EXIT_NO_RESULT, "unknown")
    await daemon.start()
    again = await rolloutctl("pause", FLAG, "--id", "night-1", "--timeout", PATIENCE, "--json")
    assert (again.code, again.document["status"], again.document["revision"]) == (0, "accepted", 2)


async def test_an_unreachable_kafka_exits_4(rolloutctl: Operator) -> None:
    """Nothing was sent; the address and the cause are told, without a stack."""
    for arguments in (("pause", FLAG), ("status",), ("watch",), ("decisions", FLAG)):
        call = await rolloutctl(*arguments, "--bootstrap-servers", "127.0.0.1:1")
        assert (call.code, call.out) == (EXIT_UNREACHABLE, "")
        assert "Kafka at 127.0.0.1:1: connecting: no broker answers" in call.err


async def test_a_wrong_prefix_is_told_and_makes_no_topics(rolloutctl: Operator, kafka: str) -> None:
    """Topics that are missing are named, and looking does not make them."""
    for _ in range(2):
        call = await rolloutctl("status", "--topic-prefix", "no-such-prefix.")
        assert (call.code, call.out) == (EXIT_UNREACHABLE, "")
        assert "has no topic no-such-prefix.rollout.state" in call.err


async def test_a_flag_without_a_rollout_is_told_with_the_nearest(
    daemon: DaemonProcess, rolloutctl: Operator, tmp_path: Path
) -> None:
    """A misspelt flag exits 1 and names the one that was probably meant.

    An empty state topic is no error.
    """
    empty = await rolloutctl("status")
    assert (empty.code, "no flag has a rollout yet" in empty.err) == (0, True)
    assert (
        await rolloutctl("start", write_plan(tmp_path, bake="1h"), "--timeout", PATIENCE)
    ).code == 0
    call = await rolloutctl("status", "new-chekout")
    assert (call.code, call.out) == (EXIT_REJECTED, "")
    assert f"new-chekout has no rollout; did you mean {FLAG}?" in call.err
    for command in ("decisions", "alerts", "changelog"):
        call = await rolloutctl(command, "new-chekout")
        assert (call.code, call.out) == (EXIT_REJECTED, "")
        assert f"new-chekout has no rollout; did you mean {FLAG}?" in call.err
    quiet = await rolloutctl("alerts", FLAG)
    assert (quiet.code, "no alert yet" in quiet.err) == (0, True)


@pytest.mark.rare
async def test_during_a_bake_a_daemon_has_the_newest_evidence(
    daemon: DaemonProcess, rolloutctl: Operator, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """No decision is published for an hour, and yet the status has numbers with their age."""
    plan = write_plan(tmp_path, bake="1h")
    async with Client(kafka, topic_prefix) as client:
        assert (await rolloutctl("start", plan, "--timeout", PATIENCE)).code == 0
        async with Traffic(client, daemon, FLAG, per_second=400), asyncio.timeout(90):
            exposed = 0
            while not exposed:
                seen = await rolloutctl("status", FLAG, "--daemon", daemon.url, "--json")
                judgement = seen.document["judgement"]
                exposed = 0 if judgement is None else judgement["exposures"]["treatment"]
            people = await rolloutctl("status", FLAG, "--daemon", daemon.url)
            nowhere = ("--bootstrap-servers", "127.0.0.1:1", "--daemon", daemon.url)
            away = await rolloutctl("status", FLAG, *nowhere)
            fleet = await rolloutctl("status", *nowhere)
    for call in (away, fleet):
        assert call.code == 0
        assert f"shown is what {daemon.url} knows" in call.err
    assert "last decision" in away.out
    assert "PROVEN SAFE?" in away.out
    assert FLAG in fleet.out
    assert "verdict" in people.out
    assert " ago" in people.out
    assert "when last decided" not in people.out
    assert "PROVEN SAFE?" in people.out


@pytest.mark.rare
async def test_without_a_model_max_bake_is_kept(
    daemon: DaemonProcess, rolloutctl: Operator, tmp_path: Path
) -> None:
    """A plan that leaves advice to its default pauses at max_bake, half an hour sooner than with.

    A plan that requires advice is refused.
    """
    plan = json.loads(Path(write_plan(tmp_path)).read_text())
    plan["stages"][0]["max_bake"] = "2s"
    del plan["advisor"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    assert (await rolloutctl("start", str(path), "--timeout", PATIENCE)).code == 0
    paused = await daemon.until(FLAG, lambda state: state["phase"]["name"] == "paused")
    assert paused["hold"] == "max_bake"
    assert (await rolloutctl("abort", FLAG, "--timeout", PATIENCE)).code == 0
    path.write_text(json.dumps({**plan, "advisor": {"mode": "required"}}))
    refused = await rolloutctl("start", str(path), "--timeout", PATIENCE)
    assert refused.code == EXIT_REJECTED
    assert "rolloutd has no model: set advisor.url" in refused.out
