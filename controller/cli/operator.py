"""The operator's command: `rolloutctl`.

It publishes commands, waits for the one result of each, and shows where rollouts stand.

Exit codes: 0 accepted or shown; 1 rejected, plan with errors, or no such rollout; 2 usage; 3 no
result in time (the command may still be carried out; repeating it with the same --id is safe); 4
Kafka not reached; 78 bad configuration; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli import (
    advisor,
    backtest,
    drafts,
    event_view,
    plan_files,
    rendering,
    simulate,
    status_view,
    verdict,
)
from controller.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_NO_RESULT,
    EXIT_REJECTED,
    EXIT_USAGE,
    BootstrapOption,
    ConfigOption,
    FlagArgument,
    IdOption,
    IssuerOption,
    JsonOption,
    PrefixOption,
    ReasonOption,
    RevisionOption,
    TimeoutOption,
    check_flag,
    complain,
    fail,
    kafka_settings,
    output,
    perform,
    prepare_process,
    say_beyond_planes,
)
from controller.cli.doctor import doctor
from controller.cli.operator_client import NewestRollouts, read_rollouts, send_commands, whoami
from controller.cli.rendering import dashed
from controller.cli.situation import Situation
from controller.cli.status import alerts, decisions, find_rollout, situation_of, status, watch
from controller.core.rollout import AwaitingApproval
from controller.settings import KafkaSettings
from controller.text import describe_faults
from schemas.command import NEEDS_REASON, Command
from schemas.plan import PlanDocument
from schemas.terms import CommandStatus, CommandVerb

app = typer.Typer(
    help="Control and watch rollouts: publish commands to Kafka and wait for the one result "
    "of each.",
    epilog="Exit codes: 0 accepted or shown; 1 rejected, plan with errors, no such rollout; 2 "
    "usage; 3 no result in time "
    "(repeating with the same --id is safe); 4 Kafka not reached; 78 bad configuration; "
    "130 Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_INSPECT, _CONTROL, _PLANS = "Inspect", "Control", "Plans"
_DRAFT, _MODEL = "Draft", "Model"

#: Verbs that take a flag and nothing of their own, in the order of the help.
_SIMPLE_VERBS = {
    CommandVerb.PAUSE: "Stop where it is. The percentage and the guardrails stay. Works in "
    "every active phase, at any revision.",
    CommandVerb.RESUME: "Continue where the pause began.",
    CommandVerb.PROMOTE: "Enter the next stage now, without waiting for this stage's gate. "
    "Needs --reason.",
    CommandVerb.PROMOTE_FULL: "Enter the last stage now, without waiting for any gate. "
    "Needs --reason.",
    CommandVerb.STEP_BACK: "Serve the stage below.",
    CommandVerb.ROLL_BACK: "Serve 0 % because something is wrong. Ends the rollout. Works in every "
    "phase, at any revision.",
    CommandVerb.ABORT: "Serve 0 % although nothing is wrong. Ends the rollout. Works in every "
    "phase, at any revision.",
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


def _options(
    config: Path | None,
    bootstrap_servers: str | None,
    topic_prefix: str | None,
    issuer: str | None,
    reason: str,
    command_id: str | None,
    seconds: float,
    is_json: bool,
) -> CommandOptions:
    kafka = kafka_settings(config, bootstrap_servers, topic_prefix)
    return CommandOptions(
        kafka, whoami() if issuer is None else issuer, reason, command_id, seconds, is_json
    )


# --- verbs ---


@app.command(rich_help_panel=_CONTROL)
def start(
    plan: Annotated[
        str,
        typer.Argument(metavar="PLAN", help="A file, - for standard input, or a template's name."),
    ],
    flag: Annotated[
        str | None,
        typer.Option("--flag", help="The flag; needed by a template, replaces a file's."),
    ] = None,
    reason: ReasonOption = "",
    revision: RevisionOption = None,
    issuer: IssuerOption = None,
    command_id: IdOption = None,
    seconds: TimeoutOption = 15.0,
    is_json: JsonOption = False,
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Start a rollout by a plan, after checking the plan."""
    options = _options(
        config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
    )
    document = plan_files.load(plan, flag)
    say_beyond_planes(document, config)
    _send([_command(CommandVerb.START, document.flag, options, revision, document)], options)


def _add_simple_verb(verb: CommandVerb, help_text: str) -> None:
    def command(
        flag: FlagArgument,
        reason: ReasonOption = "",
        revision: RevisionOption = None,
        issuer: IssuerOption = None,
        command_id: IdOption = None,
        seconds: TimeoutOption = 15.0,
        is_json: JsonOption = False,
        config: ConfigOption = None,
        bootstrap_servers: BootstrapOption = None,
        topic_prefix: PrefixOption = None,
    ) -> None:
        options = _options(
            config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
        )
        _send([_command(verb, flag, options, revision)], options)

    app.command(dashed(verb), help=help_text, rich_help_panel=_CONTROL)(command)


