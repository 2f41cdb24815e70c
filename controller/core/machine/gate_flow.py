"""What evidence, time and advice do at a gate: health, statistics, freeze, advice, people.

They are considered in this order. Also here: what evidence does before the gate, and after it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from controller.core.judging.judgement import Gap, Judgement, MetricReport
from controller.core.machine import announcements, transitions
from controller.core.machine.cause import Cause
from controller.core.machine.obstacles import gaps_to_fix, passes, why_not
from controller.core.machine.times import is_frozen, may_announce
from controller.core.rollout import (
    AdviceReceived,
    AdviceRound,
    AdviceUnavailable,
    AskAdvice,
    AwaitingApproval,
    Event,
    EvidenceJudged,
    Gating,
    Paused,
    Rollout,
    Transition,
)
from schemas.terms import (
    AdviceChoice,
    AdvisorMode,
    AlertKind,
    Approval,
    DecisionKind,
    GapPolicy,
    HealthGap,
    HoldReason,
    OnBreach,
)

# --- what does not wait for the gate ---


def act_on_breach(
    rollout: Rollout, breach: MetricReport, judgement: Judgement, now: datetime
) -> Transition:
    """Do what the guardrail's policy says about a regression; below the first stage is only 0 %."""
    cause = Cause(f"guardrail {breach.metric}: {breach.reason}", judgement)
    if breach.on_breach is OnBreach.PAUSE:
        if isinstance(rollout.phase, Paused) and rollout.phase.reason is HoldReason.BREACH:
            return Transition(rollout)
        return transitions.pause(rollout, HoldReason.BREACH, cause, now)
    if breach.on_breach is OnBreach.STEP_BACK and (rollout.stage_index or 0) > 0:
        return transitions.step_back(rollout, cause, now)
    return transitions.roll_back(rollout, cause, now)


def act_on_gap(rollout: Rollout, gap: Gap, judgement: Judgement, now: datetime) -> Transition:
    """Pause or roll back for a gap, as the plan says.

    A treatment that went missing rolls back: it may have crashed before it could report.
    """
    cause = Cause(f"{gap.kind}: {gap.detail}", judgement)
    if rollout.plan.gap_policies[gap.kind] is GapPolicy.ROLL_BACK or gap.treatment_missing:
        return transitions.roll_back(rollout, cause, now)
    alert = AlertKind.SRM if gap.kind is HealthGap.SRM else AlertKind.PAUSED
    return transitions.pause(rollout, HoldReason.HEALTH, cause, now, alert)


def report_in_bake(rollout: Rollout, judgement: Judgement, now: datetime) -> Transition:
    """Hold during the bake for the gaps that an operator has to fix, and no others."""
    reason, why = why_not(replace(judgement, gaps=gaps_to_fix(judgement)))
    return announce_hold(rollout, reason, Cause(why, judgement), now)


def announce_hold(rollout: Rollout, reason: HoldReason, cause: Cause, now: datetime) -> Transition:
    """Announce once why nothing moves, and another reason only a minute later."""
    if rollout.hold is reason or (rollout.hold is not None and not may_announce(rollout, now)):
        return Transition(rollout)
    held = transitions.set_hold(rollout, reason, cause, now)
    assert held.after is not None
    return Transition(held.after, (*held.effects, *announcements.hold_alerts(held.after, cause)))


def hold_back(rollout: Rollout, why: str, judgement: Judgement | None, now: datetime) -> Transition:
    """Return the rollout held where it is, because this replica may raise nothing now."""
    now = max(now, rollout.updated_at)
    is_recent = rollout.hold is not None and not may_announce(rollout, now)
    if rollout.hold is HoldReason.HEALTH or is_recent or rollout.has_ended:
        return Transition(rollout)
    cause = Cause(f"everything else has passed; {why}", judgement)
    return transitions.set_hold(rollout, HoldReason.HEALTH, cause, now)


# --- the gate ---


def judge_gate(rollout: Rollout, gate: Gating, judgement: Judgement, now: datetime) -> Transition:
    """Close the gate, or hold for the first thing that stands in the way."""
    for gap in judgement.gaps:
        if rollout.plan.gap_policies[gap.kind] is GapPolicy.PAUSE:
            return act_on_gap(rollout, gap, judgement, now)
    if not passes(judgement):
        reason, why = why_not(judgement)
        return announce_hold(rollout, reason, Cause(why, judgement), now)
    if is_frozen(rollout, now):
        cause = Cause("everything has passed; frozen", judgement)
        return announce_hold(rollout, HoldReason.FROZEN, cause, now)
    return _consider_advice(rollout, gate, judgement, now)


