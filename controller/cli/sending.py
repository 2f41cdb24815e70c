"""Sends the operator's commands and shows the one result of each.

Also here: what is asked on a terminal before a command is sent.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli import event_view, rendering, status_view
from controller.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_NO_RESULT,
    EXIT_REJECTED,
    EXIT_USAGE,
    SendingOptions,
    check_flag,
    complain,
    fail,
    output,
    perform,
    without_rollout,
)
from controller.cli.emergency import deliver
from controller.cli.operator_client import CommandResults, NewestRollouts, read_rollouts, whoami
from controller.cli.rendering import dashed
from controller.cli.status import find_rollout, situation_of, with_newest_evidence
from controller.core.command_ages import COMMAND_MAX_AGE
from controller.core.machine.commands import RAISING
from controller.core.rollout import AwaitingApproval
from controller.settings import KafkaSettings
from controller.text import describe_faults
from schemas.command import Command, needs_reason
from schemas.plan import PlanDocument
from schemas.result import Result
from schemas.terms import ALWAYS_ACCEPTED, CommandStatus, CommandVerb

#: What the reason of a command tells those who read the audit log.
_REASON_TELLS = {
    CommandVerb.PROMOTE: "why this stage's gate was skipped",
    CommandVerb.PROMOTE_FULL: "why every gate was skipped",
    CommandVerb.STEP_BACK: "why stages were left out",
    CommandVerb.RETRY: "why the stage's evidence was set aside",
    CommandVerb.RETIRE: "why the flag may go",
    CommandVerb.FREEZE: "why nothing may advance, and until when",
}

#: What holds once a daemon has carried out a command over HTTP.
_DONE_OVER_HTTP = {
    CommandVerb.ROLL_BACK: "0 % served",
    CommandVerb.ABORT: "0 % served",
    CommandVerb.PAUSE: "paused, or ended already",
}


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """The options that all verbs share: where a command goes, and how its result is shown."""

    kafka: KafkaSettings
    issuer: str
    reason: str
    command_id: str | None
    seconds: float
    is_json: bool


def command_options(typed: SendingOptions, reason: str) -> CommandOptions:
    """Return the options as they were typed, with the issuer's name."""
    kafka = typed.settings()
    # Who has more patience for the result has more for the connection, too.
    patience = max(kafka.start_seconds, typed.seconds / 5)
    kafka = kafka.model_copy(update={"start_seconds": patience})
    issuer = whoami() if typed.issuer is None else typed.issuer
    return CommandOptions(kafka, issuer, reason, typed.command_id, typed.seconds, typed.is_json)


async def all_rollouts(kafka: KafkaSettings) -> NewestRollouts:
    """Return the newest rollout of every flag."""
    async with KafkaReader(kafka, ["state"]) as reader:
        return await read_rollouts(reader)


def confirmed_revision(
    verb: CommandVerb,
    flag: str,
    options: CommandOptions,
    *,
    daemon: str | None,
    is_sure: bool,
) -> int:
    """Show where the rollout stands, and return its revision.

    On a terminal, ask for confirmation first; approve and reject only where approval is awaited.
    """
    situation, _ = perform(find_rollout(options.kafka, flag))
    if not options.is_json:
        situation, trouble = with_newest_evidence(situation, daemon)
        console = output()
        status_view.show_flag(console, situation)
        console.print()
        if trouble:
            complain(trouble)
    rollout = situation.rollout
    is_answer = verb in (CommandVerb.APPROVE, CommandVerb.REJECT)
    is_asked = isinstance(rollout.phase, AwaitingApproval) if is_answer else not rollout.has_ended
    question = f"{dashed(verb)} revision {rollout.revision} of {flag}?"
    if verb is CommandVerb.RETIRE and rollout.has_ended:
        is_asked = True
        complain(
            f"{flag} serves {rollout.served_words}. Once it is retired rolloutd serves nothing for "
            "it, and apps get the default of their own code"
        )
    if (
        is_asked
        and not is_sure
        and not options.is_json
        and sys.stdin.isatty()
        and sys.stdout.isatty()
    ):
        try:
            typer.confirm(question, abort=True)
        except typer.Abort:
            fail("nothing was sent", EXIT_REJECTED)
    return rollout.revision


def make_command(
    verb: CommandVerb,
    flag: str,
    options: CommandOptions,
    revision: int | None = None,
    plan: PlanDocument | None = None,
    to_stage: str | None = None,
) -> Command:
    """Return the command. Exits 2 when it is not valid."""
    check_reason(verb, options, to_stage)
    if revision is not None and verb in ALWAYS_ACCEPTED:
        complain(
            f"{dashed(verb)} works at any revision: --expected-revision {revision} rejects nothing"
        )
    fields: dict[str, Any] = {
        "id": uuid.uuid4().hex if options.command_id is None else options.command_id,
        "flag": check_flag(flag),
        "verb": verb,
        "issuer": options.issuer,
        "reason": options.reason,
        "issued_at": datetime.now(UTC),
        "expected_revision": revision,
        "plan": plan,
        "to_stage": to_stage,
    }
    try:
        return Command(**fields)
    except ValidationError as error:
        fail(describe_faults(error), EXIT_USAGE)


