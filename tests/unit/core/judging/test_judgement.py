"""What a judgement's parts add up to."""

from __future__ import annotations

import re

import pytest

from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.evidence import ArmTotals, VisitTotals
from controller.core.judging.gate import judge
from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from schemas.terms import MetricRole, OnBreach, Verdict
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_evidence,
    make_judgement,
    make_plan,
    make_progress,
    make_report,
    make_rollout,
    make_stages,
    make_visit,
)
from tests.streams import Watched


def judged(*metrics: MetricReport) -> Judgement:
    """Return a judgement of these metrics."""
    return make_judgement(metrics=metrics)


def test_breach_is_a_guardrail_that_regressed() -> None:
    """A regressed signal or observed metric is no breach; a regressed guardrail is."""
    for role in (MetricRole.SIGNAL, MetricRole.OBSERVE):
        assert judged(make_report(role=role, harm=Verdict.FAIL)).breach is None
    report = make_report(harm=Verdict.FAIL)
    assert judged(make_report(), report).breach is report


def test_harshest_policy_comes_first() -> None:
    """Of several breaches the one that rolls back is acted on, then the one that steps back."""
    pause = make_report(metric="a", harm=Verdict.FAIL, on_breach=OnBreach.PAUSE)
    back = make_report(metric="b", harm=Verdict.FAIL, on_breach=OnBreach.STEP_BACK)
    out = make_report(metric="c", harm=Verdict.FAIL, on_breach=OnBreach.ROLL_BACK)
    assert judged(pause, back, out).breach is out
    assert judged(pause, back).breach is back


@pytest.mark.parametrize("safe", [Verdict.INCONCLUSIVE, Verdict.NO_DATA])
def test_one_guardrail_that_is_not_shown_safe_keeps_the_gate_shut(safe: Verdict) -> None:
    """The gate's verdict is the worst guardrail's, by its own name."""
    assert judged(make_report(), make_report(safe=safe)).statistics is safe
    assert judged(make_report(), make_report()).statistics is Verdict.PASS


def test_harm_outweighs_everything() -> None:
    """A guardrail that fails makes the gate fail, whatever else is undecided."""
    failing = make_report(harm=Verdict.FAIL, safe=Verdict.INCONCLUSIVE)
    assert judged(make_report(safe=Verdict.NO_DATA), failing).statistics is Verdict.FAIL


def test_signal_only_counts_when_it_regressed() -> None:
    """A signal need not be shown safe, but a regression of it fails the gate."""
    undecided = make_report(role=MetricRole.SIGNAL, safe=Verdict.INCONCLUSIVE)
    assert judged(make_report(), undecided).statistics is Verdict.PASS
    regressed = make_report(role=MetricRole.SIGNAL, harm=Verdict.FAIL)
    assert judged(make_report(), regressed).statistics is Verdict.FAIL


def test_observed_metric_never_counts() -> None:
    """What is only reported neither fails nor holds a gate."""
    observed = make_report(role=MetricRole.OBSERVE, harm=Verdict.FAIL, safe=Verdict.NO_DATA)
    assert judged(make_report(), observed).statistics is Verdict.PASS


def test_a_gap_of_many_partitions_names_three() -> None:
    """The rest is a number: nobody reads the names of sixteen partitions."""
    late = [
        make_progress(topic_partition=f"flag.evaluations/{number}", reported_at=T0 + MINUTE)
        for number in range(16)
    ]
    seen = make_evidence(partitions=tuple(late), expected_partitions=16)
    [detail] = [
        gap.detail
        for gap in judge(make_rollout(), seen, SequentialTests(), T0 + HOUR)[0].gaps
        if "was last reported" in gap.detail
    ]
    assert detail.count("was last reported") == 3
    assert "; and 13 more" in detail


@pytest.mark.parametrize(
    ("guardrail", "words"),
    [
        (Guardrail("latency_p99", limit=300.0), "limit 300 ms (at most 1 % slower)"),
        (Guardrail("error_rate", limit=0.02), "limit 2 %"),
        (Guardrail("conversion:buy", limit=0.02), "at least 2 %"),
    ],
)
def test_a_limit_is_told_before_anything_is_measured(guardrail: Guardrail, words: str) -> None:
    """In the unit in which the plan writes it."""
    rollout = make_rollout(plan=make_plan(guardrails=(guardrail,)))
    seen = make_evidence(visits={0: VisitTotals(ArmTotals(), ArmTotals())})
    judgement, _ = judge(rollout, seen, SequentialTests(), T0 + HOUR)
    assert f"nothing measured yet, {words}" in judgement.metrics[0].reason


@pytest.mark.parametrize(("failures", "is_reached"), [(0, True), (1, False)])
def test_a_small_sample_within_the_limit_gets_there(failures: int, is_reached: bool) -> None:
    """None of 40 is within 1 %, and 1 of 40 is not: said is what follows if it goes on so."""
    plan = make_plan(guardrails=(Guardrail("error_rate", limit=0.01),))
    seen = Watched(make_rollout(plan=plan))
    seen.treatment.add(40, failures)
    seen.control.add(40, 0)
    seen.look()
    reason = seen.last().metrics[0].reason
    assert ("not at this rate" not in reason) is is_reached
    assert (re.search(r"about [\d,]+ more", reason) is not None) is is_reached


def test_the_size_of_harm_says_that_it_is_no_quotient_of_the_stage() -> None:
    """Harm that began late: the sentence has two numbers, and says what the first is of."""
    guardrail = Guardrail("error_rate", margin=0.1)
    plan = make_plan(guardrails=(guardrail,), stages=make_stages(50.0, 100))
    phase = Baking(stage=0, until=T0 + HOUR)
    visits = (make_visit(percent=50.0),)
    watched = Watched(make_rollout(plan=plan, phase=phase, visits=visits, percent=50.0))
    for failures in [1] * 30 + [8] * 10:
        watched.treatment.add(100, failures)
        watched.control.add(100, 1)
        watched.look()
    report = watched.last().metrics[0]
    assert report.harm is Verdict.FAIL
    found = re.search(
        r"treatment is about ([\d.]+) times as bad as control, as estimated since the harm began; "
        r"in this stage ([\d.]+) % of treatment's .* against ([\d.]+) % of control's",
        report.reason,
    )
    assert found is not None
    times, treatment, control = (float(number) for number in found.groups())
    assert times > 1.5 * treatment / control
