"""Rules about guardrails: what each may ask for, and that every stage has one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import combinations

from controller.core.metrics import kind_of
from controller.core.plan import DEFAULT_WITHIN
from controller.plans.external_rules import judges as external_judges
from controller.plans.finding import Finding, error, is_servable, percent_words
from controller.yaml_places import Path
from schemas.fields import format_duration
from schemas.guardrails import SMALLEST_MARGIN, GuardrailDocument
from schemas.plan import PlanDocument
from schemas.terms import MetricRole


def _judges(guardrail: GuardrailDocument, percent: float) -> bool:
    """Return whether the guardrail can judge a stage of `percent`.

    The stage must be in its range, and have a control if the guardrail only compares.
    """
    to_percent = 100.0 if guardrail.to_percent is None else guardrail.to_percent
    return guardrail.from_percent <= percent <= to_percent and (
        guardrail.limit is not None or percent < 100
    )


def guardrail_faults(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find guardrails that cannot work, and two that contradict each other about one metric."""
    for index, guardrail in enumerate(document.guardrails):
        at: Path = ("guardrails", index)
        yield from _bounds(guardrail, at)
        to_percent = 100.0 if guardrail.to_percent is None else guardrail.to_percent
        if not 0 <= guardrail.from_percent <= to_percent <= 100:
            is_from = not 0 <= guardrail.from_percent <= 100
            yield error(
                (*at, "from_percent" if is_from else "to_percent"),
                f"watches {guardrail.from_percent:g} % to {to_percent:g} %",
                "let 0 <= from <= to <= 100",
            )
    for (first, one), (second, other) in combinations(enumerate(document.guardrails), 2):
        if one.metric == other.metric and any(
            _judges(one, stage.percent) and _judges(other, stage.percent)
            for stage in document.stages
        ):
            yield error(
                ("guardrails", second),
                f"{other.metric} is watched by guardrails[{first}] already, in the same stage",
                "join them, as in `error_rate < 1% and < control + 10%`, or part them by "
                "from_percent and to_percent",
            )


def unwatched_guardrails(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find guardrails that watch no stage, or one in which they cannot compare."""
    for index, guardrail in enumerate(document.guardrails):
        at: Path = ("guardrails", index)
        to_percent = 100.0 if guardrail.to_percent is None else guardrail.to_percent
        if not 0 <= guardrail.from_percent <= to_percent <= 100:
            continue  # found by `guardrail_faults`
        in_range = [
            s.percent for s in document.stages if guardrail.from_percent <= s.percent <= to_percent
        ]
        if any(not is_servable(stage.percent) for stage in document.stages):
            continue  # found with the stage: nobody knows which percent was meant
        is_range_given = guardrail.to_percent is not None or guardrail.from_percent > 0
        if not in_range and document.stages:
            yield error(
                at,
                "watches no stage at all",
                "let from_percent and to_percent enclose a stage's percent",
            )
        elif (
            guardrail.limit is None
            and guardrail.compare
            and 100 in in_range
            and (is_range_given or in_range == [100])
        ):
            yield error(
                at,
                "compares with control at 100 %, where nobody is left to compare with",
                "add an absolute `limit`, or end with `to_percent` below 100",
            )


def impossible_bounds(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find limits and margins that are missing or cannot be meant."""
    for index, guardrail in enumerate(document.guardrails):
        yield from _bounds(guardrail, ("guardrails", index))


def _bounds(guardrail: GuardrailDocument, at: Path) -> Iterator[Finding]:
    """Find what is wrong with the limit and the margins of one guardrail."""
    kind = kind_of(guardrail.metric)
    if guardrail.limit is None and guardrail.compare is None:
        yield error(
            at,
            f"{guardrail.metric} has neither limit nor compare",
            "add one, as in `limit: 1%` or `compare: {margin: 10%}`",
        )
    if guardrail.limit is not None and (fault := kind.limit_fault(guardrail.limit)) is not None:
        yield error((*at, "limit"), fault.message, fault.fix)
    is_floor = guardrail.limit is not None and kind.is_better_when_higher
    if guardrail.within is not None and not is_floor:
        yield error(
            (*at, "within"),
            f"{guardrail.metric} has no time to convert"
            if not kind.is_better_when_higher
            else "only a `limit` needs the time that a context has to convert",
            "remove `within`",
        )
    if guardrail.compare is None:
        return
    in_points = guardrail.compare.in_points
    if in_points and not kind.takes_points:
        yield error(
            (*at, "compare"),
            f"{guardrail.metric} is not compared in percentage points",
            _relative_margin(guardrail.metric, is_floor=kind.is_better_when_higher),
        )
        return
    highest = 1.0 if in_points else kind.largest_margin
    for name in ("margin", "gate_margin"):
        margin = getattr(guardrail.compare, name)
        if margin is not None and not SMALLEST_MARGIN <= margin < highest:
            yield error(
                (*at, "compare", name),
                f"a margin of {margin:g} means {margin * 100:g} "
                f"{'pp' if in_points else '%'} worse than control",
                "write the harm you tolerate, as in 10% of control's value or 0.5pp",
            )


def _relative_margin(metric: str, *, is_floor: bool) -> str:
    """Return how to compare a metric with control that takes no percentage points."""
    if not is_floor:
        return f"write a part of control's value, as in `{metric} < control + 10%`"
    return (
        f"write the part of control's rate that may be lost, as in `{metric} > control - 10%` "
        f"(that is 1pp where control converts 10 %), or a floor, as in `{metric} > 9%`"
    )


def _time_to_convert(guardrail: GuardrailDocument) -> timedelta | None:
    """Return how long contexts have to convert for a floor that is all a guardrail asks for."""
    is_floor = guardrail.limit is not None and kind_of(guardrail.metric).is_better_when_higher
    if not is_floor or guardrail.compare is not None:
        return None
    return DEFAULT_WITHIN if guardrail.within is None else guardrail.within


def unwatched_stages(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find stages that nothing would roll back, unless the plan says that it is blind."""
    armed = [
        guardrail for guardrail in document.guardrails if guardrail.role is MetricRole.GUARDRAIL
    ]
    external = [one for one in document.external if one.role is MetricRole.GUARDRAIL]
    if document.blind:
        if document.guardrails:
            yield error(
                ("blind",),
                "a blind plan looks at no guardrail",
                "remove `blind`, or the guardrails",
            )
        return
    if not armed and not external:
        yield error(
            ("guardrails",) if document.guardrails else (),
            "no guardrail: nothing would roll the flag back",
            "add one, as in `guardrails: [error_rate < 1%]`, or say `blind: true` for a timed ramp",
        )
        return
    for index, stage in enumerate(document.stages):
        if not is_servable(stage.percent) or any(
            external_judges(one, stage.percent) for one in external
        ):
            continue
        judging = [guardrail for guardrail in armed if _judges(guardrail, stage.percent)]
        late = [within for one in judging if (within := _time_to_convert(one)) is not None]
        if judging and len(late) == len(judging) and min(late) >= stage.bake:
            yield error(
                ("stages", index),
                f"nothing can roll back the stage of {percent_words(stage.percent)}: its first "
                f"contexts have until {format_duration(min(late))} to convert, and it bakes "
                f"{format_duration(stage.bake)}",
                "bake longer, lower `within`, or add a guardrail such as `error_rate < 1%`",
            )
        if not judging:
            yield error(
                ("stages", index),
                f"no guardrail watches the stage of {percent_words(stage.percent)}",
                "add an absolute `limit` to one: without a control only limits can be judged"
                if stage.percent == 100
                else "widen from_percent or to_percent of one",
            )