def _consider_advice(
    rollout: Rollout, gate: Gating, judgement: Judgement, now: datetime
) -> Transition:
    """Ask the model, wait for its answer, or follow it.

    Whatever it answers, it can only add a hold to what would happen without it.
    """
    policy, round_ = rollout.plan.advisor, gate.advice
    if policy.mode is AdvisorMode.OFF:
        return _consider_people(rollout, gate, judgement, now)
    if round_ is None:
        return _ask(rollout, gate, 1, judgement, now)
    if not round_.is_closed:
        return Transition(rollout)
    if round_.held_until is None:
        return _consider_people(rollout, gate, judgement, now)
    if round_.number >= policy.hold_rounds:
        cause = Cause("advice held in every round it has; a person decides", judgement)
        return transitions.await_approval(rollout, gate, HoldReason.ADVISOR, cause, now)
    if now >= round_.held_until:
        return _ask(rollout, gate, round_.number + 1, judgement, now)
    return announce_hold(rollout, HoldReason.ADVISOR, Cause(_advice_words(round_), judgement), now)


def _advice_words(round_: AdviceRound) -> str:
    if round_.answer is None:
        return f"advice is required, and there is none in round {round_.number}"
    reasons = "; ".join(reason.rstrip(".") for reason in round_.answer.reasons)
    return f"advice in round {round_.number}: {round_.answer.choice}: {reasons}"


def _consider_people(
    rollout: Rollout, gate: Gating, judgement: Judgement, now: datetime
) -> Transition:
    """Ask for approval when everything else has passed; advance where none is required."""
    if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED:
        cause = Cause("everything else has passed; the plan asks for approval", judgement)
        return transitions.await_approval(rollout, gate, HoldReason.APPROVAL, cause, now)
    why = "the gate has passed"
    if gate.advice is not None and gate.advice.answer is None:
        why = "the gate has passed; no advice came, the statistics decide alone"
    return transitions.advance(rollout, Cause(why, judgement), now)


def close_undecided(rollout: Rollout, gate: Gating, event: Event, now: datetime) -> Transition:
    """Pause at the gate's deadline; a gate that a freeze kept from closing gets its time again."""
    if rollout.hold is HoldReason.FROZEN:
        return Transition(transitions.renew_gate(rollout, gate, now))
    why = "the gate is still undecided at max_bake"
    if isinstance(event, EvidenceJudged) and not passes(event.judgement):
        why = f"{why}: {why_not(event.judgement)[1]}"
    elif rollout.hold is not None:
        why = f"{why}, held for {rollout.hold}"
    return transitions.pause(rollout, HoldReason.MAX_BAKE, Cause(why), now)


def withdraw_request(
    rollout: Rollout, waiting: AwaitingApproval, judgement: Judgement, now: datetime
) -> Transition:
    """Withdraw the request to a person and open a new gate: its evidence is out of date."""
    reason, why = why_not(judgement)
    cause = Cause(f"no longer asks for approval: {why}", judgement)
    after = transitions.open_gate(rollout, waiting.stage, now, reason)
    decision = announcements.decision(rollout, after, DecisionKind.HOLD, cause)
    return Transition(after, (decision, *announcements.hold_alerts(after, cause)))


# --- rounds of advice ---


def _ask(
    rollout: Rollout, gate: Gating, number: int, judgement: Judgement, now: datetime
) -> Transition:
    until = now + rollout.plan.advisor.deadline
    earlier = None if gate.advice is None else gate.advice.answer
    question = AskAdvice(gate.gate_id, number, until, judgement, earlier)
    asked = transitions.set_advice(rollout, gate, AdviceRound(number, until))
    return Transition(asked, (question,))


def is_answer(event: AdviceReceived | AdviceUnavailable, gate: Gating) -> bool:
    """Return whether this answers the gate's open question, and not an earlier one."""
    if gate.advice is None or gate.advice.is_closed:
        return False
    return (event.gate_id, event.round) == (gate.gate_id, gate.advice.number)


def close_round(
    rollout: Rollout, gate: Gating, answer: AdviceReceived | AdviceUnavailable | None, now: datetime
) -> Rollout:
    """Return the rollout with the answer, or without one; the next judgement decides with it."""
    assert gate.advice is not None
    policy = rollout.plan.advisor
    advice = answer.advice if isinstance(answer, AdviceReceived) else None
    objects = advice is not None and advice.choice is not AdviceChoice.PROCEED
    is_missing = advice is None and policy.mode is AdvisorMode.REQUIRED
    holds = is_missing or (objects and policy.mode is not AdvisorMode.OBSERVE)
    held_until = now + policy.hold_for if holds else None
    closed = replace(gate.advice, answer=advice, is_closed=True, held_until=held_until)
    return transitions.set_advice(rollout, gate, closed)


def reopen_round(rollout: Rollout, gate: Gating, now: datetime) -> Rollout:
    """Return the rollout without its open question: the next judgement asks it again."""
    assert gate.advice is not None
    earlier = gate.advice.number - 1
    advice = replace(gate.advice, number=earlier, is_closed=True, held_until=now)
    return transitions.set_advice(rollout, gate, advice if earlier else None)
