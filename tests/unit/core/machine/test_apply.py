"""What a new plan does to a gate: nothing passes that was not judged as the new plan asks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.core.effects import AskAdvice
from controller.core.events import Ticked
from controller.core.machine import decide
from controller.core.plan import Plan
from controller.core.rollout import AdviceRound, AwaitingApproval, Baking, Gating, Rollout
from schemas.terms import AdviceChoice, AdvisorMode, Approval, CommandVerb, HoldReason
from tests.builders import (
    T0,
    make_advice,
    make_command,
    make_guardrail,
    make_plan,
    make_rollout,
    make_stages,
)
from tests.unit.core.machine.states import ADVISED, GATE, SECOND, SOON, after, judged

ADDED = make_guardrail(metric="latency_p99", limit=300.0, margin=None)


def applied(rollout: Rollout, plan: Plan) -> Rollout:
    """Return the rollout with another plan."""
    plan = replace(plan, version="f" * 16)
    command = make_command(
        CommandVerb.APPLY, issued_at=SOON, plan=plan, expected_revision=rollout.revision
    )
    return after(rollout, command)


@pytest.mark.parametrize(
    ("earlier", "now", "choice", "asks"),
    [
        (AdvisorMode.CAN_HOLD, AdvisorMode.REQUIRED, None, True),
        (AdvisorMode.OBSERVE, AdvisorMode.REQUIRED, AdviceChoice.HOLD, True),
        (AdvisorMode.OBSERVE, AdvisorMode.CAN_HOLD, AdviceChoice.HOLD, True),
        (AdvisorMode.OBSERVE, AdvisorMode.CAN_HOLD, None, False),
        (AdvisorMode.CAN_HOLD, AdvisorMode.REQUIRED, AdviceChoice.PROCEED, False),
    ],
)
def test_a_round_counts_as_the_new_plan_says(
    earlier: AdvisorMode, now: AdvisorMode, choice: AdviceChoice | None, asks: bool
) -> None:
    """An answer that was enough is not, under a stricter mode: the model is asked once more."""
    answer = None if choice is None else make_advice(choice)
    gate = replace(GATE, advice=AdviceRound(1, T0, answer, is_closed=True))
    plan = make_plan(advisor=replace(ADVISED, mode=earlier))
    rollout = make_rollout(plan=plan, phase=gate, updated_at=T0)
    changed = applied(rollout, replace(plan, advisor=replace(ADVISED, mode=now)))
    moved, effects = decide(changed, judged(), SOON + SECOND)
    assert moved is not None
    assert [each.round for each in effects if isinstance(each, AskAdvice)] == [2] * asks
    assert isinstance(moved.phase, Gating if asks else Baking)


def test_an_approval_is_not_for_evidence_that_nobody_has_seen() -> None:
    """A guardrail that comes while a person is asked is judged before they are asked again."""
    waiting = AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL)
    plan = make_plan(stages=make_stages(10, 50, approval=Approval.REQUIRED))
    rollout = make_rollout(plan=plan, phase=waiting, hold=HoldReason.APPROVAL, updated_at=T0)
    changed = applied(rollout, replace(plan, guardrails=(*plan.guardrails, ADDED)))
    assert (changed.phase, changed.hold) == (Baking(0, SOON), None)
    gating = after(changed, Ticked(), SOON)
    assert isinstance(gating.phase, Gating)
    asked = after(gating, judged(), SOON + SECOND)
    assert isinstance(asked.phase, AwaitingApproval)


def test_an_approval_stays_asked_for_where_the_evidence_is_the_same() -> None:
    """Another owner, or a later stage, withdraws nothing."""
    waiting = AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL)
    plan = make_plan(stages=make_stages(10, 50, approval=Approval.REQUIRED))
    rollout = make_rollout(plan=plan, phase=waiting, hold=HoldReason.APPROVAL, updated_at=T0)
    changed = applied(rollout, replace(plan, owner="team-web"))
    assert (changed.phase, changed.hold) == (waiting, HoldReason.APPROVAL)
