"""How treatment compares with control in one metric, ready to be drawn and said.

One rule: a number beside two values is worked out from these two, so that a reader who divides them
finds it. Whatever a test estimates in another way is said to be an estimate of the tests. So is the
interval, as the tests compare the arms within each batch; and so is all that is compared of
latencies, where the tests count slow requests and the values are milliseconds.

Pure. Does not belong here: the drawing (`web/page/drawing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.judging.questions import gate_bound
from controller.core.metrics import kind_of_report
from controller.reporting.evidence_words import value_words
from schemas.decision import MetricRecord
from schemas.terms import Arm


@dataclass(frozen=True, slots=True)
class ComparedInterval:
    """An interval on one axis, the line that it must stay below, and both in words.

    A larger value is worse, but with `is_floor`. `low` and `high` are None where unbounded.
    """

    is_ratio: bool  # of treatment to control, on a logarithmic axis; else in the metric's unit
    low: float | None
    value: float | None
    high: float | None
    line: float | None  # the margin of the gate, or the limit
    zero: float  # where both arms are equal
    words: str
    line_words: str
    is_floor: bool = False  # treatment must stay above the line


def comparison_of(metric: MetricRecord) -> ComparedInterval:
    """Return how a metric is compared: by ratio, by points, or with its limit alone."""
    kind = kind_of_report(metric)
    margin = metric.gate_margin
    if metric.in_points and margin is not None:
        values = [_estimate(metric, arm) for arm in Arm]
        value = None if None in values else values[0] - values[1]  # type: ignore[operator]
        return ComparedInterval(
            is_ratio=False,
            low=metric.difference_low,
            value=value,
            high=metric.difference_high,
            line=margin,
            zero=0.0,
            words=f"{_points(value)}{_between(metric.difference_low, metric.difference_high)}",
            line_words=gate_bound(kind, margin, in_points=True),
        )
    if margin is not None:
        bound = gate_bound(kind, margin, in_points=False)
        shown_ratio = _quotient(metric) if kind.compares_values else metric.ratio
        value, low, high = shown_ratio, metric.ratio_low, metric.ratio_high
        left_open = low, high
        if kind.is_better_when_higher:
            # A fall is measured as control's rate over treatment's; people read it the other way.
            value, left_open = _inverse(shown_ratio), (_inverse(high), _inverse(low))
        shown = _ratio_words(shown_ratio, *left_open)
        words = shown if kind.compares_values else f"slow {shown}"
        return ComparedInterval(True, low, value, high, 1 + margin, 1.0, words, bound)
    arm = metric.arms.get(Arm.TREATMENT)
    low, high = (None, None) if arm is None else (arm.low, arm.high)
    value = None if arm is None else arm.estimate
    shown = value_words(metric.metric, value)
    if low is not None and high is not None:
        ends = f"{value_words(metric.metric, low)} to {value_words(metric.metric, high)}"
        shown += f" ({ends})"
    floor = kind.is_better_when_higher
    return ComparedInterval(
        False, low, value, high, metric.limit, 0.0, shown, limit_words(metric), is_floor=floor
    )


def limit_words(metric: MetricRecord) -> str:
    """Return the absolute bound of a metric, empty for none."""
    if metric.limit is None:
        return ""
    sign = "≥" if kind_of_report(metric).is_better_when_higher else "<"
    return f"{sign} {value_words(metric.metric, metric.limit)}"


def bound_words(metric: MetricRecord) -> str:
    """Return what the gate asks of a metric: its limit and its margin."""
    margin = metric.gate_margin
    kind = kind_of_report(metric)
    compared = (
        ""
        if margin is None
        else f"< {gate_bound(kind, margin, in_points=metric.in_points)}"
        if not kind.is_better_when_higher
        else f"> {gate_bound(kind, margin, in_points=metric.in_points)}"
    )
    return "; ".join(words for words in (limit_words(metric), compared) if words) or "–"


def _estimate(metric: MetricRecord, arm: Arm) -> float | None:
    measured = metric.arms.get(arm)
    return None if measured is None else measured.estimate


def _quotient(metric: MetricRecord) -> float | None:
    """Return treatment's value divided by control's, None where that is no number.

    Both as they are shown, with three digits: others would have another quotient in its last one.
    """
    estimates = (_estimate(metric, arm) for arm in (Arm.TREATMENT, Arm.CONTROL))
    treatment, control = (None if one is None else float(f"{one:.3g}") for one in estimates)
    return None if treatment is None or not control else treatment / control


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.3g} pp"


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None and high is None else f" ({_points(low)} to {_points(high)})"


def _ratio_words(value: float | None, low: float | None, high: float | None) -> str:
    shown = "–" if value is None else f"× {value:.3g}"
    if low is None and high is None:
        return shown
    return f"{shown} (tests: {_number(low)} to {_number(high)})"


def _inverse(value: float | None) -> float | None:
    return None if not value else 1 / value


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"
