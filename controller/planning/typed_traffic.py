"""Virtual traffic and effects, read from what a person typed.

What is not typed, the kind of metric assumes. The words of a refusal name the options of
`rolloutctl simulate`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from controller.core.metrics import VIRTUAL_METRICS
from controller.core.metrics.conversion import VirtualConversions
from controller.core.metrics.error_rate import ERRORS, VirtualErrors
from controller.core.metrics.latency import SLOWER, TAIL, VirtualLatency
from controller.core.metrics.virtual import VirtualMetric
from controller.core.plan import Plan
from controller.core.plan_changes import window_words
from controller.errors import BadInput
from controller.planning.virtual_traffic import Effect, VirtualTraffic, guardrails_of
from controller.plans.finding import nearest_word
from schemas.fields import parse_duration, parse_share
from schemas.metric_names import CONVERSION_PREFIX

#: Contexts per second that can be drawn: with more, the counts of ten years overflow.
MOST_PER_SECOND: Final = 1e7
_PER_SECONDS = {
    **dict.fromkeys(("s", "sec", "second"), 1),
    **dict.fromkeys(("m", "min", "minute"), 60),
    **dict.fromkeys(("h", "hour"), 3_600),
    **dict.fromkeys(("d", "day"), 86_400),
}
_EFFECT = re.compile(
    r"(?P<metric>[A-Za-z0-9._:-]+)=x(?P<factor>[0-9.]+)"
    r"(?:@(?:stage(?P<stage>[0-9]+)|(?P<after>[0-9].*)))?",
    re.ASCII,
)
_EFFECTS = (ERRORS, SLOWER, TAIL, CONVERSION_PREFIX)
_EFFECT_FORM = (
    "write it as in errors=x2, latency=x1.5@stage2, tail=x5@25h or conversion:bought=x0.8"
)


@dataclass(frozen=True, slots=True)
class TypedTraffic:
    """Traffic and control's behavior as a person typed them; None: not typed."""

    traffic: str | None = None  # contexts of both arms, as in 50/s
    error_rate: str | None = None
    latency: str | None = None  # p50 and p99
    conversions: tuple[str, ...] = ()


def virtual_traffic_of(
    plan: Plan, plan_traffic: float | None, typed: TypedTraffic
) -> tuple[VirtualTraffic, tuple[str, ...]] | None:
    """Return the traffic without effects, and what of it was assumed; None without any traffic.

    `plan_traffic` is what the plan itself says, in contexts per hour. Raises BadInput for what
    cannot be meant.
    """
    # What is typed wrong is said whether or not anything comes of it.
    described = _described_metrics(typed)
    _check_conversions(plan, typed.conversions)
    if typed.traffic is not None:
        per_second = _traffic(typed.traffic)
    elif plan_traffic is not None:
        per_second = plan_traffic / 3600
    else:
        return None
    control, assumed = [], []
    for virtual in VIRTUAL_METRICS:
        guardrails = guardrails_of(plan, virtual)
        metric = virtual.assumed(guardrails)
        if virtual in described:
            metric, added = described[virtual].completed_by(metric)
            assumed += added
        elif guardrails:
            assumed += metric.words()
        control.append(metric)
    return VirtualTraffic(per_second, tuple(control)), tuple(assumed)


def _check_conversions(plan: Plan, texts: Sequence[str]) -> None:
    """Raise BadInput for the rate of a conversion that no guardrail of the plan reads."""
    watched = {one.kind.conversion for one in plan.guardrails if one.kind.conversion is not None}
    for name in _conversions(texts):
        if name not in watched:
            there = ", ".join(sorted(watched)) or "none"
            raise BadInput(
                f"--conversion: no guardrail of the plan is about {CONVERSION_PREFIX}{name}; its "
                f"conversions: {there}"
            )


def _described_metrics(typed: TypedTraffic) -> dict[type[VirtualMetric], VirtualMetric]:
    """Return control's behavior in each kind of metric that was typed."""
    described: dict[type[VirtualMetric], VirtualMetric] = {}
    if typed.error_rate is not None:
        described[VirtualErrors] = VirtualErrors(_share(typed.error_rate, "--error-rate"))
    if typed.latency is not None:
        described[VirtualLatency] = VirtualLatency(*_latency(typed.latency))
    if typed.conversions:
        described[VirtualConversions] = VirtualConversions(_conversions(typed.conversions))
    return described


