"""Charts of a stage's course: each metric's arms, and its evidence against what is needed."""

from __future__ import annotations

import math
from typing import Any, Final

from markupsafe import Markup

from controller.core.metrics import kind_of_report
from controller.reporting.evidence_words import value_words
from controller.web.page.drawing import Level, Line, chart
from schemas.decision import JudgementRecord, MetricRecord
from schemas.report import HistoryPoint, MetricPoint, StageHistory
from schemas.terms import Arm

#: Metrics that get a chart: those that decide come first in a plan.
MOST_CHARTS: Final = 4
#: Rows of the table under a chart.
_ROWS: Final = 8


def charts(history: StageHistory | None, judgement: JudgementRecord | None) -> list[dict[str, Any]]:
    """Return the charts of the present stage, none before there are two points."""
    if history is None or judgement is None or len(history.points) < 2:
        return []
    return [
        made
        for place, metric in enumerate(judgement.metrics[:MOST_CHARTS])
        if (made := _of_metric(history, metric, place)) is not None
    ]


def _of_metric(history: StageHistory, metric: MetricRecord, place: int) -> dict[str, Any] | None:
    """Return both charts of a metric, the one at `place` in each point."""
    points = [
        (point, point.metrics[place])
        for point in history.points
        if len(point.metrics) > place and point.metrics[place].metric == metric.metric
    ]
    arms = chart(
        f"{metric.metric} over time, new and old version with their intervals",
        [_arm_line(points, Arm.TREATMENT, "new"), _arm_line(points, Arm.CONTROL, "old")],
        _levels(metric),
        lambda value: value_words(metric.metric, value),
    )
    if not arms:
        return None
    step = max(1, -(-len(points) // _ROWS))
    return {
        "name": metric.metric,
        "arms": arms,
        "evidence": _evidence_chart(points, metric),
        "rows": [
            {
                "at": point.at,
                "new": _shown(one, Arm.TREATMENT),
                "old": _shown(one, Arm.CONTROL),
                "users": point.exposures.get(Arm.TREATMENT, 0),
            }
            for point, one in points[::-1][::step]
        ],
    }


_Points = list[tuple[HistoryPoint, MetricPoint]]


def _arm_line(points: _Points, arm: Arm, style: str) -> Line:
    found = ((point.at, metric.arms.get(arm)) for point, metric in points)
    known = [(at, one.estimate, one.low, one.high) for at, one in found if one is not None]
    return Line(style, arm.value, known)


def _levels(metric: MetricRecord) -> list[Level]:
    """Return the absolute limit, and control's value with the gate's margin."""
    levels = []
    if metric.limit is not None:
        levels.append(Level("limit", metric.limit))
    control = metric.arms.get(Arm.CONTROL)
    kind = kind_of_report(metric)
    if metric.gate_margin is None or control is None or control.estimate is None:
        return levels
    if not kind.compares_values:
        return levels  # the margin of a latency is about shares in control's tail
    if metric.in_points:
        levels.append(Level("margin", control.estimate + metric.gate_margin))
    elif kind.is_better_when_higher:
        levels.append(Level("margin", control.estimate / (1 + metric.gate_margin)))
    else:
        levels.append(Level("margin", control.estimate * (1 + metric.gate_margin)))
    return levels


def _evidence_chart(points: _Points, metric: MetricRecord) -> Markup:
    """Return the evidence of harm and of safety, each as a share of what is needed."""

    def share(value: float | None, threshold: float | None) -> float | None:
        if value is None or threshold is None or threshold <= 1:
            return None
        return max(math.log(max(value, 1.0)) / math.log(threshold), 0.0)

    harm = [(p.at, share(m.e_value, m.threshold), None, None) for p, m in points]
    safe = [(p.at, share(m.e_value_safe, m.threshold_safe), None, None) for p, m in points]
    return chart(
        f"{metric.metric}: evidence of harm and of safety over time; 100 % is enough",
        [Line("harm", "harm", harm), Line("safe", "safe", safe)],
        [Level("enough", 1.0, "goal")],
        lambda value: f"{100 * value:.0f} %",
    )


def _shown(metric: MetricPoint, arm: Arm) -> str:
    measured = metric.arms.get(arm)
    if measured is None:
        return "–"
    return value_words(metric.metric, measured.estimate)
