"""A guardrail as people write it: a mapping, or one line such as `error_rate < 1%`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from schemas.fields import (
    Duration,
    Number,
    Percent,
    StrictModel,
    Switch,
    at_most,
    parse_duration,
    parse_points,
    parse_share,
)
from schemas.metric_names import (
    CONVERSION_PREFIX,
    METRIC_PATTERN,
    METRICS,
    SMALLEST_LIMIT,
    Unit,
    names_of,
)
from schemas.terms import MetricRole, OnBreach


def _known_metric(metric: str) -> str:
    """Return `metric`. Raises ValueError, with the name that was probably meant."""
    names_of(metric)
    return metric


Metric = Annotated[
    str,
    AfterValidator(_known_metric),
    Field(json_schema_extra={"pattern": METRIC_PATTERN}, examples=list(METRICS)),
]


#: A margin below a millionth could not be distinguished from none. The upper bound depends on the
#: metric.
Margin = Annotated[Number, Field(le=10, json_schema_extra={"minimum": 1e-6})]
SMALLEST_MARGIN = 1e-6
#: A latency is at most a day, as that of an outcome.
LARGEST_LIMIT = 86_400_000.0


class Comparison(StrictModel):
    """How far treatment may be worse than control.

    0.1, or `10%`, tolerates a metric that is 10 % worse than control's. With `in_points` the
    margins are of the metric itself: 0.005, or `0.5pp`, tolerates 1.5 % of errors where control has
    1 %.
    """

    margin: Margin = Field(
        description="How much worse treatment may be: beyond it the difference is harm."
    )
    gate_margin: Margin | None = Field(
        default=None,
        description="The margin that a gate requires. None: 100 %, 50 %, 25 % by stage, tighter as "
        "it widens; in points four times, twice, once the margin.",
    )
    in_points: Switch = Field(
        default=False,
        description="Margins are percentage points of the metric, not parts of control's.",
    )


Limit = Annotated[
    Number,
    Field(le=LARGEST_LIMIT, json_schema_extra={"minimum": SMALLEST_LIMIT}),
]
Percentage = Annotated[Percent, Field(json_schema_extra={"minimum": 0, "maximum": 100})]


class GuardrailDocument(StrictModel):
    """One metric that is watched, and what a regression of it does."""

    metric: Metric = Field(
        description="`error_rate`, `latency`, `latency_p50` to `latency_p999`, or "
        "`conversion:NAME`."
    )
    role: MetricRole = Field(
        default=MetricRole.GUARDRAIL,
        description="`guardrail`: a regression does what `on_breach` says. `signal`: it holds the "
        "gate. `observe`: it is reported.",
    )
    limit: Limit | None = Field(
        default=None,
        description="Absolute bound: a share in [0, 1] (or `1%`) of error_rate and conversions, "
        "milliseconds (or `200ms`) of latency.",
    )
    compare: Comparison | None = Field(
        default=None, description="Comparison with control; none without it."
    )
    on_breach: OnBreach = Field(
        default=OnBreach.ROLL_BACK, description="What a regression of a `guardrail` does."
    )
    from_percent: Percentage = Field(
        default=0.0,
        description="Watched in stages of at least this percentage.",
    )
    to_percent: Percentage | None = Field(
        default=None,
        description="And of at most this one. None: to the end; without `limit`, while there is a "
        "control.",
    )

    within: Annotated[Duration, at_most("30d")] | None = Field(
        default=None,
        description="Only with a `limit` of a conversion: how long a context has to convert before "
        "it counts as not converted. None: 30 minutes.",
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
    """Return a comparison whose margins are numbers.

    Raises ValueError for two margins with different units.
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
    """Return a limit in the metric's own unit.

    Raises ValueError, with the text to write, for a number whose unit could be meant otherwise.
    """
    number = _PLAIN_NUMBER.fullmatch(text)
    if names_of(metric).unit is Unit.MILLISECONDS:
        if number is not None:
            raise ValueError(f"{text.strip()} has no unit: write {number[1]}ms")
        try:
            return parse_duration(text) / timedelta(milliseconds=1)
        except ValueError:
            raise ValueError(
                f"{text[:40]!r} is not a latency: write it as in 200ms or 1.5s"
            ) from None
    if number is not None and float(number[1]) >= 1:
        raise ValueError(f"{text.strip()} has no unit: write {number[1]}%")
    share = float(number[1]) if number is not None else parse_share(text)
    if share is None:
        raise ValueError(f"{text[:40]!r} is not a share: write it as in 1% or 0.01")
    return share