def effects_of(texts: Sequence[str], plan: Plan) -> tuple[Effect, ...]:
    """Return the effects as typed. Raises BadInput for one that cannot be meant."""
    effects = []
    for text in texts:
        match = _EFFECT.fullmatch(text.strip())
        if match is None:
            raise BadInput(f"--effect: {text!r} is not an effect: {_EFFECT_FORM}")
        name, factor = match["metric"], _number(match["factor"], "--effect")
        virtual = next((one for one in VIRTUAL_METRICS if one.has_effect(name)), None)
        if virtual is None:
            near = nearest_word(name, _EFFECTS)
            meant = ":" if near is None else f", did you mean {near}?"
            raise BadInput(f"--effect: {name!r} is not known{meant} {_EFFECT_FORM}")
        if not virtual.is_harm(factor):
            raise BadInput(
                f"--effect: {text!r} does no harm: conversions fall (x0.8), everything "
                f"else rises (x2)"
            )
        stage = None if match["stage"] is None else int(match["stage"]) - 1
        if stage is not None and not 0 <= stage < len(plan.stages):
            raise BadInput(f"--effect: {text!r}: the plan has stages 1 to {len(plan.stages)}")
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
    why = "assumed: the plan has no start_at" if plan.start_at is None else "the plan's start_at"
    parts = [f"begin {starts_at.astimezone(UTC):%a %Y-%m-%d %H:%M} UTC ({why})"]
    for name, windows in (("active", plan.active), ("frozen", plan.freeze_windows)):
        if windows:
            more = f" and {len(windows) - 3} more" if len(windows) > 3 else ""
            parts.append(f"{name} {', '.join(map(window_words, windows[:3]))}{more}")
    return "; ".join(parts)


def _traffic(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*/\s*([a-z]+)\s*", text)
    per = _PER_SECONDS.get(match[2]) if match is not None else None
    if match is None or per is None:
        raise BadInput(f"--traffic: {text!r} is not a rate: write it as in 50/s, 2000/min or 1e5/h")
    rate = _number(match[1], "--traffic") / per
    if rate <= 0:
        raise BadInput("--traffic: without traffic nothing can be decided: write it as in 50/s")
    if rate > MOST_PER_SECOND:
        raise BadInput(
            f"--traffic: {text!r} is more than can be drawn: {MOST_PER_SECOND:,.0f}/s at most"
        )
    return rate


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"{option}: {text!r} is not a number") from None


def _share(text: str, option: str) -> float:
    share = parse_share(text)
    if share is None:
        try:
            share = float(text)
        except ValueError:
            share = -1.0
    if not 0 <= share <= 1:
        raise BadInput(f"{option}: {text!r} is not a share: write it as in 0.5% or 0.005")
    return share


def _after(text: str) -> timedelta:
    if text.isdecimal():
        raise BadInput(
            f"--effect: @{text} has no unit: write @stage{text} from that stage on, @{text}h after "
            f"that time"
        )
    try:
        return parse_duration(text)
    except ValueError:
        raise BadInput(
            f"--effect: {text!r} is not a duration: write it as in 90s, 25h or 2d"
        ) from None


def _latency(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise BadInput(
            f"--latency: {text!r} is not two latencies: write p50 and p99, as in 40ms,150ms"
        )
    try:
        p50, p99 = (parse_duration(part.strip()) / timedelta(milliseconds=1) for part in parts)
    except ValueError:
        raise BadInput(f"--latency: {text!r}: write both with a unit, as in 40ms,150ms") from None
    if not 0 < p50 < p99:
        raise BadInput(f"--latency: {text!r}: p50 lies above 0 and below p99, as in 40ms,150ms")
    return p50, p99


def _conversions(texts: Sequence[str]) -> dict[str, float]:
    rates = {}
    for text in texts:
        name, sign, share = text.partition("=")
        if not name or not sign:
            raise BadInput(f"--conversion: {text!r}: write name and share, as in bought=3%")
        rates[name.removeprefix(CONVERSION_PREFIX)] = _share(share, "--conversion")
    return rates
