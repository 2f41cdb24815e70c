"""Reports on rollouts as bytes: the newest evidence as JSON, points of a course as short arrays.

A course is read by people once and written every second for weeks, so its points are arrays of
rounded numbers. `schemas/report.py` is what is answered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from controller.codec.decisions import to_judgement_record
from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.metrics.kind import ArmSummary
from controller.core.rollout import Rollout
from controller.ports import PlaneStanding
from schemas import report
from schemas.terms import Arm, Verdict

_VERDICTS = tuple(Verdict)
_ARMS = tuple(Arm)


def plane_record(standing: PlaneStanding) -> report.PlaneRecord:
    """Return one plane's standing as it is shown."""
    return report.PlaneRecord(
        plane=standing.plane,
        is_converged=standing.is_converged,
        decided_percent=standing.decided_percent,
        percent=standing.percent,
        reason=standing.why,
        since=standing.since,
        checked_at=standing.looked_at,
    )


def live_report(
    rollout: Rollout,
    judgement: Judgement | None,
    planes: Sequence[PlaneStanding],
    *,
    at: datetime,
    replica: str,
) -> report.LiveReport:
    """Return the newest evidence of a flag; `judgement` is of its present rollout."""
    return report.LiveReport(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        revision=rollout.revision,
        written_at=at,
        replica=replica,
        judgement=None if judgement is None else to_judgement_record(judgement),
        planes=[plane_record(standing) for standing in planes],
    )


def report_to_json(live: report.LiveReport) -> bytes:
    """Return a report as it is kept and answered."""
    return live.model_dump_json().encode()


def report_from_json(stored: bytes) -> report.LiveReport:
    """Return a report that `report_to_json` wrote. Raises ValueError."""
    return report.LiveReport.model_validate_json(stored)


class _Arm(msgspec.Struct, array_like=True):
    trials: int
    estimate: float | None
    low: float | None
    high: float | None


class _Metric(msgspec.Struct, array_like=True):
    metric: str
    harm: int  # index into `Verdict`
    safe: int
    arms: dict[str, _Arm]
    e_value: float | None
    threshold: float | None
    e_value_safe: float | None
    threshold_safe: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


class _Point(msgspec.Struct, array_like=True):
    percent: float
    exposures: dict[str, int]
    metrics: list[_Metric]


_decode_point = msgspec.json.Decoder(_Point).decode


def point_to_bytes(percent: float, judgement: Judgement) -> bytes:
    """Return the evidence of a moment as a point; its time is its key."""
    return msgspec.json.encode(
        _Point(
            percent,
            {arm.value: count for arm, count in judgement.exposures.items()},
            [_metric(metric) for metric in judgement.metrics],
        )
    )


def point_from_bytes(second: int, stored: bytes) -> report.HistoryPoint:
    """Return a point that `point_to_bytes` wrote. Raises ValueError."""
    point = _decode_point(stored)
    return report.HistoryPoint(
        at=datetime.fromtimestamp(second, UTC),
        percent=point.percent,
        exposures={Arm(name): count for name, count in point.exposures.items()},
        metrics=[_metric_point(metric) for metric in point.metrics],
    )


def stage_history(rollout: Rollout, visit: int, stored: Mapping[int, bytes]) -> report.StageHistory:
    """Return the course of a visit; points that cannot be read are left out."""
    points = []
    for second, value in stored.items():
        try:
            points.append(point_from_bytes(second, value))
        except (ValueError, IndexError, RecursionError, OverflowError):
            continue  # damaged, or of another release: a picture lacks one dot
    return report.StageHistory(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        visit=visit,
        stage=rollout.visits[visit].stage + 1,
        points=points[-report.MAX_POINTS :],
    )


def _metric(metric: MetricReport) -> _Metric:
    return _Metric(
        metric.metric,
        _VERDICTS.index(metric.harm),
        _VERDICTS.index(metric.safe),
        {arm.value: _arm(summary) for arm, summary in metric.arms.items()},
        _rounded(metric.e_value),
        _rounded(metric.threshold),
        _rounded(metric.e_value_safe),
        _rounded(metric.threshold_safe),
        _rounded(metric.ratio),
        _rounded(metric.ratio_low),
        _rounded(metric.ratio_high),
    )


def _arm(summary: ArmSummary) -> _Arm:
    low, high = _rounded(summary.low), _rounded(summary.high)
    return _Arm(summary.trials, _rounded(summary.estimate), low, high)


def _metric_point(metric: _Metric) -> report.MetricPoint:
    return report.MetricPoint(
        metric=metric.metric,
        harm=_VERDICTS[metric.harm],
        safe=_VERDICTS[metric.safe],
        arms={
            Arm(name): report.ArmPoint(
                trials=arm.trials, estimate=arm.estimate, low=arm.low, high=arm.high
            )
            for name, arm in metric.arms.items()
        },
        e_value=metric.e_value,
        threshold=metric.threshold,
        e_value_safe=metric.e_value_safe,
        threshold_safe=metric.threshold_safe,
        ratio=metric.ratio,
        ratio_low=metric.ratio_low,
        ratio_high=metric.ratio_high,
    )


def _rounded(value: float | None) -> float | None:
    """Return a number with the five digits that a chart can show; None for one that is not."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return math.copysign(1e300, value)
    return float(f"{value:.5g}")
