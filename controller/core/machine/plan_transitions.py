"""Changes of a rollout's plan, with what is announced of them. Neither raises the percentage.

Neither this nor any other change is allowed here: those who call it decide that.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from controller.core.effects import AppliedPlan, Transition
from controller.core.machine import announcements
from controller.core.machine.cause import Cause
from controller.core.machine.four_eyes import with_author
from controller.core.machine.obstacles import holds
from controller.core.machine.revisions import announced, next_revision
from controller.core.machine.times import bake_time, first_free, gate_time
from controller.core.machine.transitions import entered
from controller.core.plan_changes import PlanChange
from controller.core.rollout import (
    AdviceRound,
    AwaitingApproval,
    Baking,
    Gating,
    Paused,
    Rollout,
    Scheduled,
    Waiting,
)
from schemas.terms import AdvisorMode, DecisionKind, HoldReason


def apply_plan(rollout: Rollout, change: PlanChange, cause: Cause, now: datetime) -> Transition:
    """Go on with another plan; where it is less careful, with the present stage from its start.

    A paused rollout stays paused.
    """
    last = len(change.plan.stages) - 1
    # A visit of a later stage, before a step back, may have been of a stage that is gone.
    visits = tuple(replace(visit, stage=min(visit.stage, last)) for visit in rollout.visits)
    assert cause.command is not None, "nothing but a command changes a plan"
    authors = with_author(rollout, cause.command.issuer)
    planned = replace(rollout, plan=change.plan, visits=visits, authors=authors)
    if rollout.stage_index is not None and change.restarts:
        after = entered(planned, rollout.stage_index, now, pause=True)
    else:
        after = _going_on(rollout, planned, now)
    decision = replace(
        announcements.decision(rollout, after, DecisionKind.APPLY, cause),
        applied=AppliedPlan(rollout.plan, change.plan, tuple(map(str, change.changes))),
    )
    return Transition(after, (decision,))


def _going_on(before: Rollout, planned: Rollout, now: datetime) -> Rollout:
    """Return the rollout in the same visit, with the deadlines of its new plan."""
    phase, held = planned.phase, planned.unpaused_phase
    if not isinstance(held, Waiting):  # it has completed: no deadline but the plan's own is left
        return next_revision(planned, now)
    adjusted = _adjusted(held, before, planned, now)
    if isinstance(phase, Paused):
        return next_revision(planned, now, phase=replace(phase, held=adjusted))
    hold = planned.hold
    if isinstance(adjusted, Baking) and not isinstance(held, Baking):  # the gate has closed
        hold = HoldReason.HEALTH if planned.told_gaps else None
    return next_revision(planned, now, phase=adjusted, hold=hold)


def _adjusted(phase: Waiting, before: Rollout, planned: Rollout, now: datetime) -> Waiting:
    """Return the phase with its deadlines moved by what the plans differ.

    A gate whose stage has to bake for longer closes until that time is over. A request to a person
    is withdrawn when the gate asks for other evidence than it did.
    """
    if isinstance(phase, Scheduled):
        start_at = max(planned.plan.start_at or now, now)
        return Scheduled(first_free(planned, start_at) or start_at)
    old, new = before.plan.stages[phase.stage], planned.plan.stages[phase.stage]
    longer = max(new.bake - old.bake, timedelta(0))
    now = bake_time(before, now)
    match phase:
        case Baking(until=until):
            return replace(phase, until=until + longer)
        case Gating() | AwaitingApproval() if (
            longer
            and (until := phase.since + longer + before.visits[-1].still_after(phase.since, now))
            > now
        ):
            return Baking(phase.stage, until)
        case Gating(until=until, advice=advice):
            difference = gate_time(planned, phase.stage) - gate_time(before, phase.stage)
            advice = advice and _asked_again(advice, planned.plan.advisor.mode, now)
            return replace(phase, until=until + difference, advice=advice)
        case AwaitingApproval() if _asked_for(before) != _asked_for(planned):
            return Baking(phase.stage, now)
        case AwaitingApproval():
            return phase


def _asked_again(round_: AdviceRound, mode: AdvisorMode, now: datetime) -> AdviceRound:
    """Return the round; one that let pass what `mode` does not is followed by another one."""
    if not round_.is_closed or round_.held_until is not None or not holds(round_.answer, mode):
        return round_
    return replace(round_, held_until=now)


def _asked_for(rollout: Rollout) -> object:
    """Return what the gate of the present stage asks of the evidence."""
    plan, stage = rollout.plan, rollout.stage
    assert stage is not None
    return plan.guardrails, plan.alpha, plan.beta, stage.min_sample


def retry(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Begin the present stage again: its evidence counts from zero, its percentage stays."""
    assert rollout.stage_index is not None
    after = entered(rollout, rollout.stage_index, now)
    return announced(rollout, after, DecisionKind.RETRY, cause)
