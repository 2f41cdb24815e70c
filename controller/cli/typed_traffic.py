"""Virtual traffic and effects as they are typed for `simulate` and `plan lint`.

Where an option is not given, the kind of metric says what is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli.common import EXIT_USAGE, fail
from controller.plans.finding import nearest_word
from schemas.fields import parse_duration, parse_share
from schemas.metric_names import CONVERSION_PREFIX

if TYPE_CHECKING:
    from controller.core.metrics.virtual import VirtualMetric
    from controller.core.plan import Plan
    from controller.planning.virtual_traffic import Effect, VirtualTraffic

_PANEL = "Traffic"
TrafficOption = Annotated[
    str | None,
    typer.Option(
        "--traffic",
        metavar="N/s",
        help="Contexts per s, min, h or d, both arms together. Default: the plan's.",
        rich_help_panel=_PANEL,
    ),
]
ErrorRateOption = Annotated[
    str | None,
    typer.Option(
        "--error-rate",
        metavar="SHARE",
        help="Control's, as in 0.5%. Default: half the limit.",
        rich_help_panel=_PANEL,
    ),
]
LatencyOption = Annotated[
    str | None,
    typer.Option(
        "--latency",
        metavar="P50,P99",
        help="Control's p50 and p99, as in 40ms,150ms; log-normal. Default: within the limits.",
        rich_help_panel=_PANEL,
    ),
]
ConversionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--conversion",
        metavar="NAME=SHARE",
        help="Control's, as in bought=3%; may be repeated.",
        rich_help_panel=_PANEL,
    ),
]

_PER_SECONDS = {
    **dict.fromkeys(("s", "sec", "second"), 1),
    **dict.fromkeys(("m", "min", "minute"), 60),
    **dict.fromkeys(("h", "hour"), 3_600),
    **dict.fromkeys(("d", "day"), 86_400),
}
#: About the most that a plan's `traffic` may say. Far more cannot be drawn as random numbers.
_MOST_PER_SECOND = 1e9
_EFFECT = re.compile(
    r"(?P<metric>[A-Za-z0-9._:-]+)=x(?P<factor>[0-9.]+)"
    r"(?:@(?:stage(?P<stage>[0-9]+)|(?P<after>[0-9].*)))?",
    re.ASCII,
)
_EFFECTS = ("errors", "latency", "tail", CONVERSION_PREFIX)
_EFFECT_FORM = (
    "write it as in errors=x2, latency=x1.5@stage2, tail=x5@25h or conversion:bought=x0.8"
)


def virtual_traffic_of(
    plan: Plan,
    plan_traffic: float | None,
    traffic: str | None,
    error_rate: str | None,
    latency: str | None,
    conversions: Sequence[str] | None,
) -> tuple[VirtualTraffic, tuple[str, ...]] | None:
    """Return the traffic without effects, and what of it was assumed; None without any traffic.

    `plan_traffic` is what the plan itself says, in contexts per hour. Exits 2 on what cannot be
    meant.
    """
    from controller.core.metrics import VIRTUAL_METRICS
    from controller.planning.virtual_traffic import VirtualTraffic, guardrails_of

    # What is typed wrong is said whether or not anything comes of it.
    typed = _typed_metrics(error_rate, latency, conversions)
    _check_conversions(plan, conversions or ())
    if traffic is not None:
        per_second = _traffic(traffic)
    elif plan_traffic is not None:
        per_second = plan_traffic / 3600
    else:
        return None
    control, assumed = [], []
    for virtual in VIRTUAL_METRICS:
        guardrails = guardrails_of(plan, virtual)
        metric = virtual.assumed(guardrails)
        if virtual in typed:
            metric, added = typed[virtual].completed_by(metric)
            assumed += added
        elif guardrails:
            assumed += metric.words()
        control.append(metric)
    return VirtualTraffic(per_second, tuple(control)), tuple(assumed)


def _check_conversions(plan: Plan, texts: Sequence[str]) -> None:
    """Exit 2 for the rate of a conversion that no guardrail of the plan reads."""
    watched = {one.kind.conversion for one in plan.guardrails if one.kind.conversion is not None}
    for name in _conversions(texts):
        if name not in watched:
            there = ", ".join(sorted(watched)) or "none"
            fail(
                f"--conversion: no guardrail of the plan is about {CONVERSION_PREFIX}{name}; its "
                f"conversions: {there}",
                EXIT_USAGE,
            )


def _typed_metrics(
    error_rate: str | None, latency: str | None, conversions: Sequence[str] | None
) -> dict[type[VirtualMetric], VirtualMetric]:
    """Return control's behavior in each kind of metric that an option describes."""
    from controller.core.metrics.conversion import VirtualConversions
    from controller.core.metrics.error_rate import VirtualErrors
    from controller.core.metrics.latency import VirtualLatency

    typed: dict[type[VirtualMetric], VirtualMetric] = {}
    if error_rate is not None:
        typed[VirtualErrors] = VirtualErrors(_share(error_rate, "--error-rate"))
    if latency is not None:
        typed[VirtualLatency] = VirtualLatency(*_latency(latency))
    if conversions:
        typed[VirtualConversions] = VirtualConversions(_conversions(conversions))
    return typed


