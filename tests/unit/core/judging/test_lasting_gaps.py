"""Judgements say for how long their gaps have lasted, from the end of settle on."""

from __future__ import annotations

from datetime import timedelta

from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.judging.gate import check_harm, judge
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from schemas.terms import HealthGap
from tests.builders import MINUTE, T0, make_evidence, make_progress, make_rollout

SECOND = timedelta(seconds=1)


def silent_bake(rollout: Rollout, seconds: int) -> list[Judgement]:
    """Return a judgement each second of a stage that no event reaches."""
    tests, judgements = SequentialTests(), []
    for second in range(seconds + 1):
        at = T0 + second * SECOND
        evidence = make_evidence(
            at=at, visits={}, partitions=(make_progress(freshest=at, reported_at=at),)
        )
        if second % 2:
            _, tests = check_harm(rollout, evidence, tests, at)
        judgement, tests = judge(rollout, evidence, tests, at)
        judgements.append(judgement)
    return judgements


def test_a_silent_stage_lasts_from_the_end_of_settle() -> None:
    """While apps pick the percentage up nothing is missing; then each second counts."""
    judgements = silent_bake(make_rollout(), 60 + 360)
    settling, silent = judgements[59], judgements[60 + 300]
    assert not settling.gap_times
    assert silent.seconds_of(HealthGap.NO_TRAFFIC) == 300
    assert {gap.lasted_seconds for gap in silent.gaps if gap.kind is HealthGap.NO_TRAFFIC} == {300}


def test_another_visit_begins_anew() -> None:
    """The gaps of a stage do not follow it into the next one."""
    first = make_rollout()
    tests = SequentialTests()
    at = T0 + 2 * MINUTE
    evidence = make_evidence(at=at, visits={}, partitions=(make_progress(freshest=at),))
    for second in range(10):
        _, tests = judge(first, evidence, tests, at + second * SECOND)
    assert tests.gap_times
    later = make_rollout(visits=(*first.visits, first.visits[-1]))
    judgement, _ = judge(later, evidence, tests, at + 10 * SECOND)
    assert judgement.seconds_of(HealthGap.NO_TRAFFIC) == 0
