"""From totals to batches: what is new since the last look is one batch, and feeds every test once.

A batch never spans a visit. For comparisons it is closed by its size or by time, never by what happened in it, so the tests
stay exact; and it has observations in both arms, since a lone arm says nothing about a difference. A limit asks about treatment
alone: its test takes what there is at every look, also when control has fallen silent.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from controller.core.analysis import sample_ratio
from controller.core.analysis.change_point import Floats, add_batch, released_mass
from controller.core.analysis.gate_tests import GateTests, LimitTest, RatioTest
from controller.core.analysis.latency import Ordered, Spread, margin_buckets, ordered, quantile_bucket
from controller.core.analysis.proportion import (
    LOG_RATIOS,
    Counts,
    curve_increment,
    excess_increment,
    harm_alternatives,
    limit_increment,
    rates_above,
    rates_below,
    ratio_increment,
    safe_alternatives,
)
from controller.core.analysis.questions import gate_margin, limit_bucket, limit_share, log_tolerated, log_tolerated_at_gate
from controller.core.analysis.slowness import SHAPES, slowness_increment
from controller.core.evidence import ArmTotals, Evidence, VisitTotals
from controller.core.plan import Guardrail
from controller.core.rollout import Rollout, Visit
from controller.core.serving import decided_share
from schemas.terms import Arm

#: Observations each arm must have before a batch is closed. With one treatment observation per batch the observed share is all
#: chance and an error in it says little. At 50 treatment requests a second it takes 0.2 s.
MIN_BATCH = 8
#: ... or this long has passed and there is anything at all: a flag with few events is judged with what it has.
MAX_OPEN = timedelta(seconds=60)
#: Visits whose totals are still followed. Later events of older ones no longer reach the tests.
KEPT_VISITS = 4


def take_evidence(
    rollout: Rollout, evidence: Evidence, latencies: Mapping[Arm, Spread], tests: GateTests, at: datetime
) -> tuple[GateTests, str | None]:
    """Return the tests after everything new in `evidence`, and a sentence when the present visit's totals fell back.

    `latencies` are the present visit's.
    Totals fall back when the store lost its last writes; what is recounted then has been used already, so nothing is taken
    until they have passed the mark again.
    """
    present = len(rollout.visits) - 1
    tests = _enter_visit(rollout, tests, present, at)
    released = _released(rollout, at)
    behind: str | None = None
    oldest = _oldest_in_force(rollout, present)
    for index in sorted(evidence.visits):
        if not oldest <= index <= present:
            continue
        visit, totals = rollout.visits[index], evidence.visits[index]
        tests = _count_exposures(tests, index, decided_share(rollout.plan, visit), totals)
        lost = _fell_back(tests.seen.get(index, VisitTotals()), totals)
        if lost is None:
            now = {arm: latencies[arm].tested for arm in Arm}
            tests = _check_limits(rollout, tests, index, totals, now[Arm.TREATMENT], released)
            tests = _close_batch(rollout, tests, index, totals, now, at, released)
        elif index == present:
            behind = lost
    return tests, behind


def _enter_visit(rollout: Rollout, tests: GateTests, present: int, at: datetime) -> GateTests:
    """Return the tests as they stand in the present visit: fresh for another rollout, safety anew for another visit."""
    identity = f"{rollout.rollout_id}/{rollout.plan.version}"
    if tests.identity != identity:
        tests = GateTests(identity=identity, closed_at=at)
    if tests.visit == present:
        return tests
    if present > tests.visit >= 0 and _oldest_in_force(rollout, present) > tests.visit:
        return GateTests(identity=identity, visit=present, batches=tests.batches, closed_at=at, harm=tests.harm)
    kept = {
        # A left visit keeps its counters for late events, not its histograms: they are most of the state's size.
        index: VisitTotals(replace(seen.treatment, latency={}), replace(seen.control, latency={}))
        for index, seen in tests.seen.items()
        if index > present - KEPT_VISITS
    }
    return replace(
        tests,
        visit=present,
        heard=0,
        heard_at=None,
        seen=kept,
        latencies=None,
        ratios={index: test.in_new_visit() for index, test in tests.ratios.items()},
        limits={number: _without_old_visits(test, present) for number, test in tests.limits.items()},
    )


def _without_old_visits(test: LimitTest, present: int) -> LimitTest:
    """Return the test without the marks of visits that are no longer followed."""
    return replace(test, used={index: counts for index, counts in test.used.items() if index > present - KEPT_VISITS})


def _oldest_in_force(rollout: Rollout, present: int) -> int:
    """Return the oldest visit whose evidence speaks of what is served now.

    Lowering the share ends the tests and begins them anew, with an alpha of their own: what made us step back must not be found
    a second time in the stage below. Each step back is announced, so nobody spends that budget unseen.
    """
    oldest = max(0, present - KEPT_VISITS + 1)
    for index in range(present, oldest, -1):
        before, after = rollout.visits[index - 1], rollout.visits[index]
        # A wider audience often begins at a lower percentage: that is an advance, and the stage says so.
        if (after.stage, after.percent) < (before.stage, before.percent):
            return index
    return oldest


def _count_exposures(tests: GateTests, index: int, share: float | None, totals: VisitTotals) -> GateTests:
    """Return the tests after new exposures: the sample-ratio test is additive and needs no batch.

    `share` is the decided one of treatment, None where there is no control.
    """
    seen = tests.seen.get(index, VisitTotals())
    treatment = max(0, totals.treatment.exposures - seen.treatment.exposures)
    control = max(0, totals.control.exposures - seen.control.exposures)
    if treatment + control == 0:
        return tests
    srm = tests.srm
    if share is not None:
        srm = sample_ratio.add_exposures(srm, share, treatment, control)
    now_seen = VisitTotals(
        _used(seen.treatment, seen.treatment.exposures + treatment, keep_latency=True),
        _used(seen.control, seen.control.exposures + control, keep_latency=True),
    )
    return replace(tests, srm=srm, seen={**tests.seen, index: now_seen})


def _fell_back(seen: VisitTotals, totals: VisitTotals) -> str | None:
    """Return what is below its mark, None when nothing is."""
    for name, before, now in (
        ("treatment", seen.treatment, totals.treatment),
        ("control", seen.control, totals.control),
    ):
        marks = [
            ("contexts with an outcome", before.at_risk, now.at_risk),
            ("first errors", before.first_errors, now.first_errors),
            ("exposures", before.exposures, now.exposures),
            ("latency values", sum(before.latency.values()), sum(now.latency.values())),
            *((f"conversions {goal}", count, now.converted.get(goal, 0)) for goal, count in before.converted.items()),
        ]
        for what, mark, count in marks:
            if count < mark:
                return f"{name}'s {what} fell back to {count:,} from {mark:,} already judged: waiting for the recount"
    return None


def _close_batch(
    rollout: Rollout,
    tests: GateTests,
    index: int,
    totals: VisitTotals,
    now: Mapping[Arm, Ordered],
    at: datetime,
    released: float,
) -> GateTests:
    """Return the tests after the open batch of one visit, or as they were while it is too small."""
    seen = tests.seen.get(index, VisitTotals())
    smaller = min(_size(seen.treatment, totals.treatment), _size(seen.control, totals.control))
    waited = at - (tests.closed_at or at)
    if smaller < MIN_BATCH and not (smaller > 0 and waited >= MAX_OPEN):
        return tests

    is_present = index == tests.visit
    ratios = dict(tests.ratios)
    before = tests.latencies if is_present else None
    if before is None:
        before = {arm: ordered(seen.arm(arm).latency) for arm in Arm}
    for number, guardrail in enumerate(rollout.plan.guardrails):
        if guardrail.margin is None or not _is_followed(guardrail, rollout.visits[index], is_present=is_present):
            continue
        log_effects = harm_alternatives(log_tolerated(guardrail)).log_effects
        test = ratios.get(number) or RatioTest.fresh(SHAPES if guardrail.is_distribution else len(log_effects))
        place = _place(guardrail, before[Arm.CONTROL], test)
        batch = _compared(guardrail, seen, totals, _Tails(before, now, place))
        if guardrail.is_distribution:
            increment = slowness_increment(before, now, margin_buckets(guardrail.margin))
            safe = _increments(guardrail, rollout.visits[index].percent, seen, batch)[1]
        else:
            increment, safe = _increments(guardrail, rollout.visits[index].percent, seen, batch)
        ratios[number] = _after(test, place, batch, increment, safe, released, is_present=is_present)
    used = VisitTotals(
        _used(totals.treatment, seen.treatment.exposures, keep_latency=is_present),
        _used(totals.control, seen.control.exposures, keep_latency=is_present),
    )
    return replace(
        tests,
        batches=tests.batches + 1,
        closed_at=at,
        seen={**tests.seen, index: used},
        ratios=ratios,
        latencies=now if is_present else tests.latencies,
    )


def _released(rollout: Rollout, at: datetime) -> float:
    """Return how much of the prior mass of a change has started by `at`."""
    horizon = sum((stage.settle + stage.bake for stage in rollout.plan.stages), timedelta())
    return released_mass((at - rollout.visits[0].entered_at).total_seconds(), max(horizon.total_seconds(), 1.0))


def _is_followed(guardrail: Guardrail, visit: Visit, *, is_present: bool) -> bool:
    """Tell whether a visit's events still reach a guardrail's tests: another limit may be in force, histograms are dropped."""
    return guardrail.is_watched_at(visit.percent) and (is_present or guardrail.quantile is None)


def _size(seen: ArmTotals, totals: ArmTotals) -> int:
    """Return the observations in the open batch: contexts at risk, or latency values where those are more."""
    latency = sum(totals.latency.values()) - sum(seen.latency.values()) if seen.latency or not seen.at_risk else 0
    return max(totals.at_risk - seen.at_risk, latency)


def _used(totals: ArmTotals, exposures: int, *, keep_latency: bool) -> ArmTotals:
    """Return what of an arm's totals is to be remembered as used up."""
    return ArmTotals(
        exposures=exposures,
        at_risk=totals.at_risk,
        first_errors=totals.first_errors,
        converted=totals.converted,
        latency=totals.latency if keep_latency else {},
    )


