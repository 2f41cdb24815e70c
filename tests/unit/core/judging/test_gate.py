"""The gate: health gaps with their exact bounds, both questions per guardrail.

And what is remembered between looks.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.core.analysis.sequential_tests import (
    GapTime,
    SequentialTests,
    decode_tests,
    differ_in_times_alone,
    encode_tests,
)
from controller.core.evidence import ArmTotals, Loss, VisitTotals, bucket_of
from controller.core.judging.batches import KEPT_VISITS, MAX_OPEN, MIN_BATCH
from controller.core.judging.gate import check_harm, judge
from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.judging.questions import gate_bound, gate_margin, gate_margin_origin
from controller.core.judging.staleness import REPORT_WITHIN
from controller.core.plan import Guardrail, Plan
from controller.core.rollout import Baking, Rollout
from schemas.terms import Arm, HealthGap, MetricRole, Verdict
from tests.builders import HOUR, T0, make_plan, make_rollout, make_stages, make_visit
from tests.streams import Watched, make_arm, make_evidence, make_progress

NOW = T0 + timedelta(minutes=5)
HEALTHY = VisitTotals(make_arm(1000, 5), make_arm(9000, 45))


def gaps_of(judgement: Judgement) -> list[HealthGap]:
    """Return the kinds of gaps."""
    return [gap.kind for gap in judgement.gaps]


def look_at(
    totals: VisitTotals = HEALTHY,
    rollout: Rollout | None = None,
    tests: SequentialTests | None = None,
    **evidence: Any,
) -> Judgement:
    """Return the judgement of one look at the first visit."""
    evidence.setdefault("partitions", make_progress(NOW))
    seen = make_evidence({0: totals}, NOW, **evidence)
    return judge(rollout or make_rollout(), seen, tests or SequentialTests(), NOW)[0]


def watch(*guardrails: Guardrail, percent: float = 10.0, **plan: Any) -> Watched:
    """Return a rollout under watch, in a first stage of `percent`."""
    made = make_plan(guardrails=guardrails, stages=make_stages(percent, 100), **plan)
    phase = Baking(stage=0, until=T0 + timedelta(minutes=11))
    visits = (make_visit(percent=percent),)
    return Watched(make_rollout(plan=made, phase=phase, visits=visits, percent=percent))


def metric(judgement: Judgement, index: int = 0) -> MetricReport:
    """Return one guardrail's report."""
    return judgement.metrics[index]


def feed(
    watched: Watched, looks: int, treatment: tuple[int, int], control: tuple[int, int]
) -> Judgement:
    """Return the last of `looks` judgements, each after (contexts, first errors) per arm."""
    for _ in range(looks):
        watched.treatment.add(*treatment)
        watched.control.add(*control)
        watched.look()
    return watched.last()


# --- health ---


def test_healthy_evidence_has_no_gap() -> None:
    """Fresh, complete traffic in both arms at the decided share leaves no gap."""
    assert look_at().gaps == ()


@pytest.mark.parametrize("arm", ["treatment", "control"])
def test_arm_without_exposures_is_no_traffic(arm: str) -> None:
    """Nobody exposed in either arm is `no_traffic`, and nothing else about that arm."""
    nobody = ArmTotals()
    is_treatment = arm == "treatment"
    judgement = look_at(
        replace(HEALTHY, treatment=nobody) if is_treatment else replace(HEALTHY, control=nobody)
    )
    assert HealthGap.NO_TRAFFIC in gaps_of(judgement)
    assert HealthGap.NO_OUTCOMES not in gaps_of(judgement)
    assert HealthGap.BELOW_MIN_SAMPLE not in gaps_of(judgement)


def test_while_a_stage_settles_no_traffic_says_from_when_events_count() -> None:
    """A newcomer would look for a fault in the events otherwise."""
    nobody = VisitTotals(ArmTotals(), ArmTotals())
    details = {
        since: {gap.detail for gap in look_at(nobody, rollout=settling_until(since)).gaps}
        for since in (NOW, NOW + timedelta(seconds=30))
    }
    said = "no context was exposed to treatment in this stage"
    assert said in details[NOW]
    since = NOW + timedelta(seconds=30)
    assert f"{said} yet: events count from {since:%H:%M:%S} UTC on" in details[since]


def settling_until(since: datetime) -> Rollout:
    """Return a rollout whose stage counts events from this time on."""
    rollout = make_rollout()
    return replace(rollout, visits=(replace(rollout.visits[-1], counts_from=since),))


def test_while_counting_lags_nothing_is_said_to_be_missing() -> None:
    """What is not counted may have happened: the gap is the lag, with its size."""
    before = replace(make_progress(NOW)[0], freshest=T0, end_offset=10_500, next_offset=10_000)
    nothing = VisitTotals(ArmTotals(), make_arm(9000, 45))
    judgement = look_at(nothing, partitions=(before,))
    assert HealthGap.NO_TRAFFIC not in gaps_of(judgement)
    gap = next(gap for gap in judgement.gaps if gap.kind is HealthGap.STALE)
    assert "counting lags, 500 records are not counted yet" in gap.detail
    assert "no context of treatment is counted in this stage so far" in gap.detail
    assert judgement.incomplete is not None
    of_both = look_at(VisitTotals(ArmTotals(), ArmTotals()), partitions=(before,))
    gap = next(gap for gap in of_both.gaps if gap.kind is HealthGap.STALE)
    assert gap.detail.count("counting lags") == 1
    assert "no context of treatment and no context of control is counted" in gap.detail
    outcomes = make_progress(NOW)[1]
    caught_up = look_at(nothing, partitions=(replace(before, freshest=NOW), outcomes))
    assert HealthGap.NO_TRAFFIC in gaps_of(caught_up)
    assert caught_up.incomplete is None


def test_while_all_is_counted_again_nobody_is_said_to_be_missing() -> None:
    """A store that lost everything: the evaluations' partitions report later than the outcomes'."""
    (outcomes,) = (one for one in make_progress(NOW) if "outcomes" in one.topic_partition)
    recount = VisitTotals(ArmTotals(outcomes=81, at_risk=81), ArmTotals(outcomes=90, at_risk=90))
    judgement = look_at(recount, partitions=(outcomes,))
    assert HealthGap.NO_TRAFFIC not in gaps_of(judgement)
    assert judgement.incomplete == "1 of 2 event partitions report"
    rollout, tests = make_rollout(), SequentialTests()
    _, tests = judge(rollout, make_evidence({0: HEALTHY}, NOW), tests, NOW)
    later = NOW + timedelta(seconds=1)
    fallen, _ = judge(rollout, make_evidence({0: recount}, later), tests, later)
    assert "already judged: waiting for the recount" in (fallen.incomplete or "")
    assert HealthGap.NO_TRAFFIC not in gaps_of(fallen)
    assert look_at().incomplete is None


