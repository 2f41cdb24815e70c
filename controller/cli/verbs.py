"""The commands of `rolloutctl` that send a verb: the functions, with their options.

What sends is imported on use: it takes most of a command's start, and `--help` needs none of it.
Their one-line help, names and aliases are in `command_table.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli.common import (
    EXIT_USAGE,
    DaemonOption,
    FlagArgument,
    NeverAskedOption,
    PlanArgument,
    PlanFlagOption,
    ReasonOption,
    RevisionOption,
    SendingOptions,
    SureOption,
    check_flag,
    complain,
    fail,
    perform,
    warn_by_settings,
)
from controller.cli.rendering import dashed
from schemas.terms import CommandVerb

if TYPE_CHECKING:
    from controller.reporting.situation import Situation


def start(
    plan: PlanArgument,
    flag: PlanFlagOption = None,
    reason: ReasonOption = "",
    revision: RevisionOption = None,
    *,
    typed: SendingOptions,
) -> None:
    """Start a rollout by a plan, after checking the plan."""
    from controller.cli import plan_files, sending

    options = sending.command_options(typed, reason)
    document = plan_files.load(plan, flag)
    warn_by_settings(document, typed.config)
    sending.send(
        [sending.make_command(CommandVerb.START, document.flag, options, revision, document)],
        options,
    )


def _simple_verb(verb: CommandVerb) -> Callable[..., None]:
    """Return the command of a verb that is sent as it is typed."""

    def command(
        flag: FlagArgument,
        reason: ReasonOption = "",
        revision: RevisionOption = None,
        _is_sure: NeverAskedOption = False,
        *,
        typed: SendingOptions,
    ) -> None:
        from controller.cli import sending

        options = sending.command_options(typed, reason)
        sending.send([sending.make_command(verb, flag, options, revision)], options)

    return command


def kill(
    flag: FlagArgument,
    reason: ReasonOption = "kill switch",
    _is_sure: NeverAskedOption = False,
    *,
    typed: SendingOptions,
) -> None:
    """Switch a flag off for everybody, also one whose rollout is complete.

    The same as `rollback`, with a reason filled in.
    """
    from controller.cli import sending

    options = sending.command_options(typed, reason)
    sending.send([sending.make_command(CommandVerb.ROLL_BACK, flag, options)], options)


def _confirmed_verb(verb: CommandVerb) -> Callable[..., None]:
    """Return the command of a verb that first shows where the rollout stands, and asks."""

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
        daemon: DaemonOption = None,
        is_sure: SureOption = False,
        *,
        typed: SendingOptions,
    ) -> None:
        from controller.cli import sending

        options = sending.command_options(typed, reason)
        check_flag(flag)
        sending.check_reason(verb, options)
        # A command that is repeated by its id stays the same, so it is bound to no other revision.
        stays = (CommandVerb.PROMOTE_FULL, CommandVerb.RETIRE)
        if revision is None and (typed.command_id is None or verb not in stays):
            revision = sending.confirmed_revision(
                verb, flag, options, daemon=daemon, is_sure=is_sure
            )
        sending.send([sending.make_command(verb, flag, options, revision)], options)

    return command


def _promote(
    flag: FlagArgument,
    to_stage: Annotated[
        str | None,
        typer.Option("--to", help="The later stage, by its name or as in 50%. Default: the next."),
    ] = None,
    reason: ReasonOption = "",
    revision: RevisionOption = None,
    daemon: DaemonOption = None,
    is_sure: SureOption = False,
    *,
    typed: SendingOptions,
) -> None:
    from controller.cli import sending

    verb = CommandVerb.PROMOTE
    options = sending.command_options(typed, reason)
    check_flag(flag)
    sending.check_reason(verb, options, to_stage)
    if revision is None and typed.command_id is None:
        revision = sending.confirmed_revision(verb, flag, options, daemon=daemon, is_sure=is_sure)
    sending.send([sending.make_command(verb, flag, options, revision, to_stage=to_stage)], options)


def _step_back(
    flag: FlagArgument,
    to_stage: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="The earlier stage, by its name or as in 10%; needs --reason. Default: the one "
            "below.",
        ),
    ] = None,
    reason: ReasonOption = "",
    revision: RevisionOption = None,
    _is_sure: NeverAskedOption = False,
    *,
    typed: SendingOptions,
) -> None:
    from controller.cli import sending

    options = sending.command_options(typed, reason)
    sending.send(
        [sending.make_command(CommandVerb.STEP_BACK, flag, options, revision, to_stage=to_stage)],
        options,
    )


def restart(
    flag: FlagArgument,
    plan: Annotated[
        str | None, typer.Option("--plan", help="A plan file to use in place of the pinned one.")
    ] = None,
    reason: ReasonOption = "",
    revision: RevisionOption = None,
    *,
    typed: SendingOptions,
) -> None:
    """Start a finished rollout again, by its own plan or another."""
    from controller.cli import plan_files, sending

    options = sending.command_options(typed, reason)
    document = None if plan is None else plan_files.load_for(flag, plan)
    if document is not None:
        warn_by_settings(document, typed.config)
    sending.send(
        [sending.make_command(CommandVerb.RESTART, flag, options, revision, document)], options
    )


def revive(
    flag: FlagArgument,
    reason: ReasonOption = "",
    revision: RevisionOption = None,
    *,
    typed: SendingOptions,
) -> None:
    """Switch a flag on again that was switched off, by its own plan from the first stage.

    Its guardrails are armed again. The same as `restart`, with a reason that the audit log keeps.
    """
    from controller.cli import sending

    options = sending.command_options(typed, reason)
    if not reason.strip():
        fail(
            "revive needs --reason: the audit log keeps why it is safe again; nothing was sent",
            EXIT_USAGE,
        )
    sending.send([sending.make_command(CommandVerb.RESTART, flag, options, revision)], options)


def _freeze_verb(
    verb: CommandVerb, is_concerned: Callable[[Situation], bool]
) -> Callable[..., None]:
    """Return the command of a verb for one flag, or with `--all` for each that `is_concerned`."""

    def command(
        flag: Annotated[
            str | None, typer.Argument(metavar="FLAG", help="The flag's key.", show_default=False)
        ] = None,
        is_all: Annotated[
            bool, typer.Option("--all", help="Every flag whose rollout is under way.")
        ] = False,
        reason: ReasonOption = "",
        revision: RevisionOption = None,
        *,
        typed: SendingOptions,
    ) -> None:
        from controller.cli import sending
        from controller.cli.status import situation_of

        options = sending.command_options(typed, reason)
        if is_all == (flag is not None):
            how = "a flag or --all, not both" if is_all else "name a flag, or say --all"
            fail(f"{dashed(verb)}: {how}", EXIT_USAGE)
        if flag is not None:
            sending.send([sending.make_command(verb, flag, options, revision)], options)
            return
        if typed.command_id is not None or revision is not None:
            fail(
                "--id and --expected-revision are one flag's: leave them out with --all", EXIT_USAGE
            )
        sending.check_reason(verb, options)
        newest = perform(sending.all_rollouts(options.kafka))
        for broken, why in newest.unreadable.items():
            complain(f"{broken} is left out: {why}")
        flags = [
            key
            for key in sorted(newest.rollouts)
            if is_concerned(situation_of(newest.rollouts[key]))
        ]
        if not flags:
            later = "; one that starts later is not frozen" if verb is CommandVerb.FREEZE else ""
            complain(f"no rollout to {dashed(verb)}{later}")
        sending.send([sending.make_command(verb, key, options) for key in flags], options)

    return command


def stop(words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Refuse a word that could mean two things."""
    fail(
        "stop could mean two things: `pause` keeps the percentage, `rollback` and `abort` serve "
        "0 %",
        EXIT_USAGE,
    )


# The functions behind these names have no docstring: it would be the command's help, which is in
# `command_table.py`.
pause = _simple_verb(CommandVerb.PAUSE)
resume = _simple_verb(CommandVerb.RESUME)
retry = _simple_verb(CommandVerb.RETRY)
roll_back = _simple_verb(CommandVerb.ROLL_BACK)
abort = _simple_verb(CommandVerb.ABORT)
approve = _confirmed_verb(CommandVerb.APPROVE)
reject = _confirmed_verb(CommandVerb.REJECT)
promote = _promote
promote_full = _confirmed_verb(CommandVerb.PROMOTE_FULL)
retire = _confirmed_verb(CommandVerb.RETIRE)
step_back = _step_back
freeze = _freeze_verb(
    CommandVerb.FREEZE, lambda one: not one.rollout.has_ended or one.rollout.may_open_again
)
unfreeze = _freeze_verb(CommandVerb.UNFREEZE, lambda one: one.rollout.freeze is not None)
