"""An external metric as people write it: a number that Prometheus is asked for at every look.

Guardrails are tested on events. Behind a query stand no events that could be counted, so nothing is
tested here: a metric is breached when `misses` of its last `of` looks missed the threshold.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from schemas.fields import (
    Duration,
    Name,
    Number,
    StrictModel,
    Switch,
    parse_duration,
    parse_share,
)
from schemas.fields import (
    at_most as up_to,
)
from schemas.guardrails import Margin, Percentage
from schemas.terms import MetricRole, OnBreach

#: Stands for the variant of an arm. Where treatment is split, for all of them, divided by `|`.
VARIANT = "{variant}"

MAX_QUERY = 4_000
Query = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY)]
#: A query's number may be of any size and sign, so that it may be a difference or a logarithm.
Threshold = Annotated[Number, Field(ge=-1e15, le=1e15)]
Looks = Annotated[int, Field(strict=True, ge=1, le=100)]


class PrometheusDocument(StrictModel):
    """What Prometheus is asked. Each query gives one number."""

    query: Query | None = Field(
        default=None,
        description="With `{variant}`, it is asked for each arm, with the name of its variant; "
        "without, once, for the whole service.",
        examples=['sum(rate(http_errors_total{variant="{variant}"}[2m]))'],
    )
    treatment: Query | None = Field(
        default=None, description="In place of `query`: what is asked for treatment."
    )
    control: Query | None = Field(
        default=None, description="With `treatment`: what is asked for control."
    )
    newest: Query | None = Field(
        default=None,
        description="When the newest sample was taken, in seconds since 1970. Prometheus computes "
        "rates from old samples too and does not say so. None: their age is not checked.",
        examples=["max(timestamp(http_errors_total))"],
    )

    @model_validator(mode="after")
    def _has_one_question(self) -> PrometheusDocument:
        """Refuse two ways to ask, and none."""
        if (self.query is None) == (self.treatment is None):
            raise ValueError("needs `query`, or `treatment` (and `control`), and not both")
        if self.control is not None and self.treatment is None:
            raise ValueError("`control` needs `treatment`; a `query` has {variant} in it")
        return self


def _read_prometheus(value: Any) -> Any:
    """Return the mapping that a bare query stands for."""
    return {"query": value} if isinstance(value, str) else value


def _read_margin(value: Any) -> Any:
    """Return the number of a margin such as `10%`."""
    if not isinstance(value, str):
        return value
    share = parse_share(value)
    if share is None:
        raise ValueError(f"{value[:40]!r} is not a margin: write it as in 10% or 0.1")
    return share


WrittenPrometheus = Annotated[
    PrometheusDocument,
    BeforeValidator(_read_prometheus, json_schema_input_type=PrometheusDocument | Query),
]
WrittenMargin = Annotated[
    Margin,
    BeforeValidator(
        _read_margin, json_schema_input_type=Margin | Annotated[str, Field(max_length=20)]
    ),
]


class ExternalMetricDocument(StrictModel):
    """One number of a monitoring system, and the threshold that it has to keep."""

    name: Name = Field(description="The metric's name; unique in the plan.")
    prometheus: WrittenPrometheus = Field(
        description="A query that gives one number, or a mapping with one for each arm."
    )
    at_most: Threshold | None = Field(
        default=None, description="Treatment's number misses when it is larger."
    )
    at_least: Threshold | None = Field(
        default=None, description="Treatment's number misses when it is smaller."
    )
    margin: WrittenMargin | None = Field(
        default=None,
        description="Treatment's number misses when it is worse than control's by more than this "
        "part of it: `10%`. Needs a number for each arm.",
    )
    higher_is_better: Switch = Field(
        default=False, description="For `margin`: a smaller number is the worse one."
    )
    every: Annotated[Duration, up_to("1d")] = Field(
        default=parse_duration("30s"), validate_default=True, description="Time between two looks."
    )
    misses: Looks = Field(
        default=3, description="It is breached when so many of the last looks missed."
    )
    of: Looks = Field(
        default=5, description="How many looks count. A gate passes when none of them missed."
    )
    newest_within: Annotated[Duration, up_to("1d")] = Field(
        default=parse_duration("2m"),
        validate_default=True,
        description="A number whose newest sample, or whose answer, is older is no number.",
    )
    role: MetricRole = Field(
        default=MetricRole.GUARDRAIL,
        description="`guardrail`: a breach does what `on_breach` says. `signal`: it holds the "
        "gate. `observe`: it is reported.",
    )
    on_breach: OnBreach = Field(
        default=OnBreach.ROLL_BACK, description="What a breach of a `guardrail` does."
    )
    from_percent: Percentage = Field(
        default=0.0, description="Watched in stages of at least this percentage."
    )
    to_percent: Percentage | None = Field(
        default=None,
        description="And of at most this one. None: to the end; with `margin` alone, while there "
        "is a control.",
    )