def test_a_lag_does_not_explain_a_treatment_without_outcomes() -> None:
    """Control has reported through the same partitions: requests of treatment fail before."""
    before = replace(make_progress(NOW)[0], freshest=T0, end_offset=10_500, next_offset=10_000)
    silent = replace(HEALTHY, treatment=ArmTotals(evaluations=1000, exposures=1000))
    assert HealthGap.NO_OUTCOMES in gaps_of(look_at(silent, partitions=(before,)))
    nobody = VisitTotals(ArmTotals(evaluations=9, exposures=9), ArmTotals(evaluations=90))
    assert HealthGap.NO_OUTCOMES not in gaps_of(look_at(nobody, partitions=(before,)))


def test_exposures_without_outcomes_are_no_outcomes() -> None:
    """Contexts that saw treatment and reported nothing are `no_outcomes`."""
    silent = ArmTotals(evaluations=1000, exposures=1000)
    assert gaps_of(look_at(replace(HEALTHY, treatment=silent))) == [HealthGap.NO_OUTCOMES]


def test_a_gap_of_one_context_is_in_the_singular() -> None:
    """People read it in the first seconds of a stage."""
    silent = ArmTotals(evaluations=1, exposures=1)
    gaps = look_at(replace(HEALTHY, treatment=silent)).gaps
    details = [gap.detail for gap in gaps if gap.kind is HealthGap.NO_OUTCOMES]
    assert details == ["1 context saw treatment, none reported an outcome"]


def test_far_fewer_outcomes_of_treatment_are_no_outcomes() -> None:
    """A third of control's outcomes per context is a gap.

    As many, or few contexts that may report later, are none.
    """

    def gaps(treatment: ArmTotals) -> list[HealthGap]:
        return gaps_of(look_at(VisitTotals(treatment, make_arm(9000, 45, outcomes=27_000))))

    assert gaps(make_arm(1000, 5, outcomes=1000)) == [HealthGap.NO_OUTCOMES]
    assert gaps(make_arm(1000, 5, outcomes=3000)) == []
    few = VisitTotals(make_arm(10, outcomes=8), make_arm(90, outcomes=270))
    assert gaps_of(look_at(few)) == [HealthGap.BELOW_MIN_SAMPLE] * 2


def test_contexts_that_see_both_arms_are_multiple_exposure() -> None:
    """5 % of a stage's contexts in both arms is a gap, half a percent is what stale caches do."""
    assert gaps_of(
        look_at(VisitTotals(make_arm(1000, 5, switched=300), make_arm(9000, 45, switched=200)))
    ) == [HealthGap.MULTIPLE_EXPOSURE]
    assert gaps_of(look_at(VisitTotals(make_arm(1000, 5, switched=50), make_arm(9000, 45)))) == []


def watched_durations(treatment_ms: float, control_ms: float) -> Watched:
    """Return a rollout with a limit of 300 ms, and an hour of durations in each arm."""
    watched = watch(Guardrail("latency_p99", limit=300.0))
    for _ in range(20):
        for arm, duration_ms in ((watched.treatment, treatment_ms), (watched.control, control_ms)):
            arm.add(30)
            arm.add_latencies([duration_ms] * 30)
        watched.look()
    return watched


def test_milliseconds_sent_as_seconds_roll_nothing_back() -> None:
    """Control is far beyond the limit, too: a named gap, no breach, and no pass."""
    judgement = watched_durations(183_000.0, 183_000.0).last()
    assert HealthGap.IMPLAUSIBLE_LATENCY in gaps_of(judgement)
    (gap,) = [one for one in judgement.gaps if one.kind is HealthGap.IMPLAUSIBLE_LATENCY]
    assert "milliseconds sent as seconds" in gap.detail
    assert (metric(judgement).harm, metric(judgement).safe) == (
        Verdict.INCONCLUSIVE,
        Verdict.INCONCLUSIVE,
    )
    assert "does not count: control's median, too" in metric(judgement).reason


@pytest.mark.parametrize("control_ms", [100.0, 2900.0, 59_000.0])
def test_a_treatment_that_hangs_is_rolled_back(control_ms: float) -> None:
    """Whatever treatment's durations look like: control tells that they are in seconds."""
    judgement = watched_durations(183_000.0, control_ms).last()
    assert metric(judgement).harm is Verdict.FAIL
    assert HealthGap.IMPLAUSIBLE_LATENCY not in gaps_of(judgement)


def test_long_jobs_have_long_limits() -> None:
    """Minutes are plausible where the plan allows minutes."""
    watched = watch(Guardrail("latency_p99", limit=600_000.0))
    for arm in (watched.treatment, watched.control):
        arm.add(100)
        arm.add_latencies([400_000.0] * 100)
    watched.look()
    assert HealthGap.IMPLAUSIBLE_LATENCY not in gaps_of(watched.last())


def test_outcomes_that_come_again_are_repeated_outcomes() -> None:
    """An arm of which surely more than one in twenty came before is named with its share.

    One in a hundred is let pass.
    """
    control = make_arm(9000, 45, checked=2000, repeated=20)
    (gap,) = look_at(VisitTotals(make_arm(1000, 5, checked=200, repeated=40), control)).gaps
    assert gap.kind is HealthGap.REPEATED_OUTCOMES
    assert gap.detail.startswith(
        "20 % of treatment's outcomes had come before, byte for byte (40 of 200 that were checked)"
    )
    both = VisitTotals(
        make_arm(1000, 5, checked=200, repeated=40), make_arm(9000, 45, checked=2000, repeated=1000)
    )
    assert gaps_of(look_at(both)) == [HealthGap.REPEATED_OUTCOMES] * 2
    assert (
        look_at(VisitTotals(make_arm(1000, 5, checked=200, repeated=11), control)).gaps == ()
    )  # 5.5 %, not surely


def test_a_few_contexts_with_many_outcomes_are_no_repetition() -> None:
    """Fifty outcomes a context say as much as one.

    What a single eager sender repeats is not the arm's share.
    """
    of_one = make_arm(1000, 5, outcomes=50_000, checked=800, repeated=150)
    assert look_at(VisitTotals(of_one, make_arm(9000, 45, outcomes=450_000))).gaps == ()


