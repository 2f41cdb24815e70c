"""The sequential tests of a rollout whose plan was changed.

Belongs here: which evidence still answers its question, and which part of alpha each guardrail
has. The choice and its proof are in `ops/decisions/0014-apply.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import controller.core.judging.questions as questions
from controller.core.analysis.proportion import LOG_RATIOS
from controller.core.analysis.sequential_tests import (
    NOT_MARKED,
    FloorTest,
    LimitTest,
    RatioTest,
    SequentialTests,
)
from controller.core.judging.floors import FIRST_MASS
from controller.core.metrics import counters_name
from controller.core.plan import Guardrail, Plan
from controller.core.rollout import Rollout


def identity_of(rollout: Rollout) -> str:
    """Return what the tests of a rollout are kept under: another plan's are not used."""
    return f"{rollout.rollout_id}/{rollout.plan.version}"


def carried_tests(tests: SequentialTests, before: Rollout, after: Rollout) -> SequentialTests:
    """Return the tests with which a rollout goes on after a change of its plan.

    In the same visit every guardrail whose question is the same, or stricter in its limit, keeps
    its evidence and its part of alpha. One that is new, or that compares otherwise, begins with
    what is counted from now on, and with a part of alpha of its own. In another visit all tests
    begin again; what the rollout has cost is kept.
    """
    identity = identity_of(after)
    if before.plan == after.plan or tests.identity != identity_of(before):
        return tests
    if after.visit_index != before.visit_index:
        return SequentialTests(
            identity=identity, batches=tests.batches, closed_at=after.updated_at, harm=tests.harm
        )
    old, new = before.plan.tested, after.plan.tested
    same = _asked_alike(before.plan, after.plan)
    percent = after.visits[-1].percent if after.visits else 0.0
    old_shares, new_shares = questions.alpha_shares(old), questions.alpha_shares(new)
    shares: dict[int, float] = {}
    ratios: dict[int, RatioTest] = {}
    limits: dict[int, LimitTest] = {}
    floors: dict[int, FloorTest] = {}
    for number, guardrail in enumerate(new):
        source = _source(guardrail, old, percent)
        if number >= len(after.plan.guardrails) and guardrail.metric not in same:
            source = None
        if source is None:
            shares[number] = new_shares[number]
        else:
            shares[number] = tests.shares.get(source, old_shares[source])
        limit = _carried_limit(tests, source, old, guardrail)
        if limit is not None:
            limits[number] = limit
        if guardrail.has_floor:
            floors[number] = _carried_floor(tests, source, old, guardrail)
        ratio = _carried_ratio(tests, source, old, guardrail, percent)
        if ratio is not None:
            ratios[number] = ratio
    looks = {
        one.name: tests.looks[one.name]
        for one in after.plan.external
        if one in before.plan.external and one.name in tests.looks
    }
    return replace(
        tests,
        identity=identity,
        ratios=ratios,
        limits=limits,
        floors=floors,
        shares=shares,
        looks=looks,
        counters={
            name: marks for name, marks in tests.counters.items() if counters_name(name) in same
        },
    )


def _asked_alike(before: Plan, after: Plan) -> frozenset[str]:
    """Return what reports call the metrics whose counters are the same in both plans."""
    old = {one.name: (one.queries, one.repeats) for one in before.external if one.is_counted}
    return frozenset(
        counters_name(one.name)
        for one in after.external
        if old.get(one.name) == (one.queries, one.repeats)
    )


def _source(guardrail: Guardrail, old: Sequence[Guardrail], percent: float) -> int | None:
    """Return the number of the old guardrail whose evidence is about the same; None: there is none.

    That is the same guardrail, else the one that watches the same metric at `percent`.
    """
    if guardrail in old:
        return old.index(guardrail)
    if not guardrail.is_watched_at(percent):
        return None
    return next(
        (
            number
            for number, other in enumerate(old)
            if other.metric == guardrail.metric and other.is_watched_at(percent)
        ),
        None,
    )


def _carried_limit(
    tests: SequentialTests, source: int | None, old: Sequence[Guardrail], new: Guardrail
) -> LimitTest | None:
    """Return the test of a guardrail's limit; None where it has none.

    Evidence against a limit is evidence against every stricter limit. What was counted before the
    change is not used a second time for another limit, nor for one that was chosen after it.
    """
    if new.limit is None or new.has_floor:
        return None
    marks = dict.fromkeys(range(tests.visit + 1), NOT_MARKED)
    if source is not None and (previous := old[source].limit) is not None:
        test = tests.limits.get(source)
        if test is not None and new.limit <= previous:
            return test if new.limit == previous else replace(test, used=marks, recent=(0, 0))
        if test is None and new.limit == previous:
            return None
    return replace(LimitTest.fresh(len(LOG_RATIOS)), used=marks)


def _carried_floor(
    tests: SequentialTests, source: int | None, old: Sequence[Guardrail], new: Guardrail
) -> FloorTest:
    """Return the test of a guardrail's floor.

    Another floor, or another time to convert, begins with the contexts that are exposed from now
    on.
    """
    test = None if source is None else tests.floors.get(source)
    if test is not None and source is not None:
        before = old[source]
        if (before.limit, before.within) == (new.limit, new.within):
            return test
    return replace(FloorTest.fresh(len(LOG_RATIOS), FIRST_MASS, tests.visit), before=None)


def _carried_ratio(
    tests: SequentialTests,
    source: int | None,
    old: Sequence[Guardrail],
    new: Guardrail,
    percent: float,
) -> RatioTest | None:
    """Return the test of a guardrail's comparison; None where the next batch begins it.

    Another margin has other alternatives, so its test begins again. Another gate margin only has
    to be shown again.
    """
    if source is None or new.margin is None:
        return None
    before, test = old[source], tests.ratios.get(source)
    if test is None or (before.margin, before.in_points) != (new.margin, new.in_points):
        return None
    is_same_gate = questions.gate_margin(before, percent) == questions.gate_margin(new, percent)
    return test if is_same_gate else replace(test, safe=test.safe * 0)
