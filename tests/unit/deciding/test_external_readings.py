"""Asking for external metrics: when, how often, and what the answers make of a metric."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.core.evidence import Reading
from controller.core.plan import CounterQueries
from controller.core.rollout import Rollout
from controller.deciding.external_readings import (
    ExternalReadings,
    QueryAnswer,
    reading_of,
    why_unmeasured,
)
from controller.ports import CounterSample, Sample
from schemas.terms import Arm, MeasurementGap
from tests.builders import T0, make_external, make_plan, make_rollout
from tests.monitoring import Monitoring
from tests.virtual_time import LoopClock, in_virtual_time

SECOND = timedelta(seconds=1)
NOW = T0.timestamp()


def running(*metrics: Any, flag_key: str = "f", **fields: Any) -> Rollout:
    """Return a rollout that bakes at 10 % and has these external metrics."""
    return make_rollout(plan=make_plan(flag_key=flag_key, external=metrics), **fields)


def answers(*samples: Sample | MeasurementGap, asked_at: Any = T0) -> list[QueryAnswer | None]:
    """Return the answers to a metric's queries, asked at one time."""
    return [
        QueryAnswer(asked_at, asked_at, one)
        if isinstance(one, Sample)
        else QueryAnswer(asked_at, asked_at, None, one, f"it is {one.value}")
        for one in samples
    ]


async def ask_for(seconds: float, monitoring: Monitoring, *rollouts: Rollout) -> ExternalReadings:
    """Return the readings after asking for some virtual time."""
    clock = LoopClock()
    readings = ExternalReadings(monitoring, lambda: {one.flag_key: one for one in rollouts}, clock)

    task = asyncio.create_task(readings.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait({task})
    return readings


@in_virtual_time
async def test_each_query_is_asked_at_once_and_then_every_so_often() -> None:
    """Ten seconds apart from the first one on."""
    monitoring = Monitoring()
    await ask_for(31, monitoring, running(make_external(every=10 * SECOND)))
    assert monitoring.asked == ["t"] * 4


@in_virtual_time
async def test_flags_that_ask_the_same_share_the_answer() -> None:
    """It is asked as often as the most frequent of them wants."""
    monitoring = Monitoring({"t": Sample(0.2, NOW)})
    first = running(make_external(every=20 * SECOND), flag_key="a")
    second = running(make_external(every=5 * SECOND), flag_key="b")
    readings = await ask_for(21, monitoring, first, second)
    assert monitoring.asked == ["t"] * 5
    assert readings.of(first) == readings.of(second) != {}


@in_virtual_time
async def test_what_is_not_watched_is_not_asked() -> None:
    """Not in another stage, not after the end, and not of a blind plan."""
    monitoring = Monitoring()
    metric = make_external()
    blind = make_rollout(plan=make_plan(external=(metric,), blind=True, guardrails=()))
    later = running(replace(metric, from_percent=50.0))
    readings = await ask_for(60, monitoring, blind, later, make_rollout())
    assert monitoring.asked == []
    assert readings.of(blind) == {}


class Hanging(Monitoring):
    """Answers one query never."""

    async def sample(self, query: str) -> Sample:
        """Return what was set, later than any test for the one that hangs."""
        if query == "hangs":
            self.asked.append(query)
            await asyncio.sleep(10_000)
        return await super().sample(query)


@in_virtual_time
async def test_a_query_that_hangs_delays_no_other() -> None:
    """It is asked once, and the other one again and again."""
    monitoring = Hanging({"t": Sample(0.2, NOW)})
    one = running(make_external(every=5 * SECOND), flag_key="a")
    other = running(make_external(treatment="hangs", every=5 * SECOND), flag_key="b")
    readings = await ask_for(21, monitoring, one, other)
    assert (monitoring.asked.count("t"), monitoring.asked.count("hangs")) == (5, 1)
    assert readings.of(one)["p95"].treatment == 0.2
    assert readings.of(other) == {}


class Broken(Monitoring):
    """Has a mistake of ours."""

    async def sample(self, query: str) -> Sample:
        """Raise what no adapter should."""
        if query == "broken":
            raise KeyError("x")
        return await super().sample(query)


@in_virtual_time
async def test_a_mistake_in_one_query_is_a_gap_of_its_own() -> None:
    """The loop goes on, and the other metrics are measured."""
    monitoring = Broken({"t": Sample(0.2, NOW)})
    rollout = running(make_external(), make_external(name="other", treatment="broken"))
    found = (await ask_for(1, monitoring, rollout)).of(rollout)
    assert found["p95"].treatment == 0.2
    assert found["other"].gap is MeasurementGap.NO_ANSWER


@in_virtual_time
async def test_answers_of_a_query_that_nobody_wants_are_forgotten() -> None:
    """Memory is bounded by what is watched."""
    rollouts = {"f": running(make_external())}
    monitoring = Monitoring({"t": Sample(0.2, NOW)})
    readings = ExternalReadings(monitoring, lambda: rollouts, LoopClock())
    kept = []

    task = asyncio.create_task(readings.run())
    await asyncio.sleep(1)
    kept.append(readings.of(rollouts["f"]))
    rollout = rollouts.pop("f")
    await asyncio.sleep(1)
    kept.append(readings.of(rollout))
    task.cancel()
    await asyncio.wait({task})
    assert (len(kept[0]), len(kept[1])) == (1, 0)


# --- what the answers make of a metric ---


def test_a_reading_has_the_times_of_its_oldest_and_newest_question() -> None:
    """A new answer for treatment alone is no new look at both."""
    metric = make_external(control="c")
    older, newer = T0, T0 + 30 * SECOND
    both = [
        QueryAnswer(newer, newer, Sample(0.4, NOW + 30)),
        QueryAnswer(older, older, Sample(0.2, NOW)),
    ]
    assert reading_of(metric, both) == Reading(newer, older, 0.4, 0.2)
    assert reading_of(metric, [both[0], None]) is None


@pytest.mark.parametrize("gap", list(MeasurementGap))
@pytest.mark.parametrize("place", range(3))
def test_any_query_without_a_number_leaves_the_metric_without_one(
    gap: MeasurementGap, place: int
) -> None:
    """Also the one for the newest sample: how old the others are is not known then."""
    found: list[Sample | MeasurementGap] = [Sample(1, NOW), Sample(1, NOW), Sample(NOW, NOW)]
    found[place] = gap
    metric = make_external(control="c", newest="n")
    assert reading_of(metric, answers(*found)) == Reading(
        T0, T0, gap=gap, words=f"it is {gap.value}"
    )


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (120, None),
        (121, "its newest sample is 121 s old"),
        (-120, None),
        (-121, "its newest sample is 121 s ahead of the clock: do the clocks agree?"),
    ],
)
def test_an_old_sample_is_no_number(age: float, words: str | None) -> None:
    """Prometheus computes rates from old samples, too."""
    metric = make_external(newest="n")
    reading = reading_of(metric, answers(Sample(0.2, NOW), Sample(NOW - age, NOW)))
    assert reading is not None
    assert (reading.gap, reading.words) == (
        (None, "") if words is None else (MeasurementGap.LATE, words)
    )


