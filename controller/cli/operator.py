"""The operator's command: `rolloutctl`.

Publishes commands, waits for their one result, shows where things stand.

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
from controller.cli import advisor, drafts, planning, rendering
from controller.cli import plan as plan_files
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
from controller.cli.operator_client import Standings, give, read_standings, whoami
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
    help="Steer and watch rollouts: publishes commands to Kafka and waits for the one result of "
    "each.",
    epilog="Exit codes: 0 accepted or shown; 1 rejected, plan with errors, no such rollout; 2 "
    "usage; 3 no result in time "
    "(repeating with the same --id is safe); 4 Kafka not reached; 78 bad configuration; "
    "130 Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_LOOK, _STEER, _PLANS, _DRAFT, _MODEL = "Look", "Steer", "Plans", "Draft", "Model"

#: Verbs that take a flag and nothing of their own, in the order of the help.
_SIMPLE_VERBS = {
    CommandVerb.PAUSE: "Stop where it is; the percentage stays, guardrails stay armed. Always works.",
    CommandVerb.RESUME: "Go on where the pause began.",
    CommandVerb.PROMOTE: "Enter the next stage now, past its gate. Needs --reason.",
    CommandVerb.PROMOTE_FULL: "Enter the last stage now, past every gate. Needs --reason.",
    CommandVerb.STEP_BACK: "Serve the stage below.",
    CommandVerb.ROLL_BACK: "Serve 0 % because something is wrong. Always works, and is final.",
    CommandVerb.ABORT: "Serve 0 % although nothing is wrong. Always works, and is final.",
}


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command is given and answered: the options that all verbs share."""

    kafka: KafkaSettings
    issuer: str
    reason: str
    command_id: str | None
    seconds: float
    is_json: bool


def _manner(
    config: Path | None,
    bootstrap_servers: str | None,
    topic_prefix: str | None,
    issuer: str | None,
    reason: str,
    command_id: str | None,
    seconds: float,
    is_json: bool,
) -> Manner:
    kafka = kafka_settings(config, bootstrap_servers, topic_prefix)
    return Manner(
        kafka, whoami() if issuer is None else issuer, reason, command_id, seconds, is_json
    )


# --- verbs
# --------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=_STEER)
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
    manner = _manner(
        config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
    )
    document = plan_files.load(plan, flag)
    say_beyond_planes(document, config)
    _carry_out([_order(CommandVerb.START, document.flag, manner, revision, document)], manner)


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
        manner = _manner(
            config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
        )
        _carry_out([_order(verb, flag, manner, revision)], manner)

    app.command(dashed(verb), help=help_text, rich_help_panel=_STEER)(command)


for _verb, _help_text in _SIMPLE_VERBS.items():
    _add_simple_verb(_verb, _help_text)


