"""`rolloutctl apply`: another plan for a running rollout, after showing what it changes.

What is shown is what the daemon decides: both call `controller.core.plan_changes`, and the command
names the revision that was shown.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich.text import Text

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli import plan_files, rendering, status_view
from controller.cli.common import (
    EXIT_REJECTED,
    PlanArgument,
    PlanFlagOption,
    ReasonOption,
    RevisionOption,
    SendingOptions,
    SureOption,
    fail,
    output,
    perform,
    warn_by_settings,
)
from controller.cli.operator_client import read_rollouts
from controller.cli.sending import command_options, make_command, refuse_without_reason, send
from controller.cli.status import situation_of
from controller.codec.plans import to_core_plan
from controller.core.plan_changes import PlanChange, change_of
from controller.core.rollout import Completed, Rollout
from controller.reporting.fitting import percent_after_apply
from controller.settings import KafkaSettings
from schemas.terms import ChangeEffect, CommandVerb

#: Left out where the reason was given.
_NEEDED: Final = ": needs --reason"
_MARKS: Final = {
    ChangeEffect.AT_ONCE: ("+", "green", "at once"),
    ChangeEffect.LOWERS: ("!", "yellow", f"lowers{_NEEDED}; the stage starts again"),
    ChangeEffect.NEEDS_REASON: ("!", "yellow", f"less careful{_NEEDED}"),
    ChangeEffect.RESTARTS: ("!", "yellow", f"less careful{_NEEDED}; the stage starts again"),
    ChangeEffect.REFUSED: ("x", "red", "cannot be applied"),
}


def apply(
    plan: PlanArgument,
    flag: PlanFlagOption = None,
    is_sure: SureOption = False,
    is_dry: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and send nothing.")
    ] = False,
    reason: ReasonOption = "",
    revision: RevisionOption = None,
    *,
    typed: SendingOptions,
) -> None:
    """Change the plan of a running rollout, after showing every difference.

    What is not less careful is taken at once. What is less careful needs --reason; where it
    concerns the present stage, that stage starts again. So does a lower percentage of it, which
    needs --reason too. The percentage never rises, but other active windows can open or close the
    rollout at once: what is served then is shown first.
    """
    options = command_options(typed, reason)
    document = plan_files.load(plan, flag, is_running=True)
    rollout = perform(_running(options.kafka, document.flag, plan))
    new, is_done = to_core_plan(document), rollout.has_ended
    change = change_of(rollout.plan, new, rollout.stage_index, has_completed=is_done)
    lacks_reason = change.needs_reason and not reason.strip()
    is_sent = bool(change.changes) and not (is_dry or change.refusals or lacks_reason)
    percent = percent_after_apply(rollout, new, datetime.now(UTC))
    if not typed.is_json:
        _show(rollout, change, percent, has_reason=bool(reason.strip()))
    elif not is_sent:  # else the result is the one document
        typer.echo(rendering.to_json(_as_document(rollout, change, percent)))
    if change.refusals:
        fail("this cannot be applied to a running rollout; nothing was sent", EXIT_REJECTED)
    if is_dry or not change.changes:
        return
    if lacks_reason:
        refuse_without_reason(CommandVerb.APPLY, _why_reason(change))
    warn_by_settings(document, typed.config)
    if not (is_sure or typed.is_json) and sys.stdin.isatty() and sys.stdout.isatty():
        _ask(rollout, percent)
    seen = rollout.revision if revision is None else revision
    send([make_command(CommandVerb.APPLY, document.flag, options, seen, document)], options)


def _ask(rollout: Rollout, percent: float) -> None:
    """Ask whether to apply it, with how the percentage moves. Exits 1 for no."""
    moves = "" if percent == rollout.percent else f" ({_moves(rollout, percent)})"
    try:
        question = f"apply to revision {rollout.revision} of {rollout.flag_key}{moves}?"
        typer.confirm(question, abort=True)
    except typer.Abort:
        fail("nothing was sent", EXIT_REJECTED)


def _why_reason(change: PlanChange) -> str:
    """Return what the reason for a change tells."""
    is_looser = any(
        one.effect in (ChangeEffect.NEEDS_REASON, ChangeEffect.RESTARTS) for one in change.changes
    )
    if is_looser:
        return "why the rollout may be less careful"
    return "why the stage begins again, with evidence from zero"


async def _running(kafka: KafkaSettings, flag: str, plan: str) -> Rollout:
    """Return the rollout that is under way or has completed. Exits 1 where there is none."""
    async with KafkaReader(kafka, ["state"]) as reader:
        newest = await read_rollouts(reader)
    rollout = newest.rollouts.get(flag)
    if flag in newest.unreadable:
        fail(f"{flag}: its document cannot be read: {newest.unreadable[flag]}", EXIT_REJECTED)
    if rollout is None:
        fail(f"{flag} has no rollout: `rolloutctl start {plan}` starts one", EXIT_REJECTED)
    if rollout.has_ended and not isinstance(rollout.phase, Completed):
        fail(
            f"the rollout of {flag} has ended ({rollout.phase.name}): `rolloutctl start {plan}` "
            f"starts the next one",
            EXIT_REJECTED,
        )
    return rollout


def _show(rollout: Rollout, change: PlanChange, percent: float, *, has_reason: bool) -> None:
    """Show where the rollout stands, each difference with what it does, and what is served then."""
    console = output()
    rendering.show_line(console, status_view.now_line(situation_of(rollout)))
    if not change.changes:
        typer.echo("the plan is as it is running already: nothing to change")
    for one in change.changes:
        mark, style, words = _MARKS[one.effect]
        if has_reason:
            words = words.replace(_NEEDED, "")
        line = Text.assemble((f"{mark} ", style), f"{one}", (f"  ({words})", "dim"))
        rendering.show_line(console, line)
    if percent != rollout.percent:
        line = Text.assemble(("! ", "yellow"), (_moves(rollout, percent), "bold"))
        rendering.show_line(console, line)


def _moves(rollout: Rollout, percent: float) -> str:
    """Return how the percentage moves once the plan is applied."""
    return f"{rollout.percent:g} % -> {percent:g} % served at once"


def _as_document(rollout: Rollout, change: PlanChange, percent: float) -> dict[str, object]:
    """Return the differences for machines."""
    return {
        "flag": rollout.flag_key,
        "revision": rollout.revision,
        "is_applicable": not change.refusals,
        "needs_reason": change.needs_reason,
        "restarts_stage": change.restarts,
        "percent": rollout.percent,
        "percent_after": percent,
        "changes": [
            {
                "path": one.path,
                "before": one.before,
                "after": one.after,
                "effect": one.effect.value,
                "why": one.why,
            }
            for one in change.changes
        ],
    }
