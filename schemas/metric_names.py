"""The names of metrics as plans write them, one row per kind, with unit and direction.

Belongs here: what validation of a plan and the generated JSON Schema need. Does not belong here:
what a metric measures and how it is tested, which is the kind's own file in
`controller/core/metrics`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from enum import StrEnum

#: The smallest absolute limit that a plan may write, in the metric's unit.
SMALLEST_LIMIT = 1e-6


class Unit(StrEnum):
    """What a metric's value and its absolute limit are measured in."""

    SHARE = "share"  # of contexts, in [0, 1]
    MILLISECONDS = "ms"
    PLAIN = "plain"  # whatever the query is in


@dataclass(frozen=True, slots=True)
class MetricNames:
    """The names of one kind of metric."""

    pattern: str  # regular expression of a whole name, without groups that capture
    names: tuple[str, ...]  # those that can be listed: for examples, and to correct a typing error
    unit: Unit
    is_better_when_higher: bool = False
    prefix: str = ""  # in front of a name that the apps choose


ERROR_RATE = MetricNames("error_rate", ("error_rate",), Unit.SHARE)

_PERCENTILES = ("50", "90", "95", "99", "999")
#: The whole distribution, and one quantile of it: `latency_p999` is the 0.999-quantile.
DISTRIBUTION = "latency"
QUANTILE_PREFIX = f"{DISTRIBUTION}_p"
LATENCY = MetricNames(
    f"latency(?:_p(?:{'|'.join(_PERCENTILES)}))?",
    (DISTRIBUTION, *(QUANTILE_PREFIX + digits for digits in _PERCENTILES)),
    Unit.MILLISECONDS,
)

#: The apps name their conversions: `conversion:<name>`.
CONVERSION_PREFIX = "conversion:"
CONVERSION = MetricNames(
    CONVERSION_PREFIX + "[A-Za-z0-9][A-Za-z0-9._:-]{0,116}",
    (),
    Unit.SHARE,
    is_better_when_higher=True,
    prefix=CONVERSION_PREFIX,
)

#: In front of the name of an external metric, where it stands beside guardrails' metrics. It is in
#: no plan's guardrails: `schemas/external.py` is its own part of a plan.
EXTERNAL_PREFIX = "external:"
EXTERNAL = MetricNames(f"{EXTERNAL_PREFIX}.*", (), Unit.PLAIN, prefix=EXTERNAL_PREFIX)
EXTERNAL_HIGHER = replace(EXTERNAL, is_better_when_higher=True)
#: In front of the name of an external metric that is tested on its counters' increments.
COUNTERS_PREFIX = "counters:"
EXTERNAL_COUNTERS = MetricNames(f"{COUNTERS_PREFIX}.*", (), Unit.SHARE, prefix=COUNTERS_PREFIX)

METRIC_KINDS = (ERROR_RATE, LATENCY, CONVERSION)
"""All kinds, in the order in which people read them."""

METRICS = tuple(name for kind in METRIC_KINDS for name in kind.names)
"""Metrics that need no declaration by an app."""

METRIC_PATTERN = f"^({'|'.join(kind.pattern for kind in METRIC_KINDS)})$"

_PATTERNS = tuple((re.compile(kind.pattern + r"\Z", re.ASCII), kind) for kind in METRIC_KINDS)


def _words_of(name: str) -> list[str]:
    """Return the words of a name in one order: those of `p99_latency` and `latency_p99` agree."""
    return sorted(re.findall(r"[a-z]+[0-9]*", name.lower()))


def names_of(metric: str) -> MetricNames:
    """Return the kind whose name `metric` is.

    Raises ValueError for a name of no kind, with the name that may have been meant.
    """
    for pattern, kind in _PATTERNS:
        if pattern.match(metric):
            return kind
    words = _words_of(metric[:40])
    near = [name for name in METRICS if _words_of(name) == words]
    near = near or difflib.get_close_matches(metric[:40], METRICS, n=1)
    prefixes = [f"{kind.prefix}<name>" for kind in METRIC_KINDS if kind.prefix]
    meant = (
        f"did you mean {near[0]}?"
        if near
        else f"known are {', '.join(METRICS)} and {', '.join(prefixes)}; a number of your own can "
        "be reported as a conversion (ops/plan.md: Use a metric of your own)"
    )
    raise ValueError(f"unknown metric {metric[:80]!r}; {meant}")