for _verb, _help_text in _SIMPLE_VERBS.items():
    _add_simple_verb(_verb, _help_text)


@app.command(rich_help_panel=_CONTROL)
def kill(
    flag: FlagArgument,
    reason: ReasonOption = "kill switch",
    issuer: IssuerOption = None,
    command_id: IdOption = None,
    seconds: TimeoutOption = 15.0,
    is_json: JsonOption = False,
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Switch a flag off for everybody, also one whose rollout is complete.

    The same as `roll-back`, with a reason filled in.
    """
    options = _options(
        config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
    )
    _send([_command(CommandVerb.ROLL_BACK, flag, options)], options)


def _add_answer_verb(verb: CommandVerb, help_text: str) -> None:
    def command(
        flag: FlagArgument,
        reason: ReasonOption = "",
        revision: Annotated[
            int | None,
            typer.Option(
                "--expected-revision",
                min=0,
                help="The revision that you have seen. Default: the present one, after showing it.",
            ),
        ] = None,
        is_sure: Annotated[
            bool, typer.Option("--yes", "-y", help="Do not ask for confirmation on a terminal.")
        ] = False,
        issuer: IssuerOption = None,
        command_id: IdOption = None,
        seconds: TimeoutOption = 15.0,
        is_json: JsonOption = False,
        config: ConfigOption = None,
        bootstrap_servers: BootstrapOption = None,
        topic_prefix: PrefixOption = None,
    ) -> None:
        options = _options(
            config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
        )
        check_flag(flag)
        if revision is None:
            revision = _confirmed_revision(verb, flag, options, is_sure=is_sure)
        _send([_command(verb, flag, options, revision)], options)

    app.command(dashed(verb), help=help_text, rich_help_panel=_CONTROL)(command)


def _confirmed_revision(
    verb: CommandVerb, flag: str, options: CommandOptions, *, is_sure: bool
) -> int:
    """Show where the rollout stands, and return its revision.

    On a terminal, ask for confirmation first.
    """
    situation, _ = perform(find_rollout(options.kafka, flag))
    if not options.is_json:
        console = output()
        status_view.show_flag(console, situation)
        console.print()
    awaits_approval = isinstance(situation.rollout.phase, AwaitingApproval)
    if (
        awaits_approval
        and not is_sure
        and not options.is_json
        and sys.stdin.isatty()
        and sys.stdout.isatty()
    ):
        try:
            typer.confirm(
                f"{dashed(verb)} revision {situation.rollout.revision} of {flag}?", abort=True
            )
        except typer.Abort:
            fail("nothing was sent", EXIT_REJECTED)
    return situation.rollout.revision


_add_answer_verb(
    CommandVerb.APPROVE,
    "Let a stage that awaits approval advance, if it still has the revision you have seen.",
)
_add_answer_verb(
    CommandVerb.REJECT,
    "Pause a stage that awaits approval, if it still has the revision you have seen.",
)


@app.command(rich_help_panel=_CONTROL)
def restart(
    flag: FlagArgument,
    plan: Annotated[
        str | None, typer.Option("--plan", help="A plan file to use in place of the pinned one.")
    ] = None,
    reason: ReasonOption = "",
    revision: RevisionOption = None,
    issuer: IssuerOption = None,
    command_id: IdOption = None,
    seconds: TimeoutOption = 15.0,
    is_json: JsonOption = False,
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Restart a rollout that has ended, by its own plan or another."""
    options = _options(
        config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
    )
    document = None if plan is None else plan_files.load(plan, check_flag(flag))
    if document is not None:
        say_beyond_planes(document, config)
    _send([_command(CommandVerb.RESTART, flag, options, revision, document)], options)


def _add_freeze_verb(
    verb: CommandVerb, help_text: str, is_concerned: Callable[[Situation], bool]
) -> None:
    def command(
        flag: Annotated[
            str | None, typer.Argument(metavar="[FLAG]", help="The flag's key.", show_default=False)
        ] = None,
        is_all: Annotated[
            bool, typer.Option("--all", help="Every flag whose rollout is under way.")
        ] = False,
        reason: ReasonOption = "",
        revision: RevisionOption = None,
        issuer: IssuerOption = None,
        command_id: IdOption = None,
        seconds: TimeoutOption = 15.0,
        is_json: JsonOption = False,
        config: ConfigOption = None,
        bootstrap_servers: BootstrapOption = None,
        topic_prefix: PrefixOption = None,
    ) -> None:
        options = _options(
            config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
        )
        if is_all == (flag is not None):
            fail(f"{dashed(verb)}: name a flag, or say --all", EXIT_USAGE)
        if flag is not None:
            _send([_command(verb, flag, options, revision)], options)
            return
        if command_id is not None or revision is not None:
            fail(
                "--id and --expected-revision are one flag's: leave them out with --all", EXIT_USAGE
            )
        _check_reason(verb, options)
        newest = perform(_read(options.kafka))
        for broken, why in newest.unreadable.items():
            complain(f"{broken} is left out: {why}")
        flags = [
            key
            for key in sorted(newest.rollouts)
            if is_concerned(situation_of(newest.rollouts[key]))
        ]
        if not flags:
            complain(f"no rollout to {verb}")
        _send([_command(verb, key, options) for key in flags], options)

    app.command(dashed(verb), help=help_text, rich_help_panel=_CONTROL)(command)


_add_freeze_verb(
    CommandVerb.FREEZE,
    "Let nothing advance until unfreeze; rollbacks still happen. Needs --reason.",
    lambda one: not one.rollout.has_ended,
)
_add_freeze_verb(
    CommandVerb.UNFREEZE,
    "Lift the freeze.",
    lambda one: not one.rollout.has_ended and one.rollout.freeze is not None,
)

app.command(rich_help_panel=_INSPECT)(status)
app.command(rich_help_panel=_INSPECT)(watch)
app.command(rich_help_panel=_INSPECT)(decisions)
app.command(rich_help_panel=_INSPECT)(alerts)
app.command(rich_help_panel=_INSPECT)(doctor)
app.add_typer(plan_files.app, name="plan", rich_help_panel=_PLANS)
for command in (simulate, backtest, verdict):
    command.add_command(app, _PLANS)
app.add_typer(drafts.app, name="suggest", rich_help_panel=_DRAFT)
app.command(rich_help_panel=_DRAFT)(drafts.explain)
app.command(rich_help_panel=_DRAFT)(drafts.changelog)
app.add_typer(advisor.app, name="advisor", rich_help_panel=_MODEL)


# --- sending commands ---


async def _read(kafka: KafkaSettings) -> NewestRollouts:
    async with KafkaReader(kafka, ["state"]) as reader:
        return await read_rollouts(reader)


def _command(
    verb: CommandVerb,
    flag: str,
    options: CommandOptions,
    revision: int | None = None,
    plan: PlanDocument | None = None,
) -> Command:
    """Return the command. Exits 2 when it is not valid."""
    _check_reason(verb, options)
    fields: dict[str, Any] = {
        "id": uuid.uuid4().hex if options.command_id is None else options.command_id,
        "flag": check_flag(flag),
        "verb": verb,
        "issuer": options.issuer,
        "reason": options.reason,
        "issued_at": datetime.now(UTC),
        "expected_revision": revision,
        "plan": plan,
    }
    try:
        return Command(**fields)
    except ValidationError as error:
        fail(describe_faults(error), EXIT_USAGE)


def _check_reason(verb: CommandVerb, options: CommandOptions) -> None:
    if verb in NEEDS_REASON and not options.reason.strip():
        fail(
            f"{dashed(verb)} needs --reason: it tells later readers of the audit log why no "
            f"gate was waited for",
            EXIT_USAGE,
        )


def _send(commands: Sequence[Command], options: CommandOptions) -> None:
    """Send the commands, show the result of each, and exit with the worst status."""
    if not commands:
        return
    try:
        answers = perform(
            send_commands(commands, options.kafka, options.seconds, with_state=not options.is_json)
        )
    except typer.Exit as ending:
        if ending.exit_code == EXIT_INTERRUPTED:
            complain(
                "interrupted; what was sent may still be carried out: " + _repeat_hint(commands[0])
            )
        raise
    console = output()
    for command in commands:
        answer = answers.results.get(command.id)
        if options.is_json:
            typer.echo(rendering.to_json(event_view.result_document(command, answer)))
        elif answer is not None:
            rendering.show_line(console, event_view.result_line(answer))
            rollout = answers.newest.rollouts.get(command.flag)
            if rollout is not None:
                rendering.show_line(console, status_view.now_line(situation_of(rollout)))
    missing = [command for command in commands if command.id not in answers.results]
    if missing:
        _say_unanswered(missing, options, answers.error)
        raise typer.Exit(EXIT_NO_RESULT)
    if any(answer.status is not CommandStatus.ACCEPTED for answer in answers.results.values()):
        raise typer.Exit(EXIT_REJECTED)


def _say_unanswered(
    missing: Sequence[Command], options: CommandOptions, trouble: str | None
) -> None:
    flags = rendering.shown([command.flag for command in missing])
    if trouble is not None:
        complain(f"Kafka did not acknowledge the command for {flags}: {trouble}")
    complain(
        f"no result for {flags} within {options.seconds:g} s: the command may still be carried "
        "out. "
        f"Is rolloutd running? {_repeat_hint(missing[0])}"
    )


def _repeat_hint(command: Command) -> str:
    """Return how to send a command again so that it is carried out once."""
    return (
        f"Repeat it with --id {command.id}, which is safe since an id is carried out once, "
        f"or look with `rolloutctl status {command.flag}`."
    )


def main() -> None:
    """Run the command line."""
    prepare_process()
    sys.exit(app())


if __name__ == "__main__":
    main()
