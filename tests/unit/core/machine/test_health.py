"""What people read about gaps, and when a gap is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.core.analysis.sequential_tests import GapTime
from controller.core.effects import PublishDecision, RaiseAlert
from controller.core.events import Ticked
from controller.core.judging.judgement import Gap
from controller.core.machine import decide, health
from controller.core.plan import DEFAULT_GAP_POLICIES, Stage
from controller.core.rollout import Paused, RolledBack, Rollout, Scheduled
from schemas.terms import (
    AlertKind,
    Approval,
    DecisionKind,
    GapPolicy,
    HealthGap,
    HoldReason,
    OnBreach,
    Severity,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_breach,
    make_judgement,
    make_plan,
    make_rollout,
    make_stages,
)
from tests.unit.core.machine.states import GATE, SECOND, after, judged

STALE = Gap(HealthGap.STALE, "nothing was counted")
LASTING = judged(gaps=(STALE,), gap_times={HealthGap.STALE: GapTime(300)})


def test_every_gap_has_something_to_do() -> None:
    """An alert about any gap says what a person can do."""
    assert set(health.ACTIONS) == set(HealthGap)
    for kind in set(HealthGap) - {HealthGap.BELOW_MIN_SAMPLE}:
        assert health.action_for([Gap(kind, "for a test")]) == health.ACTIONS[kind]


def test_a_gap_that_only_people_can_close_comes_first() -> None:
    """Of several gaps the alert says what to do about the one that does not pass by itself."""
    gaps = [STALE, Gap(HealthGap.REPEATED_OUTCOMES, "twice")]
    assert health.action_for(gaps) == health.ACTIONS[HealthGap.REPEATED_OUTCOMES]


def test_a_gap_says_for_how_long() -> None:
    """From a minute on, the reason tells how long it has lasted."""
    _, (decision, alert) = decide(make_rollout(), LASTING, T0 + 6 * MINUTE)
    assert isinstance(decision, PublishDecision)
    assert isinstance(alert, RaiseAlert)
    assert decision.reason == "stale for 5 min: nothing was counted"
    assert alert.summary == (
        "new-checkout cannot be judged at 10 %: stale for 5 min: nothing was counted"
    )
    assert decision.judgement is alert.judgement is LASTING.judgement


def test_an_end_is_told_with_the_key_of_its_begin() -> None:
    """A pager closes what it opened: same kind and key, severity info."""
    told, (_, begin) = decide(make_rollout(), LASTING, T0 + 6 * MINUTE)
    assert told is not None
    calm = judged(at=T0 + 12 * MINUTE)
    released, (decision, end) = decide(told, calm, T0 + 10 * MINUTE)
    assert released is not None
    assert (released.hold, released.told_gaps) == (None, frozenset())
    assert isinstance(decision, PublishDecision)
    assert isinstance(begin, RaiseAlert)
    assert isinstance(end, RaiseAlert)
    assert decision.kind is DecisionKind.RESUME
    assert (end.kind, end.severity) == (AlertKind.HEALTH_GAP, Severity.INFO)
    assert end.dedup_key == begin.dedup_key


@pytest.mark.parametrize(
    "seen",
    [
        LASTING,
        judged(at=T0 + 12 * MINUTE, gaps=(STALE,)),
        judged(at=T0 + 12 * MINUTE, gap_times={HealthGap.STALE: GapTime(300, gone=299)}),
        judged(at=T0 + 6 * MINUTE + 59 * SECOND),
    ],
    ids=["lasts", "is there", "gone too short", "within a minute"],
)
def test_what_is_not_surely_over_stays_told(seen: object) -> None:
    """Neither a moment without the gap nor less than a minute since it was told releases."""
    told = after(make_rollout(), LASTING, T0 + 6 * MINUTE)
    assert after(told, seen, T0 + 6 * MINUTE + 30 * SECOND) is told  # type: ignore[arg-type]


def test_a_gate_goes_on_with_what_the_bake_told() -> None:
    """The hold of the bake is that of its gate, which does not repeat it."""
    told = after(make_rollout(), LASTING, T0 + 6 * MINUTE)
    gating, effects = decide(told, Ticked(), T0 + HOUR)
    assert gating is not None
    assert (gating.hold, gating.told_gaps, effects) == (HoldReason.HEALTH, told.told_gaps, ())
    later = replace(LASTING.judgement, at=T0 + HOUR)
    assert after(gating, replace(LASTING, judgement=later), T0 + HOUR) is gating


def test_another_stage_forgets_what_was_told() -> None:
    """A gap belongs to its stage: the next one tells its own."""
    told = after(make_rollout(), LASTING, T0 + 6 * MINUTE)
    gating = after(told, Ticked(), T0 + HOUR)
    advanced = after(gating, judged(at=T0 + HOUR), T0 + HOUR)
    assert (advanced.stage_index, advanced.told_gaps, advanced.hold) == (1, frozenset(), None)
    stale_look = make_judgement(visit=0, gaps=(STALE,), gap_times=LASTING.judgement.gap_times)
    assert health.news(advanced, stale_look) == ()


# --- gaps and a breach that pauses ---

PAUSING = (make_breach(on_breach=OnBreach.PAUSE),)
SILENT = {"gaps": LASTING.judgement.gaps, "gap_times": LASTING.judgement.gap_times}


def stale_rolls_back() -> Rollout:
    """Return a rollout whose plan rolls back when its evidence is stale."""
    policies = {**DEFAULT_GAP_POLICIES, HealthGap.STALE: GapPolicy.ROLL_BACK}
    return make_rollout(plan=make_plan(gap_policies=policies))


@pytest.mark.parametrize("on_breach", [OnBreach.PAUSE, OnBreach.STEP_BACK])
def test_a_gap_rolls_back_what_a_breach_has_paused(on_breach: OnBreach) -> None:
    """The harsher policy acts, though the finding that paused is still in all evidence."""
    paused = after(stale_rolls_back(), judged(metrics=PAUSING))
    assert isinstance(paused.phase, Paused)
    seen = judged(metrics=(make_breach(on_breach=on_breach),), **SILENT)
    assert isinstance(after(paused, seen, T0 + 10 * MINUTE).phase, RolledBack)
    assert isinstance(after(stale_rolls_back(), seen, T0 + 10 * MINUTE).phase, RolledBack)


def test_a_gap_is_told_while_a_breach_pauses() -> None:
    """Who looks at the breach hears that nothing more is seen, and when it is again."""
    paused = after(make_rollout(), judged(metrics=PAUSING))
    told, effects = decide(paused, judged(metrics=PAUSING, **SILENT), T0 + 10 * MINUTE)
    assert told is not None
    assert [each.kind for each in effects] == [DecisionKind.HOLD, AlertKind.HEALTH_GAP]  # type: ignore[union-attr]
    assert (told.hold, told.told_gaps) == (HoldReason.BREACH, frozenset({HealthGap.STALE}))
    again = judged(at=T0 + 20 * MINUTE, metrics=PAUSING)
    seeing, (_, over) = decide(told, again, T0 + 20 * MINUTE)
    assert seeing is not None
    assert isinstance(over, RaiseAlert)
    assert (over.kind, over.severity) == (AlertKind.HEALTH_GAP, Severity.INFO)
    assert (seeing.hold, seeing.told_gaps) == (HoldReason.BREACH, frozenset())


def test_a_pause_before_the_first_stage_has_no_gaps() -> None:
    """Evidence of no stage is nobody's: neither told, nor kept when the rollout resumes."""
    paused = replace(
        stale_rolls_back(),
        phase=Paused(T0, HoldReason.OPERATOR, Scheduled(T0 + HOUR)),
        percent=0.0,
        visits=(),
    )
    for kind in HealthGap:
        gap = Gap(kind, "for a test", is_observed=True, treatment_missing=True)
        seen = judged(visit=-1, gaps=(gap,), gap_times={kind: GapTime(3600)})
        assert decide(paused, seen, T0 + MINUTE) == (paused, ())