def test_an_answer_out_of_a_cache_is_late() -> None:
    """A proxy before Prometheus may give what was computed an hour ago."""
    reading = reading_of(make_external(), answers(Sample(0.2, NOW - 3600)))
    assert reading == Reading(T0, T0, gap=MeasurementGap.LATE, words="the answer is 3,600 s old")


COUNTED = make_external(
    name="errors",
    treatment=CounterQueries(bad="b", total="t"),
    control=CounterQueries(bad="c", total="d"),
)
VALUES: Any = {arm: {"bad": {}, "total": {"a": 5.0}} for arm in Arm}


@in_virtual_time
async def test_counters_are_asked_for_at_once_and_shared_among_flags() -> None:
    """One question for both arms; its answer is a reading without a number."""
    (question,) = COUNTED.queries
    monitoring = Monitoring({question: CounterSample(VALUES, NOW)})
    rollouts = running(COUNTED, flag_key="a"), running(COUNTED, flag_key="b")
    readings = await ask_for(1, monitoring, *rollouts)
    assert monitoring.asked == [question]
    first, second = (readings.of(one)["errors"] for one in rollouts)
    assert first == second == Reading(first.at, first.since, counters=VALUES)


def test_counters_out_of_a_cache_are_late() -> None:
    """As a number is."""
    answer = QueryAnswer(T0, T0, CounterSample(VALUES, NOW - 3600))
    reading = reading_of(COUNTED, [answer])
    assert reading == Reading(T0, T0, gap=MeasurementGap.LATE, words="the answer is 3,600 s old")


# --- before the start ---


@in_virtual_time
async def test_a_start_is_told_of_queries_that_cannot_work_and_not_of_silence() -> None:
    """Before the start treatment has no series, which is as it should be."""
    monitoring = Monitoring(
        {
            "wrong": MeasurementGap.REFUSED,
            "many": MeasurementGap.SEVERAL_SERIES,
            "silent": MeasurementGap.NO_DATA,
            "good": Sample(1, NOW),
        }
    )
    names = ("wrong", "many", "silent", "good")
    plan = make_plan(external=tuple(make_external(name=one, treatment=one) for one in names))

    end = "no gate can pass without it"
    assert await why_unmeasured(monitoring, plan, T0) == (
        f"external metric wrong cannot be measured (the test says refused): {end}",
        f"external metric many cannot be measured (the test says several_series): {end}",
    )
