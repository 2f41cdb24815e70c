"""How much of the evidence that a gate needs is there, and which of its checks have passed.

Pure. Estimates for people: nothing is decided by them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controller.core.rollout import AwaitingApproval, Gating, Rollout
from controller.reporting.evidence_words import reply_words
from controller.reporting.situation import HOLD_WORDS, Situation
from schemas.decision import GapRecord, JudgementRecord, MetricRecord
from schemas.terms import (
    AdvisorMode,
    Approval,
    GateAnswer,
    HealthGap,
    HoldReason,
    MetricRole,
    Verdict,
)

#: A bar is full only for what is proven.
MOST_UNPROVEN: Final = 0.99


def proof_share(metric: MetricRecord) -> float:
    """Return the part of the evidence for "proven safe" that is there; 1 only when it is proven.

    The logarithm of the e-value grows about in proportion to the users.
    """
    if metric.safe is Verdict.PASS:
        return 1.0
    value, threshold = metric.e_value_safe, metric.threshold_safe
    if value is None or threshold is None or value <= 1 or threshold <= 1:
        return 0.0
    return min(math.log(value) / math.log(threshold), MOST_UNPROVEN)


def evidence_share(judgement: JudgementRecord) -> float | None:
    """Return the part of the needed evidence that is there; None where nothing must be proven.

    That is the part of the guardrail that is furthest from being proven safe.
    """
    guardrails = [one for one in judgement.metrics if one.role is MetricRole.GUARDRAIL]
    return min(map(proof_share, guardrails), default=None)


def troubles(judgement: JudgementRecord | None) -> list[GapRecord]:
    """Return the gaps that something is wrong about; too few users so far is not one."""
    gaps = () if judgement is None else judgement.gaps
    return [gap for gap in gaps if gap.kind is not HealthGap.BELOW_MIN_SAMPLE]


class GateCheckState(StrEnum):
    """Where one check of a gate stands."""

    PASSED = "passed"
    OPEN = "open"
    BLOCKS = "blocks"
    AHEAD = "ahead"
    NOT_ASKED = "not asked"

    @property
    def mark(self) -> str:
        """Return the sign that stands for the state, so that color is never the only one."""
        return _MARKS[self]


_MARKS: Final = {
    GateCheckState.PASSED: "✓",
    GateCheckState.OPEN: "◐",
    GateCheckState.BLOCKS: "▲",
    GateCheckState.AHEAD: "○",
    GateCheckState.NOT_ASKED: "–",
}


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One of the checks that a gate makes, in their order."""

    name: str
    state: GateCheckState
    why: str


def gate_checks(situation: Situation) -> list[GateCheck]:
    """Return the checks of the present stage's gate in their order; none outside a stage."""
    if situation.rollout.stage is None:
        return []
    webhooks = [_webhooks(situation)] if situation.rollout.plan.gate_webhooks else []
    measured = [_health(situation), _statistics(situation)]
    return [*measured, *webhooks, _advice(situation), _people(situation)]


def _health(situation: Situation) -> GateCheck:
    if situation.rollout.plan.blind:
        return GateCheck(
            "health", GateCheckState.NOT_ASKED, "the plan is blind: no evidence is judged"
        )
    judgement = situation.judgement
    if judgement is None:
        return GateCheck("health", GateCheckState.OPEN, "nothing was judged yet in this stage")
    if judgement.gaps:
        gaps = "; ".join(f"{gap.kind.replace('_', ' ')}: {gap.detail}" for gap in judgement.gaps)
        is_wrong = bool(troubles(judgement))
        return GateCheck("health", GateCheckState.BLOCKS if is_wrong else GateCheckState.OPEN, gaps)
    return GateCheck("health", GateCheckState.PASSED, "the evidence can be judged")


