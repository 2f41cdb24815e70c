"""A plan as people write it, in YAML or JSON: the stages of one flag, and what may move it.

Belongs here: the form, with names, types, ranges and shorthand. Whether a plan can work (stages
rising, samples reachable) is checked by `controller.plans.lint`, with line and fix.
"""

from __future__ import annotations

from datetime import timedelta
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from schemas.audiences import AudienceDocument
from schemas.fields import (
    LARGEST_INTEGER,
    LONGEST,
    Count,
    Duration,
    Line,
    Name,
    Number,
    PlanMoment,
    StrictModel,
    Switch,
    at_most,
    parse_duration,
)
from schemas.guardrails import Guardrail
from schemas.terms import (
    AdvisorMode,
    Approval,
    ControlArm,
    FlagType,
    GapPolicy,
    HealthGap,
)

TYPE = "io.rolloutd.plan.v1"


class VariantShare(StrictModel):
    """One of the variants that treatment is divided among."""

    name: Name
    weight: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 1


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

    treatment: Name = "on"
    control: Name = "off"
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


class StageDocument(StrictModel):
    """One step of the plan."""

    percent: Number = Field(
        description="Share of the audience in treatment, 0 < percent <= 100, in steps of 0.01.",
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
        "ten years.",
    )
    approval: Approval = Field(
        default=Approval.NOT_REQUIRED,
        description="Whether a person must agree before the stage is left.",
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


Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
ClockTime = Annotated[
    str, Field(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$", examples=["17:00"])
]


class FreezeWindowDocument(StrictModel):
    """A recurring time in which nothing advances. It never delays a rollback."""

    days: list[Weekday] = Field(
        min_length=1, max_length=7, description="The days on which the window starts."
    )
    begins: ClockTime = Field(alias="from", description="Local time, 00:00 to 23:59.")
    ends: ClockTime | None = Field(
        default=None,
        alias="to",
        description="Local time; not after `from`: on the next day. Or give `lasts`.",
    )
    lasts: Annotated[Duration, at_most("7d")] | None = Field(
        default=None,
        description="Length in whole minutes, for windows beyond a day; at most a week.",
    )
    timezone: str = Field(
        default="UTC", max_length=64, description="IANA name, as in Europe/Berlin."
    )

    @model_validator(mode="after")
    def _has_one_end(self) -> FreezeWindowDocument:
        """Refuse two ends, and none."""
        if (self.ends is None) == (self.lasts is None):
            raise ValueError("a freeze window needs one of `to` and `lasts`")
        if self.begins == "24:00":
            raise ValueError("a freeze window that starts at 24:00 starts at 00:00 of the next day")
        if self.lasts is not None and (
            self.lasts < parse_duration("1m") or self.lasts % parse_duration("1m")
        ):
            raise ValueError("`lasts` is in whole minutes, at least one")
        return self


class AdvisorDocument(StrictModel):
    """What the language model may do at this plan's gates."""

    mode: AdvisorMode = AdvisorMode.CAN_HOLD
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

    name: Name
    flag: Name = Field(description="The flag's key.")
    description: Line = ""
    owner: Line = Field(default="", description="Who decides when the rollout needs a person.")
    type: FlagType = FlagType.RELEASE
    variants: Variants = Variants()
    audiences: dict[Name, AudienceDocument] = Field(
        default={},
        max_length=50,
        description="Groups of contexts that stages name, by their attributes.",
    )
    stages: list[StageDocument] = Field(max_length=100)
    guardrails: list[Guardrail] = Field(default=[], max_length=50)
    advisor: AdvisorDocument = AdvisorDocument()
    freeze_windows: list[FreezeWindowDocument] = Field(default=[], max_length=50)
    health: dict[HealthGap, GapPolicy] = Field(
        default={},
        description="What a gap in the evidence does at a gate. Default: pause on srm, wait on "
        "the others.",
    )
    alpha: Number = Field(
        default=0.01,
        ge=1e-9,
        le=0.5,
        description="Probability of a false roll back over the whole rollout.",
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
    expires_at: PlanMoment | None = Field(
        default=None,
        description="Past it a running rollout pauses, and an alert names its owner.",
    )
    blind: Switch = Field(
        default=False,
        description="A timed ramp without evidence: stages end by bake alone. Nothing rolls it "
        "back.",
    )
    traffic: Number | None = Field(
        default=None,
        ge=1e-6,
        le=1e12,
        description="Distinct contexts expected per hour, both arms together. Only `plan lint` "
        "uses it.",
    )
