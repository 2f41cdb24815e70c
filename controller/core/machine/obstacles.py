"""What a judgement means for a rollout: whether it passes, what stands in the way, what is urgent.

Questions only: nothing here changes a rollout.
"""

from __future__ import annotations

from datetime import datetime

from controller.core.judging.judgement import Gap, Judgement
from controller.core.machine.times import may_announce
from controller.core.rollout import Paused, Rollout
from schemas.terms import GapPolicy, HealthGap, HoldReason, Verdict


def is_current(rollout: Rollout, judgement: Judgement) -> bool:
    """Return whether the judgement is of the present visit; an earlier one proves nothing."""
    return judgement.visit == rollout.visit_index


def passes(judgement: Judgement) -> bool:
    """Return whether nothing measured stands against advancing."""
    return not judgement.gaps and judgement.statistics is Verdict.PASS


def no_longer_passes(rollout: Rollout, judgement: Judgement, now: datetime) -> bool:
    """Return whether what a person is asked to approve has ceased to pass.

    Evidence on the edge is given a minute before the request is withdrawn.
    """
    return is_current(rollout, judgement) and not passes(judgement) and may_announce(rollout, now)


def why_not(judgement: Judgement) -> tuple[HoldReason, str]:
    """Return what stands in the way of a judgement that does not pass.

    Its gaps, else the metrics that did not pass.
    """
    if judgement.gaps:
        return HoldReason.HEALTH, "; ".join(f"{gap.kind}: {gap.detail}" for gap in judgement.gaps)
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
        case Verdict.INCONCLUSIVE:
            return HoldReason.INCONCLUSIVE
        case Verdict.NO_DATA:
            return HoldReason.HEALTH
        case _:
            return HoldReason.FAILING


# --- gaps that are not left to the gate ---


def urgent_gap(rollout: Rollout, judgement: Judgement) -> Gap | None:
    """Return the gap to act on at once, None without one.

    At a gate that is a gap whose policy is to roll back. A broken split is bad at any moment, so it
    is urgent during the bake too. While paused it is urgent only if it lowers the percentage:
    nothing else moves then anyway.
    """
    if not rollout.phase.is_guarded:
        return None
    policies = rollout.plan.gap_policies
    splits = [
        gap
        for gap in judgement.gaps
        if gap.kind is HealthGap.SRM and policies[gap.kind] is not GapPolicy.WAIT
    ]
    lowering = [
        gap
        for gap in judgement.gaps
        if policies[gap.kind] is GapPolicy.ROLL_BACK and (rollout.phase.is_at_gate or gap in splits)
    ]
    lowering += [gap for gap in splits if gap.treatment_missing]
    pausing = [] if isinstance(rollout.phase, Paused) else splits
    return next(iter((*lowering, *pausing)), None)


def gaps_to_fix(judgement: Judgement) -> tuple[Gap, ...]:
    """Return the gaps that time does not close, so that an operator has to fix them.

    Those are exposures that do not follow the decision, and outcomes that are sent twice.
    """
    return tuple(
        gap
        for gap in judgement.gaps
        if gap.kind is HealthGap.REPEATED_OUTCOMES
        or (gap.kind is HealthGap.ACTUATION_DRIFT and gap.is_observed)
    )


def is_reported_in_bake(rollout: Rollout, judgement: Judgement) -> bool:
    """Return whether a gap that an operator must fix is to be reported before the bake ends."""
    return is_current(rollout, judgement) and rollout.hold is None and bool(gaps_to_fix(judgement))


def is_resolved_in_bake(rollout: Rollout, judgement: Judgement, now: datetime) -> bool:
    """Return whether the gap reported during the bake is closed, for a minute at least."""
    return (
        is_current(rollout, judgement)
        and rollout.hold is HoldReason.HEALTH
        and may_announce(rollout, now)
        and not gaps_to_fix(judgement)
    )