#: Characters of a guardrail in one line. It bounds the work of the patterns below, which try many
#: ways to divide a text that does not match.
_MAX_SHORTHAND = 200
_PLAIN_NUMBER = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*", re.ASCII)
#: `<=` means the same as `<`: no test on events tells a rate at its limit from one just below it.
_CLAUSE = re.compile(r"\s*([<>])=?\s*(?:control\s*([+-])\s*)?([0-9][^<>]*?)\s*", re.ASCII)
_BARE_CONTROL = re.compile(r"\s*[<>]=?\s*control\s*")
_TIMES_CONTROL = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*[x×*]?\s*control\b")
_SHORTHANDS = [
    "error_rate < 1%",
    "latency_p99 < 200ms",
    "error_rate < control + 10%",
    "latency < control + 10%",
]
_SHORTHAND_HELP = (
    "write it as in `error_rate < 1%`, `latency_p99 < 200ms`, `error_rate < control + 10%` or "
    "`conversion:bought > control - 5%`"
)


def _help_for(metric: str) -> str:
    """Return how a bound of this metric is written."""
    names = names_of(metric)
    if names.is_better_when_higher:
        return f"write it as in `{metric} > 2%` or `{metric} > control - 5%`"
    limit = "200ms" if names.unit is Unit.MILLISECONDS else "1%"
    return f"write it as in `{metric} < {limit}` or `{metric} < control + 10%`"


def _as_difference(times: re.Match[str]) -> str:
    """Return `control + 100%` for `2x control`, and `control - 10%` for `0.9x control`."""
    percent = round(100 * (float(times[1]) - 1), 6)
    return f"control {'+' if percent >= 0 else '-'} {abs(percent):.15g}%"


def guardrail_from_shorthand(value: Any) -> Any:
    """Return the mapping that a line like `error_rate < 1% and < control + 10%` stands for.

    Values of another type are returned as they are. `< 1.1x control` is another way to write `<
    control + 10%`. Conversions are better when higher, so theirs read `conversion:purchase > 2%`
    and `> control - 5%`. Raises ValueError.
    """
    if isinstance(value, dict) and len(value) == 1:
        [(key, bound)] = value.items()
        if f"{key}:" == CONVERSION_PREFIX and isinstance(bound, str):
            meant = f"{CONVERSION_PREFIX}{bound[:80]}"
            raise ValueError(f"a space makes a mapping of it: write `- {meant}`, without the space")
    if not isinstance(value, str):
        return value
    if len(value) > _MAX_SHORTHAND:
        problem = f"a guardrail in one line has at most {_MAX_SHORTHAND} characters"
        raise ValueError(f"{problem}; {_SHORTHAND_HELP}")
    match = re.match(r"\s*([A-Za-z0-9._:-]+)\s*(?=[<>])", value, re.ASCII)
    if match is None:
        raise ValueError(f"{value[:80]!r} is not a guardrail: {_SHORTHAND_HELP}")
    metric = _known_metric(match[1])
    good, worse = (">", "-") if names_of(metric).is_better_when_higher else ("<", "+")
    fields: dict[str, Any] = {"metric": metric}
    for clause in re.split(r"\band\b", value[match.end() :]):
        part = _CLAUSE.fullmatch(_TIMES_CONTROL.sub(_as_difference, clause))
        if _BARE_CONTROL.fullmatch(clause):
            raise ValueError(
                f"{clause.strip()[:80]!r} tolerates no difference, which no test can show: write "
                f"`{metric} {good} control {worse} 10%`"
            )
        if part is None:
            raise ValueError(f"{clause.strip()[:80]!r} is not a bound: {_help_for(metric)}")
        if part[1] != good or part[2] not in (None, worse):
            raise ValueError(
                f"{metric} is better when {'higher' if good == '>' else 'lower'}: "
                f"{_help_for(metric)}"
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
                f"{part[3][:40]!r} is not a margin: write it as in `control {worse} 10%` or "
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