def test_a_tolerated_share_of_repetitions_is_hardly_ever_a_gap() -> None:
    """At exactly 5 % repeats, 100 stages of 50 batches hold at most as often as alpha allows."""
    rng = np.random.default_rng(17)
    held = 0
    for copies in rng.binomial(40, 0.05, (100, 50)).cumsum(axis=1).tolist():
        arms = [
            make_arm(1000, 5, checked=40 * (look + 1), repeated=count)
            for look, count in enumerate(copies)
        ]
        held += any(look_at(VisitTotals(arm, make_arm(9000, 45))).gaps for arm in arms)
    assert held <= 1


def test_min_sample_is_reached_by_exactly_that_many_contexts() -> None:
    """100 contexts fulfil a min_sample of 100, 99 do not, in each arm."""
    assert gaps_of(look_at(VisitTotals(make_arm(100), make_arm(900)))) == []
    assert gaps_of(look_at(VisitTotals(make_arm(99), make_arm(891)))) == [
        HealthGap.BELOW_MIN_SAMPLE
    ]


def test_full_stage_needs_no_control() -> None:
    """At 100 % an empty control is as it should be."""
    plan = make_plan(stages=make_stages(100))
    rollout = make_rollout(plan=plan, visits=(make_visit(percent=100.0),), percent=100.0)
    assert look_at(VisitTotals(make_arm(1000, 5), ArmTotals()), rollout).gaps == ()


def test_evidence_exactly_as_old_as_allowed_is_fresh() -> None:
    """A freshest event of exactly `fresh_within` passes; a microsecond more is stale."""
    allowed = make_plan().fresh_within
    assert look_at(partitions=make_progress(NOW, freshest=NOW - allowed)).gaps == ()
    older = NOW - allowed - timedelta(microseconds=1)
    assert gaps_of(look_at(partitions=make_progress(NOW, freshest=older))) == [HealthGap.STALE]


def test_one_silent_topic_is_stale_although_the_other_flows() -> None:
    """Outcomes that stop are seen although evaluations go on."""
    evaluations, outcomes = make_progress(NOW)
    judgement = look_at(
        partitions=(evaluations, replace(outcomes, freshest=NOW - timedelta(minutes=10)))
    )
    assert gaps_of(judgement) == [HealthGap.STALE]
    assert "request.outcomes" in judgement.gaps[0].detail
    assert gaps_of(look_at(partitions=(evaluations, replace(outcomes, freshest=None)))) == [
        HealthGap.STALE
    ]


def test_missing_partition_is_stale() -> None:
    """Fewer partitions reporting than exist is a gap, however fresh those are."""
    assert gaps_of(look_at(expected_partitions=3)) == [HealthGap.STALE]


def test_partition_without_a_recent_owner_is_stale() -> None:
    """A partition reported exactly at the bound counts.

    Later than that nobody may be counting it.
    """
    assert look_at(partitions=make_progress(NOW, reported_at=NOW - REPORT_WITHIN)).gaps == ()
    late = NOW - REPORT_WITHIN - timedelta(microseconds=1)
    assert gaps_of(look_at(partitions=make_progress(NOW, reported_at=late))) == [HealthGap.STALE]


def test_lagging_partition_is_stale_only_when_it_is_behind_in_time() -> None:
    """Records waiting are normal under load; records waiting behind an old event are lag."""
    evaluations, outcomes = make_progress(NOW)
    busy = replace(outcomes, end_offset=1_000_000)
    assert look_at(partitions=(evaluations, busy)).gaps == ()
    other = replace(outcomes, topic_partition="request.outcomes/1")
    stuck = replace(busy, freshest=NOW - timedelta(hours=1))
    judgement = look_at(partitions=(evaluations, other, stuck), expected_partitions=3)
    assert gaps_of(judgement) == [HealthGap.STALE]
    assert "lags 999,990 records" in judgement.gaps[0].detail


def test_flag_that_fell_silent_is_stale_although_others_flow() -> None:
    """When this stage's own events stop, freshness of the partitions does not help.

    New events fix it.
    """
    watched = watch(Guardrail("error_rate", margin=0.0))
    feed(watched, 2, (100, 1), (900, 9))
    assert watched.look(timedelta(seconds=60)).gaps == ()
    assert gaps_of(watched.look(timedelta(seconds=1))) == [HealthGap.STALE]
    assert feed(watched, 1, (10, 0), (90, 1)).gaps == ()


def test_wrong_share_is_a_sample_ratio_mismatch() -> None:
    """8 % of 10,000 contexts where 10 % were decided is found, and is not a missing treatment."""
    judgement = look_at(VisitTotals(make_arm(800), make_arm(9200)))
    assert gaps_of(judgement) == [HealthGap.SRM]
    assert not judgement.gaps[0].treatment_missing
    assert judgement.srm_e_value > 1000
    assert judgement.observed_share == pytest.approx(0.08)


def test_treatment_surely_below_half_its_share_is_missing() -> None:
    """At a decided 10 %, 4 % of 10,000 is a missing treatment, 4.8 % may be chance.

    And so may 4 % of 300.
    """

    def is_missing(treatment: int, control: int) -> bool:
        judgement = look_at(VisitTotals(make_arm(treatment), make_arm(control)))
        return any(gap.treatment_missing for gap in judgement.gaps)

    assert is_missing(400, 9600)
    assert not is_missing(480, 9520)
    assert not is_missing(12, 286)


def test_a_chance_imbalance_of_returning_contexts_counts_once() -> None:
    """Contexts keep their place in the split: a stage does not multiply the last one's evidence.

    It begins without any, so that it has to show a mismatch by its own contexts.
    """
    watched = watch(Guardrail("error_rate", margin=0.1))
    for stage, percent in enumerate((10.0, 15.0)):
        if stage:
            watched.go_on(percent, stage)
            assert watched.look().srm_e_value == 1.0
        # 110 contexts too many are in treatment, the same ones in each stage: e-values of 106 and
        # 16 by themselves, of 5,800 if both counted.
        watched.treatment.add(round(100 * percent) + 110)
        watched.control.add(round(10_000 - 100 * percent) - 110)
        judgement = watched.look()
        assert HealthGap.SRM not in gaps_of(judgement)
        assert judgement.srm_e_value > 10


def test_drift_of_a_flag_plane_is_a_gap() -> None:
    """What a flag plane serves instead is passed on in its own words."""
    judgement = look_at(actuation_drift="unleash serves 5 % since 09:00")
    assert [(gap.kind, gap.detail) for gap in judgement.gaps] == [
        (HealthGap.ACTUATION_DRIFT, "unleash serves 5 % since 09:00")
    ]