# --- gaps and a gate that passes ---


@pytest.mark.parametrize(
    ("stages", "phase"),
    [
        (make_stages(10, 50), AlertKind.HEALTH_GAP),
        (make_stages(10, 50, approval=Approval.REQUIRED), AlertKind.APPROVAL_NEEDED),
        (make_stages(100), AlertKind.COMPLETED),
    ],
    ids=["advances", "asks a person", "completes"],
)
def test_a_gate_that_passes_tells_that_its_gaps_are_over(
    stages: tuple[Stage, ...], phase: AlertKind
) -> None:
    """The next visit has another dedup key: a pager would keep what the gate does not close."""
    rollout = make_rollout(plan=make_plan(stages=stages), phase=GATE, updated_at=T0)
    told, (_, begin) = decide(rollout, LASTING, T0 + 6 * MINUTE)
    passed, effects = decide(told, judged(at=T0 + 12 * MINUTE), T0 + 12 * MINUTE)
    alerts = [each for each in effects if isinstance(each, RaiseAlert)]
    assert passed is not None
    assert isinstance(begin, RaiseAlert)
    assert passed.told_gaps == frozenset()
    assert alerts[0].dedup_key == begin.dedup_key
    assert alerts[0].severity is Severity.INFO
    assert alerts[-1].kind is phase
