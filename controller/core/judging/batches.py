"""From totals to batches: what is new since the last look is one batch, and feeds every test once.

A batch never spans a visit. For comparisons it is closed by its size or by time, never by what
happened in it, so the tests stay exact; and it has observations in both arms, since a lone arm says
nothing about a difference. A limit asks about treatment alone: its test takes what there is at
every look, also when control has fallen silent.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from controller.core.analysis import sample_ratio
from controller.core.analysis.change_point import Floats, add_batch, released_mass
from controller.core.analysis.latency import (
    Ordered,
    Spread,
    margin_buckets,
    ordered,
    quantile_bucket,
)
from controller.core.analysis.proportion import (
    LOG_RATIOS,
    Counts,
    comparison_increments,
    curve_increment,
    excess_increment,
    harm_alternatives,
    limit_increment,
    rates_above,
    rates_below,
)
from controller.core.analysis.sequential_tests import LimitTest, RatioTest, SequentialTests
from controller.core.analysis.slowness import SHAPES, slowness_increment
from controller.core.evidence import ArmTotals, Evidence, VisitTotals
from controller.core.judging.questions import (
    gate_margin,
    limit_bucket,
    limit_share,
    log_tolerated,
    log_tolerated_at_gate,
)
from controller.core.plan import Guardrail
from controller.core.rollout import Rollout, Visit
from controller.core.serving import decided_share
from schemas.counters import TESTED_COUNTERS, Shape
from schemas.terms import Arm

#: Observations each arm must have before a batch is closed. With one treatment observation per
#: batch the observed share is all chance and an error in it says little. At 50 treatment requests a
#: second it takes 0.2 s.
MIN_BATCH = 8
#: ... or this long has passed and there is anything at all: a flag with few events is judged with
#: what it has.
MAX_OPEN = timedelta(seconds=60)
#: Visits whose totals are still followed. Later events of older ones no longer reach the tests.
KEPT_VISITS = 4

_ARMS = (Arm.TREATMENT, Arm.CONTROL)


def take_evidence(
    rollout: Rollout,
    evidence: Evidence,
    latencies: Mapping[Arm, Spread],
    tests: SequentialTests,
    at: datetime,
) -> tuple[SequentialTests, str | None]:
    """Return the tests after everything new in `evidence`.

    And a sentence when the present visit's totals fell back.

    `latencies` are the present visit's. Totals fall back when the store lost its last writes; what
    is recounted then has been used already, so nothing is taken until they have passed the mark
    again.
    """
    present = len(rollout.visits) - 1
    tests = _enter_visit(rollout, tests, present, at)
    behind: str | None = None
    oldest = _oldest_in_force(rollout, present)
    for index in sorted(evidence.visits):
        if oldest <= index <= present:
            tests, lost = _take_visit(rollout, tests, index, evidence.visits[index], latencies, at)
            behind = lost if index == present else behind
    return tests, behind


def _take_visit(
    rollout: Rollout,
    tests: SequentialTests,
    index: int,
    totals: VisitTotals,
    present: Mapping[Arm, Spread],
    at: datetime,
) -> tuple[SequentialTests, str | None]:
    """Return the tests after everything new in one visit's totals.

    And a sentence when they fell back.

    `present` are the latencies of the present visit's totals.
    """
    is_present = index == tests.visit
    known = tests.seen.get(index, VisitTotals())
    seen = _with_exposures(known, totals)
    before = tests.latencies if is_present else None
    latencies = _Latencies(
        before=before or {arm: ordered(seen.arm(arm).latency) for arm in Arm},
        now={
            arm: present[arm].tested if is_present else ordered(totals.arm(arm).latency)
            for arm in Arm
        },
    )
    lost = _fallen_counter(seen, totals, latencies)
    srm = _checked_share(tests.srm, decided_share(rollout.plan, rollout.visits[index]), known, seen)
    marks = tests.seen if seen is known else {**tests.seen, index: seen}
    if lost is not None:
        return replace(tests, srm=srm, seen=marks), lost

    released = _released(rollout, at)
    limits = _check_limits(rollout, tests, index, totals, latencies.now[Arm.TREATMENT], released)
    if not _is_full(tests, seen, totals, latencies, at):
        return replace(tests, srm=srm, seen=marks, limits=limits), None
    used = VisitTotals(
        _used(totals.treatment, seen.treatment.exposures, keep_latency=is_present),
        _used(totals.control, seen.control.exposures, keep_latency=is_present),
    )
    tests = replace(
        tests,
        srm=srm,
        seen={**marks, index: used},
        limits=limits,
        ratios=_compare(rollout, tests, index, seen, totals, latencies, released),
        latencies=latencies.now if is_present else tests.latencies,
        batches=tests.batches + 1,
        closed_at=at,
    )
    return tests, None


class _Latencies(NamedTuple):
    """One visit's latencies: what was used up before, and what there is now."""

    before: Mapping[Arm, Ordered]
    now: Mapping[Arm, Ordered]

    def gained(self, arm: Arm) -> int:
        """Return how many values are new."""
        return self.now[arm].total - self.before[arm].total


