"""External metrics: from the answers of a monitoring system to looks, reports and gaps.

    met, missed    a look; breached when `misses` of the last `of` looks in the stage missed
    no number      no look: a gap of its own, never a zero
    gate           passes when there were `of` looks in this stage, none of them missed, and there
                   is a number now

Nothing is tested here, because behind a query stand no events that could be counted: how often a
threshold raises a false alarm is not known. In a report the looks stand on the scale of evidence,
so that `misses` looks are exactly what a breach takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from controller.core.analysis.sequential_tests import MetricLook, SequentialTests
from controller.core.evidence import Evidence, Reading
from controller.core.judging.counters import counters_trouble
from controller.core.judging.judgement import Gap, MetricReport
from controller.core.metrics import external_name
from controller.core.metrics.kind import NOTHING_MEASURED, ArmSummary
from controller.core.plan import ExternalMetric
from controller.core.rollout import Rollout
from schemas.terms import Arm, HealthGap, MeasurementGap, MetricRole, Verdict

#: Without an answer for so many times `every` the last number says nothing about now; and a look
#: from so many times all looks ago says nothing beside the new one.
_OLD_AFTER: Final = 3
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_NO_NUMBERS: Final = Reading(_NEVER, _NEVER)
_GAPS: Final[Mapping[MeasurementGap, HealthGap]] = {
    MeasurementGap.NO_DATA: HealthGap.METRIC_NO_DATA,
    MeasurementGap.NOT_A_NUMBER: HealthGap.METRIC_NOT_A_NUMBER,
    MeasurementGap.SEVERAL_SERIES: HealthGap.METRIC_SEVERAL_SERIES,
    MeasurementGap.LATE: HealthGap.METRIC_LATE,
    MeasurementGap.REFUSED: HealthGap.METRIC_REFUSED,
    MeasurementGap.INCOMPLETE: HealthGap.METRIC_REFUSED,
    MeasurementGap.NO_ANSWER: HealthGap.METRIC_NO_ANSWER,
    MeasurementGap.PAUSED: HealthGap.METRIC_NO_DATA,
}


def take_readings(rollout: Rollout, evidence: Evidence, tests: SequentialTests) -> SequentialTests:
    """Return the tests after the answers that are newer than their last look in all parts.

    An answer from before the stage counted, or while the flag was closed, is no look at it.
    """
    visit = rollout.visits[-1]
    if rollout.closed_since is not None:
        return tests
    looks = dict(tests.looks)
    for metric in rollout.plan.external_at(visit.percent):
        reading = evidence.readings.get(metric.name)
        if metric.is_counted or reading is None or reading.treatment is None:
            continue
        if reading.since < visit.counting_since:
            continue
        taken = looks.get(metric.name, ())
        if taken and reading.since <= taken[-1].at:
            continue
        is_miss = metric.misses_threshold(reading.treatment, reading.control)
        recent = [look for look in taken if reading.at - look.at <= _OLD_AFTER * _span(metric)]
        looks[metric.name] = (*recent, MetricLook(reading.at, is_miss))[-metric.of :]
    return tests if looks == tests.looks else replace(tests, looks=looks)


def _span(metric: ExternalMetric) -> timedelta:
    """Return how long the looks that count take when each has its answer."""
    return metric.of * metric.every


def missed(metric: ExternalMetric, tests: SequentialTests) -> int:
    """Return how many of the metric's last looks in the present visit missed."""
    return sum(look.is_miss for look in tests.looks.get(metric.name, ()))


def harm_scale(metric: ExternalMetric, tests: SequentialTests, alpha: float) -> tuple[float, float]:
    """Return the looks that missed, and those that a breach takes, on the scale of evidence.

    Every threshold of evidence is 1/alpha, so k of `misses` looks are the k/misses-th power of it.
    """
    threshold = 1 / alpha
    return threshold ** (missed(metric, tests) / metric.misses), threshold


def external_reports(
    rollout: Rollout, evidence: Evidence, tests: SequentialTests, at: datetime
) -> Iterator[MetricReport]:
    """Yield the report of each external metric that judges the present visit."""
    visit = rollout.visits[-1]
    for metric in rollout.plan.external_at(visit.percent):
        if metric.is_counted:
            continue  # it is reported with the guardrails
        yield _report(metric, _usable(metric, evidence, at), tests, visit.percent, rollout)


