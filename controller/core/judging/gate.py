"""Evidence to judgement: is it healthy enough to judge, is treatment worse, is it shown not worse.

Everything here is pure: what is remembered between two checks goes in and comes out as
`SequentialTests`. The state machine decides what a verdict leads to, together with advice and
people. Formulas are in `core/analysis`, gaps in `gaps.py`, budgets and vetoes in `questions.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from controller.core.analysis import sample_ratio
from controller.core.analysis.change_point import as_e_value
from controller.core.analysis.counter_marks import CounterMarks
from controller.core.analysis.latency import Ordered, ordered
from controller.core.analysis.sequential_tests import GapTime, SequentialTests, VisitHarm
from controller.core.evidence import Evidence, VisitTotals
from controller.core.judging import gaps, staleness
from controller.core.judging.batches import take_evidence
from controller.core.judging.counters import (
    counted_metrics,
    counted_sample,
    statistic_words,
    take_counters,
)
from controller.core.judging.external import (
    external_gaps,
    external_reports,
    harm_scale,
    take_readings,
)
from controller.core.judging.gap_times import follow
from controller.core.judging.judgement import Gap, Harm, Judgement, MetricReport
from controller.core.judging.questions import alpha_shares
from controller.core.judging.reports import harm_e_value, report
from controller.core.judging.webhooks import current_replies, webhook_gaps
from controller.core.metrics import external_name
from controller.core.plan import Guardrail
from controller.core.rollout import Rollout
from controller.core.visits import Visit
from schemas.terms import Arm

_NEW = GapTime()


class Observation(NamedTuple):
    """The evidence of the present visit, after the tests have used it."""

    visit: Visit
    totals: VisitTotals
    latencies: Mapping[Arm, Ordered]
    tests: SequentialTests
    fall: str | None  # the sentence about totals that fell back; None: they did not


def observe(
    rollout: Rollout, evidence: Evidence, tests: SequentialTests, at: datetime
) -> Observation:
    """Return the present visit's evidence, and the tests after it.

    `at` is UTC now, never earlier than in the previous call. The same evidence twice changes no
    test. Raises ValueError for a rollout that has not entered a stage.
    """
    if not rollout.visits:
        raise ValueError(
            f"rollout {rollout.rollout_id} of {rollout.flag_key} has not entered a stage yet"
        )
    totals = evidence.visits.get(rollout.visit_index, VisitTotals())
    latencies = {arm: ordered(totals.arm(arm).latency) for arm in Arm}
    tests, fall = take_evidence(rollout, evidence, latencies, tests, at)
    tests = take_readings(rollout, evidence, tests)
    tests = take_counters(rollout, evidence, tests, at)
    return Observation(rollout.visits[-1], totals, latencies, tests, fall)


def judge(
    rollout: Rollout, evidence: Evidence, tests: SequentialTests, at: datetime
) -> tuple[Judgement, SequentialTests]:
    """Return what all the evidence says about the present visit, and the tests after it.

    `at` is as in `observe`, and so is what is raised. Harm is judged whatever the gaps are and
    below `min_sample` too: the tests are exact at the smallest counts, and a breach must not wait.
    """
    observation = observe(rollout, evidence, tests, at)
    totals = observation.totals
    event_count, last_event_at = _liveness(observation, at)
    tests = replace(
        observation.tests,
        event_count=event_count,
        last_event_at=last_event_at,
        harm=_count_harm(rollout, evidence, observation.tests.harm),
    )
    exposures = {arm: totals.arm(arm).exposures for arm in (Arm.TREATMENT, Arm.CONTROL)}
    exposed = sum(exposures.values())
    srm_e_value = as_e_value(sample_ratio.log_e_value(tests.srm))
    is_blind = rollout.plan.blind
    is_counted = not is_blind and rollout.closed_since is None  # else nothing counted is no gap
    incomplete = _incomplete(rollout, evidence, observation, at) if is_counted else None
    replies = current_replies(rollout, evidence, at)
    found = (
        *(
            _gaps(rollout, evidence, observation, last_event_at, srm_e_value, incomplete, at)
            if is_counted
            else gaps.plane_drift(evidence)
        ),
        *webhook_gaps(replies),
    )
    tests = _gap_times(rollout, tests, found, at)
    judgement = Judgement(
        at=at,
        visit=rollout.visit_index,
        gaps=tuple(
            replace(gap, lasted_seconds=tests.gap_times.get(gap.kind, _NEW).lasted) for gap in found
        ),
        metrics=()
        if is_blind
        else (
            *_reports(rollout, observation, at),
            *external_reports(rollout, evidence, tests, at),
        ),
        harm=Harm(
            exposed_contexts=sum(harm.exposed_contexts for harm in tests.harm.values()),
            failed_requests=sum(harm.failed_requests for harm in tests.harm.values()),
            excess_failed_requests=sum(harm.excess_failed_requests for harm in tests.harm.values()),
        ),
        exposures=exposures,
        srm_e_value=srm_e_value,
        observed_share=exposures[Arm.TREATMENT] / exposed if exposed else None,
        offsets={
            partition.topic_partition: partition.next_offset for partition in evidence.partitions
        },
        batches=tests.batches,
        gap_times=tests.gap_times,
        incomplete=incomplete,
        replies=replies,
    )
    return judgement, tests


def _incomplete(
    rollout: Rollout, evidence: Evidence, observation: Observation, at: datetime
) -> str | None:
    """Return why less is counted than has happened in the present visit, None where all is."""
    return staleness.uncounted(rollout.plan, observation.visit, evidence, observation.fall, at)


def _gap_times(
    rollout: Rollout, tests: SequentialTests, found: tuple[Gap, ...], at: datetime
) -> SequentialTests:
    """Return the tests with how long each gap has lasted.

    While settling no gap has begun, and none that was there before a closing goes on after it.
    """
    counting_since = rollout.visits[-1].counting_since
    if at < counting_since:
        return tests
    judged_at = tests.judged_at or at
    kinds = {gap.kind for gap in found}
    before = tests.gap_times if judged_at >= counting_since else {}
    times = follow(before, kinds, at - judged_at, rollout.plan.health_grace)
    return replace(tests, gap_times=times, judged_at=at)


def _gaps(
    rollout: Rollout,
    evidence: Evidence,
    observation: Observation,
    last_event_at: datetime,
    srm_e_value: float,
    incomplete: str | None,
    at: datetime,
) -> Iterator[Gap]:
    """Yield every gap, in the order in which people read them."""
    plan, visit, totals = rollout.plan, observation.visit, observation.totals
    is_settling = at < visit.counting_since
    stage = plan.stages[visit.stage]
    missing = gaps.missing_data(stage, visit, totals, incomplete, is_settling=is_settling)
    stale = staleness.stale(plan, evidence, last_event_at, observation.fall, at)
    yield from staleness.merged((*missing, *stale))
    yield from gaps.sample_ratio(rollout, totals, srm_e_value)
    yield from gaps.multiple_exposure(totals)
    yield from gaps.repeated_outcomes(totals)
    watched = [guardrail for _, guardrail, _ in _watched(rollout, observation.tests)]
    yield from gaps.implausible_latency(watched, observation.latencies[Arm.CONTROL])
    yield from gaps.plane_drift(evidence)
    yield from gaps.lost_records(visit, evidence.partitions, at)
    yield from external_gaps(rollout, evidence, observation.tests, at)


def _watched(rollout: Rollout, tests: SequentialTests) -> Iterator[tuple[int, Guardrail, float]]:
    """Yield number, guardrail and part of alpha of each guardrail that judges the present visit."""
    guardrails = rollout.plan.tested
    percent = rollout.visits[-1].percent
    for number, (guardrail, share) in enumerate(
        zip(guardrails, alpha_shares(guardrails), strict=True)
    ):
        if guardrail.is_watched_at(percent):
            yield number, guardrail, tests.shares.get(number, share)


def _reports(rollout: Rollout, observation: Observation, at: datetime) -> Iterator[MetricReport]:
    visit, plan, tests = observation.visit, rollout.plan, observation.tests
    counted = {number: metric for number, _, metric in counted_metrics(plan, visit.percent)}
    for number, guardrail, share in _watched(rollout, observation.tests):
        metric = counted.get(number)
        marks = (
            CounterMarks() if metric is None else tests.counters.get(metric.name, CounterMarks())
        )
        repeats = 1 if metric is None else metric.repeats
        sample = counted_sample(marks.counts, repeats)
        found = report(
            guardrail,
            number,
            tests,
            observation.totals if metric is None else sample.totals,
            observation.latencies if metric is None else sample.latencies,
            percent=visit.percent,
            elapsed_seconds=visit.counted_until(at).total_seconds(),
            alpha_share=share,
            alpha=plan.alpha,
            beta=plan.beta,
        )
        if metric is None:
            yield found
        else:
            yield replace(found, reason=f"{found.reason}; {statistic_words(metric, marks)}")


def _liveness(observation: Observation, at: datetime) -> tuple[int, datetime]:
    """Return how many events the present visit has, and since when it has had that many."""
    visit, tests = observation.visit, observation.tests
    totals = [observation.totals.arm(arm) for arm in Arm]
    count = sum(arm.evaluations + arm.outcomes for arm in totals)
    if tests.last_event_at is None:
        return count, at if count else max(visit.counting_since, visit.entered_at)
    if count > tests.event_count:
        return count, at
    last = tests.last_event_at
    return tests.event_count, max(last, visit.counting_since) if visit.closings else last


# --- harm alone


class HarmSignal(NamedTuple):
    """How near one guardrail is to a breach."""

    metric: str
    e_value: float  # of harm
    threshold: float

    @property
    def is_possible(self) -> bool:
        """True when `judge` may report a breach: it has vetoes, so it need not."""
        return self.e_value >= self.threshold


def check_harm(
    rollout: Rollout, evidence: Evidence, tests: SequentialTests, at: datetime
) -> tuple[tuple[HarmSignal, ...], SequentialTests]:
    """Return how near each watched guardrail is to a breach, and the tests after the evidence.

    While a stage bakes, only harm can change the phase. This check costs a third of a full
    judgement. `judge` with the returned tests and the same evidence adds the rest.
    """
    tests = observe(rollout, evidence, tests, at).tests
    alpha = rollout.plan.alpha
    counted = (
        HarmSignal(
            guardrail.metric,
            harm_e_value(guardrail, number, tests),
            1 / (alpha * share),
        )
        for number, guardrail, share in _watched(rollout, tests)
    )
    asked = (
        HarmSignal(external_name(metric.name), *harm_scale(metric, tests, alpha))
        for metric in rollout.plan.external_at(rollout.visits[-1].percent)
        if not metric.is_counted
    )
    return (*counted, *asked), tests


# --- cost


def _count_harm(
    rollout: Rollout, evidence: Evidence, previous: Mapping[int, VisitHarm]
) -> Mapping[int, VisitHarm]:
    """Return the harm of each visit, as far as its totals have ever shown.

    Excess is treatment's failed requests above control's rate in the same visit. Without a control
    (100 %) it is unknown and counts as 0.
    """
    harm = dict(previous)
    for index, totals in evidence.visits.items():
        if index >= len(rollout.visits):
            continue
        treatment, control = totals.treatment, totals.control
        excess = 0.0
        if control.outcomes:
            excess = max(
                0.0, treatment.errors - treatment.outcomes * control.errors / control.outcomes
            )
        before = harm.get(index, VisitHarm())
        is_complete = (
            treatment.exposures >= before.exposed_contexts
            and treatment.errors >= before.failed_requests
        )
        harm[index] = VisitHarm(
            exposed_contexts=max(before.exposed_contexts, treatment.exposures),
            failed_requests=max(before.failed_requests, treatment.errors),
            excess_failed_requests=excess if is_complete else before.excess_failed_requests,
        )
    return harm