def _enter_visit(
    rollout: Rollout, tests: SequentialTests, present: int, at: datetime
) -> SequentialTests:
    """Return the tests as they stand in the present visit.

    Fresh for another rollout, safety anew for another visit.
    """
    identity = f"{rollout.rollout_id}/{rollout.plan.version}"
    if tests.identity != identity:
        tests = SequentialTests(identity=identity, closed_at=at)
    if tests.visit == present:
        return tests
    if present > tests.visit >= 0 and _oldest_in_force(rollout, present) > tests.visit:
        return SequentialTests(
            identity=identity, visit=present, batches=tests.batches, closed_at=at, harm=tests.harm
        )
    kept = {
        # A left visit keeps its counters for late events, not its histograms: they are most of the
        # state's size.
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
        limits={
            number: _without_old_visits(test, present) for number, test in tests.limits.items()
        },
    )


def _without_old_visits(test: LimitTest, present: int) -> LimitTest:
    """Return the test without the marks of visits that are no longer followed."""
    return replace(
        test,
        used={
            index: counts for index, counts in test.used.items() if index > present - KEPT_VISITS
        },
    )


def _oldest_in_force(rollout: Rollout, present: int) -> int:
    """Return the oldest visit whose evidence speaks of what is served now.

    Lowering the share ends the tests and begins them anew, with an alpha of their own: what made us
    step back must not be found a second time in the stage below. Each step back is announced, so
    nobody spends that budget unseen.
    """
    oldest = max(0, present - KEPT_VISITS + 1)
    for index in range(present, oldest, -1):
        before, after = rollout.visits[index - 1], rollout.visits[index]
        # A wider audience often begins at a lower percentage: that is an advance, and the stage
        # says so.
        if (after.stage, after.percent) < (before.stage, before.percent):
            return index
    return oldest


def _with_exposures(seen: VisitTotals, totals: VisitTotals) -> VisitTotals:
    """Return `seen` with the exposures there are now: they need no batch.

    Fewer than before are no news.
    """
    treatment = max(seen.treatment.exposures, totals.treatment.exposures)
    control = max(seen.control.exposures, totals.control.exposures)
    if (treatment, control) == (seen.treatment.exposures, seen.control.exposures):
        return seen
    return VisitTotals(
        _used(seen.treatment, treatment, keep_latency=True),
        _used(seen.control, control, keep_latency=True),
    )


def _checked_share(
    srm: Floats, share: float | None, before: VisitTotals, now: VisitTotals
) -> Floats:
    """Return the sample-ratio test after new exposures.

    `share` is the decided one of treatment, None without a control.
    """
    treatment = now.treatment.exposures - before.treatment.exposures
    control = now.control.exposures - before.control.exposures
    if share is None or treatment + control == 0:
        return srm
    return sample_ratio.add_exposures(srm, share, treatment, control)


