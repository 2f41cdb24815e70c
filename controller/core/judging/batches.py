"""From totals to batches: what is new since the last check is one batch, and feeds each test once.

A batch never spans a visit. For comparisons it is closed by its size or by time, never by what
happened in it, so the tests stay exact. It has observations in both arms, because one arm alone
says nothing about a difference. A limit asks about treatment alone: its test uses what there is at
every check, also when control has stopped reporting.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from controller.core.analysis import sample_ratio
from controller.core.analysis.change_point import Bets, Floats, scheduled_mass
from controller.core.analysis.latency import Ordered, ordered
from controller.core.analysis.proportion import (
    LOG_RATIOS,
    Counts,
    comparison_increments,
    curve_increment,
    excess_increment,
    limit_alternatives,
    limit_increment,
    rates_above,
    rates_below,
)
from controller.core.analysis.sequential_tests import (
    NOT_MARKED,
    LimitTest,
    RatioTest,
    SequentialTests,
)
from controller.core.evidence import ArmTotals, Evidence, VisitTotals
from controller.core.judging.carried_tests import identity_of
from controller.core.judging.floors import check_floors
from controller.core.judging.questions import (
    gate_margin,
    limit_share,
    log_tolerated,
    log_tolerated_at_gate,
)
from controller.core.metrics.kind import Observed, VisitSample
from controller.core.plan import Guardrail
from controller.core.rollout import Rollout
from controller.core.serving import decided_share
from controller.core.visits import Visit
from schemas.counters import TESTED_COUNTERS, Shape
from schemas.terms import Arm

#: Observations that each arm must have before a batch is closed. With one treatment observation
#: per batch the observed share is only chance, and an error in it says little. At 50 treatment
#: requests a second it takes 0.2 s.
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
    latencies: Mapping[Arm, Ordered],
    tests: SequentialTests,
    at: datetime,
) -> tuple[SequentialTests, str | None]:
    """Return the tests after everything new in `evidence`, and why none of it could be used.

    The second is a sentence when the present visit's totals fell back, else None. Totals fall back
    when the store lost its last writes. The tests have already used what is counted again then, so
    they use nothing until the totals have passed the mark again. `latencies` are the present
    visit's.
    """
    present = rollout.visit_index
    tests = _enter_visit(rollout, tests, present, at)
    fall: str | None = None
    oldest = _oldest_in_force(rollout, present)
    for index in sorted(evidence.visits):
        if oldest <= index <= present:
            totals = evidence.visits[index]
            tests, visit_fall = _take_visit(rollout, tests, index, totals, latencies, at)
            fall = visit_fall if index == present else fall
    return replace(tests, floors=check_floors(rollout, evidence, tests, at)), fall


def _take_visit(
    rollout: Rollout,
    tests: SequentialTests,
    index: int,
    totals: VisitTotals,
    present: Mapping[Arm, Ordered],
    at: datetime,
) -> tuple[SequentialTests, str | None]:
    """Return the tests after everything new in one visit's totals, and a sentence when they fell.

    `present` are the latencies of the present visit's totals.
    """
    is_present = index == tests.visit
    used = tests.used.get(index, VisitTotals())
    marks = _with_exposures(used, totals)
    latencies = tests.latencies if is_present else None
    before = VisitSample(marks, latencies or {arm: ordered(marks.arm(arm).latency) for arm in Arm})
    now = VisitSample(
        totals,
        {arm: present[arm] if is_present else ordered(totals.arm(arm).latency) for arm in Arm},
    )
    fall = _fallen_counter(before, now)
    share = decided_share(rollout.plan, rollout.visits[index])
    tests = replace(
        tests,
        srm=_checked_share(tests.srm, share, used, marks) if is_present else tests.srm,
        used=tests.used if marks is used else {**tests.used, index: marks},
    )
    if fall is not None:
        return tests, fall

    scheduled = scheduled_bets(rollout, at)
    tests = replace(tests, limits=_check_limits(rollout, tests, index, now, scheduled))
    if not _is_full(tests, before, now, at):
        return tests, None
    used_up = VisitTotals(
        _used(totals.treatment, marks.treatment.exposures, keep_latency=is_present),
        _used(totals.control, marks.control.exposures, keep_latency=is_present),
    )
    tests = replace(
        tests,
        used={**tests.used, index: used_up},
        ratios=_compare(rollout, tests, index, before, now, scheduled),
        latencies=now.latencies if is_present else tests.latencies,
        batches=tests.batches + 1,
        closed_at=at,
    )
    return tests, None


def _enter_visit(
    rollout: Rollout, tests: SequentialTests, present: int, at: datetime
) -> SequentialTests:
    """Return the tests as they stand in the present visit.

    Another rollout starts all tests. Another visit starts only what shows safety, and the test of
    the split.
    """
    identity = identity_of(rollout)
    if tests.identity != identity:
        tests = SequentialTests(identity=identity, closed_at=at)
    if tests.visit == present:
        return tests
    if present > tests.visit >= 0 and _oldest_in_force(rollout, present) > tests.visit:
        return SequentialTests(
            identity=identity, visit=present, batches=tests.batches, closed_at=at, harm=tests.harm
        )
    kept = {
        # A visit that is over keeps its counters for late events, and not its histograms: those
        # are most of the state's size.
        index: VisitTotals(totals.treatment.without_latency(), totals.control.without_latency())
        for index, totals in tests.used.items()
        if index > present - KEPT_VISITS
    }
    return replace(
        tests,
        visit=present,
        srm=sample_ratio.no_evidence(),
        event_count=0,
        last_event_at=None,
        gap_times={},
        judged_at=None,
        looks={},
        counters={},
        used=kept,
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
    """Return the oldest visit whose evidence is about what is served now.

    Lowering the share ends the tests and starts them again, with an alpha of their own. So does
    beginning the same stage again, by `retry` or by a change of its plan. What caused a step back
    must not be found a second time in the stage below. Each of these is announced, so that budget
    is never spent in secret.
    """
    oldest = max(0, present - KEPT_VISITS + 1)
    for index in range(present, oldest, -1):
        before, after = rollout.visits[index - 1], rollout.visits[index]
        # A wider audience often begins at a lower percentage. That is an advance: its stage is
        # later.
        if (after.stage, after.percent) <= (before.stage, before.percent):
            return index
    return oldest


def _with_exposures(seen: VisitTotals, totals: VisitTotals) -> VisitTotals:
    """Return `seen` with the present exposures, which need no batch; fewer change nothing."""
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


def _fallen_counter(before: VisitSample, now: VisitSample) -> str | None:
    """Return the sentence about a counter that is below its mark, None when none is."""
    for arm in _ARMS:
        for counter in TESTED_COUNTERS:
            mark = getattr(before.totals.arm(arm), counter.name)
            count = getattr(now.totals.arm(arm), counter.name)
            if counter.shape is Shape.BY_BUCKET:
                compared = [("", before.latencies[arm].total, now.latencies[arm].total)]
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


def _is_full(tests: SequentialTests, before: VisitSample, now: VisitSample, at: datetime) -> bool:
    """Return whether the open batch of a visit is to be closed."""
    smaller = min(_size(before, now, arm) for arm in _ARMS)
    return smaller >= MIN_BATCH or (smaller > 0 and at - (tests.closed_at or at) >= MAX_OPEN)


def _size(before: VisitSample, now: VisitSample, arm: Arm) -> int:
    """Return the observations in one arm's open batch.

    They are contexts at risk, or new latency values where those are more.
    """
    used, totals = before.totals.arm(arm), now.totals.arm(arm)
    gained = now.latencies[arm].total - before.latencies[arm].total
    # The histograms of a visit that is over were dropped: all its values would look new.
    has_latency = bool(used.latency) or not used.at_risk
    return max(totals.at_risk - used.at_risk, gained if has_latency else 0)


def _compare(
    rollout: Rollout,
    tests: SequentialTests,
    index: int,
    before: VisitSample,
    now: VisitSample,
    scheduled: float,
) -> dict[int, RatioTest]:
    """Return the comparisons with control after the open batch of one visit."""
    is_present = index == tests.visit
    visit = rollout.visits[index]
    ratios = dict(tests.ratios)
    for number, guardrail in enumerate(rollout.plan.guardrails):
        if guardrail.margin is None or not _is_followed(guardrail, visit, is_present=is_present):
            continue
        test = ratios.get(number) or fresh_ratio(guardrail)
        ratios[number] = compare(
            guardrail, test, visit.percent, before, now, scheduled, is_present=is_present
        )
    return ratios


def fresh_ratio(guardrail: Guardrail) -> RatioTest:
    """Return a guardrail's comparison before its first batch."""
    return RatioTest.fresh(len(guardrail.kind.harm_log_weights(log_tolerated(guardrail))))


