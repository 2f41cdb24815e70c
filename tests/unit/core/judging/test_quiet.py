"""For how long the same totals need not be judged again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controller.core.analysis.sequential_tests import GapTime, SequentialTests
from controller.core.evidence import VisitTotals
from controller.core.judging.batches import MAX_OPEN
from controller.core.judging.floors import MOMENTS
from controller.core.judging.gate import judge
from controller.core.judging.quiet import (
    LONGEST,
    LONGEST_YOUNG,
    SHORTEST,
    after_quiet_until,
    quiet_until,
)
from controller.core.judging.staleness import REPORT_WITHIN, Age, ages
from controller.core.plan import Guardrail
from controller.core.rollout import HOLD_ANNOUNCED_EVERY, Gating
from schemas.terms import HealthGap
from tests.builders import HOUR, T0, make_external, make_plan, make_rollout
from tests.streams import make_arm, make_evidence, make_progress

SECOND = timedelta(seconds=1)
NOW = T0 + HOUR
PLAN = make_plan(fresh_within=60 * SECOND, health_grace=300 * SECOND)


def until(tests: SequentialTests, at: datetime = NOW) -> float:
    """Return after how many seconds a rollout that bakes is judged again."""
    return (quiet_until(make_rollout(plan=PLAN), tests, at) - at).total_seconds()


def test_nothing_to_come_is_judged_now_and_then() -> None:
    """So that what people read is not too old."""
    assert until(SequentialTests()) == LONGEST.total_seconds()


@pytest.mark.parametrize(
    ("tests", "seconds"),
    [
        (SequentialTests(last_event_at=NOW - 50 * SECOND), 10),
        (SequentialTests(last_event_at=NOW - 70 * SECOND), 300),  # it is stale already
        (SequentialTests(closed_at=NOW - MAX_OPEN + 7 * SECOND), 7),
        (SequentialTests(judged_at=NOW, gap_times={HealthGap.STALE: GapTime(lasted=280)}), 20),
        (SequentialTests(judged_at=NOW, gap_times={HealthGap.STALE: GapTime(280, gone=290)}), 10),
        (SequentialTests(judged_at=NOW, gap_times={HealthGap.STALE: GapTime(lasted=100)}), 120),
        (SequentialTests(judged_at=NOW, gap_times={HealthGap.STALE: GapTime(900, gone=1)}), 120),
        (SequentialTests(judged_at=NOW, gap_times={HealthGap.STALE: GapTime(lasted=900)}), 300),
        (SequentialTests(last_event_at=NOW - 60 * SECOND), 1),  # never at once again
    ],
)
def test_it_is_judged_again_when_time_changes_something(
    tests: SequentialTests, seconds: float
) -> None:
    """At that moment, not minutes later; often while how long a gap lasts is remembered."""
    assert until(tests) == pytest.approx(seconds, abs=0.01)


def test_news_and_answers_that_grow_old_are_judged_more_often() -> None:
    """That a gap is over is announced a minute after a transition."""
    begun = replace(make_rollout(plan=PLAN), updated_at=NOW - 20 * SECOND)
    until = quiet_until(begun, SequentialTests(), NOW)
    assert timedelta(0) < until - (begun.updated_at + HOLD_ANNOUNCED_EVERY) < SECOND
    asked = make_rollout(plan=replace(PLAN, external=(make_external(),)))
    assert quiet_until(asked, SequentialTests(), NOW) == NOW + LONGEST_YOUNG


def test_a_gap_acts_at_its_moment() -> None:
    """Judged only when `quiet_until` says so, a gap has lasted for its grace as early as can be."""
    rollout = make_rollout(plan=PLAN)
    visits = {0: VisitTotals(make_arm(1000, 10), make_arm(9000, 90))}
    tests, at, looks = SequentialTests(), T0 + SECOND, 0
    while at < T0 + HOUR:
        counted = make_progress(at, freshest=T0 + SECOND)
        evidence = make_evidence(visits, at, partitions=counted)
        _, tests = judge(rollout, evidence, after_quiet_until(tests, at), at)
        lasted = tests.gap_times.get(HealthGap.STALE, GapTime()).lasted
        if lasted >= PLAN.health_grace.total_seconds():
            break
        at, looks = quiet_until(rollout, tests, at), looks + 1
    began = T0 + SECOND + PLAN.fresh_within
    assert timedelta(0) <= at - began - PLAN.health_grace < SECOND
    assert looks < 20


def test_a_gate_and_a_floor_are_judged_often() -> None:
    """An open gate is asked all the time; contexts become old enough for a floor by time alone."""
    gate = Gating(stage=0, gate_id="g", since=NOW, until=NOW + HOUR)
    gating = make_rollout(plan=PLAN, phase=gate)
    assert quiet_until(gating, SequentialTests(), NOW) == NOW + SHORTEST
    floor = Guardrail("conversion:bought", limit=0.1, within=320 * SECOND)
    rollout = make_rollout(plan=replace(PLAN, guardrails=(floor,)))
    assert quiet_until(rollout, SequentialTests(), NOW) == NOW + 320 * SECOND / MOMENTS


def test_the_age_of_partitions_is_compared_by_conditions() -> None:
    """The same while none begins to hold or ends, whatever the seconds are."""
    fresh = make_progress(at=NOW)

    def held(seconds: float) -> set[Age]:
        return {age for _, age in ages(fresh, PLAN.fresh_within, NOW + seconds * SECOND)}

    assert held(0) == held(9) == set()
    assert held(REPORT_WITHIN.total_seconds() + 1) == {Age.SILENT}
    assert held(61) == {Age.SILENT, Age.OLD}
    assert held(-11) == {Age.AHEAD}