def test_loss_taints_the_stage_it_fell_into_and_no_later_one() -> None:
    """Records lost while the stage lasts taint it, the end included.

    A loss that was over does not.
    """
    entered = make_rollout().visits[0].entered_at
    moment = timedelta(microseconds=1)
    for loss in (
        Loss(None, entered),
        Loss(entered - HOUR, None),
        Loss(None, None),
        Loss(entered - HOUR, entered + HOUR),
        Loss(NOW, None),
    ):
        judgement = look_at(partitions=make_progress(NOW, losses=(loss,)))
        assert gaps_of(judgement) == [HealthGap.TAINTED], loss
    for loss in (Loss(None, entered - moment), Loss(NOW + moment, None)):
        assert look_at(partitions=make_progress(NOW, losses=(loss,))).gaps == ()


def test_a_second_loss_taints_as_the_first_one_did() -> None:
    """A loss long ago hides none of the present stage (F25)."""
    entered = make_rollout().visits[0].entered_at
    losses = (Loss(None, entered - 10 * HOUR), Loss(entered, entered))
    assert gaps_of(look_at(partitions=make_progress(NOW, losses=losses))) == [HealthGap.TAINTED]


def test_times_from_the_future_prove_nothing() -> None:
    """A freshest event or a report that is ahead of the clock is no sign of freshness."""
    ahead = NOW + timedelta(days=1)
    assert gaps_of(look_at(partitions=make_progress(NOW, freshest=ahead))) == [HealthGap.STALE]
    assert gaps_of(look_at(partitions=make_progress(NOW, reported_at=ahead))) == [HealthGap.STALE]


def test_totals_that_cannot_be_read_hold_the_gate() -> None:
    """What is missing in one partition is a gap, however good the rest looks."""
    totals = replace(HEALTHY, unreadable=("flag.evaluations/3",))
    assert gaps_of(look_at(totals)) == [HealthGap.STALE]


def test_blind_plan_asks_only_whether_it_is_actuated() -> None:
    """A timed ramp has no metrics and no gaps but drift."""
    rollout = make_rollout(plan=make_plan(blind=True))
    assert look_at(VisitTotals(), rollout).gaps == ()
    assert look_at(VisitTotals(), rollout).metrics == ()
    assert gaps_of(look_at(VisitTotals(), rollout, actuation_drift="off")) == [
        HealthGap.ACTUATION_DRIFT
    ]


def test_rollout_that_has_not_started_cannot_be_judged() -> None:
    """Without a visit there is nothing to judge: the caller's mistake."""
    with pytest.raises(ValueError, match="has not entered a stage"):
        judge(make_rollout(visits=()), make_evidence({}, NOW), SequentialTests(), NOW)


# --- comparison with control ---


def test_equal_release_is_shown_safe_and_not_harmful() -> None:
    """Equal error rates end in PASS at the gate, with an interval that holds 1."""
    report = metric(feed(watch(Guardrail("error_rate", margin=0.0)), 100, (100, 2), (900, 18)))
    assert (report.harm, report.safe) == (Verdict.INCONCLUSIVE, Verdict.PASS)
    assert report.ratio == pytest.approx(1.0, rel=0.02)
    assert report.ratio_low is not None
    assert report.ratio_high is not None
    assert report.ratio_low < 1 < report.ratio_high
    assert "confirmed below the gate's margin (1.5 times control): " in report.reason


def test_doubled_errors_are_a_breach() -> None:
    """Twice the error rate is found, named with its numbers, and never shown safe."""
    judgement = feed(watch(Guardrail("error_rate", margin=0.0)), 40, (100, 4), (900, 18))
    report = metric(judgement)
    assert judgement.breach is report
    assert report.e_value >= report.threshold == pytest.approx(100)
    assert report.safe is Verdict.FAIL
    assert "160 of 4,000" in report.reason
    assert judgement.statistics is Verdict.FAIL


def test_harm_within_the_margin_is_no_breach() -> None:
    """Half as many errors again are tolerated by a margin of 60 %."""
    report = metric(feed(watch(Guardrail("error_rate", margin=0.6)), 100, (100, 3), (900, 18)))
    assert report.harm is Verdict.INCONCLUSIVE


def test_little_evidence_is_inconclusive_and_says_what_is_missing() -> None:
    """A few contexts neither fail nor pass, and the reason counts what is missing."""
    report = metric(feed(watch(Guardrail("error_rate", margin=0.0)), 3, (100, 1), (900, 9)))
    assert (report.harm, report.safe) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)
    assert "more user actions in treatment" in report.reason


def test_nothing_measured_is_no_data() -> None:
    """Before the first batch both verdicts are NO_DATA, and so is the gate's."""
    judgement = look_at(
        VisitTotals(),
        make_rollout(plan=make_plan(guardrails=(Guardrail("error_rate", margin=0.0),))),
    )
    assert (metric(judgement).harm, metric(judgement).safe) == (Verdict.NO_DATA, Verdict.NO_DATA)
    assert judgement.statistics is Verdict.NO_DATA


def test_two_failing_contexts_are_not_enough_whatever_the_odds() -> None:
    """With a nearly error-free control of a million, the third bad context rolls back."""
    watched = watch(Guardrail("error_rate", margin=0.0), alpha=0.2)
    watched.treatment.add(10, 2)
    watched.control.add(1_000_000, 1)
    report = metric(watched.look())
    assert report.e_value > report.threshold
    assert report.harm is Verdict.INCONCLUSIVE
    assert "only 2 bad events" in report.reason
    watched.treatment.add(10, 1)
    watched.control.add(90)
    assert metric(watched.look()).harm is Verdict.FAIL


def test_certain_but_tiny_harm_is_vetoed() -> None:
    """Seven percent more errors, certain by sheer traffic, do not roll back."""
    report = metric(
        feed(
            watch(Guardrail("error_rate", margin=0.0), percent=50.0),
            50,
            (100_000, 2140),
            (100_000, 2000),
        )
    )
    assert report.e_value > report.threshold
    assert report.harm is Verdict.INCONCLUSIVE
    assert "does not count" in report.reason


def test_service_without_errors_can_pass_with_enough_contexts() -> None:
    """No error in either arm is shown negligible, not waited for until for ever."""
    report = metric(feed(watch(Guardrail("error_rate", margin=0.0)), 100, (1000, 0), (9000, 0)))
    assert report.safe is Verdict.PASS


def test_full_stage_does_not_ask_for_a_comparison() -> None:
    """At 100 % a guardrail with nothing but a margin is not asked, and says so."""
    watched = watch(Guardrail("error_rate", margin=0.0), percent=100.0)
    watched.treatment.add(1000, 5)
    report = metric(watched.look())
    assert report.safe is Verdict.PASS
    assert report.e_value_safe is None
    assert "no control at 100 %" in report.reason


