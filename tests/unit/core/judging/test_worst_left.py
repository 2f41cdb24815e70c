"""What an undecided comparison rules out already: one number in the sentence and in the record."""

from __future__ import annotations

from datetime import timedelta

import pytest

from controller.core.judging.judgement import MetricReport
from controller.core.judging.questions import gate_bound
from controller.core.metrics import kind_of
from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from schemas.terms import Verdict
from tests.builders import T0, make_plan, make_rollout, make_stages, make_visit
from tests.streams import Watched


def undecided(guardrail: Guardrail) -> MetricReport:
    """Return the report on two arms alike, too small for the gate."""
    plan = make_plan(guardrails=(guardrail,), stages=make_stages(10.0, 100))
    phase = Baking(stage=0, until=T0 + timedelta(minutes=11))
    visits = (make_visit(percent=10.0),)
    watched = Watched(make_rollout(plan=plan, phase=phase, visits=visits, percent=10.0))
    for _ in range(20):
        watched.treatment.add(20, 1)
        watched.control.add(180, 9)
        watched.look()
    report = watched.last().metrics[0]
    assert report.safe is Verdict.INCONCLUSIVE
    return report


@pytest.mark.parametrize("in_points", [False, True])
def test_what_is_ruled_out_is_the_end_of_the_interval_in_the_unit_of_the_margin(
    in_points: bool,
) -> None:
    """A difference stands beside a difference, a ratio beside a ratio, and never two of a kind."""
    margin = 0.001 if in_points else 0.01
    report = undecided(Guardrail("error_rate", margin=margin, in_points=in_points))
    worst = report.difference_high if in_points else (report.ratio_high or 0.0) - 1
    assert worst is not None
    words = gate_bound(kind_of("error_rate"), worst, in_points=in_points)
    assert f"; anything worse than {words} is ruled out already" in report.reason
    assert ("pp is ruled out" in report.reason) is in_points


def test_a_bound_below_control_has_its_sign_once() -> None:
    """A bound may lie on control's good side."""
    assert gate_bound(kind_of("error_rate"), -0.003, in_points=True) == "control - 0.3 pp"
