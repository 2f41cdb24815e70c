"""What apps send and what becomes of it, from a shell: the README's own events, and wrong ones.

With a real daemon, Kafka and Redis.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from schemas import evaluation
from schemas.terms import CommandVerb
from tests.live import Client, DaemonProcess, Traffic, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
ROOT = Path(__file__).parents[2]


def commands_of_readme() -> list[str]:
    """Return the commands of the README that send events, one a paragraph."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Send events.*?```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1].split("\n\n")


async def run(*command: str, **environ: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a command."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode or 0, out.decode(), err.decode()


class Shell:
    """A person at a shell, with `kcat` and `rolloutctl` for this test's topics."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self._kafka, self._prefix = kafka, prefix
        self._path = os.environ["PATH"]
        if shutil.which("kcat") is None:
            self._path = f"{ROOT / 'ops' / 'kafka' / 'bin'}{os.pathsep}{self._path}"

    async def send(self, command: str) -> None:
        """Run a command of the README against this test's broker and topics."""
        typed = command.replace("127.0.0.1:9094", self._kafka)
        typed = re.sub(r"-t (\S+)", rf"-t {self._prefix}\1", typed)
        code, _, err = await run("bash", "-euo", "pipefail", "-c", typed, PATH=self._path)
        assert code == 0, err

    async def rolloutctl(self, *arguments: str) -> tuple[int, str, str]:
        """Return exit code, output and errors of `rolloutctl`."""
        return await run(
            str(Path(sys.executable).with_name("rolloutctl")),
            *arguments,
            ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS=self._kafka,
            ROLLOUTD_KAFKA__TOPIC_PREFIX=self._prefix,
        )


@pytest.fixture
async def daemon(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[DaemonProcess]:
    """A running daemon."""
    async with DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as process:
        yield process


@pytest.fixture
async def client(kafka: str, topic_prefix: str) -> AsyncIterator[Client]:
    """Apps and operators."""
    async with Client(kafka, topic_prefix) as made:
        yield made


async def until(holds: Callable[[], Awaitable[Any]]) -> Any:
    """Return what `holds` returns once that is true."""
    async with asyncio.timeout(90):
        while not (found := await holds()):
            await asyncio.sleep(0.1)
        return found


def long_plan() -> Any:
    """Return a plan whose first stage lasts, and counts from its beginning."""
    stage = {"percent": 10, "bake": "1h", "settle": "0s", "max_bake": "3h"}
    return quick_plan(FLAG, stages=[stage])


async def classes_of(daemon: DaemonProcess, flag: str = FLAG) -> dict[str, Any]:
    """Return what the daemon says of a flag's events, by class."""
    answer = await daemon.get(f"/rollouts/{flag}/events")
    found: dict[str, Any] = answer.json()["classes"] if answer.status_code == 200 else {}
    return found


async def test_the_readmes_events_are_counted(
    daemon: DaemonProcess, client: Client, kafka: str, topic_prefix: str
) -> None:
    """Copied into a shell on any day, each line counts; the daemon and the operator's tool agree.

    An event that was sent before the rollout began is told from that, and one with the date of the
    document would be, too.
    """
    shell = Shell(kafka, topic_prefix)
    evaluated, ended = commands_of_readme()
    await shell.send(evaluated)  # too early
    code, out, err = await shell.rolloutctl("events", FLAG)
    assert code == 1, err
    assert "no rollout has this flag; events that name it: 1" in out

    result = await client.command(CommandVerb.START, FLAG, plan=long_plan())
    assert result.status == "accepted"
    await asyncio.sleep(1.1)  # the README's times have whole seconds
    await shell.send(evaluated)
    await shell.send(ended)

    async def are_counted() -> bool:
        counted = (await classes_of(daemon)).get("counted", {})
        return (counted.get("evaluations"), counted.get("outcomes")) == (1, 1)

    await until(are_counted)
    code, out, err = await shell.rolloutctl("events", FLAG, "--json")
    assert code == 0, err
    found = json.loads(out)["classes"]
    assert (found["counted"]["evaluations"], found["counted"]["outcomes"]) == (1, 1)
    assert found["before_start"]["evaluations"] == 1
    code, out, err = await shell.rolloutctl("events", FLAG, "--context", "user-42")
    assert code == 0, err
    shown = [line for line in out.splitlines() if line.startswith("20")]
    assert [line.split()[1] for line in shown] == ["before", "counted", "counted"]


async def test_wrong_events_are_named_and_alerted(
    daemon: DaemonProcess, client: Client, kafka: str, topic_prefix: str
) -> None:
    """`treatment` in place of `on`, a misspelled flag and refused records, each with its words."""
    shell = Shell(kafka, topic_prefix)
    await client.command(CommandVerb.START, FLAG, plan=long_plan())
    app = Traffic(client, daemon, FLAG)
    misspelled = Traffic(client, daemon, "newcheckout")
    for number in range(40):
        now = datetime.now(UTC)
        await app.emit_evaluation(f"u{number}", "treatment", now)
        await misspelled.emit_evaluation(f"u{number}", "on", now)
    bad = {"type": evaluation.TYPE, "data": {"feature_flag.key": FLAG, "note": "\x1b[31mred"}}
    await client.producer.send_and_wait(
        f"{topic_prefix}flag.evaluations", json.dumps(bad).encode(), b"u1"
    )

    async def alerts() -> list[str]:
        events = [one["data"] for one in await client.read("rollout.alerts")]
        found = [one["summary"] for one in events if one["kind"] == "event_faults"]
        return found if len(found) >= 2 else []

    summaries = "\n".join(await until(alerts))
    assert "the variant treatment, which the plan does not have (it has on, off)" in summaries
    assert "the flag newcheckout, which has no rollout; new-checkout has one" in summaries

    code, out, err = await shell.rolloutctl("events", FLAG)
    assert code == 0, err
    assert "unknown variant" in out
    assert "treatment (40)" in out
    code, out, err = await shell.rolloutctl("events", "newcheckout")
    assert code == 1, err
    assert "did you mean new-checkout?" in out
    code, out, err = await shell.rolloutctl("events", "--daemon", daemon.url)
    assert code == 0, err
    assert "newcheckout" in out

    await client.refusals(1)
    code, out, err = await shell.rolloutctl("quarantine", "--flag", FLAG)
    assert code == 0, err
    assert "not_cloudevent" in out
    assert f'"feature_flag.key": "{FLAG}"' in out
    assert "\x1b" not in out
    metrics = (await daemon.get("/metrics")).text
    assert 'rolloutd_flag_events_total{class="unknown_variant",flag_key="new-checkout"}' in metrics
    assert 'rolloutd_unknown_flag_events_by_name{flag_key="newcheckout"} 40.0' in metrics


async def test_a_topic_of_refused_records_is_a_fault_before_any_rollout_notices(
    daemon: DaemonProcess, client: Client, kafka: str, topic_prefix: str
) -> None:
    """Records of another encoding name no flag, so no alert of a flag tells of them."""
    topic = f"{topic_prefix}flag.evaluations"
    for number in range(25):
        await client.producer.send(topic, b"\x0a\x0cnew-checkout", f"u{number}".encode())
    await client.producer.flush()

    async def fault() -> dict[str, Any] | None:
        faults: list[dict[str, Any]] = (await daemon.get("/readyz")).json()["faults"]
        return next((one for one in faults if "not_json" in one["reason"]), None)

    told = await until(fault)
    assert (told["scope"], told["name"]) == ("topic", topic)
    assert "are refused and count nowhere: not_json" in told["reason"]
    assert (await daemon.get("/readyz")).status_code == 200, "it counts and decides as before"
    _, out, _ = await Shell(kafka, topic_prefix).rolloutctl("doctor", "--url", daemon.url)
    shown = " ".join(out.split())
    assert f"FAULT topic {topic}: " in shown
    assert "`rolloutctl quarantine` shows the newest of them" in shown


async def test_milliseconds_sent_as_seconds_roll_no_good_release_back(
    daemon: DaemonProcess, client: Client
) -> None:
    """Both arms take 183 "seconds": the limit is not believed, people are told twice, why and how.

    Nothing is rolled back, and nothing advances.
    """
    stage = {"percent": 50, "bake": "1h", "settle": "0s", "max_bake": "3h"}
    plan = quick_plan(FLAG, stages=[stage], guardrails=["latency_p99 < 300ms"])
    await client.command(CommandVerb.START, FLAG, plan=plan)
    app = Traffic(client, daemon, FLAG)

    async def judged() -> dict[str, Any]:
        for number in range(40):
            now, user = datetime.now(UTC), f"u{number}"
            variant = "on" if number % 2 else "off"
            await app.emit_evaluation(user, variant, now)
            await app.emit_outcome(user, variant, now, is_error=False, seconds=183.0)
        answer = await daemon.get(f"/api/v1/rollouts/{FLAG}/evidence")
        found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        gaps = [gap["kind"] for gap in found.get("gaps", ())]
        metrics = found.get("metrics") or [{"reason": ""}]
        is_certain = "does not count" in metrics[0]["reason"]
        return found if "implausible_latency" in gaps and is_certain else {}

    judgement = await until(judged)
    assert judgement["metrics"][0]["harm"] == "inconclusive"

    async def told() -> list[str]:
        events = [one["data"] for one in await client.read("rollout.alerts")]
        kinds = {one["kind"] for one in events}
        words = [f"{one['summary']} {one['action']}" for one in events]
        return words if {"health_gap", "event_faults"} <= kinds else []

    words = await until(told)
    assert all("milliseconds" in one for one in words), words
    document = await daemon.rollout(FLAG)
    assert document is not None
    assert document["percent"] == 50