class _Tails(NamedTuple):
    """The latencies of a batch: what was used up before, what there is now, and where control's tail begins."""

    before: Mapping[Arm, Ordered]
    now: Mapping[Arm, Ordered]
    place: int | None


def _place(guardrail: Guardrail, control_before: Ordered, test: RatioTest) -> int | None:
    """Return the bucket above which latency counts as slow in this batch: from control's past alone, so it is predictable."""
    if guardrail.quantile is None:
        return None
    found = quantile_bucket(control_before, guardrail.quantile)
    return test.place if found is None else found


def _compared(guardrail: Guardrail, seen: VisitTotals, totals: VisitTotals, tails: _Tails | None) -> Counts | None:
    """Return the batch's counts with treatment's harm as the event, None when the batch cannot be used.

    Counts that contradict each other (more events than observations) come from a recount after lost writes: such a batch is
    left out.
    """
    if guardrail.quantile is not None:
        if tails is None:
            return None
        before, now, place = tails
        if place is None:
            return None
        shifted = place + margin_buckets(guardrail.margin or 0)
        n_t, k_t = _values_above(before[Arm.TREATMENT], now[Arm.TREATMENT], shifted)
        n_c, k_c = _values_above(before[Arm.CONTROL], now[Arm.CONTROL], place)
        batch = Counts(n_t, k_t, n_c, k_c)
    elif guardrail.is_better_when_higher:
        goal = guardrail.metric.removeprefix("conversion:")
        n_t, k_t = _conversions(seen.treatment, totals.treatment, goal)
        n_c, k_c = _conversions(seen.control, totals.control, goal)
        batch = Counts(n_t, k_t, n_c, k_c).swapped()
    else:
        batch = Counts(
            totals.treatment.at_risk - seen.treatment.at_risk,
            totals.treatment.first_errors - seen.treatment.first_errors,
            totals.control.at_risk - seen.control.at_risk,
            totals.control.first_errors - seen.control.first_errors,
        )
    is_sound = 0 <= batch.k_t <= batch.n_t and 0 <= batch.k_c <= batch.n_c
    return batch if is_sound and batch.n_t > 0 and batch.n_c > 0 else None


