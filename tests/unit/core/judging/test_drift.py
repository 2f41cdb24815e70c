"""The closed loop: whether exposures follow the decision, or still the one before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from controller.core.analysis import drift
from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.audience import Audience, Condition
from controller.core.evidence import VisitTotals
from controller.core.judging.gate import judge
from controller.core.judging.judgement import Gap
from controller.core.plan import Guardrail, Plan, Stage
from controller.core.rollout import Baking, Rollout
from schemas.terms import ControlArm, HealthGap, Operator
from tests.builders import T0, make_plan, make_rollout, make_stage, make_stages, make_visit
from tests.streams import Watched, make_arm, make_evidence

WATCHING = (Guardrail("error_rate", limit=0.5),)


def at_last(*stages: Stage, **plan: Any) -> Rollout:
    """Return a rollout that has come to the last of these stages."""
    made = make_plan(stages=stages, guardrails=WATCHING, **plan)
    return make_rollout(plan=made, phase=Baking(len(stages) - 1, T0))


def split_gaps(rollout: Rollout, treatment: int, control: int) -> list[Gap]:
    """Return what the gate says of the split after one batch in the present visit."""
    visit = rollout.visit_index
    at = rollout.visits[-1].counts_from
    evidence = make_evidence({visit: VisitTotals(make_arm(treatment), make_arm(control))}, at)
    gaps = judge(rollout, evidence, SequentialTests(), at)[0].gaps
    return [gap for gap in gaps if gap.kind in (HealthGap.SRM, HealthGap.ACTUATION_DRIFT)]


def kinds(gaps: list[Gap]) -> list[HealthGap]:
    """Return the kinds of gaps."""
    return [gap.kind for gap in gaps]


@pytest.mark.parametrize("percents", [(1, 10), (10, 50), (25, 50), (50, 100)])
def test_the_share_of_the_visit_before_is_drift(percents: tuple[float, float]) -> None:
    """A plane that was not refreshed is no broken split.

    And no treatment that went missing: nothing is rolled back.
    """
    before = percents[0] / 100
    (gap,) = split_gaps(
        at_last(*make_stages(*percents)), round(4_000 * before), round(4_000 * (1 - before))
    )
    assert (gap.kind, gap.is_observed, gap.treatment_missing) == (
        HealthGap.ACTUATION_DRIFT,
        True,
        False,
    )
    asked = "everybody" if percents[1] == 100 else f"{percents[1]} %"
    assert gap.detail.startswith(
        f"{percents[0]} % of 4,000 contexts saw treatment, {asked} was decided: the share "
        f"is that of"
    )


@pytest.mark.parametrize(("treatment", "control"), [(120, 3_880), (0, 4_000), (1_000, 3_000)])
def test_another_share_is_a_broken_split(treatment: int, control: int) -> None:
    """Shares that were neither decided now nor before are a mismatch.

    As if somebody else had changed the flag.
    """
    assert kinds(split_gaps(at_last(*make_stages(1, 10)), treatment, control)) == [HealthGap.SRM]


def test_the_decided_share_is_neither() -> None:
    """What was decided arrived."""
    assert split_gaps(at_last(*make_stages(1, 10)), 400, 3_600) == []
    assert split_gaps(at_last(*make_stages(50, 100)), 4_000, 12) == []


def test_in_the_first_visit_silence_of_treatment_is_a_missing_treatment() -> None:
    """It may be too broken to report, and rolling back costs nothing where nobody was served."""
    (gap,) = split_gaps(at_last(*make_stages(10)), 0, 4_000)
    assert (gap.kind, gap.treatment_missing) == (HealthGap.SRM, True)


def test_a_step_back_that_does_not_arrive_is_drift() -> None:
    """More than was decided is found as less is."""
    plan = make_plan(stages=make_stages(10, 50), guardrails=WATCHING)
    visits = (make_visit(), make_visit(stage=1, percent=50.0), make_visit())
    rollout = make_rollout(plan=plan, phase=Baking(0, T0), visits=visits)
    assert kinds(split_gaps(rollout, 2_000, 2_000)) == [HealthGap.ACTUATION_DRIFT]


def test_control_that_is_left_at_100_percent_is_drift() -> None:
    """There nothing is left to compare.

    But a share that stays below has not arrived, whatever it was before.
    """
    (gap,) = split_gaps(at_last(*make_stages(50, 100)), 3_000, 1_000)
    assert gap.kind is HealthGap.ACTUATION_DRIFT
    assert gap.detail == (
        "75 % of 4,000 contexts saw treatment, everybody was to: somebody else changes the "
        "flag, or some apps do not follow it"
    )


def test_arms_of_equal_size_are_held_against_half() -> None:
    """At 1 % beside an equal control half of those who count have treatment.

    1 % of them is what the plane served before.
    """
    stages = (*make_stages(1), *make_stages(10, control=ControlArm.EQUAL))
    assert split_gaps(at_last(*stages), 2_000, 2_000) == []
    assert kinds(split_gaps(at_last(*stages), 40, 3_960)) == [HealthGap.ACTUATION_DRIFT]
    assert kinds(split_gaps(at_last(*stages), 400, 3_600)) == [HealthGap.SRM]


def test_a_wider_audience_at_a_lower_percentage_is_no_step_back() -> None:
    """From all staff to 1 % of everybody is an advance.

    The tests go on, and staff still being compared is drift.
    """
    staff = Audience("staff", ((Condition("staff", Operator.EQ, (True,)),),))
    rollout = at_last(
        make_stage(percent=100.0, audience="staff"), make_stage(percent=1.0), audiences=(staff,)
    )
    assert kinds(split_gaps(rollout, 300, 0)) == [HealthGap.ACTUATION_DRIFT]
    assert split_gaps(rollout, 40, 3_960) == []


@pytest.mark.parametrize(
    ("before", "decided"), [(0.01, 0.1), (0.25, 0.5), (0.5, 0.25), (0.5, 1.0), (1.0, 0.01)]
)
def test_drift_is_found_with_few_contexts(before: float, decided: float) -> None:
    """An order of magnitude takes tens of contexts, a doubling about a hundred.

    Seconds after settle, not a day's bake.
    """
    needed = next(
        n
        for n in range(1, 10_000)
        if drift.log_e_value(before, decided, round(n * before), n - round(n * before))
        >= math.log(drift.threshold(2))
    )
    assert needed <= 150


shares = st.integers(1, 99).map(lambda percent: percent / 100)


@given(
    st.sampled_from([0.0, 1.0]) | shares,
    shares | st.just(1.0),
    st.integers(1, 200),
    st.floats(0.99, 1.0),
)
def test_the_e_value_expects_no_more_than_it_stakes(
    before: float, decided: float, contexts: int, served: float
) -> None:
    """Where the decision holds, its mean is at most 1 after any number of contexts.

    A false alarm has probability alpha.
    """
    true_share = decided if decided <= 1 - drift.STRAGGLERS else served
    counts = np.arange(contexts + 1)
    logs = np.array([drift.log_e_value(before, decided, k, contexts - k) for k in map(int, counts)])
    assert (
        float(np.exp(scipy.stats.binom.logpmf(counts, contexts, true_share) + logs).sum())
        <= 1 + 1e-9
    )


def test_alpha_is_shared_out_over_all_visits() -> None:
    """However often a rollout goes back and forth, a false alarm is at most as likely as stated."""
    assert sum(1 / drift.threshold(visit) for visit in range(1, 100_000)) < drift.ALPHA_DRIFT


def test_false_alarms_over_whole_rollouts_are_rare() -> None:
    """400 rollouts of five visits, judged 50 times each, give no false drift."""
    plan: Plan = make_plan(stages=make_stages(1, 10, 25, 50, 100), guardrails=WATCHING)
    rng = np.random.default_rng(20261121)
    for _ in range(400):
        for visit in range(1, 5):
            decided, before = plan.stages[visit].percent / 100, plan.stages[visit - 1].percent / 100
            steps = rng.binomial(200, decided, size=50).cumsum()
            looks = [
                drift.log_e_value(before, decided, int(k), 200 * (look + 1) - int(k))
                for look, k in enumerate(steps)
            ]
            assert max(looks) < math.log(drift.threshold(visit + 1))


def test_the_loop_closes_over_a_rollout() -> None:
    """Ten seconds of the old share after a step up are told, and the new one never was."""
    plan = make_plan(stages=make_stages(10, 50, 100), guardrails=WATCHING)
    watched = Watched(make_rollout(plan=plan))
    for _ in range(30):
        watched.treatment.add(10)
        watched.control.add(90)
        assert (
            kinds(
                [gap for gap in watched.look().gaps if gap.kind is not HealthGap.BELOW_MIN_SAMPLE]
            )
            == []
        )
    watched.go_on(50.0, 1)
    seen: list[HealthGap] = []
    for _ in range(10):
        watched.treatment.add(10)
        watched.control.add(90)
        seen += kinds(
            [
                gap
                for gap in watched.look().gaps
                if gap.kind in (HealthGap.SRM, HealthGap.ACTUATION_DRIFT)
            ]
        )
    assert set(seen) == {HealthGap.ACTUATION_DRIFT}