def _statistics(situation: Situation) -> GateCheck:
    if situation.rollout.plan.blind:
        return GateCheck("statistics", GateCheckState.NOT_ASKED, "the plan is blind")
    judgement = situation.judgement
    if judgement is None:
        return GateCheck("statistics", GateCheckState.OPEN, "nothing was judged yet in this stage")
    judging = [one for one in judgement.metrics if one.role is not MetricRole.OBSERVE]
    failed = [one.metric for one in judging if one.harm is Verdict.FAIL]
    if failed:
        return GateCheck(
            "statistics", GateCheckState.BLOCKS, f"worse than allowed: {', '.join(failed)}"
        )
    guardrails = [one for one in judging if one.role is MetricRole.GUARDRAIL]
    proven = sum(one.safe is Verdict.PASS for one in guardrails)
    words = f"{proven} of {len(guardrails)} proven safe"
    is_done = proven == len(guardrails)
    return GateCheck("statistics", GateCheckState.PASSED if is_done else GateCheckState.OPEN, words)


def _webhooks(situation: Situation) -> GateCheck:
    rollout, judgement = situation.rollout, situation.judgement
    if isinstance(rollout.phase, AwaitingApproval):
        return GateCheck("webhooks", GateCheckState.PASSED, "all answered pass")
    replies = {} if judgement is None else {one.endpoint: one for one in judgement.webhooks}
    if not isinstance(rollout.phase, Gating) or not replies:
        is_blocked = rollout.hold is HoldReason.WEBHOOK
        if is_blocked:
            return GateCheck("webhooks", GateCheckState.BLOCKS, situation.hold or "")
        return GateCheck("webhooks", GateCheckState.AHEAD, "asked once everything measured passes")
    words, answers = [], []
    for webhook in rollout.plan.gate_webhooks:
        reply = replies.get(webhook.endpoint)
        answers.append(None if reply is None else reply.answer)
        words.append(f"{webhook.endpoint}: not asked yet" if reply is None else reply_words(reply))
    if all(one is GateAnswer.PASS for one in answers):
        state = GateCheckState.PASSED
    else:
        state = GateCheckState.OPEN if None in answers else GateCheckState.BLOCKS
    return GateCheck("webhooks", state, "; ".join(words))


def _advice(situation: Situation) -> GateCheck:
    rollout = situation.rollout
    if rollout.advisor_mode is AdvisorMode.OFF:
        why = "no model is set up" if not rollout.has_advisor else "the plan asks no model"
        return GateCheck("advice", GateCheckState.NOT_ASKED, why)
    if isinstance(rollout.phase, AwaitingApproval):
        if rollout.phase.reason is HoldReason.ADVISOR:
            return GateCheck("advice", GateCheckState.BLOCKS, "the model held in every round")
        return GateCheck("advice", GateCheckState.PASSED, "the model did not hold it")
    round_ = rollout.phase.advice if isinstance(rollout.phase, Gating) else None
    if round_ is None:
        return GateCheck("advice", GateCheckState.AHEAD, "asked once the statistics pass")
    if rollout.hold is HoldReason.ADVISOR:
        return GateCheck("advice", GateCheckState.BLOCKS, HOLD_WORDS[HoldReason.ADVISOR])
    if not round_.is_closed:
        return GateCheck("advice", GateCheckState.OPEN, f"round {round_.number} was asked")
    return GateCheck("advice", GateCheckState.PASSED, f"round {round_.number} is over")


def _people(situation: Situation) -> GateCheck:
    rollout = situation.rollout
    if situation.frozen is not None:
        return GateCheck("people", GateCheckState.BLOCKS, situation.frozen)
    if isinstance(rollout.phase, AwaitingApproval):
        return GateCheck("people", GateCheckState.OPEN, f"approval of revision {rollout.revision}")
    if _needs_approval(rollout):
        return GateCheck("people", GateCheckState.AHEAD, "a person approves this stage's end")
    asks = any(stage.approval is Approval.REQUIRED for stage in rollout.plan.stages)
    why = "this stage asks nobody" if asks else "the plan asks nobody"
    return GateCheck("people", GateCheckState.NOT_ASKED, why)


def _needs_approval(rollout: Rollout) -> bool:
    return rollout.stage is not None and rollout.stage.approval is Approval.REQUIRED
