"""Carries out the rows of the command table that a plan comes with: start, restart and apply.

Each returns the transition with the answer to the command, as those in `actions.py` do.
"""

from __future__ import annotations

from dataclasses import replace

from controller.core.effects import Transition
from controller.core.machine import four_eyes, plan_transitions, transitions
from controller.core.machine.commands import (
    ALREADY_STARTED,
    OUTDATED,
    Request,
    done,
    nothing_to_do,
    rejected,
    stale,
)
from controller.core.machine.obstacles import why_no_start, why_over
from controller.core.plan_changes import change_of
from controller.core.rollout import Rollout
from schemas.terms import AdvisorMode, CommandVerb

NO_MODEL = (
    "the plan requires advice, and rolloutd has no model: set advisor.url, or write "
    "`advisor: {mode: can_hold}`"
)


def begin(previous: Rollout | None, request: Request) -> Transition:
    """Start a flag's first or next rollout; `restart` takes the plan of the one before."""
    command, now = request.command, request.now
    revision = command.last_revision if previous is None else previous.revision
    plan = command.plan
    if plan is None and previous is not None and command.verb is CommandVerb.RESTART:
        plan = previous.plan
    if plan is None:
        return rejected(previous, request, "start needs a plan")
    if previous is not None and command.command_id == previous.rollout_id:
        # Read again after Redis lost the answer: the rollout that it started has ended, and only
        # another command may start the next one.
        return nothing_to_do(previous, request, ALREADY_STARTED)
    if request.is_outdated:
        return rejected(previous, request, OUTDATED)
    if plan.advisor.mode is AdvisorMode.REQUIRED and not command.has_advisor:
        return rejected(previous, request, NO_MODEL)
    if (why := why_no_start(plan, now)) is not None:
        return rejected(previous, request, why)
    if command.refusals:
        return rejected(previous, request, f"against the rules: {'; '.join(command.refusals)}")
    kept = previous if command.plan is None else None
    if kept is not None and four_eyes.is_one_too_many(kept, command.issuer):
        return rejected(previous, request, four_eyes.TOO_MANY)
    if command.expected_revision not in (None, revision, 0 if previous is None else None):
        return rejected(previous, request, stale(command, revision))
    return done(transitions.start(previous, plan, command, now), request)


def apply(rollout: Rollout, request: Request) -> Transition:
    """Go on with another plan, unless it would move people or lacks what it needs."""
    command = request.command
    if command.plan is None:
        return rejected(rollout, request, "apply needs a plan")
    is_done = rollout.has_ended
    change = change_of(rollout.plan, command.plan, rollout.stage_index, has_completed=is_done)
    if change.refusals:
        why = "; ".join(map(str, change.refusals))
        return rejected(rollout, request, f"cannot be applied: {why}")
    if not change.changes:
        return nothing_to_do(rollout, request, change.words)
    is_reasoned = command.reason.strip() and command.expected_revision is not None
    if change.needs_reason and not is_reasoned:
        what = "less careful or beginning the stage again, so it needs a reason and"
        why = f"{what} expected_revision: {change.words}"
        return rejected(rollout, request, why)
    needs_model = change.plan.advisor.mode is AdvisorMode.REQUIRED and not is_done
    if needs_model and not command.has_advisor:
        return rejected(rollout, request, NO_MODEL)
    ended = replace(change.plan, expires_at=None) if is_done else change.plan
    if (over := why_over(ended, request.now)) is not None:
        return rejected(rollout, request, over)
    what = "the plan was changed"
    if change.restarts and rollout.stage_index is not None:
        what += ", and the stage begins again"
    cause = request.cause(f"{what}: {change.words}")
    return done(plan_transitions.apply_plan(rollout, change, cause, request.now), request)