@app.command(rich_help_panel=_STEER)
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

    `roll-back` that needs no words.
    """
    manner = _manner(
        config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
    )
    _carry_out([_order(CommandVerb.ROLL_BACK, flag, manner)], manner)


def _add_answer_verb(verb: CommandVerb, help_text: str) -> None:
    def command(
        flag: FlagArgument,
        reason: ReasonOption = "",
        revision: Annotated[
            int | None,
            typer.Option(
                "--expected-revision", min=0, help="The revision seen; read and shown now without."
            ),
        ] = None,
        is_sure: Annotated[
            bool, typer.Option("--yes", "-y", help="Do not ask back on a terminal.")
        ] = False,
        issuer: IssuerOption = None,
        command_id: IdOption = None,
        seconds: TimeoutOption = 15.0,
        is_json: JsonOption = False,
        config: ConfigOption = None,
        bootstrap_servers: BootstrapOption = None,
        topic_prefix: PrefixOption = None,
    ) -> None:
        manner = _manner(
            config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
        )
        check_flag(flag)
        if revision is None:
            revision = _look_first(verb, flag, manner, is_sure=is_sure)
        _carry_out([_order(verb, flag, manner, revision)], manner)

    app.command(dashed(verb), help=help_text, rich_help_panel=_STEER)(command)


def _look_first(verb: CommandVerb, flag: str, manner: Manner, *, is_sure: bool) -> int:
    """Return the revision that stands now, after showing what it is.

    On a terminal, after asking back.
    """
    one, _ = perform(find_rollout(manner.kafka, flag))
    if not manner.is_json:
        console = output()
        rendering.show_flag(console, one)
        console.print()
    is_asked = isinstance(one.rollout.phase, AwaitingApproval)
    if (
        is_asked
        and not is_sure
        and not manner.is_json
        and sys.stdin.isatty()
        and sys.stdout.isatty()
    ):
        try:
            typer.confirm(f"{dashed(verb)} revision {one.rollout.revision} of {flag}?", abort=True)
        except typer.Abort:
            fail("nothing was sent", EXIT_REJECTED)
    return one.rollout.revision


_add_answer_verb(
    CommandVerb.APPROVE, "Let a stage that asks for approval advance, bound to the revision seen."
)
_add_answer_verb(
    CommandVerb.REJECT, "Pause a stage that asks for approval, bound to the revision seen."
)


@app.command(rich_help_panel=_STEER)
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
    """Start anew a rollout that has ended, by its own plan or another."""
    manner = _manner(
        config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
    )
    document = None if plan is None else plan_files.load(plan, check_flag(flag))
    if document is not None:
        say_beyond_planes(document, config)
    _carry_out([_order(CommandVerb.RESTART, flag, manner, revision, document)], manner)


def _add_freeze_verb(
    verb: CommandVerb, help_text: str, concerned: Callable[[Situation], bool]
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
        manner = _manner(
            config, bootstrap_servers, topic_prefix, issuer, reason, command_id, seconds, is_json
        )
        if is_all == (flag is not None):
            fail(f"{dashed(verb)}: name a flag, or say --all", EXIT_USAGE)
        if flag is not None:
            _carry_out([_order(verb, flag, manner, revision)], manner)
            return
        if command_id is not None or revision is not None:
            fail(
                "--id and --expected-revision are one flag's: leave them out with --all", EXIT_USAGE
            )
        _check_reason(verb, manner)
        standings = perform(_read(manner.kafka))
        for broken, why in standings.unreadable.items():
            complain(f"{broken} is left out: {why}")
        flags = [
            key
            for key in sorted(standings.rollouts)
            if concerned(situation_of(standings.rollouts[key]))
        ]
        if not flags:
            complain(f"no rollout to {verb}")
        _carry_out([_order(verb, key, manner) for key in flags], manner)

    app.command(dashed(verb), help=help_text, rich_help_panel=_STEER)(command)


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

app.command(rich_help_panel=_LOOK)(status)
app.command(rich_help_panel=_LOOK)(watch)
app.command(rich_help_panel=_LOOK)(decisions)
app.command(rich_help_panel=_LOOK)(alerts)
app.command(rich_help_panel=_LOOK)(doctor)
app.add_typer(plan_files.app, name="plan", rich_help_panel=_PLANS)
planning.add_commands(app, _PLANS)
app.add_typer(drafts.app, name="suggest", rich_help_panel=_DRAFT)
app.command(rich_help_panel=_DRAFT)(drafts.explain)
app.command(rich_help_panel=_DRAFT)(drafts.changelog)
app.add_typer(advisor.app, name="advisor", rich_help_panel=_MODEL)


# --- giving commands
# --------------------------------------------------------------------------------------------------


async def _read(kafka: KafkaSettings) -> Standings:
    async with KafkaReader(kafka, ["state"]) as reader:
        return await read_standings(reader)


def _order(
    verb: CommandVerb,
    flag: str,
    manner: Manner,
    revision: int | None = None,
    plan: PlanDocument | None = None,
) -> Command:
    """Return the command. Exits 2 when it cannot be meant as it stands."""
    _check_reason(verb, manner)
    fields: dict[str, Any] = {
        "id": uuid.uuid4().hex if manner.command_id is None else manner.command_id,
        "flag": check_flag(flag),
        "verb": verb,
        "issuer": manner.issuer,
        "reason": manner.reason,
        "issued_at": datetime.now(UTC),
        "expected_revision": revision,
        "plan": plan,
    }
    try:
        return Command(**fields)
    except ValidationError as error:
        fail(describe_faults(error), EXIT_USAGE)


def _check_reason(verb: CommandVerb, manner: Manner) -> None:
    if verb in NEEDS_REASON and not manner.reason.strip():
        fail(
            f"{dashed(verb)} needs --reason: it is read by whoever asks later why no gate "
            f"was waited for",
            EXIT_USAGE,
        )


def _carry_out(orders: Sequence[Command], manner: Manner) -> None:
    """Give the commands, say what became of each, and exit with the worst of it."""
    if not orders:
        return
    try:
        answers = perform(give(orders, manner.kafka, manner.seconds, with_state=not manner.is_json))
    except typer.Exit as ending:
        if ending.exit_code == EXIT_INTERRUPTED:
            complain(
                "interrupted; what was sent may still be carried out: " + _repeat_hint(orders[0])
            )
        raise
    console = output()
    for order in orders:
        answer = answers.results.get(order.id)
        if manner.is_json:
            typer.echo(rendering.to_json(rendering.result_document(order, answer)))
        elif answer is not None:
            rendering.show_line(console, rendering.result_line(answer))
            now_stands = answers.standings.rollouts.get(order.flag)
            if now_stands is not None:
                rendering.show_line(console, rendering.now_line(situation_of(now_stands)))
    missing = [order for order in orders if order.id not in answers.results]
    if missing:
        _say_unanswered(missing, manner, answers.trouble)
        raise typer.Exit(EXIT_NO_RESULT)
    if any(answer.status is not CommandStatus.ACCEPTED for answer in answers.results.values()):
        raise typer.Exit(EXIT_REJECTED)


def _say_unanswered(missing: Sequence[Command], manner: Manner, trouble: str | None) -> None:
    flags = rendering.shown([order.flag for order in missing])
    if trouble is not None:
        complain(f"Kafka did not acknowledge the command for {flags}: {trouble}")
    complain(
        f"no result for {flags} within {manner.seconds:g} s: the command may still be carried out. "
        f"Is rolloutd running? {_repeat_hint(missing[0])}"
    )


def _repeat_hint(order: Command) -> str:
    """Return how to ask again without ordering twice."""
    return (
        f"Repeat it with --id {order.id}, which is safe since an id is carried out once, "
        f"or look with `rolloutctl status {order.flag}`."
    )


def main() -> None:
    """Run the command line."""
    prepare_process()
    sys.exit(app())


if __name__ == "__main__":
    main()