def test_harm_is_remembered_over_stages_and_safety_is_not() -> None:
    """Evidence of harm carries into the next stage; each gate asks for safety again."""
    watched = watch(Guardrail("error_rate", margin=0.0))
    before = metric(feed(watched, 100, (100, 2), (900, 18)))
    watched.go_on(50.0, 1)
    after = metric(watched.look())
    assert after.e_value == pytest.approx(before.e_value)
    assert before.safe is Verdict.PASS
    assert after.safe is Verdict.NO_DATA


def test_gate_asks_for_more_as_the_percentage_grows() -> None:
    """The margin to be excluded is 100 % at 1 %, 50 % at 10 %, 25 % at 50 %.

    And the plan's own where it says so.
    """
    for percent, expected in (
        (0.5, 1.0),
        (1.0, 1.0),
        (10.0, 0.5),
        (25.0, 0.358),
        (50.0, 0.25),
        (75.0, 0.25),
    ):
        report = metric(
            feed(watch(Guardrail("error_rate", margin=0.0), percent=percent), 1, (100, 1), (100, 1))
        )
        assert report.gate_margin == pytest.approx(expected, abs=0.01)
    own = metric(
        feed(watch(Guardrail("error_rate", margin=0.0, gate_margin=0.7)), 1, (100, 1), (900, 9))
    )
    assert own.gate_margin == 0.7


def test_margin_in_points_is_a_difference() -> None:
    """Against control + 1 pp at 2 %, 5 % is a breach.

    2.5 % is none although a quarter worse, and equal rates are shown.
    """
    guardrail = Guardrail("error_rate", margin=0.01, in_points=True)
    worse = feed(watch(guardrail), 60, (200, 10), (1800, 36))
    assert worse.breach is not None
    assert "as bad as control + 1 pp" in worse.breach.reason
    assert feed(watch(guardrail), 60, (200, 5), (1800, 36)).breach is None
    equal = metric(feed(watch(guardrail), 60, (200, 4), (1800, 36)))
    assert (equal.harm, equal.safe) == (Verdict.INCONCLUSIVE, Verdict.PASS)
    assert equal.gate_margin == pytest.approx(0.02)


def test_report_says_how_far_apart_the_arms_may_be_and_how_often_one_context_failed() -> None:
    """Difference and its bounds in the metric's unit, and errors per failing context."""
    watched = watch(Guardrail("error_rate", margin=0.1), percent=50.0)
    watched.treatment.add(10_000, 300, errors=900)
    watched.control.add(10_000, 100)
    report = metric(watched.look())
    assert report.arms[Arm.TREATMENT].repeats == 3.0
    assert report.arms[Arm.CONTROL].repeats == 1.0
    assert report.difference_low is not None
    assert report.difference_high is not None
    assert 0 < report.difference_low < 0.03 - 0.01 < report.difference_high


# --- limits ---


def test_rate_over_its_limit_is_a_breach() -> None:
    """3 % of errors against a limit of 1 % is found although control is no better."""
    judgement = feed(watch(Guardrail("error_rate", limit=0.01)), 20, (100, 3), (900, 27))
    assert judgement.breach is not None
    assert "over the limit" in judgement.breach.reason


def test_recent_harm_leads_with_what_breached() -> None:
    """The whole stage's share, which is within the limit, comes second."""
    watched = watch(Guardrail("error_rate", limit=0.03))
    feed(watched, 60, (100, 0), (900, 0))
    breach = None
    for _ in range(6):
        if breach is None:
            watched.treatment.add(10, 4)
            breach = watched.look().breach
    assert breach is not None
    first, stage, *_ = breach.reason.split("; ")
    assert "of the last" in first.split(" failed (")[0]
    assert first.endswith("limit 3 %")
    assert "over the whole stage" in stage


def test_rate_within_its_limit_is_shown_and_says_how_much_is_missing_before() -> None:
    """0.3 % against a limit of 1 % is not shown by 300 contexts, and is by 3,000."""
    watched = watch(Guardrail("error_rate", limit=0.01))
    early = metric(feed(watched, 3, (100, 0), (900, 3)))
    assert early.safe is Verdict.INCONCLUSIVE
    assert "more user actions in treatment" in early.reason
    assert "s at this traffic" in early.reason
    late = metric(feed(watched, 27, (111, 0), (900, 3)))
    assert late.safe is Verdict.PASS


def test_rate_at_its_limit_is_never_shown_within() -> None:
    """Exactly at the limit there is neither a breach nor a pass."""
    report = metric(feed(watch(Guardrail("error_rate", limit=0.01)), 200, (100, 1), (900, 9)))
    assert (report.harm, report.safe) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)


def test_full_stage_still_judges_limits() -> None:
    """At 100 % the absolute limit is what rolls back."""
    watched = watch(Guardrail("error_rate", limit=0.01, margin=0.1), percent=100.0)
    for _ in range(20):
        watched.treatment.add(1000, 30)
        watched.look()
    assert watched.last().breach is not None


def test_a_guardrail_that_measured_nothing_at_100_percent_says_so() -> None:
    """Nothing is compared there, and that is no answer: "not worse" would be untrue."""
    for guardrail in (
        Guardrail("error_rate", limit=0.01, margin=0.1),
        Guardrail("error_rate", margin=0.1),
        Guardrail("error_rate", limit=0.01),
    ):
        assert metric(watch(guardrail, percent=100.0).look()).harm is Verdict.NO_DATA
        report = metric(feed(watch(guardrail, percent=100.0), 3, (1000, 3), (0, 0)))
        assert report.harm is Verdict.INCONCLUSIVE


def test_a_limit_is_judged_although_control_has_fallen_silent() -> None:
    """A burst of treatment's failures without control contexts is found at once."""
    watched = watch(Guardrail("error_rate", limit=0.2))
    assert feed(watched, 1, (205, 0), (195, 0)).breach is None
    watched.treatment.add(191, 191)
    assert watched.look().breach is not None


def test_a_limit_takes_each_observation_once() -> None:
    """Reading the same totals again adds no evidence against a limit."""
    watched = watch(Guardrail("error_rate", limit=0.01))
    watched.treatment.add(100, 2)
    first = metric(watched.look())
    assert first.e_value > 1
    assert metric(watched.look()).e_value == first.e_value
    watched.go_on(50.0, 1)
    assert metric(watched.look()).e_value == first.e_value


def latencies(
    watched: Watched, looks: int, treatment: Any, control: Any, seed: int = 1
) -> Judgement:
    """Return the last judgement of batches of 100 treatment and 900 control latencies."""
    rng = np.random.default_rng(seed)
    for _ in range(looks):
        watched.treatment.add(100)
        watched.treatment.add_latencies(treatment(rng, 100))
        watched.control.add(900)
        watched.control.add_latencies(control(rng, 900))
        if watched.look().breach is not None:
            break
    return watched.last()


