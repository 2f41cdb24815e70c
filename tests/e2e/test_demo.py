"""The installed command: every scenario ends as named, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from controller.demo.scenarios import SCENARIOS
from schemas.decision import Decision
from schemas.state import RolloutState

pytestmark = pytest.mark.e2e

ROLLOUTD = Path(sys.executable).with_name("rolloutd")
#: Far more than the demo takes on a quiet machine.
LONGEST_SECONDS = 280
QUICK = ("errors",)
RARE = ("healthy", "srm", "silence", "advisor-objects")  # unit tests rehearse every scenario


def processes_in(session: int) -> list[str]:
    """Return the command lines of what still runs in a session.

    The demo's children keep their parent's.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended while we looked
    return found


def wait_until_empty(session: int) -> None:
    """Wait until nothing runs in a session; fail after a minute."""
    deadline = time.monotonic() + 60
    while processes_in(session):
        assert time.monotonic() < deadline, processes_in(session)
        time.sleep(0.05)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the demo in a session of its own, where all it starts can be found again."""
    return subprocess.Popen(
        [str(ROLLOUTD), "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def play(scenario: str) -> tuple[list[Decision], dict[str, Any]]:
    """Return the decisions and the final document of a scenario that ended as it must."""
    demo = start("--scenario", scenario, "--json")
    out, err = demo.communicate(timeout=LONGEST_SECONDS)
    if demo.returncode != 0 or err:
        pytest.fail(f"{scenario} exited {demo.returncode}:\n{err}\n{out}", pytrace=False)
    wait_until_empty(demo.pid)
    *decisions, document = (json.loads(line) for line in out.splitlines())
    RolloutState.model_validate_json(json.dumps(document))
    return [Decision.model_validate_json(json.dumps(decision)) for decision in decisions], document


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=() if name in QUICK else pytest.mark.rare if name in RARE else pytest.mark.long,
        )
        for name in SCENARIOS
    ],
)
def test_a_scenario_ends_as_named(name: str) -> None:
    """The command exits 0, prints decisions and the final document in the contract's form.

    And ends where its name says.
    """
    decisions, document = play(name)
    ending = SCENARIOS[name].ending
    assert document["phase"]["name"] == ending.phase
    assert decisions[0].kind == "start"
    assert decisions[-1].revision == document["revision"]
    raised = [decision for decision in decisions if decision.to_percent > decision.from_percent]
    assert [decision.kind for decision in raised] == ["start", *["advance"] * (len(raised) - 1)]
    if name == "silence":
        assert document["percent"] == decisions[-1].from_percent == 10.0
    if name == "advisor-objects":
        assert {decision.to_percent for decision in decisions} == {1.0}
        assert decisions[-1].advice is not None
        assert decisions[-1].advice.model == "scripted-stand-in"
    if name == "advisor-down":
        assert all(
            "no advice" in decision.reason
            for decision in decisions
            if decision.kind in ("advance", "complete")
        )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_leaves_no_process(number: signal.Signals, code: int) -> None:
    """Ctrl-C in the middle of a rollout exits 130.

    After that, and after kill -9, nothing it started is left.
    """
    demo = start("--json")
    assert demo.stdout is not None
    assert json.loads(demo.stdout.readline())["kind"] == "start"
    assert len(processes_in(demo.pid)) >= 5  # the demo, its guard, broker, store, daemon and apps
    os.kill(demo.pid, number)
    out, err = demo.communicate(timeout=60)
    assert demo.returncode == code
    assert "Traceback" not in out + err
    wait_until_empty(demo.pid)


def test_an_unknown_protocol_is_refused_before_anything_starts() -> None:
    """A protocol that does not exist is answered with those that do, and exit code 2."""
    demo = start("--advisor-url", "http://127.0.0.1:9", "--advisor-protocol", "nonsense")
    out, err = demo.communicate(timeout=LONGEST_SECONDS)
    assert (demo.returncode, out) == (2, "")
    assert "openai, localai, ollama" in err


def test_an_unknown_scenario_is_refused_by_name() -> None:
    """A scenario that does not exist is answered with those that do, and exit code 2."""
    demo = start("--scenario", "nonsense")
    out, err = demo.communicate(timeout=LONGEST_SECONDS)
    assert (demo.returncode, out) == (2, "")
    assert "healthy, errors" in err
