"""External metrics of counters: from their increments to the same tests that events have.

    a look        what the counters have risen by since the last look in this visit
    a missed one  nothing is lost: the next look has the increments of both
    a restart     the counter begins at 0 again; what it has counted since is counted
    no increment  no evidence; an arm whose counters no longer rise is a gap

The increments are tested as the share of failed user actions is: against control by the sequential
test of proportions, against the limit by the likelihood ratio, both with the guardrail's part of
alpha. Unlike user actions they are single events. Where one user can cause many bad ones, they
depend on each other, and alpha is not kept, unless the plan says how many (`repeats`). Then so many
count as one: evidence is linear in the counts, so it is divided by that number, and the product of
as many dependent e-values, each to that power, has a mean of at most 1 (Hoelder's inequality).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Final

from controller.core.analysis.counter_marks import LARGEST, CounterMarks, increment
from controller.core.analysis.latency import ordered
from controller.core.analysis.proportion import LOG_RATIOS, NOTHING, Counts
from controller.core.analysis.sequential_tests import LimitTest, SequentialTests
from controller.core.evidence import ArmTotals, Evidence, Reading, VisitTotals
from controller.core.judging.batches import (
    MAX_OPEN,
    MIN_BATCH,
    check_limit,
    compare,
    fresh_ratio,
    scheduled_bets,
)
from controller.core.judging.questions import limit_share
from controller.core.metrics.kind import Observed, VisitSample
from controller.core.plan import CounterQueries, ExternalMetric, Guardrail, Plan
from controller.core.rollout import Rollout
from schemas.terms import Arm, HealthGap

_NO_LATENCY: Final = {arm: ordered({}) for arm in Arm}


def counted_metrics(plan: Plan, percent: float) -> Iterator[tuple[int, Guardrail, ExternalMetric]]:
    """Yield number in `Plan.tested`, guardrail and metric of each that judges a stage."""
    number = len(plan.guardrails)
    for metric in plan.external:
        if not metric.is_counted or plan.blind:
            continue
        guardrail = plan.tested[number]
        if guardrail.is_watched_at(percent):
            yield number, guardrail, metric
        number += 1


def take_counters(
    rollout: Rollout, evidence: Evidence, tests: SequentialTests, at: datetime
) -> SequentialTests:
    """Return the tests after the increments of every answer that is newer than the last look.

    An answer from before the stage counted, or while the flag was closed, is no look at it.
    """
    visit = rollout.visits[-1]
    if rollout.closed_since is not None:
        return tests
    since = visit.counting_since
    for number, guardrail, metric in counted_metrics(rollout.plan, visit.percent):
        reading = evidence.readings.get(metric.name)
        marks = tests.counters.get(metric.name, CounterMarks())
        if marks.at < since.timestamp():  # it was closed meanwhile: what rose then is not looked at
            marks = replace(marks, series={})
        if reading is None or reading.counters is None or reading.since < since:
            continue
        if reading.since.timestamp() <= marks.at:
            continue
        marks = _after_look(marks, reading)
        tests = replace(tests, counters={**tests.counters, metric.name: marks})
        tests = _tested(rollout, number, guardrail, metric, tests, at)
    return tests


def _after_look(marks: CounterMarks, reading: Reading) -> CounterMarks:
    """Return the marks after a reading of the counters."""
    assert reading.counters is not None
    now = reading.at.timestamp()
    rises = {
        arm: increment(marks.series.get(arm, {}), parts) for arm, parts in reading.counters.items()
    }
    fault = "; ".join(f"{arm}'s {rise.fault}" for arm, rise in rises.items() if rise.fault)
    used = {} if fault else rises  # of one arm alone nothing is used: both are of the same time
    added = NOTHING
    if treatment := used.get(Arm.TREATMENT):
        added = added._replace(n_t=treatment.events, k_t=treatment.bad)
    if control := used.get(Arm.CONTROL):
        added = added._replace(n_c=control.events, k_c=control.bad)
    counts = Counts(*(sum(pair) for pair in zip(marks.counts, added, strict=True)))
    if max(counts) > LARGEST:
        fault = f"more than {LARGEST:.3g} events in this stage: counters of events are needed"
        counts = marks.counts
    return CounterMarks(
        at=now,
        series={arm: rise.marks for arm, rise in rises.items()},
        counts=counts,
        tested=marks.tested,
        closed_at=marks.closed_at or now,
        rose_at={
            arm: now if rise.events else marks.rose_at.get(arm, now) for arm, rise in rises.items()
        },
        looks=marks.looks + 1,
        resets=marks.resets + sum(rise.resets for rise in rises.values()),
        fault=fault,
    )


def _tested(
    rollout: Rollout,
    number: int,
    guardrail: Guardrail,
    metric: ExternalMetric,
    tests: SequentialTests,
    at: datetime,
) -> SequentialTests:
    """Return the tests after everything new in a metric's counts."""
    marks, scheduled = tests.counters[metric.name], scheduled_bets(rollout, at)
    now = counted_sample(marks.counts, metric.repeats)
    if guardrail.limit is not None:
        test = tests.limits.get(number) or LimitTest.fresh(len(LOG_RATIOS))
        treatment = now.totals.treatment
        observed = Observed(treatment.at_risk, treatment.first_errors)
        share = limit_share(guardrail)
        limit = check_limit(test, share, rollout.visit_index, observed, scheduled)
        tests = replace(tests, limits={**tests.limits, number: limit})
    if guardrail.margin is None or not _is_full(marks, metric.repeats):
        return tests
    ratio = compare(
        guardrail,
        tests.ratios.get(number) or fresh_ratio(guardrail),
        rollout.visits[-1].percent,
        counted_sample(marks.tested, metric.repeats),
        now,
        scheduled,
        is_present=True,
    )
    closed = replace(marks, tested=marks.counts, closed_at=marks.at)
    return replace(
        tests,
        ratios={**tests.ratios, number: ratio},
        counters={**tests.counters, metric.name: closed},
        batches=tests.batches + 1,
    )