def test_slowness_anywhere_is_found_and_within_the_margin_is_not() -> None:
    """A quarter slower, or a slow path for one request in twenty, is a breach.

    5 % against a margin of 10 % is not.
    """
    guardrail = Guardrail("latency", margin=0.1)

    def with_slow_path(rng: np.random.Generator, size: int) -> Any:
        return lognormal(rng, size) * np.where(rng.random(size) < 0.05, 5.0, 1.0)

    for slower in (lambda rng, size: 1.25 * lognormal(rng, size), with_slow_path):
        breach = latencies(watch(guardrail), 60, slower, lognormal).breach
        assert breach is not None
        assert "slower than control: p50 " in breach.reason
    for fine in (lognormal, lambda rng, size: 1.05 * lognormal(rng, size)):
        assert latencies(watch(guardrail), 60, fine, lognormal).breach is None


def test_equal_latencies_are_shown_as_a_whole() -> None:
    """The gate shows that a release is not slower by its share above control's p90."""
    report = metric(latencies(watch(Guardrail("latency", margin=0.1)), 60, lognormal, lognormal))
    assert report.safe is Verdict.PASS
    assert report.arms[Arm.TREATMENT].estimate == pytest.approx(
        40 * math.exp(0.6 * 1.2816), rel=0.05
    )


def lognormal(rng: np.random.Generator, size: int) -> Any:
    """Return latencies with median 40 ms and p99 around 160 ms."""
    return rng.lognormal(np.log(40), 0.6, size)


def slow_path(rng: np.random.Generator, size: int) -> Any:
    """Return such latencies where one request in twenty takes five times as long."""
    return lognormal(rng, size) * np.where(rng.random(size) < 0.05, 5, 1)


def slow_tail(rng: np.random.Generator, size: int) -> Any:
    """Return such latencies where the slowest tenth takes half as long again."""
    values = lognormal(rng, size)
    return np.where(values > 40 * np.exp(0.6 * 1.2816), values * 1.5, values)


@pytest.mark.parametrize(("tail", "within"), [(slow_path, 30), (slow_tail, 30)])
def test_slow_tail_is_found(tail: Any, within: int) -> None:
    """A slower tail with the same median breaches p99 within 3,000 treatment requests."""
    judgement = latencies(watch(Guardrail("latency_p99", margin=0.0)), within, tail, lognormal)
    assert judgement.breach is not None
    assert "slower than control's p99" in judgement.breach.reason


def test_equal_latency_is_shown_safe() -> None:
    """The same latencies in both arms are shown not worse.

    And the quantile's interval holds the estimate.
    """
    report = metric(
        latencies(watch(Guardrail("latency_p95", margin=0.1)), 60, lognormal, lognormal)
    )
    assert report.safe is Verdict.PASS
    arm = report.arms[Arm.TREATMENT]
    assert arm.estimate is not None
    assert arm.low is not None
    assert arm.high is not None
    assert arm.low <= arm.estimate <= arm.high
    assert arm.estimate == pytest.approx(40 * np.exp(0.6 * 1.645), rel=0.1)


def test_latency_limit_is_judged_with_uncertainty() -> None:
    """A p99 far above its limit is a breach, far below is shown.

    And neither is decided by a handful of requests.
    """
    assert (
        latencies(watch(Guardrail("latency_p99", limit=80.0)), 10, lognormal, lognormal).breach
        is not None
    )
    assert (
        metric(
            latencies(watch(Guardrail("latency_p99", limit=400.0)), 10, lognormal, lognormal)
        ).safe
        is Verdict.PASS
    )
    early = metric(latencies(watch(Guardrail("latency_p99", limit=400.0)), 1, lognormal, lognormal))
    assert (early.harm, early.safe) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)


# --- conversions ---


def convert(
    watched: Watched, looks: int, treatment: int, control: int, *, delay: int = 0
) -> Judgement:
    """Return the last judgement when so many of 1000 contexts convert, `delay` later."""
    for look in range(looks):
        watched.treatment.add(1000, converted=treatment if look >= delay else 0)
        watched.control.add(1000, converted=control if look >= delay else 0)
        watched.look()
    return watched.last()


def test_fall_of_a_conversion_is_a_breach_and_a_rise_is_not() -> None:
    """Fewer conversions than control are harm, more are none, and equal ones are shown safe."""
    guardrail = Guardrail("conversion:bought", margin=0.05)
    fell = convert(watch(guardrail, percent=50.0), 30, 35, 50)
    assert fell.breach is not None
    rose = metric(convert(watch(guardrail, percent=50.0), 30, 70, 50))
    assert (rose.harm, rose.safe) == (Verdict.INCONCLUSIVE, Verdict.PASS)
    assert metric(convert(watch(guardrail, percent=50.0), 30, 50, 50)).safe is Verdict.PASS


def test_late_conversions_do_not_alarm() -> None:
    """Conversions that come ten looks after their exposure alarm as little as immediate ones."""
    guardrail = Guardrail("conversion:bought", margin=0.0)
    report = metric(convert(watch(guardrail, percent=50.0), 40, 50, 50, delay=10))
    assert (report.harm, report.safe) == (Verdict.INCONCLUSIVE, Verdict.PASS)


# --- budget ---


def test_alpha_is_split_by_fixed_weights_within_a_role() -> None:
    """Errors, latency and conversion share alpha 5 : 3 .

    2, two of a kind halve their part, signals have their own.
    """
    judgement = look_at(
        rollout=make_rollout(
            plan=make_plan(
                guardrails=(
                    Guardrail("error_rate", margin=0.1),
                    Guardrail("latency_p95", limit=200.0),
                    Guardrail("latency_p99", margin=0.1),
                    Guardrail("conversion:bought", margin=0.1),
                    Guardrail("latency_p50", margin=0.1, role=MetricRole.SIGNAL),
                )
            )
        )
    )
    parts = [1 / (0.01 * report.threshold) for report in judgement.metrics]
    assert parts == pytest.approx([0.65, 0.125, 0.125, 0.1, 1.0])


def test_looking_for_harm_alone_says_the_same_and_takes_the_same() -> None:
    """`check_harm` has the e-values, thresholds and tests of `judge`.

    Which then changes nothing any more.
    """
    guardrails = (Guardrail("error_rate", limit=0.02, margin=0.1), Guardrail("latency", margin=0.1))
    watched, alone = watch(*guardrails), watch(*guardrails)
    for each in (watched, alone):
        each.treatment.add(300, 9)
        each.treatment.add_latencies([60.0] * 300)
        each.control.add(900, 9)
        each.control.add_latencies([40.0] * 900)
    judgement = watched.look()
    seen, tests = check_harm(alone.rollout, alone.evidence(), alone.tests, watched.at)
    assert [tuple(harm) for harm in seen] == [
        (each.metric, each.e_value, each.threshold) for each in judgement.metrics
    ]
    again, _ = judge(alone.rollout, alone.evidence(), tests, watched.at)
    assert again.metrics == judgement.metrics


