"""`rolloutctl signal`: what is shown, what a delivery would do, and what is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.cli import operator_client, sending
from controller.cli.operator import app
from controller.cli.operator_client import NewestRollouts
from schemas.api import SignalEntry, SignalList
from schemas.signal import Signal
from schemas.terms import SignalStatus
from tests.builders import T0, make_plan, make_rollout
from tests.unit.cli.served_replica import ReplicaHandler, served
from tests.unit.settings.test_signal_rules import GOOD
from tests.unit.web.hooks.deliveries import ALERTMANAGER

ENTRY = SignalEntry(
    at=T0,
    hook="alertmanager/prod",
    status=SignalStatus.FIRING,
    title="checkout\x1b[2J is down",
    service="checkout",
    condition="c",
    link="",
    done=["checkout-a: rolled back to 0 %"],
)


class Replica(ReplicaHandler):
    """A replica that knows one signal."""

    def get(self) -> None:
        """Answer the list."""
        body = SignalList(signals=[ENTRY]).model_dump_json().encode()
        self.answer(body, 200 if self.path == "/api/v1/signals" else 404)


@pytest.fixture
def daemon() -> Iterator[str]:
    """The address of a replica."""
    with served(Replica) as address:
        yield address


@pytest.fixture(autouse=True)
def in_kafka(monkeypatch: pytest.MonkeyPatch) -> list[Signal]:
    """One flag in Kafka, and what is sent there."""
    sent: list[Signal] = []

    async def newest(_: object) -> NewestRollouts:
        one = make_rollout(plan=make_plan(flag_key="checkout-a"))
        return NewestRollouts({"checkout-a": one})

    async def publish(signal: Signal, _: object) -> None:
        sent.append(signal)

    monkeypatch.setattr(sending, "all_rollouts", newest)
    monkeypatch.setattr(operator_client, "publish_signal", publish)
    for name in ("ROLLOUTD_CONFIG", "ROLLOUTCTL_DAEMON"):
        monkeypatch.delenv(name, raising=False)
    return sent


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A delivery and rules."""
    delivery, rules = tmp_path / "alert.json", tmp_path / "rules.yaml"
    alert = ALERTMANAGER["alerts"][0]
    labels = {**alert["labels"], "env": "prod"}
    delivery.write_text(json.dumps({"alerts": [{**alert, "labels": labels}]}))
    rules.write_text(GOOD)
    return str(delivery), str(rules)


def test_signals_are_listed_with_what_was_done(daemon: str) -> None:
    """No control character of a stranger reaches the terminal."""
    shown = CliRunner().invoke(app, ["signal", "list", "--daemon", daemon])
    assert shown.exit_code == 0, shown.output
    assert "checkout-a: rolled back to 0 %" in " ".join(shown.stdout.split())
    assert "\x1b[2J" not in shown.stdout
    document = json.loads(CliRunner().invoke(
        app, ["signal", "list", "--daemon", daemon, "--json"]
    ).stdout)  # fmt: skip
    assert document["hook"] == "alertmanager/prod"


def test_without_a_replica_it_is_said_what_is_missing() -> None:
    """Nobody else knows the signals."""
    none = CliRunner().invoke(app, ["signal", "list"])
    assert (none.exit_code, "--daemon" in none.stderr) == (2, True)
    away = CliRunner().invoke(app, ["signal", "list", "--daemon", "http://127.0.0.1:1"])
    assert (away.exit_code, "cannot be reached" in away.stderr) == (4, True)


def test_a_delivery_is_tried_and_nothing_is_done(
    files: tuple[str, str], in_kafka: list[Signal]
) -> None:
    """The rules that meet it, and the flags in order, each with why."""
    delivery, rules = files
    command = ["signal", "test", delivery, "--hook", "alertmanager/prod", "--rules", rules]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "checkout-down: roll_back: checkout-a" in shown.stdout
    assert "1. checkout-a (" in shown.stdout
    assert in_kafka == []


@pytest.mark.parametrize(
    ("body", "hook", "code", "words"),
    [
        ("{}", "alertmanager/prod", 2, "alerts is not a list"),
        ("{}", "nagios/prod", 2, "write SOURCE/NAME, with one of alertmanager"),
        ('{"alerts": [{"status": "firing", "labels": {}}]}', "grafana/prod", 1, ""),
    ],
)
def test_what_cannot_be_tried_says_why(
    files: tuple[str, str], body: str, hook: str, code: int, words: str
) -> None:
    """Exits 1 where no rule is about it."""
    delivery, rules = files
    rules_path = Path(rules)
    rules_path.write_text(GOOD.split("  - {name: try")[0])
    Path(delivery).write_text(body)
    shown = CliRunner().invoke(app, ["signal", "test", delivery, "--hook", hook, "--rules", rules])
    assert shown.exit_code == code
    assert words in " ".join(shown.stderr.split())


def test_rules_are_checked(tmp_path: Path, files: tuple[str, str]) -> None:
    """Each fault with its place; exits 78 as for other settings."""
    good = CliRunner().invoke(app, ["signal", "check", files[1]])
    assert (good.exit_code, "3 rules" in good.stdout) == (0, True)
    (tmp_path / "none.yaml").write_text("version: 1\n")
    none = CliRunner().invoke(app, ["signal", "check", str(tmp_path / "none.yaml")])
    assert (none.exit_code, "no signal ever does anything" in " ".join(none.stdout.split())) == (
        0,
        True,
    )
    broken = tmp_path / "broken.yaml"
    broken.write_text("rules: [{name: a, flags: x}]")
    refused = CliRunner().invoke(app, ["signal", "check", str(broken)])
    assert refused.exit_code == 78
    assert "broken.yaml:1:9: rules.0.do" in " ".join(refused.stderr.split())


def test_a_person_sends_a_signal(in_kafka: list[Signal]) -> None:
    """In the form that rules match."""
    command = ["signal", "send", "checkout is down", "--service", "checkout"]
    shown = CliRunner().invoke(app, [*command, "--severity", "Critical", "--label", "env=prod"])
    assert shown.exit_code == 0, shown.output
    (one,) = in_kafka
    assert (one.hook, one.status, one.condition) == (
        "rolloutctl/cli",
        SignalStatus.FIRING,
        "checkout is down",
    )
    assert (one.severity, one.labels) == ("critical", {"env": "prod"})
    wrong = CliRunner().invoke(app, [*command, "--label", "prod"])
    assert (wrong.exit_code, "write it as in team=payments" in wrong.stderr) == (2, True)
    for nothing in (["signal", "send", ""], ["signal", "send", "x", "--condition", " "]):
        empty = CliRunner().invoke(app, nothing)
        assert (empty.exit_code, "is empty: say what fires" in empty.stderr) == (2, True)
    too_long = CliRunner().invoke(app, ["signal", "send", "x" * 2_000])
    assert (too_long.exit_code, len(in_kafka)) == (2, 1)
