"""External metrics: numbers that a monitoring system is asked for. They are shown, never tested.

How one is judged is in `controller/core/judging/external.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.metrics.kind import ShownKind
from schemas import metric_names


@dataclass(frozen=True, slots=True)
class External(ShownKind):
    """A number that is better when lower, in whatever its query measures."""

    names = metric_names.EXTERNAL
    unit_words = "looks"
    where_to_search = "the monitoring system's graph of this query"


@dataclass(frozen=True, slots=True)
class ExternalFloor(External):
    """A number that is better when higher."""

    names = metric_names.EXTERNAL_HIGHER
