"""Floors of conversions: a proven shortfall is harm, and what may still convert is none."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import scipy

from controller.core.analysis.sequential_tests import FloorTest, decode_tests, encode_tests
from controller.core.evidence import Loss
from controller.core.judging.carried_tests import carried_tests
from controller.core.judging.floors import MOMENTS, check_floors
from controller.core.judging.gate import judge
from controller.core.judging.judgement import MetricReport
from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from schemas.terms import Verdict
from tests.builders import T0, make_plan, make_rollout, make_stages, make_visit
from tests.streams import Watched

MINUTE = timedelta(minutes=1)
WITHIN = timedelta(minutes=10)
FLOOR = Guardrail("conversion:bought", limit=0.02, within=WITHIN)


def watch(guardrail: Guardrail = FLOOR, percent: float = 50.0, **plan: object) -> Watched:
    """Return a rollout under watch whose only guardrail is a floor of 2 %."""
    made = make_plan(guardrails=(guardrail,), stages=make_stages(percent, 100), **plan)
    phase = Baking(stage=0, until=T0 + timedelta(days=1))
    visits = (make_visit(percent=percent, entered_at=T0, counts_from=T0),)
    return Watched(make_rollout(plan=made, phase=phase, visits=visits, percent=percent), at=T0)


def report(watched: Watched) -> MetricReport:
    """Return the report of the only guardrail."""
    return watched.last().metrics[0]


def feed(
    watched: Watched, minutes: int, treatment: int, control: int = 20, delay: int = 0
) -> MetricReport:
    """Add a thousand contexts to each arm every minute, so many of which convert `delay` later."""
    for minute in range(minutes):
        is_late = minute >= delay
        watched.treatment.add(1000, converted=treatment if is_late else 0)
        watched.control.add(1000, converted=control if is_late else 0)
        watched.look(MINUTE)
    return report(watched)


def test_a_proven_shortfall_rolls_back() -> None:
    """Treatment that converts at a quarter of the floor is found soon after it had the time."""
    watched = watch()
    assert feed(watched, 10, 5).harm is Verdict.INCONCLUSIVE
    # Conversions of younger contexts count for the older ones, which is what keeps it exact.
    found = feed(watched, 10, 5)
    assert found.harm is Verdict.FAIL
    assert watched.last().breach is not None
    assert "exposed 10 min ago or earlier), at least 2 %: below it" in found.reason


def test_at_or_above_the_floor_is_no_breach_and_is_shown() -> None:
    """Twice the floor passes a gate as before, and exactly at it is never harm for a day."""
    assert feed(watch(), 30, 40).safe is Verdict.PASS
    at_floor = feed(watch(), 200, 20)
    assert (at_floor.harm, at_floor.safe) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)


@pytest.mark.parametrize("delay", [1, 5, 10])
def test_conversions_that_have_not_come_yet_are_no_alarm(delay: int) -> None:
    """However late within the time, at the floor nothing alarms, also when traffic stops."""
    watched = watch()
    assert feed(watched, 60, 21, delay=delay).harm is Verdict.INCONCLUSIVE
    for minute in range(60):  # nobody comes any more; the last ones convert in time
        watched.treatment.add(0, converted=21 if minute < delay else 0)
        watched.look(MINUTE)
        assert report(watched).harm is Verdict.INCONCLUSIVE


def test_nothing_is_judged_that_is_not_counted_yet() -> None:
    """While outcomes lag behind or records are lost, contexts do not become older."""
    for fields in ({"next_offset": 3, "freshest": T0}, {"losses": (Loss(None, None),)}):
        watched = watch()
        for _ in range(60):
            watched.treatment.add(1000)
            watched.control.add(1000, converted=20)
            watched.at += MINUTE
            evidence = watched.evidence()
            behind = replace(evidence.partitions[0], **fields)
            partial = replace(evidence, partitions=(behind, *evidence.partitions[1:]))
            judgement, watched.tests = judge(watched.rollout, partial, watched.tests, watched.at)
            assert judgement.breach is None
        watched.look(MINUTE)  # all is counted
        assert watched.last().breach is not None


def test_a_conversion_that_nobody_reports_is_no_harm() -> None:
    """Without any conversion in either arm something is wrong with the reports, and it says so."""
    unreported = feed(watch(), 30, 0, control=0)
    assert unreported.harm is Verdict.INCONCLUSIVE
    assert "is the conversion reported?" in unreported.reason
    assert feed(watch(), 30, 0, control=20).harm is Verdict.FAIL


def test_the_last_stage_has_no_control_and_its_floor() -> None:
    """At 100 % the floor alone rolls back."""
    watched = watch(percent=100.0)
    for _ in range(20):
        watched.treatment.add(1000, converted=5)
        watched.look(MINUTE)
    assert watched.last().breach is not None


def test_releases_at_the_floor_are_seldom_rolled_back() -> None:
    """At alpha 20 % at most so many of 60 releases with late conversions are found harmful."""
    rng, runs, found = np.random.default_rng(5), 60, 0
    for _ in range(runs):
        watched = watch(alpha=0.2)
        converting = rng.binomial(200, 0.02, 80)
        arrivals, delays = np.arange(80), rng.integers(0, 10, 80)
        for minute in range(80):
            due = int(converting[arrivals + delays == minute].sum())
            watched.treatment.add(200, converted=due)
            watched.control.add(200, converted=4)
            watched.look(MINUTE)
            if watched.last().breach is not None:
                found += 1
                break
    assert found <= scipy.stats.binom.ppf(0.999, runs, 0.2)


def test_the_next_stage_judges_its_own_contexts() -> None:
    """Evidence of a shortfall is kept over stages, contexts and their time are not."""
    watched = watch()
    feed(watched, 12, 10)
    before = watched.tests.floors[0]
    watched.go_on(100.0, 1)
    watched.treatment.add(1000)
    watched.look(MINUTE)
    after = watched.tests.floors[0]
    assert (after.visit, after.trials, after.later_visits) == (1, 0, 1)
    assert after.begun > before.begun
    assert (after.earlier >= before.earlier + before.present).all()


def test_a_floor_that_was_changed_begins_with_what_comes_after() -> None:
    """A shortfall before the change is not held against the floor that was set because of it."""
    watched = watch()
    feed(watched, 30, 30)  # 3 %
    plan = watched.rollout.plan
    same = replace(watched.rollout, plan=replace(plan, version="renamed"))
    carried = carried_tests(watched.tests, watched.rollout, same)
    assert carried.floors[0] is watched.tests.floors[0]
    higher = replace(plan, guardrails=(replace(FLOOR, limit=0.06),), version="changed")
    after = replace(watched.rollout, plan=higher)
    tests = carried_tests(watched.tests, watched.rollout, after)
    again = watch()
    again.rollout, again.tests, again.arms, again.at = after, tests, watched.arms, watched.at
    again.look(MINUTE)
    assert (report(again).harm, again.tests.floors[0].trials) == (Verdict.INCONCLUSIVE, 0)
    assert feed(again, 30, 10).harm is Verdict.FAIL
    assert again.tests.floors[0].trials < 30_000


def test_memory_is_bounded_and_stored() -> None:
    """While counting is behind, moments become fewer, and the state survives its bytes."""
    watched = watch()
    evidence = replace(watched.evidence(), partitions=())
    for second in range(0, 36_000, 10):
        at = T0 + timedelta(seconds=second)
        floors = check_floors(watched.rollout, evidence, watched.tests, at)
        watched.tests = replace(watched.tests, floors=floors)
    assert len(watched.tests.floors[0].waiting) <= 2 * MOMENTS
    feed(watched, 15, 5)
    encoded = encode_tests(watched.tests)
    decoded = decode_tests(encoded)
    assert isinstance(decoded.floors[0], FloorTest)
    assert encode_tests(decoded) == encoded
    carried = watch()
    carried.at, carried.arms, carried.tests = watched.at, watched.arms, decoded
    assert carried.look() == watched.look()
