"""A plan as people write it, in YAML or JSON: the stages of one flag, and what may move it.

Belongs here: the form, with names, types, ranges and shorthand. Whether a plan can work (stages
rising, samples reachable) is checked by `controller.plans.lint`, with line and fix.
"""

from __future__ import annotations

import operator
from datetime import date, timedelta
from math import isfinite
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from schemas.audiences import AudienceDocument
from schemas.external import ExternalMetricDocument
from schemas.fields import (
    FIRST_PLAN_YEAR,
    LARGEST_INTEGER,
    LAST_PLAN_YEAR,
    LONGEST,
    Count,
    Duration,
    Line,
    Name,
    Number,
    Percent,
    PlanMoment,
    StrictModel,
    Switch,
    at_most,
    format_duration,
    parse_duration,
)
from schemas.gate_webhooks import WrittenGateWebhook
from schemas.guardrails import Guardrail
from schemas.terms import (
    WEEKDAYS,
    AdvisorMode,
    Approval,
    ControlArm,
    FlagType,
    GapPolicy,
    HealthGap,
    Weekday,
)

TYPE = "io.rolloutd.plan.v1"


class VariantShare(StrictModel):
    """One of the variants that treatment is divided among."""

    name: Name = Field(description="The variant's name, as apps report it.")
    weight: Annotated[int, Field(strict=True, ge=1, le=10_000)] = Field(
        default=1, description="Its part of treatment, relative to the other weights."
    )


#: Limit for the values of all variants together, because every client of every plane gets them.
MAX_VALUES_BYTES = 64 * 1024
MAX_VALUES_DEPTH = 10


def _of_bounded_size(values: Any) -> Any:
    """Refuse values that are too large, too deep, or not the same to every reader of JSON.

    This runs before anything else, because everything else recurses.
    """
    if not isinstance(values, dict):
        return values
    size = 0
    left: list[tuple[Any, int]] = [(values, 0)]
    while left:
        value, depth = left.pop()
        inner: list[Any] = []
        if isinstance(value, str):
            size += len(value.encode())  # raises a ValueError for half a character
        elif isinstance(value, dict):
            inner = [*value, *value.values()]
        elif isinstance(value, list):
            inner = value
        elif isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{value} is not JSON")
        elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ValueError("an integer is beyond 2^53; write it as a string")
        size += 1 + len(inner)
        if depth > MAX_VALUES_DEPTH:
            raise ValueError(f"the values are nested deeper than {MAX_VALUES_DEPTH}")
        if size > MAX_VALUES_BYTES:
            raise ValueError(f"the values have more than {MAX_VALUES_BYTES // 1024} KiB")
        left += [(each, depth + 1) for each in inner]
    return values


class Variants(StrictModel):
    """The flag's variants: the two arms that are compared, and what each name stands for."""

    treatment: Name = Field(default="on", description="Name of the new variant in the events.")
    control: Name = Field(default="off", description="Name of the present variant in the events.")
    unassigned: Name = Field(
        default="unassigned",
        description="Served, with control's value, to contexts in neither arm: outside the "
        "stage's audience, or outside an equal-size control arm. Not counted.",
    )
    split: list[VariantShare] = Field(
        default=[],
        max_length=20,
        description="Divides treatment among several variants by weight; together they are the "
        "treatment arm. Fixed for a rollout, so that no context changes its variant.",
    )
    values: Annotated[dict[Name, JsonValue], BeforeValidator(_of_bounded_size)] = Field(
        default={},
        max_length=21,
        description="What apps get, by variant: a boolean, string, number or object each, all of "
        "one type. Default: true for treatment, false for control. Together at most 64 KiB, at "
        "most 10 deep; integers to 2^53.",
    )


#: The words for an approval besides its own two.
_APPROVAL_WORDS = {
    **dict.fromkeys(("yes", "true"), Approval.REQUIRED),
    **dict.fromkeys(("no", "false"), Approval.NOT_REQUIRED),
}


def _read_approval(value: Any) -> Any:
    """Return the approval that `yes`, `true`, `no` or `false` stands for."""
    if isinstance(value, bool | str):
        return _APPROVAL_WORDS.get(str(value).lower(), value)
    return value


