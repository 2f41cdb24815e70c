"""Where the numbers of a comparison stand on one axis, for whoever draws it: page and terminal.

Pure. Does not belong here: the drawings (`web/page/drawing.py`, `cli/rollout_tree.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from controller.reporting.comparison import ComparedInterval

#: Ratios beyond it are drawn at the edge.
_FURTHEST_RATIO = 30.0


@dataclass(frozen=True, slots=True)
class Axis:
    """Places on an axis, 0 for its left end and 1 for its right end; None: not drawn."""

    low: float | None
    value: float | None
    high: float | None
    line: float | None  # the margin of the gate, or the limit
    equal: float | None  # where both arms are equal

    @property
    def is_bounded(self) -> bool:
        """Whether the interval has an end; an open side reaches the axis' end."""
        return self.low is not None or self.high is not None


def axis_of(comparison: ComparedInterval) -> Axis:
    """Return where the numbers of a comparison stand; equal arms in the middle for a ratio."""
    place = _ratio_place(comparison) if comparison.is_ratio else _plain_place(comparison)
    has_equal = comparison.is_ratio or (comparison.zero == 0 and not comparison.is_floor)

    def at(value: float | None) -> float | None:
        return None if value is None else place(value)

    return Axis(
        low=at(comparison.low),
        value=at(comparison.value),
        high=at(comparison.high),
        line=at(comparison.line),
        equal=place(comparison.zero) if has_equal else None,
    )


def _ratio_place(comparison: ComparedInterval) -> Callable[[float], float]:
    """Return the place of a ratio; what is further out is at the edge."""
    known = (comparison.value, comparison.high, comparison.low and 1 / comparison.low)
    ends = [min(1.1 * one, _FURTHEST_RATIO) for one in known if one is not None and one > 0]
    furthest = math.log(max(4.0, 1.3 * (comparison.line or 1.0), *ends))

    def place(ratio: float) -> float:
        share = math.log(max(ratio, 1e-9)) / furthest
        return (1 + min(max(share, -1.0), 1.0)) / 2

    return place


def _plain_place(comparison: ComparedInterval) -> Callable[[float], float]:
    known = (comparison.low, comparison.value, comparison.high, comparison.line)
    ends = [comparison.zero, *(one for one in known if one is not None)]
    line = abs(comparison.line or 0.0)
    low, high = min(ends), max(ends)
    if line:
        low, high = max(low, -6 * line), min(high, 6 * line)
    room = (high - low) * 0.06 or 1.0
    low, high = low - room, high + room

    def place(value: float) -> float:
        return min(max((value - low) / (high - low), 0.0), 1.0)

    return place
