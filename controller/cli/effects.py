"""Traffic, rates and effects as they are typed for `simulate` and `plan lint`.

And what is assumed where they are not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli.common import EXIT_USAGE, fail
from schemas.fields import parse_duration, parse_share

if TYPE_CHECKING:
    from controller.core.plan import Plan
    from controller.planning.world import Effect, World

_PANEL = "World"
TrafficOption = Annotated[
    str | None,
    typer.Option(
        "--traffic",
        metavar="N/s",
        help="Contexts per s, min, h or d, both arms together; the plan's own without.",
        rich_help_panel=_PANEL,
    ),
]
ErrorRateOption = Annotated[
    str | None,
    typer.Option(
        "--error-rate",
        metavar="SHARE",
        help="Control's, as in 0.5%; half the limit without.",
        rich_help_panel=_PANEL,
    ),
]
LatencyOption = Annotated[
    str | None,
    typer.Option(
        "--latency",
        metavar="P50,P99",
        help="Control's, as in 40ms,150ms; log-normal; inside the limits without.",
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

_PER_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_EFFECT = re.compile(
    r"(?P<metric>[A-Za-z0-9._:-]+)=x(?P<factor>[0-9.]+)(?:@(?:stage(?P<stage>[0-9]+)|(?P<after>[0-9].*)))?",
    re.ASCII,
)
_EFFECT_FORM = (
    "write it as in errors=x2, latency=x1.5@stage2, tail=x5@25h or conversion:bought=x0.8"
)


def world_of(
    plan: Plan,
    plan_traffic: float | None,
    traffic: str | None,
    error_rate: str | None,
    latency: str | None,
    conversions: Sequence[str] | None,
) -> tuple[World, tuple[str, ...]] | None:
    """Return the world without effects, and what of it was assumed.

    None when nobody said how much traffic there is.

    `plan_traffic` is what the plan itself says, in contexts per hour. Exits 2 on what cannot be
    meant.
    """
    from controller.planning.world import World

    per_second = (
        _traffic(traffic)
        if traffic is not None
        else None
        if plan_traffic is None
        else plan_traffic / 3600
    )
    if per_second is None:
        return None
    assumed = []
    if error_rate is None:
        limits = [
            one.limit
            for one in plan.guardrails
            if one.metric == "error_rate" and one.limit is not None
        ]
        rate = min(limits) / 2 if limits else 0.005
        if any(one.metric == "error_rate" for one in plan.guardrails):
            assumed.append(f"errors {100 * rate:.3g} %")
    else:
        rate = _share(error_rate, "--error-rate")
    if latency is None:
        p50, p99 = _latency_inside(plan)
        if any(one.quantile is not None for one in plan.guardrails):
            assumed.append(f"latency p50 {p50:.3g} ms, p99 {p99:.3g} ms")
    else:
        p50, p99 = _latency(latency)
    rates = _conversions(conversions or ())
    for guardrail in plan.guardrails:
        name = guardrail.metric.removeprefix("conversion:")
        if guardrail.is_better_when_higher and name not in rates:
            rates[name] = min(1.5 * guardrail.limit, 0.5) if guardrail.limit is not None else 0.05
            assumed.append(f"{name} {100 * rates[name]:.3g} %")
    return World(per_second, rate, p50, p99, rates), tuple(assumed)


def effects_of(texts: Sequence[str], plan: Plan) -> tuple[Effect, ...]:
    """Return the effects as typed. Exits 2 on one that cannot be meant."""
    from controller.planning.world import ERRORS, LATENCY, TAIL, Effect

    effects = []
    for text in texts:
        match = _EFFECT.fullmatch(text.strip())
        if match is None:
            fail(f"--effect: {text!r} is no effect: {_EFFECT_FORM}", EXIT_USAGE)
        metric, factor = match["metric"], _number(match["factor"], "--effect")
        if metric not in (ERRORS, LATENCY, TAIL) and not metric.startswith("conversion:"):
            fail(f"--effect: {metric!r} is not known: {_EFFECT_FORM}", EXIT_USAGE)
        if not (0 <= factor < 1 if metric.startswith("conversion:") else 1 < factor <= 1000):
            fail(
                f"--effect: {text!r} does no harm: conversions fall (x0.8), everything "
                f"else rises (x2)",
                EXIT_USAGE,
            )
        stage = None if match["stage"] is None else int(match["stage"]) - 1
        if stage is not None and not 0 <= stage < len(plan.stages):
            fail(f"--effect: {text!r}: the plan has stages 1 to {len(plan.stages)}", EXIT_USAGE)
        after = None if match["after"] is None else _duration(match["after"], "--effect")
        effects.append(Effect(metric, factor, stage, after))
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


def _traffic(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9.]+)\s*/\s*([a-z]+)\s*", text)
    per = _PER_SECONDS.get(match[2]) if match is not None else None
    if match is None or per is None:
        fail(f"--traffic: {text!r} is no rate: write it as in 50/s, 2000/min or 1e5/h", EXIT_USAGE)
    rate = _number(match[1], "--traffic") / per
    if rate <= 0:
        fail("--traffic: without traffic nothing can be decided: write it as in 50/s", EXIT_USAGE)
    return rate


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        fail(f"{option}: {text!r} is no number", EXIT_USAGE)


def _share(text: str, option: str) -> float:
    share = parse_share(text)
    if share is None:
        try:
            share = float(text)
        except ValueError:
            share = -1.0
    if not 0 <= share <= 1:
        fail(f"{option}: {text!r} is no share: write it as in 0.5% or 0.005", EXIT_USAGE)
    return share


def _duration(text: str, option: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError:
        fail(f"{option}: {text!r} is no duration: write it as in 90s, 25h or 2d", EXIT_USAGE)


def _latency(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        fail(
            f"--latency: {text!r} is not two latencies: write p50 and p99, as in 40ms,150ms",
            EXIT_USAGE,
        )
    p50, p99 = (_duration(part.strip(), "--latency") / timedelta(milliseconds=1) for part in parts)
    if not 0 < p50 < p99:
        fail(f"--latency: {text!r}: p50 lies above 0 and below p99, as in 40ms,150ms", EXIT_USAGE)
    return p50, p99


def _latency_inside(plan: Plan) -> tuple[float, float]:
    """Return p50 and p99 in ms that keep every latency limit with a quarter to spare.

    50 and 150 where there is none.
    """
    from controller.planning.world import quantile_ms

    p50, p99 = 50.0, 150.0
    limits = [
        (one.quantile, one.limit)
        for one in plan.guardrails
        if one.quantile is not None and one.limit is not None
    ]
    over = [quantile_ms(p50, p99, q) / (0.75 * limit) for q, limit in limits]
    slower = max([1.0, *over])
    return p50 / slower, p99 / slower


def _conversions(texts: Sequence[str]) -> dict[str, float]:
    rates = {}
    for text in texts:
        name, _, share = text.partition("=")
        rates[name.removeprefix("conversion:")] = _share(share, "--conversion")
    return rates