WrittenApproval = Annotated[
    Approval,
    BeforeValidator(_read_approval, json_schema_input_type=Approval | bool | Literal["yes", "no"]),
]


class StageDocument(StrictModel):
    """One step of the plan."""

    name: Name | None = Field(
        default=None,
        description="What commands, decisions and `apply` call the stage; unique in the plan. "
        "None: its share, as in `10%` or `10%-beta`.",
    )
    percent: Percent = Field(
        description="Share of the audience in treatment, 0 < percent <= 100, in steps of 0.01; 5 "
        "and `5%` are the same.",
        json_schema_extra={"exclusiveMinimum": 0, "maximum": 100},
    )
    bake: Duration = Field(
        description="The least time the stage gathers evidence, from the end of `settle`."
    )
    settle: Duration = Field(
        default=parse_duration("1m"),
        validate_default=True,
        description="Time for apps to pick the new percentage up; events inside it do not count. "
        "A minute covers the polling interval of most SDKs.",
    )
    min_sample: Annotated[int, Field(strict=True, ge=-(10**9), le=10**9)] = Field(
        default=100,
        json_schema_extra={"minimum": 1},
        description="Distinct contexts per arm before anything is concluded. Below about 100 an "
        "error rate of 1 % has one error to show.",
    )
    max_bake: Duration | None = Field(
        default=None,
        description="Past it an undecided gate pauses the rollout. None: three times `bake`, or "
        "ten years. Where a model is configured, a gate has at least the time for every round of "
        "advice: `status` and `plan lint` say what that adds.",
    )
    approval: WrittenApproval = Field(
        default=Approval.NOT_REQUIRED,
        description="Whether a person must agree before the stage is left: `required`, or `true` "
        "or `yes`; `not_required`, or `false` or `no`.",
    )
    audience: Name | None = Field(
        default=None,
        description="The group that `percent` is a share of: one of `audiences`. None: everybody. "
        "Audiences of earlier stages keep what they have got.",
    )
    control: ControlArm = Field(
        default=ControlArm.REST,
        description="Who is compared with treatment: the rest of the audience, or as many "
        "contexts as treatment has.",
    )

    @property
    def longest_bake(self) -> timedelta:
        """`max_bake`, or in its place three times `bake`, but no longer than a duration may be."""
        return min(3 * self.bake, LONGEST) if self.max_bake is None else self.max_bake


_FullWeekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


def _read_weekday(value: Any) -> Any:
    """Return `fri` for `friday`, `Fri` or `FRIDAY`; anything else as it is."""
    if not isinstance(value, str):
        return value
    word = value.lower()
    return word[:3] if word in get_args(_FullWeekday) else word


