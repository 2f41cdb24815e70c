"""What health gaps may do, on whole histories: none that lasts is silent, none of a moment acts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controller.core.effects import RaiseAlert
from controller.core.events import EvidenceJudged
from controller.core.invariants import Step
from controller.core.rollout import Baking, Gating, Paused
from schemas.terms import HealthGap, HoldReason, OnBreach
from tests.property.history_checks import MANY, invariant

pytestmark = pytest.mark.property


def _lasting(step: Step) -> set[HealthGap]:
    """Return the gaps of the present visit that have lasted for the grace time."""
    before, event = step.before, step.event
    if before is None or not isinstance(event, EvidenceJudged):
        return set()
    seen, grace = event.judgement, before.plan.health_grace.total_seconds()
    if before.stage_index is None or seen.visit != before.visit_index:
        return set()
    kinds = {gap.kind for gap in seen.gaps} - {HealthGap.BELOW_MIN_SAMPLE}
    return {kind for kind in kinds if kind in seen.gap_times and seen.seconds_of(kind) >= grace}


@invariant(MANY)
def test_i17_no_gap_that_lasts_stays_untold(steps: Iterator[Step]) -> None:
    """A gap that lasts is told in the step that sees it, in every phase that watches a stage.

    Or something sterner happens: the rollout pauses, goes down or asks nobody any longer.
    """
    for step in steps:
        before, after = step.before, step.after
        if (
            before is None
            or after is None
            or not isinstance(before.phase, Baking | Gating | Paused)
            or after.closed_since is not None  # nothing is counted then, which is no gap
        ):
            continue
        kinds = _lasting(step)
        was_told = any(isinstance(effect, RaiseAlert) for effect in step.effects)
        assert kinds <= after.told_gaps or was_told
        if kinds and isinstance(after.phase, Baking) and after.visits == before.visits:
            assert after.hold is HoldReason.HEALTH


@invariant(MANY)
def test_i17_a_gap_of_a_moment_changes_nothing_during_a_bake(steps: Iterator[Step]) -> None:
    """Before its grace time no gap does anything, but for those that time does not close."""
    at_once = {
        HealthGap.SRM,
        HealthGap.REPEATED_OUTCOMES,
        HealthGap.IMPLAUSIBLE_LATENCY,
        HealthGap.ACTUATION_DRIFT,
    }
    for step in steps:
        if step.before is None or not isinstance(step.before.phase, Baking):
            continue
        if not isinstance(step.event, EvidenceJudged) or step.event.judgement.breach is not None:
            continue
        kinds = {gap.kind for gap in step.event.judgement.gaps}
        is_expired = (expires := step.before.plan.expires_at) is not None and step.now >= expires
        assert step.after is not None
        is_over = bool(step.before.told_gaps) and not step.after.told_gaps  # of another kind
        # Evidence that comes before the tick of a window's edge closes, too.
        closes = step.before.closed_since != step.after.closed_since
        if is_over or is_expired or closes:
            continue
        if kinds and not kinds & at_once and not _lasting(step):
            assert step.after is step.before


@invariant(MANY)
def test_i17_told_gaps_hold_and_end_with_their_stage(steps: Iterator[Step]) -> None:
    """A bake is held exactly while people know of a gap; nothing else keeps one for long."""
    for step in steps:
        after = step.after
        if after is None:
            continue
        if isinstance(after.phase, Baking):
            assert (after.hold is HoldReason.HEALTH) == bool(after.told_gaps)
        if not isinstance(after.phase, Baking | Gating | Paused):
            assert not after.told_gaps


@invariant(MANY)
def test_no_breach_stays_untold_in_a_pause(steps: Iterator[Step]) -> None:
    """Whoever reads the alerts of a pause knows every guardrail that asked for it."""
    for step in steps:
        if step.after is None or not isinstance(step.event, EvidenceJudged):
            continue
        phase = step.after.phase
        if not (isinstance(phase, Paused) and phase.reason is HoldReason.BREACH):
            continue
        if step.after.visits != step.before.visits if step.before else True:
            continue
        metrics = step.event.judgement.metrics
        pausing = {
            one.metric for one in metrics if one.is_breach and one.on_breach is OnBreach.PAUSE
        }
        assert pausing <= step.after.told_breaches
