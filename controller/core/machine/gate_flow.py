"""Handles evidence, time and advice at a gate: health, statistics, freeze, advice, people.

They are considered in this order. Also here: what evidence does after the gate. What does not wait
for a gate is in `evidence_flow.py`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from controller.core.effects import AskAdvice, Transition
from controller.core.events import AdviceReceived, AdviceUnavailable, Event, EvidenceJudged
from controller.core.evidence import WebhookReply
from controller.core.judging.judgement import Judgement
from controller.core.machine import announcements, health, holding, transitions
from controller.core.machine.cause import Cause
from controller.core.machine.obstacles import (
    holding_webhooks,
    holds,
    passes,
    silent_webhooks,
    why_not,
    why_not_again,
)
from controller.core.machine.times import is_frozen, may_announce
from controller.core.plan import GateWebhook
from controller.core.plan_changes.windows import duration_words
from controller.core.rollout import AdviceRound, AwaitingApproval, Gating, Rollout
from schemas.terms import (
    AdvisorMode,
    Approval,
    DecisionKind,
    HoldReason,
    OnBreach,
)

# --- holds ---


def announce_hold(rollout: Rollout, reason: HoldReason, cause: Cause, now: datetime) -> Transition:
    """Announce once why nothing moves, and another reason only a minute later."""
    if rollout.hold is reason or (rollout.hold is not None and not may_announce(rollout, now)):
        return Transition(rollout)
    held = holding.set_hold(rollout, reason, cause, now)
    assert held.after is not None
    return Transition(held.after, (*held.effects, *announcements.hold_alerts(held.after, cause)))


def hold_back(rollout: Rollout, why: str, judgement: Judgement | None, now: datetime) -> Transition:
    """Return the rollout held where it is, because this replica may raise nothing now."""
    now = max(now, rollout.updated_at)
    is_recent = rollout.hold is not None and not may_announce(rollout, now)
    if rollout.hold is HoldReason.HEALTH or is_recent or rollout.has_ended:
        return Transition(rollout)
    what = "everything else has passed"
    if rollout.closed_since is not None:
        what = "an active window of the plan has begun"
    cause = Cause(f"{what}; {why}", judgement)
    return holding.set_hold(rollout, HoldReason.HEALTH, cause, now)


# --- the gate ---


def judge_gate(rollout: Rollout, gate: Gating, judgement: Judgement, now: datetime) -> Transition:
    """Close the gate, or hold for the first thing that stands in the way.

    Either ends the gaps that people were told of and that no longer stand in it: they are told so.
    """
    after, effects = _judge(rollout, gate, judgement, now)
    if not rollout.told_gaps or after is None or after.told_gaps:
        return Transition(after, effects)
    cause = Cause(health.over_words(rollout.told_gaps), judgement)
    over = announcements.health_gap_over(rollout, cause)
    return Transition(after, (*effects[:1], over, *effects[1:]))


def _judge(rollout: Rollout, gate: Gating, judgement: Judgement, now: datetime) -> Transition:
    if not passes(judgement):
        reason, why = why_not(judgement)
        return announce_hold(rollout, reason, Cause(why, judgement), now)
    if is_frozen(rollout, now):
        cause = Cause("everything has passed; frozen", judgement)
        return announce_hold(rollout, HoldReason.FROZEN, cause, now)
    if held := holding_webhooks(judgement):
        cause = Cause(f"everything measured has passed; {held}", judgement)
        return announce_hold(rollout, HoldReason.WEBHOOK, cause, now)
    if silent_webhooks(rollout, judgement):
        return Transition(rollout)  # they are asked now: silence never passes a gate
    return _consider_advice(rollout, gate, judgement, now)


def act_on_webhook(
    rollout: Rollout, webhook: GateWebhook, reply: WebhookReply, judgement: Judgement, now: datetime
) -> Transition:
    """Do what the plan says about a gate webhook that answers `fail`: it can only stop or lower."""
    cause = Cause(f"gate webhook {reply}", judgement)
    if webhook.on_fail is OnBreach.PAUSE:
        return transitions.pause(rollout, HoldReason.WEBHOOK, cause, now)
    if webhook.on_fail is OnBreach.STEP_BACK and rollout.stage_index:
        return transitions.step_back(rollout, rollout.stage_index - 1, cause, now)
    return transitions.roll_back(rollout, cause, now)


def _consider_advice(
    rollout: Rollout, gate: Gating, judgement: Judgement, now: datetime
) -> Transition:
    """Ask the model, wait for its answer, or follow it.

    Whatever it answers, it can only add a hold to what would happen without it.
    """
    policy, round_ = rollout.plan.advisor, gate.advice
    if rollout.advisor_mode is AdvisorMode.OFF:
        return _consider_people(rollout, gate, judgement, now)
    if round_ is None:
        return _ask(rollout, gate, 1, judgement, now)
    if not round_.is_closed:
        return Transition(rollout)
    if round_.held_until is None:
        return _consider_people(rollout, gate, judgement, now)
    if round_.number >= policy.hold_rounds:
        cause = Cause("advice held in every round it has; a person decides", judgement)
        return holding.await_approval(rollout, gate, HoldReason.ADVISOR, cause, now)
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
    """Ask for approval when everything else has passed; advance where none is required.

    A rollout that goes up and down pauses in place of another climb.
    """
    if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED:
        cause = Cause("everything else has passed; the plan asks for approval", judgement)
        return holding.await_approval(rollout, gate, HoldReason.APPROVAL, cause, now)
    if (too_often := why_not_again(rollout, gate.stage + 1)) is not None:
        return transitions.pause(rollout, HoldReason.OSCILLATES, Cause(too_often, judgement), now)
    # A blind plan judges nothing: only its time passes.
    why = "its time has passed; nothing is judged" if rollout.plan.blind else "the gate has passed"
    if rollout.has_advisor and gate.advice is not None and gate.advice.answer is None:
        why = "the gate has passed; no advice came, the statistics decide alone"
    return transitions.advance(rollout, Cause(why, judgement), now)


def close_undecided(rollout: Rollout, gate: Gating, event: Event, now: datetime) -> Transition:
    """Pause at the gate's deadline; a gate that a freeze kept from closing gets its time again."""
    if rollout.hold is HoldReason.FROZEN:
        return Transition(holding.renew_gate(rollout, gate, now))
    limit = duration_words(rollout.plan.stages[gate.stage].max_bake)
    why = f"the gate is still undecided at max_bake ({limit})"
    if isinstance(event, EvidenceJudged) and not passes(event.judgement):
        why = f"{why}: {why_not(event.judgement)[1]}"
    elif isinstance(event, EvidenceJudged) and (
        waits := holding_webhooks(event.judgement) or silent_webhooks(rollout, event.judgement)
    ):
        why = f"{why}: {waits}"
    elif rollout.hold is not None:
        told = f" ({', '.join(sorted(rollout.told_gaps))})" if rollout.told_gaps else ""
        why = f"{why}, held for {rollout.hold}{told}"
    return transitions.pause(rollout, HoldReason.MAX_BAKE, Cause(why), now)


