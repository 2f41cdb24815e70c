"""Asks for the external metrics of the rollouts that run here, and keeps the newest answers.

A query that several metrics or flags have in common is asked once, as often as the most frequent of
them wants. Each has its own deadline, so that one that hangs delays no other.

Belongs here: when a query is asked, and what its answers make of a metric. Does not belong here:
how a system is asked (`adapters/measuring/`), what an answer means (`core/judging/external.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from controller.cancellation import task_group
from controller.core.evidence import Reading
from controller.core.plan import CounterQuestion, ExternalMetric, Plan
from controller.core.rollout import Rollout
from controller.errors import NotMeasured
from controller.ports import Clock, CounterSample, Queries, Sample
from schemas.terms import MeasurementGap

#: How often it is looked what is due.
LOOK_SECONDS: Final = 0.5
#: Questions at once.
_AT_ONCE: Final = 16
#: Of a query that could not be asked because of a mistake of ours.
_MOST_WORDS: Final = 200
#: Gaps that a plan's author can do something about before its rollout has begun to serve.
_TOLD_AT_START: Final = (
    MeasurementGap.REFUSED,
    MeasurementGap.NO_ANSWER,
    MeasurementGap.SEVERAL_SERIES,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """The newest answer to one query."""

    due_at: datetime  # one time for all that was due together
    asked_at: datetime  # after it had waited for its turn
    sample: Sample | CounterSample | None  # None: there is no number
    gap: MeasurementGap | None = None
    words: str = ""


class ExternalReadings:
    """The newest answers for the rollouts that run here."""

    def __init__(
        self, queries: Queries, rollouts: Callable[[], Mapping[str, Rollout]], clock: Clock
    ) -> None:
        """`rollouts` returns those that run here and have external metrics, by flag."""
        self._queries = queries
        self._rollouts = rollouts
        self._clock = clock
        self._answers: dict[str | CounterQuestion, QueryAnswer] = {}
        self._asked: set[str | CounterQuestion] = set()  # under way
        self._free = asyncio.Semaphore(_AT_ONCE)

    def of(self, rollout: Rollout) -> Mapping[str, Reading]:
        """Return the newest reading of each external metric that judges the present stage."""
        found = {}
        for metric in _watched(rollout):
            reading = reading_of(metric, [self._answers.get(one) for one in metric.queries])
            if reading is not None:
                found[metric.name] = reading
        return found

    async def run(self) -> None:
        """Ask what is due until cancelled."""
        self._asked.clear()
        async with task_group() as questions:
            while True:
                wanted = self._wanted()
                for query in self._answers.keys() - wanted.keys():
                    del self._answers[query]
                now = self._clock.now()
                for query, every in wanted.items():
                    last = self._answers.get(query)
                    is_due = last is None or now - last.due_at >= every
                    if is_due and query not in self._asked:
                        self._asked.add(query)
                        questions.create_task(self._ask(query, now), name="external metric")
                await asyncio.sleep(LOOK_SECONDS)

    def _wanted(self) -> Mapping[str | CounterQuestion, timedelta]:
        """Return how often each query is to be asked."""
        wanted: dict[str | CounterQuestion, timedelta] = {}
        for rollout in self._rollouts().values():
            for metric in _watched(rollout):
                for query in metric.queries:
                    wanted[query] = min(metric.every, wanted.get(query, metric.every))
        return wanted

    async def _ask(self, query: str | CounterQuestion, due_at: datetime) -> None:
        async with self._free:
            answer = await ask(self._queries, query, due_at, self._clock.now())
        before = self._answers.get(query)
        self._answers[query] = answer
        self._asked.discard(query)
        if (None if before is None else before.gap) != answer.gap:
            log.info("external_metric_answers", query=query, gap=answer.gap, words=answer.words)


async def ask(
    queries: Queries, query: str | CounterQuestion, due_at: datetime, now: datetime
) -> QueryAnswer:
    """Return the answer to a query, which may be that there is no number."""
    try:
        if isinstance(query, str):
            return QueryAnswer(due_at, now, await queries.sample(query))
        return QueryAnswer(due_at, now, await queries.counters(query))
    except NotMeasured as trouble:
        return QueryAnswer(due_at, now, None, trouble.gap, str(trouble))
    except Exception as mistake:  # ours: the other queries go on, and this one is a gap
        log.exception("external_metric_failed", query=query)
        return QueryAnswer(due_at, now, None, MeasurementGap.NO_ANSWER, repr(mistake)[:_MOST_WORDS])


def reading_of(metric: ExternalMetric, answers: Sequence[QueryAnswer | None]) -> Reading | None:
    """Return what the answers to a metric's queries say, in their order; None: not all came."""
    known = [one for one in answers if one is not None]
    if len(known) < len(answers) or not known:
        return None
    times = [one.due_at for one in known]
    at, since = max(times), min(times)
    samples: list[Sample] = []
    for answer in known:
        if answer.sample is None:
            return Reading(at, since, gap=answer.gap, words=answer.words)
        age = answer.asked_at.timestamp() - answer.sample.evaluated_at
        if abs(age) > metric.newest_within.total_seconds():
            return Reading(at, since, gap=MeasurementGap.LATE, words=_late("the answer", age))
        if isinstance(answer.sample, CounterSample):
            return Reading(at, since, counters=answer.sample.values)
        samples.append(answer.sample)
    if metric.newest is not None:
        newest = samples.pop()
        age = newest.evaluated_at - newest.value
        if abs(age) > metric.newest_within.total_seconds():
            return Reading(
                at, since, gap=MeasurementGap.LATE, words=_late("its newest sample", age)
            )
    control = samples[1].value if metric.control is not None else None
    return Reading(at, since, samples[0].value, control)


def _late(what: str, age: float) -> str:
    if age >= 0:
        return f"{what} is {age:,.0f} s old"
    return f"{what} is {-age:,.0f} s ahead of the clock: do the clocks agree?"


async def why_unmeasured(queries: Queries, plan: Plan, now: datetime) -> tuple[str, ...]:
    """Return what is wrong with a plan's external metrics before its rollout serves anybody.

    That nothing is measured yet is not wrong.
    """
    asked = [(metric, query) for metric in plan.external for query in metric.queries]
    answers = await asyncio.gather(*(ask(queries, query, now, now) for _, query in asked))
    wrong: dict[str, str] = {}
    for (metric, _), answer in zip(asked, answers, strict=True):
        if answer.gap in _TOLD_AT_START:
            wrong.setdefault(metric.name, answer.words)
    return tuple(
        f"external metric {name} cannot be measured ({words}): no gate can pass without it"
        for name, words in wrong.items()
    )


def _watched(rollout: Rollout) -> tuple[ExternalMetric, ...]:
    """Return the external metrics that judge a rollout now."""
    if not rollout.plan.external or rollout.has_ended or not rollout.visits:
        return ()
    if rollout.stage_index is None:
        return ()
    return rollout.plan.external_at(rollout.visits[-1].percent)
