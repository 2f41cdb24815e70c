"""What people see when a command was answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner

from controller.cli import sending
from controller.cli.operator import app
from controller.cli.operator_client import CommandResults
from controller.core.rollout import Rollout
from schemas.command import Command
from schemas.result import Result
from schemas.terms import CommandStatus, CommandVerb
from tests.builders import T0, make_rollout


def sent(verb: CommandVerb) -> Command:
    """Return a command."""
    return Command(id="1", flag="f", verb=verb, issuer="ada", reason="r", issued_at=T0)


def accepting(rollout: Rollout) -> Callable[..., Awaitable[CommandResults]]:
    """Return a `deliver` that accepts every command at revision 786."""

    async def deliver(commands: list[Command], *_: object, **__: object) -> CommandResults:
        answers = CommandResults()
        for command in commands:
            answers.results[command.id] = Result(
                command_id=command.id,
                flag=command.flag,
                verb=command.verb,
                status=CommandStatus.ACCEPTED,
                reason="",
                revision=786,
                at=datetime.now(UTC),
            )
        answers.newest.rollouts[rollout.flag_key] = rollout
        return answers

    return deliver


@pytest.mark.parametrize(("revision", "label"), [(772, "before"), (786, "now"), (790, "now")])
def test_a_state_older_than_the_result_is_not_called_the_present_one(
    revision: int, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state topic may lag behind the results: people are told, and how to see the new one."""
    rollout = make_rollout(revision=revision)

    monkeypatch.setattr(sending, "deliver", accepting(rollout))
    result = CliRunner().invoke(app, ["rollback", rollout.flag_key, "--reason", "r"])
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert f" {label} " in shown
    assert f"revision {revision}" in shown
    assert ("shows revision 786 when Kafka has it" in shown) == (label == "before")


@pytest.mark.parametrize(
    ("verb", "is_warned"),
    [("pause", True), ("rollback", True), ("abort", True), ("resume", False), ("step-back", False)],
)
def test_a_revision_that_rejects_nothing_is_warned_of(
    verb: str, is_warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lowers works at any revision; whoever names one learns that it does not matter."""
    monkeypatch.setattr(sending, "deliver", accepting(make_rollout()))
    result = CliRunner().invoke(app, [verb, "new-checkout", "--expected-revision", "3"])
    assert result.exit_code == 0, result.output
    assert ("--expected-revision 3 rejects nothing" in result.stderr) == is_warned
    plain = CliRunner().invoke(app, [verb, "new-checkout"])
    assert "rejects nothing" not in plain.stderr


def test_whoever_waits_is_told_what_becomes_of_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sent command without a result is not silent, and says that Ctrl-C does not take it back."""

    async def slow(commands: list[Command], *_: object, **options: Any) -> CommandResults:
        options["on_waiting"]()
        return await accepting(make_rollout())(commands)

    monkeypatch.setattr(sending, "deliver", slow)
    raising = CliRunner().invoke(app, ["resume", "new-checkout"])
    assert raising.exit_code == 0, raising.output
    assert "resume was sent for new-checkout and waits for its result" in raising.stderr
    assert "within 10 minutes of being sent, also if you stop waiting" in raising.stderr
    lowering = CliRunner().invoke(app, ["rollback", "new-checkout", "--reason", "r"])
    assert "It may be carried out, also if you stop waiting" in lowering.stderr


def answering(
    status: CommandStatus,
    detour: str,
    known: tuple[str, ...],
    revision: int = 2,
    retired: tuple[str, ...] = (),
) -> Callable[..., object]:
    """Return a `deliver` that answers every command, with the rollouts that Kafka has."""

    async def deliver(commands: list[Command], *_: object, **__: object) -> CommandResults:
        answers = CommandResults(detour=detour)
        for command in commands:
            answers.results[command.id] = Result(
                command_id=command.id,
                flag=command.flag,
                verb=command.verb,
                status=status,
                reason="it has no rollout" if status is CommandStatus.REJECTED else "",
                revision=revision,
                at=datetime.now(UTC),
            )
        for flag in known:
            answers.newest.rollouts[flag] = make_rollout()
        answers.newest.retired.update(dict.fromkeys(retired, revision))
        return answers

    return deliver


def test_a_mistyped_flag_is_corrected_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard output: in an emergency nobody looks for it below."""
    deliver = answering(CommandStatus.REJECTED, "", ("new-checkout",), revision=0)
    monkeypatch.setattr(sending, "deliver", deliver)
    result = CliRunner().invoke(app, ["rollback", "nwe-checkout", "--reason", "r"])
    assert "did you mean new-checkout?" in result.stdout.splitlines()[0]


@pytest.mark.parametrize("verb", ["rollback", "abort", "kill", "revive", "restart", "pause"])
def test_for_a_retired_flag_no_other_is_suggested(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not mistyped, and the other one may be live, and another team's."""
    deliver = answering(CommandStatus.REJECTED, "", ("pay-two",), retired=("pay-three",))
    monkeypatch.setattr(sending, "deliver", deliver)
    result = CliRunner().invoke(app, [verb, "pay-three", "--reason", "r"])
    first = "pay-three is retired; `rolloutctl history pay-three` shows its rollouts"
    assert result.stdout.splitlines()[0] == first
    assert "pay-two" not in result.output
    # Kafka keeps the record of it for a day, the daemon knows it longer.
    later = answering(CommandStatus.REJECTED, "", ("pay-two",))
    monkeypatch.setattr(sending, "deliver", later)
    result = CliRunner().invoke(app, [verb, "pay-three", "--reason", "r"])
    assert result.stdout.startswith("rejected")
    assert "pay-two" not in result.output


def test_what_begins_a_rollout_is_not_told_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rejected start has another reason; and no other flag is to be switched on."""
    deliver = answering(CommandStatus.REJECTED, "", ("new-checkin",), revision=0)
    monkeypatch.setattr(sending, "deliver", deliver)
    started = CliRunner().invoke(app, ["start", "canary", "--flag", "new-checkout"])
    assert started.stdout.startswith("rejected"), started.output
    revived = CliRunner().invoke(app, ["revive", "new-checkout", "--reason", "r"])
    assert revived.stdout.startswith("rejected"), revived.output


@pytest.mark.parametrize(("verb", "done"), [("rollback", "0 % served"), ("pause", "paused")])
def test_a_command_over_http_ends_with_what_is_served(
    verb: str, done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka has no state to show: what was done is said, and that it is published later."""
    deliver = answering(CommandStatus.ACCEPTED, "asked over HTTP", ())
    monkeypatch.setattr(sending, "deliver", deliver)
    result = CliRunner().invoke(app, [verb, "new-checkout", "--reason", "r"])
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"now       {done}")
    assert last.endswith("published once Kafka takes it")
    refused = answering(CommandStatus.REJECTED, "asked over HTTP", ())
    monkeypatch.setattr(sending, "deliver", refused)
    assert "has no rollout, and no other" not in CliRunner().invoke(app, [verb, "f"]).output