def compare(
    guardrail: Guardrail,
    test: RatioTest,
    percent: float,
    before: VisitSample,
    now: VisitSample,
    scheduled: float,
    *,
    is_present: bool,
) -> RatioTest:
    """Return one guardrail's comparison with control after a batch in a stage at `percent`."""
    kind = guardrail.kind
    place = kind.place(before.latencies[Arm.CONTROL], test.place)
    batch = _batch(guardrail, before, now, place)
    added = _added(guardrail, percent, before, batch)
    added = added._replace(
        harm=kind.harm_increment(before, now, guardrail.margin or 0.0, added.harm)
    )
    log_weights = kind.harm_log_weights(log_tolerated(guardrail))
    bets = test.bets
    if added.harm is not None:
        bets = bets.after(added.harm, log_weights, scheduled)
    return _after(test, place, batch, added, bets, is_present=is_present)


def _used(totals: ArmTotals, exposures: int, *, keep_latency: bool) -> ArmTotals:
    """Return the part of an arm's totals that the tests remember as used."""
    values = {
        counter.name: getattr(totals, counter.name)
        for counter in TESTED_COUNTERS
        if keep_latency or counter.shape is not Shape.BY_BUCKET
    }
    return ArmTotals(**{**values, "exposures": exposures})


def scheduled_bets(rollout: Rollout, at: datetime) -> float:
    """Return how much of all bets on harm has begun by schedule at `at`."""
    elapsed = at - rollout.visits[0].entered_at
    return scheduled_mass(rollout.visit_index, elapsed.total_seconds())


