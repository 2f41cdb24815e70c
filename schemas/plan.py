"""A plan as people write it, in YAML or JSON: the declared journey of one flag.

Here is the form: names, types, ranges and shorthand. Whether a plan can work (stages rising,
samples reachable) is checked by `controller.plans.lint`, with line and fix.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, StrictBool, model_validator

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
    parse_points,
    parse_share,
)
from schemas.metric_names import (
    METRIC_PATTERN,
    METRICS,
    SMALLEST_LIMIT,
    Unit,
    names_of,
)
from schemas.terms import (
    AdvisorMode,
    Approval,
    ControlArm,
    FlagType,
    GapPolicy,
    HealthGap,
    MetricRole,
    OnBreach,
    Operator,
)

TYPE = "io.rolloutd.plan.v1"


def _known_metric(metric: str) -> str:
    """Return `metric`. Raises ValueError, with the name that may have been meant."""
    names_of(metric)
    return metric


Metric = Annotated[
    str,
    AfterValidator(_known_metric),
    Field(json_schema_extra={"pattern": METRIC_PATTERN}, examples=list(METRICS)),
]


class VariantShare(StrictModel):
    """One of the variants that treatment is divided among."""

    name: Name
    weight: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 1


#: Of the values of all variants together: every client of every plane gets them.
MAX_VALUES_BYTES = 64 * 1024
MAX_VALUES_DEPTH = 10


def _of_bounded_size(values: Any) -> Any:
    """Refuse values that are too large, too deep, or not the same to every reader of JSON.

    Before anything else is done with them, because everything else recurses.
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
        description="Served, with control's value, to contexts in neither arm: outside the stage's "
        "audience, or outside an "
        "equal-size control arm. Not counted.",
    )
    split: list[VariantShare] = Field(
        default=[],
        max_length=20,
        description="Divides treatment among several variants by weight; together they are the "
        "treatment arm. Fixed for a "
        "rollout, so that nobody changes variants.",
    )
    values: Annotated[dict[Name, JsonValue], BeforeValidator(_of_bounded_size)] = Field(
        default={},
        max_length=21,
        description="What apps get, by variant: a boolean, string, number or object each, all of one "
        "type. Default: true for "
        "treatment, false for control. Together at most 64 KiB, at most 10 deep; integers to 2^53.",
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
        description="Distinct contexts per arm before anything is concluded. Below about 100 an error "
        "rate of 1 % has "
        "one error to show.",
    )
    max_bake: Duration | None = Field(
        default=None,
        description="Past it an undecided gate pauses the rollout. None: three times `bake`, or ten "
        "years.",
    )
    approval: Approval = Field(
        default=Approval.NOT_REQUIRED,
        description="Whether a person must agree before the stage is left.",
    )
    audience: Name | None = Field(
        default=None,
        description="Whom `percent` is a share of: one of `audiences`. None: everybody. Audiences of "
        "earlier stages keep what "
        "they have got.",
    )
    control: ControlArm = Field(
        default=ControlArm.REST,
        description="Who is compared with treatment: the rest of the audience, or as many contexts as "
        "treatment has.",
    )

    @property
    def longest_bake(self) -> timedelta:
        """`max_bake`, or in its place three times `bake`, but no longer than a duration may be."""
        return min(3 * self.bake, LONGEST) if self.max_bake is None else self.max_bake


#: Below a millionth nothing is tolerated that a test could tell from nothing. How much is too much
#: depends on the metric.
Margin = Annotated[Number, Field(le=10, json_schema_extra={"minimum": 1e-6})]
SMALLEST_MARGIN = 1e-6
#: A latency is at most a day, as that of an outcome.
LARGEST_LIMIT = 86_400_000.0


class Comparison(StrictModel):
    """How treatment may differ from control.

    0.1, or `10%`, tolerates a metric that is 10 % worse than control's.

    With `in_points` the margins are of the metric itself: 0.005, or `0.5pp`, tolerates 1.5 % of
    errors where control has 1 %.
    """

    margin: Margin
    gate_margin: Margin | None = Field(
        default=None,
        description="The margin a gate asks for. None: 100 %, 50 %, 25 % by stage, tighter as it "
        "widens; in points four times, "
        "twice, once the margin.",
    )
    in_points: Switch = Field(
        default=False,
        description="Margins are percentage points of the metric, not parts of control's.",
    )


