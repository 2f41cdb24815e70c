"""External metrics: looks, breaches by N of M, gaps that hold the gate, and what is remembered."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from controller.core.analysis.sequential_tests import SequentialTests, decode_tests, encode_tests
from controller.core.evidence import Reading
from controller.core.judging.carried_tests import carried_tests
from controller.core.judging.gate import check_harm, judge
from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.plan import ExternalMetric, Plan
from controller.core.rollout import Baking, Rollout
from schemas.terms import Arm, HealthGap, MeasurementGap, MetricRole, OnBreach, Verdict
from tests.builders import (
    T0,
    make_evidence,
    make_external,
    make_plan,
    make_progress,
    make_rollout,
    make_visit,
)

BEGIN = T0 + timedelta(minutes=1)  # the first stage counts from here
EVERY = timedelta(seconds=30)


def answered(
    at: datetime, treatment: float | None = None, control: float | None = None, **fields: Any
) -> Reading:
    """Return an answer whose questions were due together."""
    return Reading(at, at, treatment, control, **fields)


class Looks:
    """One rollout that looks at its external metrics again and again."""

    def __init__(self, *metrics: ExternalMetric, rollout: Rollout | None = None) -> None:
        self.rollout = rollout or make_rollout(plan=make_plan(external=metrics))
        self.tests = SequentialTests()
        self.at = BEGIN

    def look(self, *readings: Reading | float | None, name: str = "p95") -> Judgement:
        """Return the judgement after these answers, 30 s apart; None is no answer at all."""
        judgement = None
        for reading in readings:
            self.at += EVERY
            made = answered(self.at, reading) if isinstance(reading, float | int) else reading
            judgement = self.judge({} if made is None else {name: made})
        assert judgement is not None
        return judgement

    def judge(self, readings: dict[str, Reading]) -> Judgement:
        """Return what all that was counted and answered says."""
        evidence = make_evidence(
            at=self.at,
            partitions=(make_progress(freshest=self.at, reported_at=self.at),),
            readings=readings,
        )
        judgement, self.tests = judge(self.rollout, evidence, self.tests, self.at)
        return judgement


def report_of(judgement: Judgement, name: str = "p95") -> MetricReport:
    """Return the report of one external metric."""
    return next(one for one in judgement.metrics if one.metric == f"external:{name}")


def gap(kind: MeasurementGap, at: datetime) -> Reading:
    """Return an answer without a number."""
    return answered(at, gap=kind, words=f"it is {kind.value}")


def test_three_of_five_misses_are_a_breach_and_two_are_none() -> None:
    """Looks that missed count wherever they lie among the last five."""
    looks = Looks(make_external(limit=0.3, misses=3, of=5))
    assert report_of(looks.look(0.2, 0.4, 0.2, 0.4)).harm is Verdict.INCONCLUSIVE
    breached = looks.look(0.4)
    assert report_of(breached).harm is Verdict.FAIL
    assert breached.breach is not None
    assert breached.breach.metric == "external:p95"
    assert breached.statistics is Verdict.FAIL


def test_old_misses_leave_the_window() -> None:
    """What was worse before the last `of` looks is over."""
    looks = Looks(make_external(limit=0.3, misses=2, of=3))
    assert report_of(looks.look(0.4, 0.2, 0.2, 0.4)).harm is Verdict.INCONCLUSIVE
    assert report_of(looks.look(0.4)).harm is Verdict.FAIL


def test_a_number_at_its_limit_does_not_miss() -> None:
    """The limit itself is allowed, as the plan writes it."""
    looks = Looks(make_external(limit=0.3, misses=1, of=1))
    assert report_of(looks.look(0.3)).harm is Verdict.INCONCLUSIVE
    assert report_of(looks.look(0.3000001)).harm is Verdict.FAIL


def test_one_answer_is_one_look_however_often_it_is_judged() -> None:
    """A judgement each second adds no looks to an answer every 30 s."""
    looks = Looks(make_external(limit=0.3, misses=2, of=3))
    reading = answered(BEGIN + EVERY, 0.4)
    for _ in range(5):
        looks.at += timedelta(seconds=1)
        looks.judge({"p95": reading})
    judgement = looks.judge({"p95": reading})
    assert report_of(judgement).arms[Arm.TREATMENT].trials == 1
    assert report_of(judgement).harm is not Verdict.FAIL


@pytest.mark.parametrize(
    ("is_higher", "treatment", "control", "is_miss"),
    [
        (False, 1.11, 1.0, True),
        (False, 1.09, 1.0, False),
        (True, 0.89, 1.0, True),
        (True, 0.91, 1.0, False),
        (False, 0.1, 0.0, True),  # of nothing there is no tenth
        (False, 0.0, 0.0, False),
        (False, -0.8, -1.0, True),  # a logarithm, say
    ],
)
def test_treatment_is_compared_with_control_in_both_directions(
    is_higher: bool, treatment: float, control: float, is_miss: bool
) -> None:
    """The margin is a part of control, of its size where it is negative."""
    metric = make_external(
        limit=None, margin=0.1, control="c", is_better_when_higher=is_higher, misses=1, of=1
    )
    looks = Looks(metric)
    looks.at += EVERY
    judgement = looks.judge({"p95": answered(looks.at, treatment, control)})
    assert (report_of(judgement).harm is Verdict.FAIL) is is_miss


def test_a_gate_needs_every_look_of_the_stage_without_a_miss() -> None:
    """Lowering takes `misses` looks, passing takes all of them without one."""
    looks = Looks(make_external(limit=0.3, misses=3, of=5))
    for verdict in [Verdict.INCONCLUSIVE] * 4 + [Verdict.PASS]:
        assert report_of(looks.look(0.2)).safe is verdict
    assert report_of(looks.look(0.4)).safe is Verdict.INCONCLUSIVE
    assert report_of(looks.look(0.2, 0.2, 0.2, 0.2)).safe is Verdict.INCONCLUSIVE
    assert report_of(looks.look(0.2)).safe is Verdict.PASS


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (MeasurementGap.NO_DATA, HealthGap.METRIC_NO_DATA),
        (MeasurementGap.NOT_A_NUMBER, HealthGap.METRIC_NOT_A_NUMBER),
        (MeasurementGap.SEVERAL_SERIES, HealthGap.METRIC_SEVERAL_SERIES),
        (MeasurementGap.LATE, HealthGap.METRIC_LATE),
        (MeasurementGap.REFUSED, HealthGap.METRIC_REFUSED),
        (MeasurementGap.INCOMPLETE, HealthGap.METRIC_REFUSED),
        (MeasurementGap.NO_ANSWER, HealthGap.METRIC_NO_ANSWER),
    ],
)
def test_no_number_is_a_gap_of_its_own_and_passes_no_gate(
    kind: MeasurementGap, expected: HealthGap
) -> None:
    """Five good looks before do not help: nothing is known of now, and the gap says so."""
    looks = Looks(make_external(limit=0.3))
    assert report_of(looks.look(*[0.2] * 5)).safe is Verdict.PASS
    judgement = looks.look(gap(kind, looks.at + EVERY))
    (found,) = [one for one in judgement.gaps if one.kind is expected]
    assert found.detail == f"p95: it is {kind.value}"
    assert report_of(judgement).arms[Arm.TREATMENT].estimate is None


def test_a_moment_without_a_number_costs_no_look() -> None:
    """So that one answer that did not come withdraws no request to a person."""
    looks = Looks(make_external(limit=0.3))
    looks.look(*[0.2] * 5)
    assert report_of(looks.look(None)).safe is Verdict.PASS
    assert report_of(looks.look(0.2)).safe is Verdict.PASS


def test_after_a_long_silence_all_looks_are_made_again() -> None:
    """What was good an hour ago says nothing beside one good look of now."""
    looks = Looks(make_external(limit=0.3, misses=2, of=5))
    assert report_of(looks.look(*[0.2] * 5)).safe is Verdict.PASS
    looks.at += timedelta(hours=1)
    judgement = looks.look(0.2)
    assert report_of(judgement).safe is Verdict.INCONCLUSIVE
    assert report_of(judgement).arms[Arm.TREATMENT].trials == 1


def test_without_any_look_there_is_no_data() -> None:
    """Neither safe nor harmful."""
    report = report_of(Looks(make_external()).look(None))
    assert (report.harm, report.safe) == (Verdict.NO_DATA, Verdict.NO_DATA)


def test_every_measurement_gap_has_a_health_gap() -> None:
    """A reason that a later release adds must not end in a KeyError."""
    for kind in MeasurementGap:
        looks = Looks(make_external())
        judgement = looks.look(gap(kind, looks.at + EVERY))
        assert [one for one in judgement.gaps if one.kind.value.startswith("metric_")]


def test_no_answer_yet_and_an_old_answer_are_gaps() -> None:
    """Without any answer, and four times `every` after the last one."""
    looks = Looks(make_external(limit=0.3))
    assert HealthGap.METRIC_NO_ANSWER in {one.kind for one in looks.look(None).gaps}
    reading = answered(looks.at, 0.2)
    looks.at += timedelta(seconds=119)
    assert not [one for one in looks.judge({"p95": reading}).gaps if "metric" in one.kind]
    looks.at += timedelta(seconds=2)
    assert HealthGap.METRIC_LATE in {one.kind for one in looks.judge({"p95": reading}).gaps}


def test_a_gap_of_a_signal_or_an_observed_metric_holds_nothing() -> None:
    """Only what may roll back has to be measured for a gate to pass."""
    for role in (MetricRole.SIGNAL, MetricRole.OBSERVE):
        looks = Looks(make_external(limit=0.3, role=role))
        assert not [one for one in looks.look(None).gaps if "metric" in one.kind]


def test_no_question_is_used_for_two_looks() -> None:
    """Control's query is shared with another flag and asked at other times than treatment's."""
    looks = Looks(make_external(limit=None, margin=0.1, control="c", of=100))
    for second in range(10, 110, 5):
        treatment, control = second // 10 * 10, (second + 5) // 10 * 10 - 5
        times = [BEGIN + timedelta(seconds=one) for one in (treatment, control)]
        looks.at = BEGIN + timedelta(seconds=second)
        looks.judge({"p95": Reading(max(times), min(times), 1.0, 1.0)})
    assert len(looks.tests.looks["p95"]) == 10


def test_a_breach_is_found_while_another_metric_has_no_number() -> None:
    """A monitoring system that fails in part blinds nothing else."""
    looks = Looks(make_external(name="a", limit=1, misses=1, of=1), make_external(name="b"))
    looks.at += EVERY
    judgement = looks.judge(
        {"a": answered(looks.at, 2.0), "b": gap(MeasurementGap.NO_ANSWER, looks.at)}
    )
    assert judgement.breach is not None
    assert judgement.breach.metric == "external:a"


def test_an_answer_from_before_the_stage_counted_is_no_look() -> None:
    """While apps settle, a number is about the stage before."""
    looks = Looks(make_external(limit=0.3, misses=1, of=1))
    reading = answered(BEGIN - timedelta(seconds=1), 9.0)
    assert report_of(looks.judge({"p95": reading})).harm is not Verdict.FAIL


def test_each_stage_has_looks_of_its_own() -> None:
    """A miss in an earlier stage was about an earlier percentage."""
    metric = make_external(limit=0.3, misses=2, of=3)
    looks = Looks(metric)
    looks.look(0.4)
    phase = Baking(stage=1, until=T0 + timedelta(hours=2))
    looks.rollout = make_rollout(plan=looks.rollout.plan, phase=phase)
    looks.at = T0 + timedelta(hours=1, minutes=1)
    judgement = looks.look(0.4)
    assert report_of(judgement).arms[Arm.TREATMENT].trials == 1
    assert report_of(judgement).harm is not Verdict.FAIL


def test_only_the_stages_of_its_range_are_watched() -> None:
    """Below its range it is neither judged nor missed."""
    looks = Looks(make_external(limit=0.3, from_percent=50.0))
    judgement = looks.look(9.0)
    assert [one.metric for one in judgement.metrics] == ["error_rate"]
    assert not [one for one in judgement.gaps if "metric" in one.kind]


def test_without_a_control_only_a_limit_is_judged() -> None:
    """At 100 % nobody is left to compare with."""
    visit = make_visit(percent=100.0)
    plan = make_plan(external=(make_external(limit=None, margin=0.1, control="c"),))
    rollout = make_rollout(plan=plan, percent=100.0, visits=(visit,))
    judgement = Looks(rollout=rollout).look(None)
    assert [one.metric for one in judgement.metrics] == ["error_rate"]


def test_harm_alone_sees_an_external_breach() -> None:
    """The quick check during a bake finds what the full judgement would."""
    looks = Looks(make_external(limit=0.3, misses=2, of=3))
    looks.look(0.4)
    looks.at += EVERY
    evidence = make_evidence(at=looks.at, readings={"p95": answered(looks.at, 0.4)})
    signals, _ = check_harm(looks.rollout, evidence, looks.tests, looks.at)
    (signal,) = [one for one in signals if one.metric == "external:p95"]
    assert signal.is_possible


def test_evidence_stands_on_the_scale_of_the_tests() -> None:
    """One of two misses is half the way, in logarithms."""
    looks = Looks(make_external(limit=0.3, misses=2, of=4))
    report = report_of(looks.look(0.4))
    assert report.threshold == pytest.approx(100)
    assert report.e_value == pytest.approx(10)


def test_looks_survive_a_restart() -> None:
    """Two misses before a crash and one after it are three."""
    looks = Looks(make_external(limit=0.3, misses=3, of=5))
    looks.look(0.4, 0.2, 0.4)
    stored = decode_tests(encode_tests(looks.tests))
    assert stored.looks == looks.tests.looks
    looks.tests = stored
    assert report_of(looks.look(0.4)).harm is Verdict.FAIL


def test_a_changed_plan_keeps_the_looks_of_what_it_asks_as_before() -> None:
    """Another limit is another question, and begins again."""
    same, changed = make_external(name="same"), make_external(name="changed", limit=5.0)
    before = make_plan(external=(same, changed))
    after = replace(before, version="f" * 16, external=(same, replace(changed, limit=4.0)))
    looks = Looks(rollout=make_rollout(plan=before))
    looks.at += EVERY
    looks.judge({name: answered(looks.at, 0.1) for name in ("same", "changed")})
    new = replace(looks.rollout, plan=after)
    assert set(carried_tests(looks.tests, looks.rollout, new).looks) == {"same"}


def test_while_closed_nothing_is_looked_at() -> None:
    """Outside its active windows nobody has treatment."""
    looks = Looks(make_external(limit=0.3, misses=1, of=1))
    visit = looks.rollout.visits[0].closed(BEGIN)
    looks.rollout = replace(looks.rollout, visits=(visit,))
    assert report_of(looks.look(9.0)).harm is not Verdict.FAIL


def test_what_a_breach_does_is_the_metrics_own() -> None:
    """`on_breach` is the same as of a guardrail."""
    looks = Looks(make_external(limit=0.3, misses=1, of=1, on_breach=OnBreach.STEP_BACK))
    breach = looks.look(9.0).breach
    assert breach is not None
    assert breach.on_breach is OnBreach.STEP_BACK


def words_of(**overrides: Any) -> str:
    """Return the reason of a metric after two looks."""
    looks = Looks(make_external(**overrides))
    looks.at += EVERY
    looks.judge({"p95": answered(looks.at, 0.25, 0.2)})
    looks.at += EVERY
    return report_of(looks.judge({"p95": answered(looks.at, 0.35, 0.2)})).reason


def test_the_reason_says_numbers_thresholds_and_looks() -> None:
    """A person reads one sentence at 3 a.m."""
    assert words_of(limit=0.3, margin=0.5, control="c") == (
        "treatment's number is 0.35, control's 0.2 (at most 0.3, control + 50 %); 1 of 2 looks in "
        "this stage missed, 3 of 5 are a breach, and a gate needs 5 without a miss"
    )


def test_a_plan_without_external_metrics_is_judged_as_before() -> None:
    """Nothing is added to reports and gaps."""
    plan: Plan = make_plan()
    assert plan.external == ()
    judgement = Looks(rollout=make_rollout(plan=plan)).look(None)
    assert [one.metric for one in judgement.metrics] == ["error_rate"]