def _is_followed(guardrail: Guardrail, visit: Visit, *, is_present: bool) -> bool:
    """Return whether a visit's events still reach a guardrail's tests."""
    return guardrail.is_watched_at(visit.percent) and (
        is_present or guardrail.kind.counts_late_events
    )


def _batch(
    guardrail: Guardrail, before: VisitSample, now: VisitSample, place: int | None
) -> Counts | None:
    """Return the batch's counts with treatment's harm as the event, None when it is unusable.

    Counts that contradict each other (more events than observations) come from a recount after
    lost writes: such a batch is left out.
    """
    batch = guardrail.kind.compared(before, now, place, guardrail.margin or 0)
    if batch is None:
        return None
    is_sound = 0 <= batch.k_t <= batch.n_t and 0 <= batch.k_c <= batch.n_c
    return batch if is_sound and batch.n_t > 0 and batch.n_c > 0 else None


class _Added(NamedTuple):
    """A batch's log e-values of harm and of safety, and its part of the curve; None says nothing.

    Safety is "not worse than the gate allows".
    """

    harm: Floats | None = None
    safe: Floats | None = None
    curve: Floats | None = None


def _added(
    guardrail: Guardrail, percent: float, before: VisitSample, batch: Counts | None
) -> _Added:
    """Return what a batch adds to a comparison of rates in a stage at `percent`.

    `before` is the visit before the batch: with a margin in points, the expected rate of control
    is its rate so far.
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
    past = _batch(guardrail, VisitSample(), before, None)
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
    bets: Bets,
    *,
    is_present: bool,
) -> RatioTest:
    """Return one comparison's test after a batch, with its bets on harm.

    What is shown at a gate is of the present visit alone.
    """
    _, safe, curve = added if is_present else _Added()
    return RatioTest(
        bets=bets,
        safe=test.safe if safe is None else test.safe + safe,
        curve=test.curve if curve is None else test.curve + curve,
        counts=Counts(*map(operator.add, test.counts, batch))
        if is_present and batch is not None
        else test.counts,
        harmed=test.harmed if batch is None else test.harmed + batch.k_t,
        place=place,
    )


def _check_limits(
    rollout: Rollout, tests: SequentialTests, index: int, now: VisitSample, scheduled: float
) -> Mapping[int, LimitTest]:
    """Return the tests against each limit after what is new in treatment.

    There is no batch to wait for: a likelihood ratio against a fixed share is the same however the
    observations are divided.
    """
    limits = dict(tests.limits)
    arm, latency = now.totals.treatment, now.latencies[Arm.TREATMENT]
    for number, guardrail in enumerate(rollout.plan.guardrails):
        if guardrail.limit is None or guardrail.has_floor:
            continue
        if not _is_followed(guardrail, rollout.visits[index], is_present=index == tests.visit):
            continue
        observed = guardrail.kind.observed(arm, latency, guardrail.limit)
        test = limits.get(number) or LimitTest.fresh(len(LOG_RATIOS))
        limits[number] = check_limit(test, limit_share(guardrail), index, observed, scheduled)
    return limits


def check_limit(
    test: LimitTest, share: float, index: int, observed: Observed, scheduled: float
) -> LimitTest:
    """Return one limit's test after visit `index` has come to the `observed` counts.

    Counts that have not grown, or that contradict each other after a recount, change nothing.
    """
    mark = test.used.get(index, (0, 0))
    if mark == NOT_MARKED:
        return replace(test, used={**test.used, index: (observed.trials, observed.events)})
    used_trials, used_events = mark
    trials, events = observed.trials - used_trials, observed.events - used_events
    if not 0 <= events <= trials or trials == 0:
        return test
    increment = limit_increment(share, trials, events, is_above=True)
    log_weights = limit_alternatives(share, is_above=True)[2].log_weights
    earlier = test.recent if test.bets.has_recent_evidence else (0, 0)
    return LimitTest(
        bets=test.bets.after(increment, log_weights, scheduled),
        harmed=test.harmed + events,
        used={**test.used, index: (observed.trials, observed.events)},
        recent=(earlier[0] + trials, earlier[1] + events),
    )