def effects_of(texts: Sequence[str], plan: Plan) -> tuple[Effect, ...]:
    """Return the effects as typed. Exits 2 on one that cannot be meant."""
    from controller.core.metrics import VIRTUAL_METRICS
    from controller.planning.virtual_traffic import Effect

    effects = []
    for text in texts:
        match = _EFFECT.fullmatch(text.strip())
        if match is None:
            fail(f"--effect: {text!r} is not an effect: {_EFFECT_FORM}", EXIT_USAGE)
        name, factor = match["metric"], _number(match["factor"], "--effect")
        virtual = next((one for one in VIRTUAL_METRICS if one.has_effect(name)), None)
        if virtual is None:
            near = nearest_word(name, _EFFECTS)
            meant = "" if near is None else f", did you mean {near}?"
            fail(f"--effect: {name!r} is not known{meant or ':'} {_EFFECT_FORM}", EXIT_USAGE)
        if not virtual.is_harm(factor):
            fail(
                f"--effect: {text!r} does no harm: conversions fall (x0.8), everything "
                f"else rises (x2)",
                EXIT_USAGE,
            )
        stage = None if match["stage"] is None else int(match["stage"]) - 1
        if stage is not None and not 0 <= stage < len(plan.stages):
            fail(f"--effect: {text!r}: the plan has stages 1 to {len(plan.stages)}", EXIT_USAGE)
        after = None if match["after"] is None else _after(match["after"])
        effects.append(Effect(name, factor, stage, after))
    return tuple(effects)


def begins_at(plan: Plan, now: datetime) -> datetime:
    """Return when virtual rollouts begin: when the plan says, else next Monday at 9:00 UTC.

    Freeze windows hold from there.
    """
    if plan.start_at is not None:
        return plan.start_at
    monday = now.astimezone(UTC).replace(hour=9, minute=0, second=0, microsecond=0) + timedelta(
        days=-now.weekday() % 7
    )
    return monday if monday >= now else monday + timedelta(days=7)


def begin_words(plan: Plan, starts_at: datetime) -> str:
    """Return when virtual rollouts begin and which windows hold, in words."""
    from controller.core.plan_changes import window_words

    why = "assumed: the plan has no start_at" if plan.start_at is None else "the plan's start_at"
    parts = [f"begin {starts_at.astimezone(UTC):%a %Y-%m-%d %H:%M} UTC ({why})"]
    for name, windows in (("active", plan.active), ("frozen", plan.freeze_windows)):
        if windows:
            more = f" and {len(windows) - 3} more" if len(windows) > 3 else ""
            parts.append(f"{name} {', '.join(map(window_words, windows[:3]))}{more}")
    return "; ".join(parts)


def _traffic(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]{1,2})?)\s*/\s*([a-z]+)\s*", text)
    per = _PER_SECONDS.get(match[2]) if match is not None else None
    if match is None or per is None:
        fail(
            f"--traffic: {text!r} is not a rate: write it as in 50/s, 2000/min or 1e5/h", EXIT_USAGE
        )
    rate = _number(match[1], "--traffic") / per
    if rate <= 0:
        fail("--traffic: without traffic nothing can be decided: write it as in 50/s", EXIT_USAGE)
    if rate > _MOST_PER_SECOND:
        fail(f"--traffic: {text!r} is more than {_MOST_PER_SECOND:,.0f}/s", EXIT_USAGE)
    return rate


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        fail(f"{option}: {text!r} is not a number", EXIT_USAGE)


def _share(text: str, option: str) -> float:
    share = parse_share(text)
    if share is None:
        try:
            share = float(text)
        except ValueError:
            share = -1.0
    if not 0 <= share <= 1:
        fail(f"{option}: {text!r} is not a share: write it as in 0.5% or 0.005", EXIT_USAGE)
    return share


def _after(text: str) -> timedelta:
    if text.isdecimal():
        fail(
            f"--effect: @{text} has no unit: write @stage{text} from that stage on, @{text}h after "
            f"that time",
            EXIT_USAGE,
        )
    try:
        return parse_duration(text)
    except ValueError:
        fail(f"--effect: {text!r} is not a duration: write it as in 90s, 25h or 2d", EXIT_USAGE)


def _latency(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        fail(
            f"--latency: {text!r} is not two latencies: write p50 and p99, as in 40ms,150ms",
            EXIT_USAGE,
        )
    try:
        p50, p99 = (parse_duration(part.strip()) / timedelta(milliseconds=1) for part in parts)
    except ValueError:
        fail(f"--latency: {text!r}: write both with a unit, as in 40ms,150ms", EXIT_USAGE)
    if not 0 < p50 < p99:
        fail(f"--latency: {text!r}: p50 lies above 0 and below p99, as in 40ms,150ms", EXIT_USAGE)
    return p50, p99


def _conversions(texts: Sequence[str]) -> dict[str, float]:
    rates = {}
    for text in texts:
        name, sign, share = text.partition("=")
        if not name or not sign:
            fail(f"--conversion: {text!r}: write name and share, as in bought=3%", EXIT_USAGE)
        rates[name.removeprefix(CONVERSION_PREFIX)] = _share(share, "--conversion")
    return rates
