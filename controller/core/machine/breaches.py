"""Breached guardrails as the machine sees them: which one acts, is told or is over.

Questions only: nothing here changes a rollout.
"""

from __future__ import annotations

from typing import Final

from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.machine.health import lowers, urgent_gap
from controller.core.machine.obstacles import is_current
from controller.core.machine.times import may_announce
from controller.core.rollout import Paused, Rollout
from schemas.terms import HoldReason, OnBreach

#: A breach is over once its e-value is this share of its threshold, or less.
CLEARLY_BELOW: Final = 0.1


def due(rollout: Rollout, judgement: Judgement) -> MetricReport | None:
    """Return the breach to act on, None without one.

    One that pauses does so once, and so does each other that is found during that pause. A gap that
    leads to 0 % is not kept waiting by less. Before the first stage nobody is exposed, so nothing
    is breached.
    """
    phase, breach = rollout.phase, judgement.breach
    if not rollout.visits:
        return None
    if breach is None or not phase.is_guarded or breach.on_breach is OnBreach.ROLL_BACK:
        return breach if phase.is_guarded else None
    gap = urgent_gap(rollout, judgement)
    if gap is not None and lowers(rollout, gap):
        return None
    if breach.on_breach is OnBreach.PAUSE and has_paused(rollout):
        new = pausing(judgement)
        return next((one for one in new if one.metric not in rollout.told_breaches), None)
    return breach


def has_paused(rollout: Rollout) -> bool:
    """Return whether a breach has paused the rollout."""
    return isinstance(rollout.phase, Paused) and rollout.phase.reason is HoldReason.BREACH


def pausing(judgement: Judgement) -> tuple[MetricReport, ...]:
    """Return the breached guardrails whose policy is to pause."""
    return tuple(
        metric
        for metric in judgement.metrics
        if metric.is_breach and metric.on_breach is OnBreach.PAUSE
    )


def told_after(reason: HoldReason, judgement: Judgement | None) -> frozenset[str]:
    """Return the metrics whose breach people know of once such a pause is announced."""
    if reason is not HoldReason.BREACH or judgement is None:
        return frozenset()
    return frozenset(metric.metric for metric in pausing(judgement))


def over(rollout: Rollout, judgement: Judgement) -> frozenset[str]:
    """Return the breaches that people were told of and that are over.

    The e-value has fallen to a tenth of its threshold, and the last transition is a minute old, so
    that evidence on the edge does not flap. A metric that is not judged any more is not breached.
    """
    if not is_current(rollout, judgement) or not may_announce(rollout, judgement.at):
        return frozenset()
    standing = {
        metric.metric
        for metric in judgement.metrics
        if metric.is_breach or metric.e_value > CLEARLY_BELOW * metric.threshold
    }
    return rollout.told_breaches - standing