def _values_above(before: Ordered, now: Ordered, bucket: int) -> tuple[int, int]:
    return now.total - before.total, now.above(bucket) - before.above(bucket)


def _conversions(seen: ArmTotals, totals: ArmTotals, goal: str) -> tuple[int, int]:
    """Return (contexts that could still convert, contexts that did).

    Conversions come late, so they are set against everyone exposed so far who had not converted: with one share per visit both
    arms' exposures are equally old, and the delay cancels.
    """
    before = seen.converted.get(goal, 0)
    return totals.exposures - before, totals.converted.get(goal, 0) - before


def _after(
    test: RatioTest,
    place: int | None,
    batch: Counts | None,
    increment: Floats | None,
    safe: Floats | None,
    released: float,
    *,
    is_present: bool,
) -> RatioTest:
    """Return one comparison's test after a batch; None is what the batch can say nothing about.

    What is shown at a gate is of the present visit alone.
    """
    is_shown = is_present and batch is not None
    return RatioTest(
        evidence=test.evidence if increment is None else add_batch(test.evidence, released - test.released, increment),
        safe=test.safe + safe if is_shown and safe is not None else test.safe,
        curve=test.curve + curve_increment(batch) if is_present and batch is not None else test.curve,
        released=test.released if increment is None else max(released, test.released),
        counts=Counts(*map(operator.add, test.counts, batch)) if is_present and batch is not None else test.counts,
        harmed=test.harmed if batch is None else test.harmed + batch.k_t,
        place=place,
    )


