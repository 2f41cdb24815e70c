"""Interprets a judgement for a rollout: whether it passes, and what stands in the way.

Questions only: nothing here changes a rollout. What gaps in the evidence lead to is in `health.py`,
and breached guardrails in `breaches.py`.
"""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Final

from controller.core.evidence import WebhookReply
from controller.core.judging.judgement import Advice, Judgement
from controller.core.machine.health import gap_words, stands
from controller.core.machine.times import first_start, is_frozen, may_announce, opens_words
from controller.core.plan import GateWebhook, Plan
from controller.core.rollout import Gating, Rollout
from controller.core.windows import is_active, opens_at
from schemas.terms import (
    WEBHOOK_GAPS,
    AdviceChoice,
    AdvisorMode,
    GateAnswer,
    HoldReason,
    Verdict,
)

#: Every transition writes all visits of its rollout, so what adds one ends here, except lowering. A
#: rollout that climbs 100 stages without a repeat has 100.
MOST_VISITS: Final = 200
#: So often a gate leads up to the same stage. A rollout that came down from it each time does not
#: get better by itself.
MOST_CLIMBS: Final = 5


def why_over(plan: Plan, now: datetime) -> str | None:
    """Return what is over of the plan, so that it can serve nothing more; None: nothing is."""
    if plan.ends_at is not None and now >= plan.ends_at:
        return "the plan's end has passed: give it a later ends_at"
    if plan.expires_at is not None and now >= plan.expires_at:
        return "the plan has expired: give it a later expires_at"
    if opens_at(plan.active, max(plan.start_at or now, now)) is None:
        return "no active window of the plan comes any more: give it later ones"
    return None


def why_no_start(plan: Plan, now: datetime) -> str | None:
    """Return why no rollout can start by this plan any more, None where one can."""
    if (why := why_over(plan, now)) is not None:
        return why
    if first_start(plan, max(plan.start_at or now, now)) is None:
        return "freeze windows cover every active window to come: give the plan later ones"
    return None


def why_not_now(rollout: Rollout, now: datetime) -> str | None:
    """Return why no command may let more people see treatment now, None where one may."""
    if is_frozen(rollout, now):
        return "frozen: nothing advances; unfreeze, or wait for the window to end"
    if not is_active(rollout.plan.active, now):
        words = opens_words(rollout, now)
        return f"{words}: nothing advances outside the active windows of the plan"
    if rollout.closed_since is not None:
        return "closed, though an active window has begun: it opens first, a paused one by `resume`"
    return None


def is_current(rollout: Rollout, judgement: Judgement) -> bool:
    """Return whether the judgement is of the present visit; an earlier one proves nothing.

    Nor does one from before the visit counts again, after it was closed.
    """
    visit = rollout.present_visit
    is_settling = visit is not None and bool(visit.closings) and judgement.at < visit.counting_since
    return judgement.visit == rollout.visit_index and not is_settling


def passes(judgement: Judgement) -> bool:
    """Return whether nothing measured stands against advancing."""
    return not judgement.gaps and judgement.statistics is Verdict.PASS


def asks_webhooks(rollout: Rollout, judgement: Judgement | None, now: datetime) -> bool:
    """Return whether the gate webhooks are to be asked now.

    That is at an open gate whose evidence passes, whatever was heard of the webhooks so far.
    """
    gate = rollout.phase
    if not rollout.plan.gate_webhooks or not isinstance(gate, Gating) or judgement is None:
        return False
    if rollout.closed_since is not None or is_frozen(rollout, now):
        return False
    if judgement.at < gate.since or not is_current(rollout, judgement):
        return False
    others = [gap for gap in judgement.gaps if gap.kind not in WEBHOOK_GAPS]
    return not others and judgement.statistics is Verdict.PASS


def failed_webhook(
    rollout: Rollout, judgement: Judgement
) -> tuple[GateWebhook, WebhookReply] | None:
    """Return the gate webhook that answered `fail`, the harshest policy first; None: none did."""
    if not is_current(rollout, judgement):
        return None
    by_endpoint = {one.endpoint: one for one in rollout.plan.gate_webhooks}
    failed = [
        (by_endpoint[reply.endpoint], reply)
        for reply in judgement.replies
        if reply.answer is GateAnswer.FAIL and reply.endpoint in by_endpoint
    ]
    return max(failed, key=lambda pair: pair[0].on_fail.strength, default=None)


def holding_webhooks(judgement: Judgement) -> str:
    """Return which gate webhooks hold, in words; empty: none does."""
    held = (str(reply) for reply in judgement.replies if reply.answer is GateAnswer.HOLD)
    return "; ".join(held)


def silent_webhooks(rollout: Rollout, judgement: Judgement) -> str:
    """Return which gate webhooks have not answered `pass`, in words; empty: all have."""
    passed = {one.endpoint for one in judgement.replies if one.answer is GateAnswer.PASS}
    missing = [one.endpoint for one in rollout.plan.gate_webhooks if one.endpoint not in passed]
    return f"no `pass` yet from {', '.join(missing)}" if missing else ""


def no_longer_passes(rollout: Rollout, judgement: Judgement, now: datetime) -> bool:
    """Return whether what a person is asked to approve has ceased to pass.

    Evidence on the edge is given a minute before the request is withdrawn, and a gap that time may
    close the plan's `health_grace`. Meanwhile an approval is refused, see `actions.approve`.
    """
    if not is_current(rollout, judgement) or not may_announce(rollout, now):
        return False
    return judgement.statistics is not Verdict.PASS or stands(rollout, judgement)


def why_not_again(rollout: Rollout, stage_index: int) -> str | None:
    """Return why no gate may lead up to a stage, None when one may: it was there too often."""
    stages = rollout.plan.stages
    if stage_index >= len(stages):
        return None
    entered = pairwise(visit.stage for visit in rollout.visits)
    climbs = sum(before < stage_index == after for before, after in entered)
    if climbs >= MOST_CLIMBS:
        name = stages[stage_index].name
        return f"the rollout went up to stage {name} {climbs} times and came down again each time"
    if len(rollout.visits) >= MOST_VISITS:
        return f"the rollout has entered its stages {len(rollout.visits)} times"
    return None


def holds(advice: Advice | None, mode: AdvisorMode) -> bool:
    """Return whether an answer, or that there is none, holds a gate."""
    if advice is None:
        return mode is AdvisorMode.REQUIRED
    return advice.choice is not AdviceChoice.PROCEED and mode is not AdvisorMode.OBSERVE


def why_not(judgement: Judgement) -> tuple[HoldReason, str]:
    """Return what stands in the way of a judgement that does not pass.

    Its gaps, else the metrics that did not pass.
    """
    if judgement.gaps:
        return HoldReason.HEALTH, "; ".join(gap_words(judgement, gap) for gap in judgement.gaps)
    failing = [
        metric
        for metric in judgement.metrics
        if metric.harm is Verdict.FAIL or metric.safe is not Verdict.PASS
    ]
    reason = "; ".join(f"{metric.metric}: {metric.reason}" for metric in failing)
    return _statistical_hold(judgement), reason


def _statistical_hold(judgement: Judgement) -> HoldReason:
    match judgement.statistics:
        case Verdict.FAIL:
            return HoldReason.SIGNAL
        case Verdict.NO_DATA:
            return HoldReason.HEALTH
        case _:
            return HoldReason.INCONCLUSIVE