Limit = Annotated[
    Number,
    Field(le=LARGEST_LIMIT, json_schema_extra={"minimum": SMALLEST_LIMIT}),
]
Percentage = Annotated[Number, Field(json_schema_extra={"minimum": 0, "maximum": 100})]


class GuardrailDocument(StrictModel):
    """One metric that is watched, and what a regression of it does."""

    metric: Metric
    role: MetricRole = MetricRole.GUARDRAIL
    limit: Limit | None = Field(
        default=None,
        description="Absolute bound: a share in [0, 1] (or `1%`) of error_rate and conversions, "
        "milliseconds (or "
        "`200ms`) of latency.",
    )
    compare: Comparison | None = Field(
        default=None, description="Comparison with control; none without it."
    )
    on_breach: OnBreach = OnBreach.ROLL_BACK
    from_percent: Percentage = Field(
        default=0.0,
        description="Watched in stages of at least this percentage.",
    )
    to_percent: Percentage | None = Field(
        default=None,
        description="And of at most this one. None: to the end; without `limit`, while there is a "
        "control.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_units(cls, value: Any) -> Any:
        """Turn a written limit or margin into its number."""
        if not isinstance(value, dict):
            return value
        fields = dict(value)
        metric = fields.get("metric")
        if isinstance(metric, str) and isinstance(fields.get("limit"), str):
            fields["limit"] = _limit(metric, fields["limit"])
        compare = fields.get("compare")
        if isinstance(compare, dict):
            fields["compare"] = _margins(compare)
        return fields


def _margins(compare: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison whose margins are numbers; both are written in the same unit.

    Raises ValueError.
    """
    written = {name: raw for name, raw in compare.items() if isinstance(raw, str)}
    points = {
        name: share for name, raw in written.items() if (share := parse_points(raw)) is not None
    }
    shares = {
        name: share for name, raw in written.items() if (share := parse_share(raw)) is not None
    }
    if points and shares:
        raise ValueError(
            "margin and gate_margin have different units: write both as in 10%, or both as in 0.5pp"
        )
    return {**compare, **shares, **points, **({"in_points": True} if points else {})}


def _limit(metric: str, text: str) -> float:
    """Return a limit in the metric's own unit."""
    if names_of(metric).unit is Unit.MILLISECONDS:
        try:
            return parse_duration(text) / timedelta(milliseconds=1)
        except ValueError:
            raise ValueError(f"{text[:40]!r} is no latency: write it as in 200ms or 1.5s") from None
    share = parse_share(text)
    if share is None:
        raise ValueError(f"{text[:40]!r} is no share: write it as in 1% or 0.01")
    return share


#: Characters of a guardrail in one line. The patterns below try many ways to divide a text that
#: does not fit.
_MAX_SHORTHAND = 200
_CLAUSE = re.compile(r"\s*([<>])\s*(?:control\s*([+-])\s*)?([0-9][^<>]*?)\s*", re.ASCII)
_TIMES_CONTROL = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*[x×*]?\s*control\b")
_SHORTHANDS = [
    "error_rate < 1%",
    "latency_p99 < 200ms",
    "error_rate < control + 10%",
    "latency < control + 10%",
]
_SHORTHAND_HELP = (
    "write it as in `error_rate < 1%`, `latency_p99 < 200ms` or `error_rate < control + 10%`"
)


def _as_difference(times: re.Match[str]) -> str:
    """Return `control + 100%` for `2x control`, and `control - 10%` for `0.9x control`."""
    percent = round(100 * (float(times[1]) - 1), 6)
    return f"control {'+' if percent >= 0 else '-'} {abs(percent):.15g}%"


def guardrail_from_shorthand(value: Any) -> Any:
    """Return the mapping that a line like `error_rate < 1% and < control + 10%` stands for.

    Other values as they are.

    `< 1.1x control` is another way to write `< control + 10%`. Conversions are better when higher,
    so theirs read `conversion:purchase > 2%` and `> control - 5%`. Raises ValueError.
    """
    if not isinstance(value, str):
        return value
    if len(value) > _MAX_SHORTHAND:
        said = f"a guardrail in one line has at most {_MAX_SHORTHAND} characters"
        raise ValueError(f"{said}; {_SHORTHAND_HELP}")
    match = re.match(r"\s*([A-Za-z0-9._:-]+)\s*(?=[<>])", value, re.ASCII)
    if match is None:
        raise ValueError(f"{value[:80]!r} is no guardrail: {_SHORTHAND_HELP}")
    metric = _known_metric(match[1])
    good, worse = (">", "-") if names_of(metric).is_better_when_higher else ("<", "+")
    fields: dict[str, Any] = {"metric": metric}
    for clause in re.split(r"\band\b", value[match.end() :]):
        part = _CLAUSE.fullmatch(_TIMES_CONTROL.sub(_as_difference, clause))
        if part is None:
            raise ValueError(f"{clause.strip()[:80]!r} is no bound: {_SHORTHAND_HELP}")
        if part[1] != good or part[2] not in (None, worse):
            raise ValueError(
                f"{metric} is harmed the other way round: write `{good}` and `control {worse} ...`"
            )
        name = "limit" if part[2] is None else "compare"
        if name in fields:
            raise ValueError(f"{value[:80]!r} has two bounds of one kind: keep one")
        if part[2] is None:
            fields["limit"] = _limit(metric, part[3])
        elif (margin := parse_share(part[3])) is not None:
            fields["compare"] = {"margin": margin}
        elif (points := parse_points(part[3])) is not None:
            fields["compare"] = {"margin": points, "in_points": True}
        else:
            raise ValueError(
                f"{part[3][:40]!r} is no margin: write it as in `control {worse} 10%` or "
                f"`control {worse} 0.5pp`"
            )
    return fields


Guardrail = Annotated[
    GuardrailDocument,
    BeforeValidator(
        guardrail_from_shorthand,
        json_schema_input_type=GuardrailDocument
        | Annotated[
            str,
            Field(examples=_SHORTHANDS, max_length=_MAX_SHORTHAND),
        ],
    ),
]

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


ATTRIBUTE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z", re.ASCII)
_N = "(0|[1-9][0-9]{0,8})"
_PRE = r"(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
#: As in SemVer 2.0, except that numbers may be missing where no pre-release follows.
_VERSION_RANGE = re.compile(
    rf"(=|!=|<=|>=|<|>|\^|~)\s*v?({_N}(\.{_N}){{0,2}}|{_N}\.{_N}\.{_N}-{_PRE}(\.{_PRE})*)\Z",
    re.ASCII,
)

_Text = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
#: Beyond it planes that know only floats would compare other numbers than the plan names.
_Whole = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
_Fraction = Annotated[float, Field(strict=True, ge=-(2**53), le=2**53)]
_Scalar = StrictBool | _Whole | _Fraction | _Text


def _in_a_list(value: Any) -> Any:
    """Return one text as a list of it."""
    return [value] if isinstance(value, str) else value


_Texts = Annotated[
    list[_Text],
    BeforeValidator(
        _in_a_list,
        json_schema_input_type=Annotated[list[_Text], Field(max_length=100)] | _Text,
    ),
    Field(min_length=1, max_length=100),
]


#: Characters of a date or a moment, with room for a fraction that is refused by name.
_MAX_MOMENT = 64


def _comparable_moment(value: Any) -> str:
    """Return a date, or a moment in UTC to the second.

    As the text that contexts' attributes are compared with.
    """
    refusal = f"{str(value)[:40]!r} is no moment; write it as in 2026-03-01 or 2026-03-01T12:00:00Z"
    if not isinstance(value, str) or len(value) > _MAX_MOMENT:
        raise ValueError(refusal)
    try:
        written = datetime.fromisoformat(value)
        moment = written.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(refusal) from None
    if _DATE.match(value):
        return value
    if written.tzinfo is None:
        raise ValueError(refusal)
    if moment.microsecond:
        raise ValueError(
            f"{value[:40]!r} is finer than a second; moments are compared to the second"
        )
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


_ComparableMoment = Annotated[
    str,
    BeforeValidator(
        _comparable_moment,
        json_schema_input_type=Annotated[
            str,
            Field(examples=["2026-03-01", "2026-03-01T12:00:00Z"], max_length=_MAX_MOMENT),
        ],
    ),
]


def _version_range(text: str) -> str:
    if not _VERSION_RANGE.match(text):
        raise ValueError(
            f"{text[:40]!r} is no version range; write it as in `>= 2.4.0`, `^2.0.0` or `~2.4.0`"
        )
    return text


class ConditionDocument(StrictModel):
    """One thing that must be so of a context's attribute.

    A missing attribute, or one of another type, is never so.

    Exactly one of the operators is given.
    """

    attribute: Annotated[str, Field(pattern=ATTRIBUTE_PATTERN)] = Field(
        description="A top-level attribute of the evaluation context; `targetingKey` is the context's "
        "id."
    )
    eq: _Scalar | None = Field(default=None, description="Equal, and of the same type.")
    one_of: list[_Scalar] | None = Field(
        default=None, alias="in", min_length=1, max_length=2000, description="Equal to one."
    )
    gte: _Fraction | None = Field(default=None, description="A number of at least this.")
    lte: _Fraction | None = Field(default=None, description="A number of at most this.")
    starts_with: _Texts | None = Field(
        default=None, description="A text that starts with this, or with one of these."
    )
    ends_with: _Texts | None = Field(
        default=None, description="A text that ends with this, or with one of these."
    )
    sem_ver: Annotated[str, Field(max_length=100), AfterValidator(_version_range)] | None = Field(
        default=None,
        description="A version in this range. Versions as in SemVer 2.0; `v` in front and missing "
        "numbers are allowed.",
        examples=[">= 2.4.0", "^2.0.0", "~2.4.0"],
    )
    before: _ComparableMoment | None = Field(
        default=None,
        description="A date, or RFC 3339 time in UTC, before this one. Compared to the second, as "
        "written.",
    )
    after: _ComparableMoment | None = Field(
        default=None, description="A date, or RFC 3339 time in UTC, of this one or later."
    )

    @model_validator(mode="after")
    def _has_one_operator(self) -> ConditionDocument:
        given = [operator.value for operator in Operator if self.operand(operator) is not None]
        if len(given) != 1:
            names = ", ".join(operator.value for operator in Operator)
            raise ValueError(
                f"{' and '.join(given) or 'no operator'} in one condition; write exactly "
                f"one of {names}"
            )
        return self

    def operand(self, operator: Operator) -> Any:
        """Return what the attribute is compared with by `operator`, None when it is not."""
        return self.one_of if operator is Operator.IN else getattr(self, operator.value)


def _clauses(value: Any) -> Any:
    """Return conditions that all must hold as the one list of such.

    Lists of conditions as they are.
    """
    if not isinstance(value, list) or any(isinstance(item, list) for item in value):
        return value
    return [value]


_Conditions = Annotated[list[ConditionDocument], Field(min_length=1, max_length=20)]
AudienceDocument = Annotated[
    list[_Conditions],
    BeforeValidator(
        _clauses,
        json_schema_input_type=Annotated[list[_Conditions], Field(max_length=20)] | _Conditions,
    ),
    Field(min_length=1, max_length=20),
]
"""Conditions that all must hold; or lists of such conditions, one of which must hold."""


class AdvisorDocument(StrictModel):
    """What the language model may do at this plan's gates."""

    mode: AdvisorMode = AdvisorMode.CAN_HOLD
    deadline: Annotated[Duration, at_most("1h")] = Field(
        default=parse_duration("30s"),
        validate_default=True,
        description="For one question, from asking to the parsed answer; at most 1h. A small model "
        "on a CPU answers in 5 to 20 s.",
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
    """The declared journey of one flag."""

    name: Name
    flag: Name = Field(description="The flag's key.")
    description: Line = ""
    owner: Line = Field(default="", description="Who is asked when the rollout needs a person.")
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
        description="What a gap in the evidence does at a gate. Default: pause on srm, wait on the "
        "others.",
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
        description="Past it a running rollout pauses and asks for its owner.",
    )
    blind: Switch = Field(
        default=False,
        description="A timed ramp without evidence: stages end by bake alone. Nothing rolls it back.",
    )
    traffic: Number | None = Field(
        default=None,
        ge=1e-6,
        le=1e12,
        description="Distinct contexts expected per hour, both arms together. Only `plan lint` uses it.",
    )