def check_reason(verb: CommandVerb, options: CommandOptions, to_stage: str | None = None) -> None:
    """Exit 2 when the command needs a reason and there is none."""
    if needs_reason(verb, to_stage) and not options.reason.strip():
        refuse_without_reason(verb, _REASON_TELLS.get(verb, "why it was sent"), to_stage)


def refuse_without_reason(verb: CommandVerb, tells: str, to_stage: str | None = None) -> NoReturn:
    """Exit 2: `tells` is what the reason tells those who read the audit log."""
    to = "" if to_stage is None else f" --to {to_stage}"
    fail(
        f"{dashed(verb)}{to} needs --reason: the audit log keeps {tells}; nothing was sent",
        EXIT_USAGE,
    )


def send(commands: Sequence[Command], options: CommandOptions) -> None:
    """Send the commands, show the result of each, and exit with the worst status."""
    if not commands:
        return
    try:
        answers = perform(
            deliver(
                commands,
                options.kafka,
                options.seconds,
                with_state=not options.is_json,
                on_waiting=partial(_say_waiting, commands),
            )
        )
    except typer.Exit as ending:
        if ending.exit_code == EXIT_INTERRUPTED:
            complain(
                "interrupted; what was sent may still be carried out"
                f"{_expiry(commands[0])}. {_repeat_hint(commands[0])}"
            )
        raise
    if answers.detour:
        complain(answers.detour)
    console = output()
    for command in commands:
        answer = answers.results.get(command.id)
        if options.is_json:
            typer.echo(rendering.to_json(event_view.result_document(command, answer)))
        elif answer is not None:
            _show_answer(console, command, answer, answers)
    missing = [command for command in commands if command.id not in answers.results]
    if missing:
        _say_unanswered(missing, options, answers.error)
        raise typer.Exit(EXIT_NO_RESULT)
    if any(answer.status is not CommandStatus.ACCEPTED for answer in answers.results.values()):
        raise typer.Exit(EXIT_REJECTED)


def _show_answer(
    console: Console, command: Command, answer: Result, answers: CommandResults
) -> None:
    """Show a result and what is served now; of a mistyped flag, first which is meant."""
    rollout = answers.newest.rollouts.get(command.flag)
    is_accepted = answer.status is CommandStatus.ACCEPTED
    is_absent = rollout is None and not is_accepted and not answers.detour
    if is_absent and (why := _why_no_rollout(command, answer, answers.newest)):
        rendering.show_line(console, Text(why, "bold"))
    rendering.show_line(console, event_view.result_line(answer))
    if rollout is not None:
        line = status_view.now_line(situation_of(rollout), answer.revision)
        rendering.show_line(console, line)
    elif is_accepted and answers.detour:
        done = _DONE_OVER_HTTP.get(command.verb, "it is done")
        line = Text.assemble(("now       ", "dim"), f"{done}; published once Kafka takes it")
        rendering.show_line(console, line)


def _why_no_rollout(command: Command, answer: Result, newest: NewestRollouts) -> str:
    """Return that a rejected command's flag is retired, or which is meant; empty: neither.

    Another flag is suggested only for one that never had a rollout, and never to be switched on.
    """
    if command.verb is CommandVerb.START:
        return ""  # its flag needs no rollout
    is_retired = command.flag in newest.retired
    if not is_retired and (command.verb is CommandVerb.RESTART or answer.revision > 0):
        return ""
    return without_rollout(command.flag, newest.rollouts, newest.retired)


def _say_unanswered(
    missing: Sequence[Command], options: CommandOptions, trouble: str | None
) -> None:
    flags = rendering.shown([command.flag for command in missing])
    if trouble is not None:
        complain(f"Kafka did not acknowledge the command for {flags}: {trouble}")
    complain(
        f"no result for {flags} within {options.seconds:g} s: `rolloutctl doctor` says whether "
        f"rolloutd runs and what it waits for. The command may still be carried out"
        f"{_expiry(missing[0])}. {_repeat_hint(missing[0])}"
    )
    if missing[0].verb in (CommandVerb.ROLL_BACK, CommandVerb.ABORT, CommandVerb.PAUSE):
        complain("until then lower the flag over HTTP (ops/operating.md) and in its flag plane")


def _say_waiting(commands: Sequence[Command]) -> None:
    """Say that commands were sent, and that nobody has to wait for their results."""
    flags = rendering.shown([command.flag for command in commands])
    complain(
        f"{dashed(commands[0].verb)} was sent for {flags} and waits for its result. It may be "
        f"carried out{_expiry(commands[0])}, also if you stop waiting (Ctrl-C); `rolloutctl "
        f"doctor` says what is wrong"
    )


def _expiry(command: Command) -> str:
    """Return until when a command is carried out, as the end of a sentence; empty: always."""
    minutes = COMMAND_MAX_AGE.seconds // 60
    return f" within {minutes} minutes of being sent" if command.verb in RAISING else ""


def _repeat_hint(command: Command) -> str:
    """Return how to send a command again so that it is carried out once."""
    return (
        f"To repeat it, add --id {command.id}: an id is carried out once. To see what became of "
        f"it: `rolloutctl status {command.flag}`."
    )
