"""Floors: whether treatment falls short of an absolute limit that it must stay above.

Conversions come late. A context counts when it has had the guardrail's time to convert (`within`)
since it was exposed, and every conversion counts that has come by then, also those of younger
contexts. More conversions make a shortfall less likely, so that slow conversions never make an
alarm, whatever the traffic does.

There is no restart within a stage: the contexts of a stage are judged together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from controller.core.analysis.latency import ordered
from controller.core.analysis.proportion import LOG_RATIOS, limit_increment
from controller.core.analysis.sequential_tests import FloorTest, SequentialTests
from controller.core.evidence import Evidence, VisitTotals
from controller.core.judging.questions import limit_share
from controller.core.metrics.kind import Observed
from controller.core.plan import Guardrail
from controller.core.rollout import Rollout
from controller.core.visits import Visit
from schemas.terms import Arm

#: Exposures are remembered at so many moments of `within`, and at most twice as many.
MOMENTS = 32
#: The part of all bets that begins with the first visit. Of the rest, the n-th later visit has 1 /
#: (n (n + 1)).
FIRST_MASS = 0.7
_NO_LATENCIES = ordered({})


def check_floors(
    rollout: Rollout, evidence: Evidence, tests: SequentialTests, at: datetime
) -> Mapping[int, FloorTest]:
    """Return the tests against each floor after what has become old enough in the present visit.

    Outcomes have to be counted up to a moment before anything of it is judged. Where one partition
    is behind, or has lost records, nothing becomes older.
    """
    index, visit = rollout.visit_index, rollout.visits[-1]
    # While it is closed no conversion counts, so no context gets time to convert.
    counted_until = _counted_until(evidence, min(at, rollout.closed_since or at))
    losses = [loss for partition in evidence.partitions for loss in partition.losses]
    if any(loss.touches(visit.counts_from, at) for loss in losses):
        counted_until = None
    floors = dict(tests.floors)
    totals = evidence.visits.get(index, VisitTotals())
    for number, guardrail in enumerate(rollout.plan.guardrails):
        if guardrail.has_floor and guardrail.is_watched_at(visit.percent):
            test = _entered(floors.get(number), index, visit)
            floors[number] = _check_floor(test, guardrail, totals, counted_until, at)
    return floors


def _counted_until(evidence: Evidence, at: datetime) -> datetime | None:
    """Return up to when all events are counted, None while that is not known."""
    if not evidence.partitions or len(evidence.partitions) < evidence.expected_partitions:
        return None
    moments = [
        partition.freshest if partition.lag else partition.reported_at
        for partition in evidence.partitions
    ]
    known = [moment for moment in moments if moment is not None]
    return min(*known, at) if len(known) == len(moments) else None


def _entered(test: FloorTest | None, index: int, visit: Visit) -> FloorTest:
    """Return the test in a visit: another one keeps the evidence, and a new bet begins.

    So does a visit that was closed and is open again. Contexts from before the closing may have
    converted while nothing was counted, so those that still had time are not judged.
    """
    has_opened = visit.counting_since > visit.counts_from
    opened = visit.counting_since.timestamp() if has_opened else None
    if test is None:
        return replace(FloorTest.fresh(len(LOG_RATIOS), FIRST_MASS, index), opened=opened)
    if (test.visit, test.opened) == (index, opened):
        return test
    later = test.later_visits + 1
    entered = test.in_new_visit(index, (1 - FIRST_MASS) / (later * (later + 1)))
    before = None if test.visit == index else entered.before
    return replace(entered, opened=opened, before=before)


def _check_floor(
    test: FloorTest,
    guardrail: Guardrail,
    totals: VisitTotals,
    counted_until: datetime | None,
    at: datetime,
) -> FloorTest:
    """Return one floor's test after the present visit's totals."""
    exposed, converted = _converted(guardrail, totals, Arm.TREATMENT)
    # Conversions since then are at least those of the contexts since then, so this is exact too.
    before = test.before or (exposed, converted)
    waiting = _with_moment(test.waiting, at.timestamp(), exposed, guardrail.within)
    trials = test.trials
    if counted_until is not None:
        old_enough = (counted_until - guardrail.within).timestamp()
        ready = [count - before[0] for moment, count in waiting if moment <= old_enough]
        trials = max([trials, *ready])
        waiting = waiting[len(ready) :]
    if before[0] + trials > exposed:  # totals that fell back, until they are counted again
        return replace(test, waiting=waiting)
    events = min(max(converted - before[1], 0), trials)
    return replace(
        test,
        present=limit_increment(limit_share(guardrail), trials, events, is_above=False),
        trials=trials,
        events=events,
        waiting=waiting,
        is_reported=test.is_reported or converted > 0 or _is_reported(guardrail, totals),
        before=before,
    )


def _converted(guardrail: Guardrail, totals: VisitTotals, arm: Arm) -> Observed:
    """Return one arm's exposed contexts, and those that converted."""
    return guardrail.kind.observed(totals.arm(arm), _NO_LATENCIES, guardrail.limit)


def _is_reported(guardrail: Guardrail, totals: VisitTotals) -> bool:
    """Return whether there is no control, or a context of it has converted."""
    exposed, converted = _converted(guardrail, totals, Arm.CONTROL)
    return exposed == 0 or converted > 0


def _with_moment(
    waiting: tuple[tuple[float, int], ...], now: float, exposed: int, within: timedelta
) -> tuple[tuple[float, int], ...]:
    """Return the remembered moments with the present one, if the last is old enough."""
    apart = within.total_seconds() / MOMENTS
    if waiting and now - waiting[-1][0] < apart:
        return waiting
    if len(waiting) >= 2 * MOMENTS:  # counting is behind: remember every second moment
        waiting = waiting[::2]
    return (*waiting, (now, exposed))