def _report(
    metric: ExternalMetric,
    reading: Reading | None,
    tests: SequentialTests,
    percent: float,
    rollout: Rollout,
) -> MetricReport:
    looks = tests.looks.get(metric.name, ())
    failed = missed(metric, tests)
    e_value, threshold = harm_scale(metric, tests, rollout.plan.alpha)
    is_breached = failed >= metric.misses
    numbers = _NO_NUMBERS if reading is None else reading
    if is_breached:
        harm, safe = Verdict.FAIL, Verdict.FAIL
    elif not looks:
        harm, safe = Verdict.NO_DATA, Verdict.NO_DATA
    else:  # also while there is no number: then a gap holds the gate, and time may close it
        harm = Verdict.INCONCLUSIVE
        is_shown = len(looks) == metric.of and not failed
        safe = Verdict.PASS if is_shown else Verdict.INCONCLUSIVE
    return MetricReport(
        metric=external_name(metric.name),
        role=metric.role,
        on_breach=metric.on_breach,
        harm=harm,
        safe=safe,
        arms={
            Arm.TREATMENT: _summary(numbers.treatment, len(looks), failed),
            Arm.CONTROL: _summary(numbers.control, 0, 0),
        },
        e_value=e_value,
        threshold=threshold,
        e_value_safe=None,
        threshold_safe=None,
        margin=metric.margin,
        limit=metric.limit,
        reason=_reason(metric, reading, len(looks), failed, has_control=percent < 100),
        gate_margin=_harm_margin(metric) if percent < 100 else None,
        is_better_when_higher=metric.is_better_when_higher,
        ratio=_ratio(metric, reading),
    )


def _harm_margin(metric: ExternalMetric) -> float | None:
    """Return the margin as an increase of harm: a fall by a tenth is an increase by a ninth."""
    if metric.margin is None or not metric.is_better_when_higher or metric.margin >= 1:
        return metric.margin
    return metric.margin / (1 - metric.margin)


def _summary(value: float | None, looks: int, failed: int) -> ArmSummary:
    return NOTHING_MEASURED if value is None else ArmSummary(looks, failed, value, None, None)


def _ratio(metric: ExternalMetric, reading: Reading | None) -> float | None:
    """Return harm in treatment over control's; None where it is not compared, or by zero."""
    if metric.margin is None or reading is None:
        return None
    pair = reading.treatment, reading.control
    above, below = reversed(pair) if metric.is_better_when_higher else pair
    return above / below if above is not None and below else None


def _reason(
    metric: ExternalMetric, reading: Reading | None, looks: int, failed: int, *, has_control: bool
) -> str:
    """Return the number, the threshold and the looks in one sentence."""
    if reading is None or reading.treatment is None:
        found = "no number"
    else:
        found = f"treatment's number is {reading.treatment:.4g}"
        if reading.control is not None:
            found += f", control's {reading.control:.4g}"
    bounds = []
    if metric.limit is not None:
        bounds.append(
            f"{'at least' if metric.is_better_when_higher else 'at most'} {metric.limit:.4g}"
        )
    if metric.margin is not None and has_control:
        sign = "-" if metric.is_better_when_higher else "+"
        bounds.append(f"control {sign} {100 * metric.margin:.3g} %")
    return (
        f"{found} ({', '.join(bounds)}); {failed} of {looks} looks in this stage missed, "
        f"{metric.misses} of {metric.of} are a breach, and a gate needs {metric.of} without a miss"
    )


# --- gaps


def external_gaps(
    rollout: Rollout, evidence: Evidence, tests: SequentialTests, at: datetime
) -> Iterator[Gap]:
    """Yield one gap for each kind of trouble with the guardrails among the external metrics."""
    found: dict[HealthGap, list[str]] = {}
    for metric in rollout.plan.external_at(rollout.visits[-1].percent):
        if metric.role is not MetricRole.GUARDRAIL:
            continue
        trouble = _trouble(metric, evidence.readings.get(metric.name), at)
        marks = tests.counters.get(metric.name)
        if trouble is None and marks is not None:
            trouble = counters_trouble(metric, marks, at)
        if trouble is not None:
            kind, words = trouble
            found.setdefault(kind, []).append(f"{metric.name}: {words}")
    for kind, details in found.items():
        yield Gap(kind, "; ".join(details))


def _usable(metric: ExternalMetric, evidence: Evidence, at: datetime) -> Reading | None:
    """Return the newest answer if it has a number and is not too old."""
    reading = evidence.readings.get(metric.name)
    return None if _trouble(metric, reading, at) is not None else reading


def _trouble(
    metric: ExternalMetric, reading: Reading | None, at: datetime
) -> tuple[HealthGap, str] | None:
    """Return why there is no number to judge; None: there is one."""
    if reading is None:
        return HealthGap.METRIC_NO_ANSWER, "not answered yet"
    if reading.gap is not None:
        return _GAPS[reading.gap], reading.words
    age = at - reading.since
    if age > max(_OLD_AFTER * metric.every, metric.newest_within):
        return HealthGap.METRIC_LATE, f"its last answer is {age.total_seconds():.0f} s old"
    return None