def _increments(
    guardrail: Guardrail, percent: float, seen: VisitTotals, batch: Counts | None
) -> tuple[Floats | None, Floats | None]:
    """Return a batch's log e-values of harm and of "not worse than a gate at `percent` allows", None where it says nothing.

    `seen` is the visit before the batch: with a margin in points, what is expected of control is its rate so far.
    """
    if batch is None:
        return None, None
    if not guardrail.in_points:
        log_null, log_gate = log_tolerated(guardrail), log_tolerated_at_gate(guardrail, percent)
        harm = ratio_increment(harm_alternatives(log_null).log_effects, log_null, batch)
        return harm, ratio_increment(safe_alternatives(log_gate).log_effects, log_gate, batch)
    past = _compared(guardrail, VisitTotals(), seen, None)
    if past is None:
        return None, None
    expected = (past.k_c + 0.5) / (past.n_c + 1)
    margin, at_gate = guardrail.margin or 0.0, gate_margin(guardrail, percent)
    return (
        excess_increment(rates_above(expected, margin), expected, margin, batch),
        excess_increment(rates_below(expected, at_gate), expected, at_gate, batch),
    )


def _check_limits(
    rollout: Rollout, tests: GateTests, index: int, totals: VisitTotals, latency: Ordered, released: float
) -> GateTests:
    """Return the tests after what is new in treatment, against each limit; `latency` is the present visit's, of treatment.

    No batch to wait for: a likelihood ratio against a fixed share is the same however the observations are cut.
    """
    limits = dict(tests.limits)
    for number, guardrail in enumerate(rollout.plan.guardrails):
        if guardrail.limit is None or guardrail.is_better_when_higher:
            continue
        if not _is_followed(guardrail, rollout.visits[index], is_present=index == tests.visit):
            continue
        if guardrail.quantile is not None:
            counts = latency.total, latency.above(limit_bucket(guardrail))
        else:
            counts = totals.treatment.at_risk, totals.treatment.first_errors
        test = limits.get(number) or LimitTest.fresh(len(LOG_RATIOS))
        limits[number] = _check_limit(test, limit_share(guardrail), index, counts, released)
    return replace(tests, limits=limits)


def _check_limit(test: LimitTest, share: float, index: int, counts: tuple[int, int], released: float) -> LimitTest:
    """Return one limit's test after visit `index` has come to `counts`, trials and events.

    Counts that have not grown, or that contradict each other after a recount, are left alone.
    """
    trials, events = (now - before for now, before in zip(counts, test.used.get(index, (0, 0)), strict=True))
    if not 0 <= events <= trials or trials == 0:
        return test
    increment = limit_increment(share, trials, events, is_above=True)
    return LimitTest(
        evidence=add_batch(test.evidence, released - test.released, increment),
        released=max(released, test.released),
        harmed=test.harmed + events,
        used={**test.used, index: counts},
    )
