"""Drawings of evidence as SVG: intervals on one axis, and courses over time.

Made of numbers and of our own words only. Every drawing has a title for those who do not see it,
and the numbers stand in a table beside it. Colors are classes of the style sheet, and each arm has
a line style of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

from controller.reporting.axis import axis_of
from controller.reporting.comparison import ComparedInterval

#: Size of an interval's drawing.
_WIDE, _HIGH = 200, 30
#: Size of a chart, and the room for its labels.
_CHART_WIDE, _CHART_HIGH = 560, 190
_LEAST_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 8, 22
#: Width of a character at the font size that the style sheet has for narrow windows, which is the
#: larger one.
_CHARACTER = 10
#: Points drawn of one line: more cannot be told apart.
_MOST_DRAWN = 60


def interval(comparison: ComparedInterval) -> Markup:
    """Return an interval with its value, where both arms are equal, and the margin as a line."""
    axis, middle = axis_of(comparison), _HIGH / 2
    parts = [f'<line class="axis" x1="0" x2="{_WIDE}" y1="{middle:g}" y2="{middle:g}"/>']
    if axis.equal is not None:
        x = round(_WIDE * axis.equal)
        parts.append(f'<line class="equal" x1="{x}" x2="{x}" y1="6" y2="{_HIGH - 6}"/>')
    if axis.line is not None:
        x = round(_WIDE * axis.line)
        parts.append(f'<line class="margin" x1="{x}" x2="{x}" y1="1" y2="{_HIGH - 1}"/>')
    if axis.is_bounded:
        low = round(_WIDE * (axis.low or 0.0))
        high = _WIDE if axis.high is None else round(_WIDE * axis.high)
        width = max(high - low, 2)
        parts.append(
            f'<rect class="span" x="{low}" y="{middle - 4:g}" width="{width}" height="8"/>'
        )
    if axis.value is not None:
        x = round(_WIDE * axis.value)
        parts.append(f'<circle class="dot" cx="{x}" cy="{middle:g}" r="4.5"/>')
    title = f"new against old: {comparison.words}; at most {comparison.line_words}"
    if comparison.is_floor:
        title = f"new: {comparison.words}; at least {comparison.line_words}"
    return _svg("interval", _WIDE, _HIGH, title, parts)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: its style, and per point (moment, value, low, high), oldest first."""

    style: str  # `new`, `old`, `harm` or `safe`
    name: str
    points: Sequence[tuple[datetime, float | None, float | None, float | None]]


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line of a chart: `margin`, where it is bad to be above it, or `goal`."""

    name: str
    value: float
    style: str = "margin"


def chart(
    title: str,
    lines: Sequence[Line],
    levels: Sequence[Level],
    words: Callable[[float], str],
) -> Markup:
    """Return lines over time with their intervals as bands; empty without two moments.

    `words` writes a value of the vertical axis.
    """
    moments = sorted({point[0] for line in lines for point in line.points})
    top = _highest(lines, levels)
    if len(moments) < 2 or top is None:
        return Markup("")
    begin, end = moments[0].timestamp(), moments[-1].timestamp()
    scale = {part: words(top * part) for part in (0, 0.5, 1)}
    left = max(_LEAST_LEFT, 12 + _CHARACTER * max(map(len, scale.values())))
    inside_x, inside_y = _CHART_WIDE - left - _RIGHT, _CHART_HIGH - _TOP - _BOTTOM

    def at_x(moment: datetime) -> int:
        return round(left + inside_x * (moment.timestamp() - begin) / (end - begin))

    def at_y(value: float) -> int:
        return round(_TOP + inside_y * (1 - min(max(value / top, 0.0), 1.0)))

    parts, right = [], _CHART_WIDE - _RIGHT
    for part, label in scale.items():
        y = at_y(top * part)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(_label(left - 6, y + 4, label, "end"))
    for line in lines:
        parts += _drawn(line, at_x, at_y)
    for level in levels:
        y = at_y(level.value)
        parts.append(f'<line class="{level.style}" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(_label(right - 2, max(y - 4, 11), level.name, "end"))
    bottom = _CHART_HIGH - 6
    parts.append(_moment(left, bottom, moments[0], "start"))
    parts.append(_moment(right, bottom, moments[-1], "end"))
    return _svg("chart", _CHART_WIDE, _CHART_HIGH, title, parts)


def _highest(lines: Sequence[Line], levels: Sequence[Level]) -> float | None:
    """Return the top of the axis: above all values and lines, but not above every wide band."""
    values = [value for line in lines for _, value, _, _ in line.points if value is not None]
    if not values:
        return None
    highs = [high for line in lines for _, _, _, high in line.points[-1:] if high is not None]
    top = max([*values, *highs, *(1.1 * level.value for level in levels)])
    return min(1.08 * top, 3 * max([*values, *(level.value for level in levels)])) or 1.0


def _drawn(line: Line, at_x: Callable[[datetime], int], at_y: Callable[[float], int]) -> list[str]:
    step = max(1, -(-len(line.points) // _MOST_DRAWN))
    points = [*line.points[:-1][::step], *line.points[-1:]]
    parts = []
    banded = [
        (at_x(at), at_y(low), at_y(high))
        for at, _, low, high in points
        if low is not None and high is not None
    ]
    if len(banded) > 1:
        upper = " ".join(f"{x},{high}" for x, _, high in banded)
        lower = " ".join(f"{x},{low}" for x, low, _ in reversed(banded))
        parts.append(f'<polygon class="band {line.style}" points="{upper} {lower}"/>')
    drawn = " ".join(f"{at_x(at)},{at_y(value)}" for at, value, _, _ in points if value is not None)
    parts.append(f'<polyline class="line {line.style}" points="{drawn}"/>')
    return parts


def _label(x: int, y: int, words: str, anchor: str) -> str:
    text = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    return str(text.format(x, y, anchor, words))


def _moment(x: int, y: int, moment: datetime, anchor: str) -> str:
    """Return a moment in UTC; the page's script writes it as it writes all others."""
    utc = moment.astimezone(UTC)
    text = Markup('<text x="{}" y="{}" text-anchor="{}" data-at="{}">{}</text>')
    at = utc.isoformat(timespec="seconds")
    return str(text.format(x, y, anchor, at, f"{utc:%Y-%m-%d %H:%M:%S} UTC"))


def _svg(style: str, wide: int, high: int, title: str, parts: Sequence[str]) -> Markup:
    """Return a drawing. `parts` are made of numbers and escaped words."""
    frame = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    inner = Markup("".join(parts))  # noqa: S704
    return frame.format(style, wide, high, title, inner)
