"""What a time outside the active windows does to judgements: it is no gap, and no evidence."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.judging.gate import judge
from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from schemas.terms import HealthGap, Verdict
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_evidence,
    make_plan,
    make_progress,
    make_rollout,
    make_stages,
    make_visit,
)
from tests.streams import Watched

WITHIN = 10 * MINUTE
FLOOR = Guardrail("conversion:bought", limit=0.02, within=WITHIN)


def test_the_time_that_counts_leaves_closings_out() -> None:
    """Counted time is what was open, from the end of each settle on."""
    visit = make_visit().closed(T0 + HOUR).opened(T0 + 5 * HOUR)
    assert visit.counting_since == T0 + 5 * HOUR
    assert visit.counted_until(T0 + 30 * MINUTE) == 29 * MINUTE
    assert visit.counted_until(T0 + 3 * HOUR) == 59 * MINUTE
    assert visit.counted_until(T0 + 6 * HOUR) == 119 * MINUTE
    again = visit.closed(T0 + 6 * HOUR)
    assert again.counting_since == T0 + 5 * HOUR
    assert again.counted_until(T0 + 9 * HOUR) == 119 * MINUTE


def test_a_gap_from_before_a_closing_begins_again_after_it() -> None:
    """Neither the closed time nor what came before it counts towards `health_grace`."""
    rollout = make_rollout()
    tests = SequentialTests()
    for second in range(60, 360):
        at = T0 + timedelta(seconds=second)
        evidence = make_evidence(at=at, visits={}, partitions=(make_progress(freshest=at),))
        _, tests = judge(rollout, evidence, tests, at)
    assert tests.gap_times[HealthGap.NO_TRAFFIC].lasted > 200
    opened = T0 + 10 * HOUR
    visit = rollout.visits[0].closed(T0 + 6 * MINUTE).opened(opened)
    rollout = replace(rollout, visits=(visit,))
    evidence = make_evidence(at=opened, visits={}, partitions=(make_progress(freshest=opened),))
    judgement, tests = judge(rollout, evidence, tests, opened)
    assert judgement.seconds_of(HealthGap.NO_TRAFFIC) == 0
    assert not any("nothing was counted" in gap.detail for gap in judgement.gaps)


def test_conversions_that_came_while_it_was_closed_are_no_shortfall() -> None:
    """Contexts that had no time to convert before the closing are not judged after it."""
    plan = make_plan(guardrails=(FLOOR,), stages=make_stages(50, 100))
    visit = make_visit(percent=50.0, entered_at=T0, counts_from=T0)
    phase = Baking(stage=0, until=T0 + timedelta(days=3))
    rollout = make_rollout(plan=plan, phase=phase, visits=(visit,), percent=50.0)
    watched = Watched(rollout, at=T0)
    for minute in range(20):  # each converts ten minutes later, so half of them too late
        watched.treatment.add(2000, converted=60 if minute >= 10 else 0)
        watched.control.add(2000, converted=60 if minute >= 10 else 0)
        watched.look(MINUTE)
    opened = watched.at + 16 * HOUR
    watched.rollout = replace(rollout, visits=(visit.closed(watched.at),))
    for _ in range(16):
        watched.look(HOUR)
        assert watched.last().metrics[0].harm is not Verdict.FAIL
    watched.rollout = replace(rollout, visits=(visit.closed(watched.at).opened(opened),))
    for _ in range(30):
        watched.look(MINUTE)
        assert watched.last().metrics[0].harm is not Verdict.FAIL
    for _ in range(60):  # new contexts are judged as ever
        watched.treatment.add(2000)
        watched.control.add(2000, converted=60)
        watched.look(MINUTE)
    assert watched.last().metrics[0].harm is Verdict.FAIL