def _fallen_counter(seen: VisitTotals, totals: VisitTotals, latencies: _Latencies) -> str | None:
    """Return the sentence about a counter that is below its mark, None when none is."""
    for arm in _ARMS:
        before, now = seen.arm(arm), totals.arm(arm)
        for counter in TESTED_COUNTERS:
            mark, count = getattr(before, counter.name), getattr(now, counter.name)
            if counter.shape is Shape.BY_BUCKET:
                compared = [("", latencies.before[arm].total, latencies.now[arm].total)]
            elif counter.shape is Shape.BY_NAME:
                compared = [(f" {name}", one, count.get(name, 0)) for name, one in mark.items()]
            else:
                compared = [("", mark, count)]
            for name, one, other in compared:
                if other < one:
                    return (
                        f"{arm}'s {counter.words}{name} fell back to {other:,} from {one:,} "
                        f"already judged: waiting for the recount"
                    )
    return None


def _is_full(
    tests: SequentialTests,
    seen: VisitTotals,
    totals: VisitTotals,
    latencies: _Latencies,
    at: datetime,
) -> bool:
    """Tell whether the open batch of a visit is to be closed."""
    smaller = min(_size(seen.arm(arm), totals.arm(arm), latencies.gained(arm)) for arm in _ARMS)
    return smaller >= MIN_BATCH or (smaller > 0 and at - (tests.closed_at or at) >= MAX_OPEN)


def _size(seen: ArmTotals, totals: ArmTotals, gained: int) -> int:
    """Return the observations in the open batch.

    Contexts at risk, or the latency values gained where those are more.
    """
    is_counted = (
        bool(seen.latency) or not seen.at_risk
    )  # a left visit's were dropped: all of them would look new
    return max(totals.at_risk - seen.at_risk, gained if is_counted else 0)


def _compare(
    rollout: Rollout,
    tests: SequentialTests,
    index: int,
    seen: VisitTotals,
    totals: VisitTotals,
    latencies: _Latencies,
    released: float,
) -> dict[int, RatioTest]:
    """Return the comparisons with control after the open batch of one visit."""
    is_present = index == tests.visit
    visit = rollout.visits[index]
    ratios = dict(tests.ratios)
    for number, guardrail in enumerate(rollout.plan.guardrails):
        if guardrail.margin is None or not _is_followed(guardrail, visit, is_present=is_present):
            continue
        test = ratios.get(number) or RatioTest.fresh(_alternatives(guardrail))
        place = _place(guardrail, latencies.before[Arm.CONTROL], test)
        batch = _compared(guardrail, seen, totals, latencies, place)
        added = _added(guardrail, visit.percent, seen, batch)
        if guardrail.is_distribution:
            slowness = slowness_increment(
                latencies.before, latencies.now, margin_buckets(guardrail.margin)
            )
            added = added._replace(harm=slowness)
        ratios[number] = _after(test, place, batch, added, released, is_present=is_present)
    return ratios


def _alternatives(guardrail: Guardrail) -> int:
    """Return how many alternatives of harm there are."""
    return (
        SHAPES
        if guardrail.is_distribution
        else len(harm_alternatives(log_tolerated(guardrail)).log_effects)
    )


def _used(totals: ArmTotals, exposures: int, *, keep_latency: bool) -> ArmTotals:
    """Return the part of an arm's totals that the tests remember as used."""
    values = {
        counter.name: getattr(totals, counter.name)
        for counter in TESTED_COUNTERS
        if keep_latency or counter.shape is not Shape.BY_BUCKET
    }
    return ArmTotals(**{**values, "exposures": exposures})


def _released(rollout: Rollout, at: datetime) -> float:
    """Return how much of the prior mass of a change has started by `at`."""
    horizon = sum((stage.settle + stage.bake for stage in rollout.plan.stages), timedelta())
    return released_mass(
        (at - rollout.visits[0].entered_at).total_seconds(), max(horizon.total_seconds(), 1.0)
    )


def _is_followed(guardrail: Guardrail, visit: Visit, *, is_present: bool) -> bool:
    """Tell whether a visit's events still reach a guardrail's tests.

    Another limit may be in force, histograms are dropped.
    """
    return guardrail.is_watched_at(visit.percent) and (is_present or guardrail.quantile is None)


def _place(guardrail: Guardrail, control_before: Ordered, test: RatioTest) -> int | None:
    """Return the bucket above which latency counts as slow in this batch.

    From control's past alone, so it is predictable.
    """
    if guardrail.quantile is None:
        return None
    found = quantile_bucket(control_before, guardrail.quantile)
    return test.place if found is None else found


