"""The kinds of metric that a guardrail may name, one file each.

A new kind is a file here, its rows in `KINDS` and `VIRTUAL_METRICS`, and a row in
`schemas/metric_names.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from controller.core.metrics.conversion import Conversion, VirtualConversions
from controller.core.metrics.counters import CountersRate
from controller.core.metrics.error_rate import ErrorRate, VirtualErrors
from controller.core.metrics.external import External, ExternalFloor
from controller.core.metrics.kind import MetricKind, ShownKind
from controller.core.metrics.latency import VirtualLatency, latency_kind
from controller.core.metrics.virtual import VirtualMetric
from schemas import metric_names
from schemas.metric_names import COUNTERS_PREFIX, EXTERNAL_PREFIX, MetricNames, names_of

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
    if metric.startswith(COUNTERS_PREFIX):
        return CountersRate(metric)
    return KINDS[names_of(metric)](metric)


def external_name(name: str) -> str:
    """Return what reports call a plan's external metric."""
    return EXTERNAL_PREFIX + name


def counters_name(name: str) -> str:
    """Return what reports call an external metric that is tested on its counters."""
    return COUNTERS_PREFIX + name


class ShownReport(Protocol):
    """A report of a metric, in the core or in a record."""

    @property
    def metric(self) -> str:
        """The metric's name."""

    @property
    def is_better_when_higher(self) -> bool:
        """Of an external metric: whether a fall is the harm."""


def kind_of_report(report: ShownReport) -> ShownKind:
    """Return the kind of a report's metric, as `kind_to_show` does."""
    kind = kind_to_show(report.metric)
    if isinstance(kind, External) and report.is_better_when_higher:
        return ExternalFloor(report.metric)
    return kind


def kind_to_show(metric: str) -> ShownKind:
    """Return the kind of a metric in a record, which a newer version may have written.

    A metric of no known kind is shown as a share, lower is better; so is the direction of an
    external metric, see `kind_of_report`.
    """
    if metric.startswith(EXTERNAL_PREFIX):
        return External(metric)
    try:
        return kind_of(metric)
    except ValueError:
        return ErrorRate(metric)