# --- batches, and what is remembered ---


def test_looking_again_changes_nothing() -> None:
    """The same totals seen twice are one batch and give the same answers.

    Only the outlook in the words goes by time.
    """
    watched = watch(Guardrail("error_rate", margin=0.0))
    first = feed(watched, 5, (100, 3), (900, 9))
    again = watched.look()
    assert [replace(report, reason="") for report in again.metrics] == [
        replace(report, reason="") for report in first.metrics
    ]
    assert again.batches == first.batches == 5


def test_batch_waits_until_both_arms_have_enough_or_time_is_up() -> None:
    """Seven treatment contexts wait for an eighth; after a minute they are taken as they are."""
    watched = watch(Guardrail("error_rate", margin=0.0))
    watched.treatment.add(MIN_BATCH - 1)
    watched.control.add(70)
    assert watched.look().batches == 0
    watched.treatment.add(1)
    assert watched.look().batches == 1
    watched.treatment.add(1)
    watched.control.add(9)
    assert watched.look(MAX_OPEN - timedelta(seconds=1)).batches == 1
    assert watched.look(timedelta(seconds=1)).batches == 2


def test_batch_needs_control_as_well() -> None:
    """Plenty of treatment with seven control contexts waits for the eighth.

    Since a lone arm says nothing.
    """
    watched = watch(Guardrail("error_rate", margin=0.0), percent=50.0)
    watched.treatment.add(100)
    watched.control.add(MIN_BATCH - 1)
    assert watched.look().batches == 0
    watched.control.add(1)
    assert watched.look().batches == 1


def test_totals_that_fell_back_are_not_taken_twice() -> None:
    """Lost and recounted totals give no increment until they pass the mark, and the gap says so."""
    watched = watch(Guardrail("error_rate", margin=0.0))
    before = feed(watched, 10, (100, 2), (900, 9))
    kept = watched.arms[0]
    watched.arms[0] = (type(kept[0])(500, 12, 12), type(kept[1])(4500, 45, 45))
    fallen = watched.look()
    assert gaps_of(fallen) == [HealthGap.STALE]
    assert "fell back to 500 from 1,000" in fallen.gaps[0].detail
    assert metric(fallen).e_value == metric(before).e_value
    watched.arms[0] = kept
    recounted = watched.look()
    assert recounted.gaps == ()
    assert metric(recounted).e_value == metric(before).e_value
    assert recounted.batches == before.batches
    grown = feed(watched, 1, (100, 2), (900, 9))
    assert grown.batches == before.batches + 1


def test_another_rollout_starts_from_nothing() -> None:
    """The state of one rollout, or of one plan, is no evidence about the next."""
    watched = watch(Guardrail("error_rate", margin=0.0))
    feed(watched, 10, (100, 2), (900, 9))
    for other in (
        replace(watched.rollout, rollout_id="start-2"),
        replace(watched.rollout, plan=replace(watched.rollout.plan, version="fedcba9876543210")),
    ):
        judgement, _ = judge(
            other, make_evidence({0: VisitTotals()}, watched.at), watched.tests, watched.at
        )
        assert judgement.batches == 0
        assert metric(judgement).e_value == 1.0


def test_late_events_of_the_last_stage_still_count_for_harm() -> None:
    """Errors that arrive after a stage ended reach the harm test in that stage's batch."""
    watched = watch(Guardrail("error_rate", margin=0.0))
    before = metric(feed(watched, 10, (100, 1), (900, 9)))
    watched.go_on(50.0, 1)
    watched.arms[0][0].add(100, 5)
    watched.arms[0][1].add(900, 9)
    after = metric(watched.look())
    assert after.e_value > before.e_value
    assert after.safe is Verdict.NO_DATA


def test_old_visits_are_forgotten() -> None:
    """After many visits only the newest are remembered.

    And the older ones' totals are not taken again.
    """
    watched = watch(Guardrail("error_rate", margin=0.0))
    feed(watched, 10, (100, 1), (900, 9))
    for number in range(KEPT_VISITS + 2):
        watched.go_on(11.0 + number, 0)
        feed(watched, 1, (100, 1), (900, 9))
    assert set(watched.tests.used) == set(range(3, 3 + KEPT_VISITS))
    e_value = metric(watched.look()).e_value
    watched.arms[0][0].add(1000, 500)
    assert metric(watched.look()).e_value == e_value


def test_state_survives_its_bytes() -> None:
    """A rollout judged from decoded state goes on exactly as from the state itself."""
    watched = watch(
        Guardrail("error_rate", limit=0.05, margin=0.1),
        Guardrail("latency_p99", limit=300.0, margin=0.1),
    )
    latencies(watched, 5, lognormal, lognormal)
    encoded = encode_tests(watched.tests)
    assert encode_tests(decode_tests(encoded)) == encoded
    carried = watch(*watched.rollout.plan.guardrails)
    carried.at, carried.arms, carried.tests = watched.at, watched.arms, decode_tests(encoded)
    assert carried.look() == watched.look()


def test_a_look_at_nothing_new_changes_times_alone() -> None:
    """What any new event, batch or gap changes is more than that."""
    watched = watch(
        Guardrail("error_rate", limit=0.05, margin=0.1),
        Guardrail("latency_p99", limit=300.0, margin=0.1),
    )
    latencies(watched, 5, lognormal, lognormal)
    watched.look()
    before = watched.tests
    watched.look()
    assert watched.tests is not before
    assert differ_in_times_alone(before, watched.tests)
    watched.arms[0][0].add(1, 0)
    watched.look()
    assert not differ_in_times_alone(before, watched.tests)
    lasting = replace(before, gap_times={HealthGap.STALE: GapTime(1.0)})
    assert not differ_in_times_alone(before, lasting)
    longer = replace(before, gap_times={HealthGap.STALE: GapTime(9.0)})
    assert differ_in_times_alone(lasting, longer)
    gone = replace(before, gap_times={HealthGap.STALE: GapTime(9.0, gone=1.0)})
    assert not differ_in_times_alone(longer, gone)


