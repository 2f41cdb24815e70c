"""Rules about external metrics: what each may ask, and whether a gate can ever pass it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from controller.plans.finding import Finding, error, percent_words, warning
from controller.yaml_places import Path
from schemas.external import VARIANT, ExternalMetricDocument
from schemas.fields import format_duration
from schemas.plan import PlanDocument

_SHORTEST: Final = timedelta(seconds=1)
#: The range of a selector in PromQL, as in `[5m]` or `[1h30m:1m]`.
_RANGE: Final = re.compile(r"\[((?:[0-9]+(?:ms|[smhdwy]))+)(?::[^\]]*)?\]", re.ASCII)
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
    has_control = asked.control is not None or VARIANT in (asked.query or "")
    if metric.margin is not None and not has_control:
        yield error(
            (*at, "margin"),
            "there is no number of control to compare with",
            f"write {VARIANT} where the query names the variant, or give `treatment` and `control`",
        )
    queries = {name: getattr(asked, name) for name in ("query", "treatment", "control", "newest")}
    for name, query in queries.items():
        if query is None:
            continue
        if "vector(0)" in query.replace(" ", ""):
            yield error(
                (*at, "prometheus", name),
                "`or vector(0)` makes no data look like a zero",
                "leave it out: no data is a gap, and holds the gate",
            )
        if name != "query" and VARIANT in query:
            yield error(
                (*at, "prometheus", name),
                f"{VARIANT} is only replaced in `query`",
                "write the variant, or ask for all of them",
            )
    if document.variants.split and f'="{VARIANT}"' in (asked.query or "").replace(" ", ""):
        yield error(
            (*at, "prometheus", "query"),
            f"treatment is split, so {VARIANT} stands for several names",
            f'match them with =~"{VARIANT}"',
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
        yield error(
            at, "watches no stage at all", "let from_percent and to_percent enclose a stage's"
        )
        return
    asked = metric.prometheus
    queries = [one for one in (asked.query, asked.treatment, asked.control) if one is not None]
    longest = timedelta(seconds=max((longest_range(one) for one in queries), default=0.0))
    looks = metric.of * metric.every
    for index, stage in watched:
        if looks > stage.longest_bake:
            yield error(
                ("stages", index),
                f"its gate can never pass: {metric.name} needs {metric.of} looks, which take "
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