def _compared(
    guardrail: Guardrail,
    seen: VisitTotals,
    totals: VisitTotals,
    latencies: _Latencies | None = None,
    place: int | None = None,
) -> Counts | None:
    """Return the batch's counts with treatment's harm as the event, None when the batch cannot be used.

    Of latencies the harm is to be above `place`. Counts that contradict each other (more events
    than observations) come from a recount after lost writes: such a batch is left out.
    """
    if guardrail.quantile is not None:
        if latencies is None or place is None:
            return None
        before, now = latencies
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

    Conversions come late, so they are set against everyone exposed so far who had not converted:
    with one share per visit both arms' exposures are equally old, and the delay cancels.
    """
    before = seen.converted.get(goal, 0)
    return totals.exposures - before, totals.converted.get(goal, 0) - before


class _Added(NamedTuple):
    """A batch's log e-values of harm and of "not worse than its gate allows".

    And its part of the curve; None: says nothing.
    """

    harm: Floats | None = None
    safe: Floats | None = None
    curve: Floats | None = None


def _added(guardrail: Guardrail, percent: float, seen: VisitTotals, batch: Counts | None) -> _Added:
    """Return what a batch adds to a comparison of rates in a stage at `percent`.

    `seen` is the visit before the batch: with a margin in points, what is expected of control is
    its rate so far.
    """
    if batch is None:
        return _Added()
    if not guardrail.in_points:
        return _Added(
            *comparison_increments(
                log_tolerated(guardrail), log_tolerated_at_gate(guardrail, percent), batch
            )
        )
    curve = curve_increment(batch)
    past = _compared(guardrail, VisitTotals(), seen)
    if past is None:
        return _Added(curve=curve)
    expected = (past.k_c + 0.5) / (past.n_c + 1)
    margin, at_gate = guardrail.margin or 0.0, gate_margin(guardrail, percent)
    return _Added(
        excess_increment(rates_above(expected, margin), expected, margin, batch),
        excess_increment(rates_below(expected, at_gate), expected, at_gate, batch),
        curve,
    )


def _after(
    test: RatioTest,
    place: int | None,
    batch: Counts | None,
    added: _Added,
    released: float,
    *,
    is_present: bool,
) -> RatioTest:
    """Return one comparison's test after a batch.

    What is shown at a gate is of the present visit alone.
    """
    harm, safe, curve = added if is_present else _Added(harm=added.harm)
    return RatioTest(
        evidence=test.evidence
        if harm is None
        else add_batch(test.evidence, released - test.released, harm),
        safe=test.safe if safe is None else test.safe + safe,
        curve=test.curve if curve is None else test.curve + curve,
        released=test.released if harm is None else max(released, test.released),
        counts=Counts(*map(operator.add, test.counts, batch))
        if is_present and batch is not None
        else test.counts,
        harmed=test.harmed if batch is None else test.harmed + batch.k_t,
        place=place,
    )


def _check_limits(
    rollout: Rollout,
    tests: SequentialTests,
    index: int,
    totals: VisitTotals,
    latency: Ordered,
    released: float,
) -> Mapping[int, LimitTest]:
    """Return the tests against each limit after what is new in treatment; `latency` is treatment's.

    No batch to wait for: a likelihood ratio against a fixed share is the same however the
    observations are cut.
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
    return limits


def _check_limit(
    test: LimitTest, share: float, index: int, counts: tuple[int, int], released: float
) -> LimitTest:
    """Return one limit's test after visit `index` has come to `counts`, trials and events.

    Counts that have not grown, or that contradict each other after a recount, are left alone.
    """
    trials, events = (
        now - before for now, before in zip(counts, test.used.get(index, (0, 0)), strict=True)
    )
    if not 0 <= events <= trials or trials == 0:
        return test
    increment = limit_increment(share, trials, events, is_above=True)
    return LimitTest(
        evidence=add_batch(test.evidence, released - test.released, increment),
        released=max(released, test.released),
        harmed=test.harmed + events,
        used={**test.used, index: counts},
    )
