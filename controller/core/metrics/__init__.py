"""The kinds of metric that a guardrail may name, one file each.

A new kind is a file here, its rows in `KINDS` and `VIRTUAL_METRICS`, and a row in
`schemas/metric_names.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from controller.core.metrics.conversion import Conversion, VirtualConversions
from controller.core.metrics.error_rate import ErrorRate, VirtualErrors
from controller.core.metrics.kind import MetricKind
from controller.core.metrics.latency import VirtualLatency, latency_kind
from controller.core.metrics.virtual import VirtualMetric
from schemas import metric_names
from schemas.metric_names import MetricNames, names_of

KINDS: dict[MetricNames, Callable[[str], MetricKind]] = {
    metric_names.ERROR_RATE: ErrorRate,
    metric_names.CONVERSION: Conversion,
    metric_names.LATENCY: latency_kind,
}
"""What makes a metric's kind from its name."""


VIRTUAL_METRICS: tuple[type[VirtualMetric], ...] = (
    VirtualErrors,
    VirtualConversions,
    VirtualLatency,
)
"""What draws each kind in a simulation, in this order."""


@lru_cache(maxsize=4096)
def kind_of(metric: str) -> MetricKind:
    """Return the kind of the metric with this name. Raises ValueError for a name of no kind."""
    return KINDS[names_of(metric)](metric)


def kind_to_show(metric: str) -> MetricKind:
    """Return the kind of a metric in a record, which a newer version may have written.

    A metric of no known kind is shown as a share, lower is better.
    """
    try:
        return kind_of(metric)
    except ValueError:
        return ErrorRate(metric)
