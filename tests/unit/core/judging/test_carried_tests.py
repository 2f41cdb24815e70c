"""The sequential tests after a change of the plan: what is kept, and what begins again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy

from controller.core.analysis.sequential_tests import (
    NOT_MARKED,
    SequentialTests,
    decode_tests,
    encode_tests,
)
from controller.core.judging.carried_tests import carried_tests, identity_of
from controller.core.plan import Guardrail, Plan
from controller.core.plan_changes import change_of
from controller.core.rollout import Rollout
from schemas.terms import MetricRole, Verdict
from tests.builders import make_plan, make_rollout, make_visit
from tests.streams import Watched
from tests.unit.core.judging.test_gate import feed, metric, watch

ERRORS = Guardrail("error_rate", limit=0.05, margin=0.1)
LATENCY = Guardrail("latency_p99", limit=500.0)


def planned(rollout: Rollout, *guardrails: Guardrail, **changes: Any) -> Rollout:
    """Return the rollout with other guardrails, in the same visit."""
    new = replace(rollout.plan, guardrails=guardrails, version="f" * 16, **changes)
    changed: Plan = change_of(rollout.plan, new, 0).plan
    return replace(rollout, plan=changed, revision=rollout.revision + 1)


def go_on(watched: Watched, after: Rollout) -> None:
    """Continue under another plan."""
    watched.tests = carried_tests(watched.tests, watched.rollout, after)
    watched.rollout = after


def suspicious() -> Watched:
    """Return a rollout with some evidence of harm, short of a breach."""
    watched = watch(ERRORS)
    feed(watched, 30, (100, 6), (900, 45))
    assert 1.2 < metric(watched.last()).e_value < 50
    return watched


def test_evidence_of_the_same_question_is_kept() -> None:
    """A guardrail beside it, in another place of the list, takes nothing from it."""
    watched = suspicious()
    before = metric(watched.last())
    go_on(watched, planned(watched.rollout, LATENCY, ERRORS))
    after = metric(watched.look(), 1)
    assert after.e_value == pytest.approx(before.e_value, rel=0.01)
    assert after.threshold == before.threshold, "its part of alpha stays"
    assert watched.last().batches >= 30


def test_an_added_guardrail_has_a_part_of_its_own_and_begins_now() -> None:
    """What was counted before is not used by a limit that was chosen after it."""
    watched = watch(replace(ERRORS, limit=None))
    feed(watched, 30, (100, 20), (900, 180))
    limit = Guardrail("error_rate", limit=0.05, role=MetricRole.SIGNAL)
    go_on(watched, planned(watched.rollout, watched.rollout.plan.guardrails[0], limit))
    assert metric(watched.look(), 1).e_value == 1.0
    feed(watched, 30, (100, 20), (900, 180))
    added = metric(watched.last(), 1)
    assert added.harm is Verdict.FAIL
    assert added.threshold == pytest.approx(1 / watched.rollout.plan.alpha)


def test_a_lower_limit_keeps_its_evidence_and_counts_from_now() -> None:
    """Evidence above a limit is evidence above every lower one; earlier events add no more."""
    watched = suspicious()
    before = metric(watched.last())
    go_on(watched, planned(watched.rollout, replace(ERRORS, limit=0.04)))
    unchanged = metric(watched.look())
    assert unchanged.e_value == pytest.approx(before.e_value, rel=0.01)
    feed(watched, 20, (100, 6), (900, 45))
    lower = metric(watched.last())
    same = suspicious()
    feed(same, 20, (100, 6), (900, 45))
    assert lower.e_value > metric(same.last()).e_value


def test_another_margin_begins_its_comparison_again() -> None:
    """Its alternatives are others, so no evidence of it fits."""
    watched = watch(Guardrail("error_rate", margin=0.5))
    feed(watched, 30, (100, 12), (900, 60))
    assert metric(watched.last()).e_value > 1
    go_on(watched, planned(watched.rollout, Guardrail("error_rate", margin=0.1)))
    assert metric(watched.look()).e_value == pytest.approx(1.0)


def test_another_gate_margin_has_to_be_shown_again() -> None:
    """Harm keeps its evidence; that the release is safe is of the old margin."""
    watched = watch(Guardrail("error_rate", margin=0.1))
    feed(watched, 200, (100, 5), (900, 45))
    shown = metric(watched.last())
    assert shown.safe is Verdict.PASS
    go_on(watched, planned(watched.rollout, Guardrail("error_rate", margin=0.1, gate_margin=0.2)))
    again = metric(watched.look())
    assert again.safe is Verdict.INCONCLUSIVE
    assert again.e_value == pytest.approx(shown.e_value, rel=0.01)


def test_a_stage_that_begins_again_takes_no_evidence_along() -> None:
    """Neither for harm nor for safety; what the rollout has cost is kept."""
    watched = suspicious()
    cost = watched.last().harm
    after = planned(watched.rollout, replace(ERRORS, limit=0.1))
    left = replace(watched.rollout.visits[0], left_at=watched.at)
    visits = (left, make_visit(entered_at=watched.at, counts_from=watched.at))
    go_on(watched, replace(after, visits=visits))
    judged = watched.look()
    assert metric(judged).e_value == 1.0
    assert judged.harm.failed_requests == cost.failed_requests


def test_without_a_change_the_tests_are_the_same() -> None:
    """So is the state of another rollout, which starts by itself."""
    watched = suspicious()
    assert carried_tests(watched.tests, watched.rollout, watched.rollout) is watched.tests
    other = SequentialTests(identity="another/plan")
    assert carried_tests(other, watched.rollout, planned(watched.rollout, LATENCY)) is other


def test_what_is_carried_survives_its_bytes() -> None:
    """Parts of alpha and open marks are stored; what an earlier release stored has no parts."""
    watched = suspicious()
    go_on(watched, planned(watched.rollout, LATENCY, ERRORS))
    again = decode_tests(encode_tests(watched.tests))
    assert again.shares == watched.tests.shares
    assert set(again.limits[0].used.values()) == {NOT_MARKED}
    assert decode_tests(encode_tests(SequentialTests())).shares == {}


@pytest.mark.parametrize("seed", range(3))
def test_adding_and_removing_keeps_what_stays(seed: int) -> None:
    """Over any row of changes the evidence of the one that stays is that of no change at all."""
    rng = np.random.default_rng(seed)
    changed, plain = watch(ERRORS), watch(ERRORS)
    for step in range(6):
        errors = int(rng.integers(2, 8))
        for watched in (changed, plain):
            feed(watched, 5, (100, errors), (900, 45))
        guardrails = (LATENCY, ERRORS) if step % 2 else (ERRORS,)
        go_on(changed, planned(changed.rollout, *guardrails, owner=f"{step}"))
    number = changed.rollout.plan.guardrails.index(ERRORS)
    assert metric(changed.look(), number).e_value == metric(plain.look()).e_value


def test_the_identity_names_the_plan() -> None:
    """Another plan's tests are not taken for this one's."""
    rollout = make_rollout(plan=make_plan())
    assert identity_of(rollout) == f"start-1/{make_plan().version}"


def test_changes_of_the_plan_keep_the_promised_false_alarms() -> None:
    """With equal arms, a guardrail that is added and then changed alarms as seldom as promised.

    Both times it begins again, with half of `alpha`, beside the `alpha` of the plan at the start.
    """
    alpha, runs = 0.2, 60
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(runs):
        watched = watch(Guardrail("error_rate", margin=0.0), alpha=alpha)
        added = Guardrail("error_rate", limit=0.02, role=MetricRole.GUARDRAIL, from_percent=5.0)
        for look in range(40):
            if look == 10:
                go_on(watched, planned(watched.rollout, *watched.rollout.plan.guardrails, added))
            if look == 25:
                other = replace(added, limit=0.0201)
                first = watched.rollout.plan.guardrails[0]
                go_on(watched, planned(watched.rollout, other, first))
            for arm, contexts in ((watched.treatment, 100), (watched.control, 900)):
                arm.add(contexts, int(rng.binomial(contexts, 0.02)))
            if watched.look().breach is not None:
                alarms += 1
                break
    assert alarms <= scipy.stats.binom.ppf(0.999, runs, 2 * alpha)