def _is_full(marks: CounterMarks, repeats: int) -> bool:
    """Return whether the open batch is to be closed, as a batch of events is."""
    now, before = marks.counts, marks.tested
    smaller = min(now.n_t - before.n_t, now.n_c - before.n_c) // repeats
    is_old = marks.at - marks.closed_at >= MAX_OPEN.total_seconds()
    return smaller >= MIN_BATCH or (smaller > 0 and is_old)


def counted_sample(counts: Counts, repeats: int) -> VisitSample:
    """Return counts in the form that a guardrail's tests and report read."""
    n_t, k_t, n_c, k_c = (count // repeats for count in counts)
    return VisitSample(VisitTotals(_arm(n_t, k_t), _arm(n_c, k_c)), _NO_LATENCY)


def _arm(events: int, bad: int) -> ArmTotals:
    """Return an arm whose user actions are the events of counters."""
    return ArmTotals(at_risk=events, first_errors=bad, outcomes=events, errors=bad)


def counters_trouble(
    metric: ExternalMetric, marks: CounterMarks, at: datetime
) -> tuple[HealthGap, str] | None:
    """Return why the counters say nothing about now although they were answered; None: they do."""
    if marks.fault:
        return HealthGap.METRIC_REFUSED, marks.fault
    longest = max(metric.newest_within, 3 * metric.every).total_seconds()
    for arm, rose_at in marks.rose_at.items():
        if (age := at.timestamp() - rose_at) > longest:
            words = f"{arm}'s counters have not risen for {age:,.0f} s"
            return HealthGap.METRIC_LATE, words
    return None


def statistic_words(metric: ExternalMetric, marks: CounterMarks) -> str:
    """Return in words what a report of counters rests on."""
    each = f"; {metric.repeats} events count as one" if metric.repeats > 1 else ""
    unseen = "; no `bad` counter has ever counted: is its query right?"
    resets = f", {marks.resets} of them across a restart" if marks.resets else ""
    return (
        f"sequential test of proportions on the increments of counters between {marks.looks:,} "
        f"looks in this stage{resets}{each}{unseen if _is_bad_unseen(metric, marks) else ''}"
    )


def _is_bad_unseen(metric: ExternalMetric, marks: CounterMarks) -> bool:
    """Return whether the counters of bad events may as well be a name that nothing has.

    Many programs show a counter only once it has risen, so no series is no gap; but 0 bad events
    out of a wrong name look exactly as good.
    """
    if not isinstance(metric.treatment, CounterQueries) or metric.treatment.bad is None:
        return False
    values = [bad for series in marks.series.values() for _, bad in series.values()]
    return bool(values) and not any(values) and marks.counts.k_t + marks.counts.k_c == 0
