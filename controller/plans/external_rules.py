"""Rules about external metrics: what each may ask, and whether a gate can ever pass it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from controller.plans.finding import Finding, error, is_servable, percent_words, warning
from controller.text import plural
from controller.yaml_places import Path
from schemas.external import VARIANT, CountersDocument, ExternalMetricDocument
from schemas.fields import format_duration
from schemas.metric_names import SMALLEST_LIMIT
from schemas.plan import PlanDocument

_SHORTEST: Final = timedelta(seconds=1)
#: The range of a selector in PromQL, as in `[5m]` or `[1h30m:1m]`.
_RANGE: Final = re.compile(r"\[((?:[0-9]+(?:ms|[smhdwy]))+)(?::[^\]]*)?\]", re.ASCII)
#: Functions whose answer is no counter, and aggregations that hide a restart unless they group.
_RATE: Final = re.compile(r"\b(rate|irate|increase|delta|idelta|resets|changes)\s*\(", re.ASCII)
_ADDS_UP: Final = re.compile(r"\b(?:sum|avg|max|min|count)\b", re.ASCII)
_BY_GROUP: Final = re.compile(r"\b(?:by|without)\s*\(", re.ASCII)
_DEFAULT_LOOKS: Final = {
    name: ExternalMetricDocument.model_fields[name].default for name in ("misses", "of")
}
_PART: Final = re.compile(r"([0-9]+)(ms|[smhdwy])", re.ASCII)
_SECONDS: Final = {
    "ms": 0.001,
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86_400,
    "w": 604_800,
    "y": 31_536_000,
}


def external_faults(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find external metrics that cannot work."""
    names: dict[str, int] = {}
    for index, metric in enumerate(document.external):
        at: Path = ("external", index)
        if metric.name in names:
            yield error(
                (*at, "name"),
                f"external[{names[metric.name]}] has the name {metric.name}, too",
                "give it another",
            )
        names.setdefault(metric.name, index)
        yield from _threshold_faults(metric, at)
        yield from _look_faults(metric, at)
        yield from _query_faults(metric, document, at)


def _threshold_faults(metric: ExternalMetricDocument, at: Path) -> Iterator[Finding]:
    if metric.prometheus.counters:
        yield from _share_faults(metric, at)
    else:
        yield from _number_faults(metric, at)
    has_limit = metric.at_most is not None or metric.at_least is not None
    if not has_limit and metric.margin is None:
        yield error(
            at,
            f"{metric.name} has no threshold",
            "add one, as in `at_most: 0.3`, `at_least: 0.99` or `margin: 10%`",
        )
    if metric.at_most is not None and metric.at_least is not None:
        yield error(
            (*at, "at_least"),
            "a metric is better when lower or when higher, not both",
            "make two metrics of it",
        )
    if metric.at_most is not None and metric.higher_is_better:
        yield error(
            (*at, "at_most"),
            "a metric that is better when higher has `at_least`",
            "write `at_least`, or remove `higher_is_better`",
        )
    if metric.margin is not None and not 0 < metric.margin < 10:
        yield error((*at, "margin"), f"a margin of {metric.margin:g}", "write it as in 10%")


def _number_faults(metric: ExternalMetricDocument, at: Path) -> Iterator[Finding]:
    """Find what only counters have."""
    if metric.repeats != 1:
        yield error(
            (*at, "repeats"),
            "a number has no events that could repeat",
            "remove it, or ask counters",
        )


def _share_faults(metric: ExternalMetricDocument, at: Path) -> Iterator[Finding]:
    """Find thresholds that are no share of bad events, or that no test can be made of."""
    if metric.at_least is not None or metric.higher_is_better:
        yield error(
            (*at, "at_least" if metric.at_least is not None else "higher_is_better"),
            "counters are judged by their share of bad events",
            "write `at_most`, as in `at_most: 1%` for 99 % good ones",
        )
    if metric.at_most is not None and not SMALLEST_LIMIT <= metric.at_most < 1:
        yield error(
            (*at, "at_most"),
            f"a limit of {metric.at_most:g} means {metric.at_most * 100:g} % of the events",
            "write a share, as in 1% or 0.01",
        )
    for name in ("misses", "of"):
        if name in metric.model_fields_set and getattr(metric, name) != _DEFAULT_LOOKS[name]:
            yield error(
                (*at, name),
                "counters are tested on all their events, and not by looks that missed",
                "leave it out",
            )


def _look_faults(metric: ExternalMetricDocument, at: Path) -> Iterator[Finding]:
    if metric.misses > metric.of:
        yield error(
            (*at, "misses"),
            f"{metric.misses} of {metric.of} looks can never miss",
            "let `misses` be at most `of`",
        )
    for name in ("every", "newest_within"):
        length: timedelta = getattr(metric, name)
        if length < _SHORTEST:
            yield error((*at, name), f"it is {format_duration(length)}", "write at least 1s")


