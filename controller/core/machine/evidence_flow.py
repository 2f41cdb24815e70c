"""Handles evidence that does not wait for a gate: breached guardrails, and gaps that last."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from controller.core.effects import Transition
from controller.core.judging.judgement import Gap, Judgement, MetricReport
from controller.core.machine import announcements, breaches, health, holding, transitions
from controller.core.machine.cause import Cause
from controller.core.rollout import Rollout
from schemas.terms import AlertKind, HealthGap, HoldReason, OnBreach

# --- breaches ---


def act_on_breach(
    rollout: Rollout, breach: MetricReport, judgement: Judgement, now: datetime
) -> Transition:
    """Do what the guardrail's policy says about a regression; below the first stage is only 0 %."""
    cause = Cause(f"guardrail {breach.metric}: {breach.reason}", judgement)
    if breach.on_breach is OnBreach.PAUSE:
        return _pause_for_breaches(rollout, judgement, now)
    if breach.on_breach is OnBreach.STEP_BACK and rollout.stage_index:
        return transitions.step_back(rollout, rollout.stage_index - 1, cause, now)
    return transitions.roll_back(rollout, cause, now)


def _pause_for_breaches(rollout: Rollout, judgement: Judgement, now: datetime) -> Transition:
    """Pause for every guardrail that asks for it; during such a pause, tell of the new ones."""
    found = breaches.pausing(judgement)
    if not breaches.has_paused(rollout):
        words = "; ".join(f"guardrail {one.metric}: {one.reason}" for one in found)
        return transitions.pause(rollout, HoldReason.BREACH, Cause(words, judgement), now)
    new = [one for one in found if one.metric not in rollout.told_breaches]
    words = "; ".join(
        f"guardrail {one.metric}, found during the pause: {one.reason}" for one in new
    )
    told = rollout.told_breaches | {one.metric for one in new}
    moved = holding.set_told_breaches(rollout, told, Cause(words, judgement), now)
    assert moved.after is not None
    alerts = [announcements.breach(moved.after, one, judgement) for one in new]
    return Transition(moved.after, (*moved.effects, *alerts))


def tell_breaches_over(
    rollout: Rollout, over: frozenset[str], judgement: Judgement, now: datetime
) -> Transition:
    """Tell people that these guardrails are not breached any more; the pause stays."""
    metrics = sorted(over)
    cause = Cause(f"not breached any more: {', '.join(metrics)}", judgement)
    moved = holding.set_told_breaches(rollout, rollout.told_breaches - over, cause, now)
    assert moved.after is not None
    alerts = [announcements.breach_over(moved.after, metric, judgement) for metric in metrics]
    return Transition(moved.after, (*moved.effects, *alerts))


# --- gaps ---


def act_on_gap(rollout: Rollout, gap: Gap, judgement: Judgement, now: datetime) -> Transition:
    """Pause or roll back for a gap, as the plan says.

    A treatment that went missing rolls back: it may have crashed before it could report.
    """
    words, fix = health.gap_words(judgement, gap), health.ACTIONS[gap.kind]
    if health.lowers(rollout, gap):
        fix = fix if gap.kind is HealthGap.SRM else ""  # the others are for a stage that goes on
        return transitions.roll_back(rollout, Cause(words, judgement, fix=fix), now)
    cause = Cause(words, judgement, fix=fix)
    alert = AlertKind.SRM if gap.kind is HealthGap.SRM else AlertKind.PAUSED
    return transitions.pause(rollout, HoldReason.HEALTH, cause, now, alert)


def tell_gaps(
    rollout: Rollout, gaps: Sequence[Gap], judgement: Judgement, now: datetime
) -> Transition:
    """Tell people of gaps; where no pause does, they hold the rollout from now on."""
    cause = Cause("; ".join(health.gap_words(judgement, gap) for gap in gaps), judgement)
    told = rollout.told_gaps | {gap.kind for gap in gaps}
    moved = holding.set_told_gaps(rollout, told, cause, now)
    assert moved.after is not None
    return Transition(moved.after, (*moved.effects, announcements.health_gap(moved.after, cause)))


def tell_gaps_over(rollout: Rollout, judgement: Judgement, now: datetime) -> Transition:
    """Tell people that the gaps are gone."""
    cause = Cause(health.over_words(rollout.told_gaps), judgement)
    moved = holding.set_told_gaps(rollout, frozenset(), cause, now)
    assert moved.after is not None
    return Transition(
        moved.after, (*moved.effects, announcements.health_gap_over(moved.after, cause))
    )