def withdraw_request(
    rollout: Rollout, waiting: AwaitingApproval, judgement: Judgement, now: datetime
) -> Transition:
    """Withdraw the request to a person and open a new gate: its evidence is out of date."""
    reason, why = why_not(judgement)
    cause = Cause(f"no longer asks for approval: {why}", judgement)
    after = holding.open_gate(rollout, waiting.stage, now, reason, judgement)
    decision = announcements.decision(rollout, after, DecisionKind.HOLD, cause)
    return Transition(after, (decision, *announcements.hold_alerts(after, cause)))


# --- rounds of advice ---


def _ask(
    rollout: Rollout, gate: Gating, number: int, judgement: Judgement, now: datetime
) -> Transition:
    until = now + rollout.plan.advisor.deadline
    earlier = None if gate.advice is None else gate.advice.answer
    question = AskAdvice(gate.gate_id, number, until, judgement, earlier)
    asked = holding.set_advice(rollout, gate, AdviceRound(number, until))
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
    held_until = now + policy.hold_for if holds(advice, policy.mode) else None
    closed = replace(gate.advice, answer=advice, is_closed=True, held_until=held_until)
    return holding.set_advice(rollout, gate, closed)


def reopen_round(rollout: Rollout, gate: Gating, now: datetime) -> Rollout:
    """Return the rollout without its open question: the next judgement asks it again."""
    assert gate.advice is not None
    return holding.set_advice(rollout, gate, holding.round_to_ask_again(gate.advice, now))