def test_state_stays_small() -> None:
    """Six guardrails, several visits and wide histograms take less than 16 KB."""
    guardrails = (
        Guardrail("error_rate", limit=0.05, margin=0.1),
        *(Guardrail(f"latency_p{q}", limit=300.0, margin=0.1) for q in ("50", "90", "95", "99")),
        Guardrail("conversion:bought", margin=0.1),
    )
    watched = watch(*guardrails)
    rng = np.random.default_rng(4)
    for _ in range(5):
        watched.go_on(10.0, 0)
        for arm, size in ((watched.treatment, 2_000), (watched.control, 20_000)):
            arm.add(size, size // 100, converted=size // 20)
            arm.add_latencies(rng.lognormal(np.log(100), 1.5, size))
        watched.look()
    assert len(encode_tests(watched.tests)) < 16_384


def test_no_bytes_are_a_fresh_start() -> None:
    """A rollout that was never looked at has empty state."""
    assert encode_tests(decode_tests(b"")) == encode_tests(SequentialTests())


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x03" + encode_tests(SequentialTests())[1:],
        b"\x02",
        b"nonsense",
        encode_tests(SequentialTests())[:-8],
        encode_tests(SequentialTests()) + bytes(8),
    ],
)
def test_unknown_or_broken_state_is_refused(encoded: bytes) -> None:
    """A newer version, cut-off or foreign bytes are an error, never guessed at."""
    with pytest.raises(ValueError, match="tests' state"):
        decode_tests(encoded)


# --- what a judgement carries ---


def test_judgement_says_what_it_looked_at() -> None:
    """Exposures, share and offsets of the look are part of the record."""
    judgement = look_at()
    assert judgement.exposures == {Arm.TREATMENT: 1000, Arm.CONTROL: 9000}
    assert judgement.observed_share == pytest.approx(0.1)
    assert judgement.offsets == {"flag.evaluations/0": 10, "request.outcomes/0": 10}
    assert (judgement.at, judgement.visit) == (NOW, 0)


def test_harm_adds_up_over_stages_and_never_shrinks() -> None:
    """Exposed contexts and failed requests are summed over visits.

    Also when one is not read again or totals fall back.
    """
    watched = watch(Guardrail("error_rate", margin=1.0))
    watched.treatment.add(100, 4)
    watched.control.add(900, 18)
    watched.look()
    watched.go_on(50.0, 1)
    del watched.arms[0]
    watched.treatment.add(200, 6)
    watched.control.add(200, 2)
    harm = watched.look().harm
    assert (harm.exposed_contexts, harm.failed_requests) == (300, 10)
    assert harm.excess_failed_requests == pytest.approx(2 + 4)
    watched.arms[1] = (type(watched.treatment)(50, 1, 1), watched.control)
    assert watched.look().harm == harm


def test_arms_show_the_rate_that_the_tests_judge() -> None:
    """One context that fails a hundred times has failed once, in the arms and in the sentence."""
    watched = watch(Guardrail("error_rate", limit=0.05, margin=0.0))
    watched.treatment.add(1000, 1, errors=100)
    watched.control.add(9000, 9)
    report = metric(watched.look())
    arm = report.arms[Arm.TREATMENT]
    assert (arm.trials, arm.events, arm.repeats) == (1000, 1, 100.0)
    assert arm.estimate == pytest.approx(1 / 1000)
    assert arm.low is not None
    assert arm.high is not None
    assert arm.low < 1 / 1000 < arm.high
    assert report.e_value < 2
    assert "0.1 % of treatment's user actions failed (1 of 1,000), limit 5 %" in report.reason
    assert "0.1 % of treatment's user actions (1 of 1,000)" in report.reason


def test_gate_bound_of_a_conversion_is_a_floor() -> None:
    """A fall is the harm, so the bound lies below control's rate."""
    watched = watch(Guardrail("conversion:bought", margin=0.05), percent=10.0)
    watched.treatment.add(400, converted=40)
    watched.control.add(3600, converted=360)
    reason = metric(watched.look()).reason
    assert "above the gate's margin (0.667 times control)" in reason
    assert (
        "10 % of treatment's users (40 of 400) against 10 % of control's (360 of 3,600)" in reason
    )


def test_the_page_about_plans_has_the_margins_of_gates() -> None:
    """Each cell of its table is what a gate at that percentage asks."""
    page = (Path(__file__).parents[4] / "ops" / "plan.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:up to |from )?(\d+) %[^|]*\|(.*)\|$", page, re.MULTILINE)
    guardrails = (
        Guardrail("error_rate", margin=0.1),
        Guardrail("error_rate", margin=0.005, in_points=True),
        Guardrail("conversion:x", margin=0.05),
    )
    assert [row[0] for row in rows] == ["1", "4", "10", "50"]
    for percent, cells in rows:
        for cell, one in zip(cells.split("|"), guardrails, strict=True):
            margin = gate_margin(one, float(percent))
            assert cell.strip().endswith(gate_bound(one.kind, margin, in_points=one.in_points))


@pytest.mark.parametrize(
    ("guardrail", "percent", "origin"),
    [
        (Guardrail("error_rate", margin=0.1), 10.0, "it follows from the stage's 10 %: 2 times"),
        (Guardrail("error_rate", margin=3.0), 10.0, "the plan's own margin"),
        (Guardrail("error_rate", margin=0.1, gate_margin=0.3), 10.0, "the plan's gate_margin"),
        (Guardrail("error_rate", margin=0.005, in_points=True), 10.0, "2 times the plan's 0.5 pp"),
        (Guardrail("error_rate", margin=0.005, in_points=True), 50.0, "the plan's own margin"),
        (Guardrail("conversion:x", margin=0.05), 1.0, "it follows from the stage's 1 %: 0.5 times"),
    ],
)
def test_gate_margin_has_an_origin(guardrail: Guardrail, percent: float, origin: str) -> None:
    """Whoever reads `control + 1.57 pp` learns that it came from 0.5 pp and the stage."""
    assert gate_margin_origin(guardrail, percent).startswith(origin)


def test_latency_place_comes_from_the_past_alone() -> None:
    """The first batch sets the place and is not judged by it; the second is."""
    watched = watch(Guardrail("latency_p99", margin=0.0))
    latencies(watched, 1, lognormal, lognormal)
    assert watched.tests.ratios[0].counts.n_t == 0
    latencies(watched, 1, lognormal, lognormal, seed=2)
    assert watched.tests.ratios[0].counts.n_t == 100
    place = watched.tests.ratios[0].place
    assert place is not None
    assert bucket_of(100) < place < bucket_of(260)


def test_plan_with_one_guardrail_may_use_all_of_alpha() -> None:
    """The threshold of a lone guardrail is 1 / alpha."""
    plan: Plan = make_plan(guardrails=(Guardrail("error_rate", margin=0.1),), alpha=0.02)
    assert metric(look_at(rollout=make_rollout(plan=plan))).threshold == pytest.approx(50)