WrittenWeekday = Annotated[
    Weekday, BeforeValidator(_read_weekday, json_schema_input_type=Weekday | _FullWeekday)
]
ClockTime = Annotated[
    str, Field(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$", examples=["17:00"])
]


def _in_whole_minutes(length: timedelta) -> timedelta:
    """Refuse a window's length that its calendar cannot have."""
    minute = parse_duration("1m")
    if length < minute or length % minute:
        raise ValueError(f"{format_duration(length)} is not in whole minutes; write at least 1m")
    return length


def _before_midnight(clock: str) -> str:
    """Refuse a begin at the day's end, which is the next day's beginning."""
    if clock == "24:00":
        raise ValueError('no window begins at 24:00; write "00:00" and the next day')
    return clock


# Each fault of a window is one of its fields where it can be: then all of them are told at once.
WindowStart = Annotated[ClockTime, AfterValidator(_before_midnight)]
WindowLength = Annotated[Duration, at_most("7d"), AfterValidator(_in_whole_minutes)]


class FreezeWindowDocument(StrictModel):
    """A recurring time in which nothing advances. It never delays a rollback."""

    days: list[WrittenWeekday] = Field(
        min_length=1, max_length=7, description="The days on which the window starts."
    )
    begins: WindowStart = Field(alias="from", description="Local time, 00:00 to 23:59.")
    ends: ClockTime | None = Field(
        default=None,
        alias="to",
        description="Local time; not after `from`: on the next day. Or give `lasts`.",
    )
    lasts: WindowLength | None = Field(
        default=None,
        description="Length in whole minutes, for windows beyond a day; at most a week.",
    )
    timezone: str = Field(
        default="UTC", max_length=64, description="IANA name, as in Europe/Berlin."
    )

    @model_validator(mode="after")
    def _has_one_end(self) -> FreezeWindowDocument:
        """Refuse two ends, and none."""
        if self.ends is None and self.lasts is None:
            raise ValueError("a freeze window needs an end; give `to` or `lasts`")
        if self.ends is not None and self.lasts is not None:
            raise ValueError("a freeze window has `to` or `lasts`, not both; leave one out")
        return self


def _checked_span(span: str) -> str:
    """Refuse dates that `days_of` refuses, where they are written."""
    days_of(span)
    return span


_DATE_FORM = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
DateSpan = Annotated[
    str,
    Field(
        pattern=rf"^{_DATE_FORM}(\.\.{_DATE_FORM})?$",
        examples=["2026-11-27..2026-11-30", "2026-11-27"],
    ),
    AfterValidator(_checked_span),
]


def _day_of(written: str) -> date:
    """Return a date. Raises ValueError for one that does not exist."""
    try:
        return date.fromisoformat(written)
    except ValueError:
        raise ValueError(f"there is no {written}; write a date of the calendar") from None


def days_of(span: str) -> tuple[date, date]:
    """Return the first and the last day of `2026-11-27..2026-11-30`, or of a single date.

    Raises ValueError for a date that does not exist, and for a last day before the first.
    """
    first, _, last = span.partition("..")
    begin, end = _day_of(first), _day_of(last or first)
    if end < begin:
        raise ValueError(f"{last} lies before {first}; write the earlier date first")
    if begin.year < FIRST_PLAN_YEAR or end.year > LAST_PLAN_YEAR:
        raise ValueError(f"dates lie in the years {FIRST_PLAN_YEAR} to {LAST_PLAN_YEAR}")
    return begin, end


class ActiveWindowDocument(StrictModel):
    """A time in which the flag is served as decided; with several, in any of them."""

    days: list[WrittenWeekday] = Field(
        default=list(WEEKDAYS),
        min_length=1,
        max_length=7,
        description="The days on which the window begins. Default: all.",
    )
    dates: DateSpan | None = Field(
        default=None,
        description="The dates on which it begins, both included: `2026-11-27..2026-11-30`, or "
        "one date. None: every week.",
    )
    begins: WindowStart = Field(
        default="00:00", alias="from", description="Local time, 00:00 to 23:59."
    )
    ends: ClockTime | None = Field(
        default=None,
        alias="to",
        description="Local time; not after `from`: on the next day. None: 24:00, or after `lasts`.",
    )
    lasts: WindowLength | None = Field(
        default=None,
        description="Length in whole minutes, for windows beyond a day; at most a week.",
    )
    timezone: str = Field(
        default="UTC", max_length=64, description="IANA name, as in Europe/Berlin."
    )

    @model_validator(mode="after")
    def _is_a_window(self) -> ActiveWindowDocument:
        """Refuse two ends."""
        if self.ends is not None and self.lasts is not None:
            raise ValueError("an active window has `to` or `lasts`, not both; leave one out")
        return self


class AdvisorDocument(StrictModel):
    """What the language model may do at this plan's gates."""

    mode: AdvisorMode = Field(
        default=AdvisorMode.CAN_HOLD,
        description="`off`: it is not asked. `observe`: its advice is recorded. `can_hold`: it may "
        "hold a gate for `hold_rounds`. `required`: a gate needs its `proceed`.",
    )
    deadline: Annotated[Duration, at_most("1h")] = Field(
        default=parse_duration("30s"),
        validate_default=True,
        description="For one question, from asking to the parsed answer; at most 1h. A small "
        "model on a CPU answers in 5 to 20 s.",
    )
    hold_rounds: Annotated[Count, Field(le=1000)] = Field(
        default=3,
        description="Holds by advice before a person decides.",
    )
    hold_for: Annotated[Duration, at_most("30d")] = Field(
        default=parse_duration("10m"),
        validate_default=True,
        description="Between two rounds; at most 30d.",
    )


class PlanDocument(StrictModel):
    """The plan of one flag: its stages, audiences and guardrails."""

    name: Name = Field(description="The plan's name, shown with every decision and alert.")
    flag: Name = Field(description="The flag's key.")
    description: Line = Field(default="", description="What is rolled out, for people.")
    owner: Line = Field(default="", description="Who decides when the rollout needs a person.")
    type: FlagType = Field(
        default=FlagType.RELEASE,
        description="What is left to do after 100 %: the code of a `release` or `experiment` is "
        "removed, `ops` and `permission` flags stay.",
    )
    variants: Variants = Field(
        default=Variants(), description="The two arms, and the values that apps get."
    )
    audiences: dict[Name, AudienceDocument] = Field(
        default={},
        max_length=50,
        description="Groups of contexts that stages name, by their attributes.",
    )
    stages: list[StageDocument] = Field(
        max_length=100, description="The steps in order; at least one."
    )
    guardrails: list[Guardrail] = Field(
        default=[],
        max_length=50,
        description="The metrics that are watched: a line such as `error_rate < 1%`, or a mapping.",
    )
    external: list[ExternalMetricDocument] = Field(
        default=[],
        max_length=20,
        exclude_if=operator.not_,  # earlier releases read the documents of plans without any
        description="Numbers of a monitoring system that are watched beside the guardrails by a "
        "threshold, and counters, which are tested as guardrails are.",
    )
    gate_webhooks: list[WrittenGateWebhook] = Field(
        default=[],
        max_length=10,
        exclude_if=operator.not_,  # earlier releases read the documents of plans without any
        description="Systems of your own that are asked at each gate, once everything measured "
        "has passed.",
    )
    advisor: AdvisorDocument = Field(
        default=AdvisorDocument(), description="What a language model may do at the gates."
    )
    freeze_windows: list[FreezeWindowDocument] = Field(
        default=[], max_length=50, description="Recurring times in which nothing advances."
    )
    active: list[ActiveWindowDocument] = Field(
        default=[],
        max_length=50,
        description="The times in which the flag is served as decided. Outside of them everybody "
        "has control and the rollout waits, also after it has completed. Default: always.",
    )
    health: dict[HealthGap, GapPolicy] = Field(
        default={},
        description="What a gap in the evidence does, during the bake and at a gate, once it has "
        "lasted for `health_grace`. Default: pause on srm, wait on the others. People are told of "
        "a gap that only waits.",
    )
    health_grace: Annotated[Duration, at_most("30d")] = Field(
        default=parse_duration("5m"),
        validate_default=True,
        description="How long a gap must last before `health` acts on it and people are told; at "
        "most 30d. A flag without traffic at night has a longer one than the night. srm needs "
        "none; below_min_sample counts at a gate only.",
    )
    alpha: Number = Field(
        default=0.01,
        ge=1e-9,
        le=0.5,
        description="Probability of a false rollback over the whole rollout.",
    )
    beta: Number = Field(
        default=0.05,
        ge=1e-9,
        le=0.5,
        description="Probability that a gate passes a release as bad as its margin.",
    )
    fresh_within: Annotated[Duration, at_most("30d")] = Field(
        default=parse_duration("1m"),
        validate_default=True,
        description="The freshest event of a judged stage is at most this old; at most 30d.",
    )
    start_at: PlanMoment | None = Field(default=None, description="Begin then. None: at once.")
    ends_at: PlanMoment | None = Field(
        default=None,
        description="Then everybody gets control again and the rollout ends, whatever its phase, "
        "also after it has completed. None: never.",
    )
    expires_at: PlanMoment | None = Field(
        default=None,
        description="Past it a running rollout pauses, and an alert names its owner.",
    )
    blind: Switch = Field(
        default=False,
        description="A timed ramp without evidence: stages end by bake alone. Nothing rolls it "
        "back.",
    )
    four_eyes: Switch = Field(
        default=False,
        description="Whoever started the rollout, or applied a plan to it since, can neither "
        "approve nor promote it, nor apply what makes it less careful: somebody else does.",
    )
    traffic: Number | None = Field(
        default=None,
        ge=1e-6,
        le=1e12,
        description="Distinct contexts expected per hour, both arms together. Only `plan lint` "
        "uses it.",
    )