def _query_faults(
    metric: ExternalMetricDocument, document: PlanDocument, at: Path
) -> Iterator[Finding]:
    asked = metric.prometheus
    texts = dict(_queries(metric))
    has_control = asked.control is not None or any(
        VARIANT in query for field, query in texts.items() if field[0] == "query"
    )
    if metric.margin is not None and not has_control:
        yield error(
            (*at, "margin"),
            "there is no number of control to compare with",
            f"write {VARIANT} where the query names the variant, or give `treatment` and `control`",
        )
    for field, query in texts.items():
        if "vector(0)" in query.replace(" ", ""):
            yield error(
                (*at, "prometheus", *field),
                "`or vector(0)` makes no data look like a zero",
                "leave it out: no data is a gap, and holds the gate",
            )
        if field[0] != "query" and VARIANT in query:
            yield error(
                (*at, "prometheus", *field),
                f"{VARIANT} is only replaced in `query`",
                "write the variant, or ask for all of them",
            )
        is_exact = f'="{VARIANT}"' in query.replace(" ", "")
        if field[0] == "query" and document.variants.split and is_exact:
            yield error(
                (*at, "prometheus", *field),
                f"treatment is split, so {VARIANT} stands for several names",
                f'match them with =~"{VARIANT}"',
            )
        if len(field) > 1:
            yield from _counter_faults(query, (*at, "prometheus", *field))
    if asked.counters:
        yield from _arm_faults(metric, at)


def _queries(metric: ExternalMetricDocument) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each query of a metric, with its place below `prometheus`."""
    for name in ("query", "treatment", "control", "newest"):
        asked = getattr(metric.prometheus, name)
        if isinstance(asked, CountersDocument):
            for part, query in asked.queries.items():
                if query is not None:
                    yield (name, part), query
        elif asked is not None:
            yield (name,), asked


def _counter_faults(query: str, at: Path) -> Iterator[Finding]:
    """Find what is no counter of single processes."""
    if (rate := _RATE.search(query)) is not None:
        yield error(
            at,
            f"{rate[1]}() gives no counter: rolloutd takes the increments itself",
            "write the counter, as in `sum by (instance) (http_requests_total{...})`",
        )
    elif _ADDS_UP.search(query) and not _BY_GROUP.search(query):
        yield error(
            at,
            "it adds up the counters of all processes, so that a restart of one looks like events",
            "add up by process, as in `sum by (instance) (...)`",
        )


def _arm_faults(metric: ExternalMetricDocument, at: Path) -> Iterator[Finding]:
    """Find counters of which one part is of an arm and the other is not."""
    for name, asked in metric.prometheus.counters.items():
        with_variant = {part: VARIANT in (query or "") for part, query in asked.queries.items()}
        parts = [part for part, query in asked.queries.items() if query is not None]
        if name == "query" and len({with_variant[part] for part in parts}) > 1:
            whole = next(part for part in parts if not with_variant[part])
            yield error(
                (*at, "prometheus", name, whole),
                f"it counts the events of all variants, and the other those of one: no {VARIANT}",
                f"write {VARIANT} in both",
            )


def external_stage_faults(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find external metrics that watch no stage, and stages whose gate they can never pass."""
    if document.blind and document.external:
        yield error(
            ("blind",), "a blind plan looks at no metric", "remove `blind`, or the external metrics"
        )
        return
    for index, metric in enumerate(document.external):
        yield from _stage_faults(metric, document, ("external", index))


def _stage_faults(
    metric: ExternalMetricDocument, document: PlanDocument, at: Path
) -> Iterator[Finding]:
    to_percent = 100.0 if metric.to_percent is None else metric.to_percent
    if not 0 <= metric.from_percent <= to_percent <= 100:
        yield error(
            (*at, "to_percent"),
            f"watches {metric.from_percent:g} % to {to_percent:g} %",
            "let 0 <= from <= to <= 100",
        )
        return
    watched = [
        (index, stage)
        for index, stage in enumerate(document.stages)
        if judges(metric, stage.percent)
    ]
    if not watched and document.stages:
        if all(is_servable(stage.percent) for stage in document.stages):
            yield error(
                at,
                "watches no stage at all",
                "let from_percent and to_percent enclose a stage's percent",
            )
        return
    queries = [query for field, query in _queries(metric) if field[0] != "newest"]
    longest = timedelta(seconds=max((longest_range(one) for one in queries), default=0.0))
    # Increments need two looks.
    needed = 2 if metric.prometheus.counters else metric.of
    looks = needed * metric.every
    for index, stage in watched:
        if looks > stage.longest_bake:
            yield error(
                ("stages", index),
                f"its gate can never pass: {metric.name} needs "
                f"{plural(needed, 'look, which takes', 'looks, which take')} "
                f"{format_duration(looks)}, and max_bake is {format_duration(stage.longest_bake)}",
                "look more often with `every`, or bake longer",
            )
        elif longest > stage.settle:
            yield warning(
                ("stages", index, "settle"),
                f"the query of {metric.name} looks back {format_duration(longest)}, further than "
                f"the settle of {percent_words(stage.percent)}: its first looks see the stage "
                "before",
                f"settle {format_duration(longest)}, or shorten the range",
            )


def judges(metric: ExternalMetricDocument, percent: float) -> bool:
    """Return whether the metric can judge a stage of `percent`."""
    to_percent = 100.0 if metric.to_percent is None else metric.to_percent
    has_limit = metric.at_most is not None or metric.at_least is not None
    return metric.from_percent <= percent <= to_percent and (has_limit or percent < 100)


def longest_range(query: str) -> float:
    """Return the seconds of the longest range in a PromQL query; 0: it has none."""
    return max(
        (
            sum(int(count) * _SECONDS[unit] for count, unit in _PART.findall(found))
            for found in _RANGE.findall(query)
        ),
        default=0.0,
    )
