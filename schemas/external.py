"""An external metric as people write it: what Prometheus is asked for at every look.

A query gives a number. Behind it stand no events that could be counted, so nothing is tested: the
metric is breached when `misses` of its last `of` looks missed the threshold. Counters give how many
events there were between two looks, and how many of them were bad: these are tested as a
guardrail's events are.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

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
_COUNTERS = ("bad", "good", "total")
#: Steps that a fault's path has beside those of the text.
QUERY_TAG, COUNTERS_TAG = "[query]", "[counters]"


class CountersDocument(StrictModel):
    """Counters that only rise: events, and how many of them were bad. Two of the three.

    Each gives one series for each process, so that a restart is seen: `sum by (instance) (...)`.
    """

    bad: Query | None = Field(
        default=None,
        description="The counter of bad events.",
        examples=[
            'sum by (instance) (http_requests_total{variant="{variant}", code=~"5.."})',
        ],
    )
    good: Query | None = Field(default=None, description="The counter of good events.")
    total: Query | None = Field(
        default=None, description="The counter of all events, with the same labels."
    )

    @model_validator(mode="after")
    def _has_two(self) -> CountersDocument:
        """Refuse what does not say how many events were bad, and what says it twice."""
        if sum(query is not None for query in self.queries.values()) != 2:
            raise ValueError("needs two of `bad`, `good` and `total`: as in `bad` and `total`")
        return self

    @property
    def queries(self) -> dict[str, str | None]:
        """What is asked for each of the three."""
        return {"bad": self.bad, "good": self.good, "total": self.total}

    @property
    def text(self) -> str:
        """Everything that is asked, to search in."""
        return "\n".join(query for query in self.queries.values() if query is not None)


def _asked(value: Any) -> str:
    """Return which of the two forms of a question a value has."""
    return COUNTERS_TAG if isinstance(value, dict | CountersDocument) else QUERY_TAG


Asked = Annotated[
    Annotated[Query, Tag(QUERY_TAG)] | Annotated[CountersDocument, Tag(COUNTERS_TAG)],
    Discriminator(_asked),
]


class PrometheusDocument(StrictModel):
    """What Prometheus is asked. Each query gives one number, or is a mapping of counters."""

    query: Asked | None = Field(
        default=None,
        description="With `{variant}`, it is asked for each arm, with the name of its variant; "
        "without, once, for the whole service.",
        examples=['sum(rate(http_errors_total{variant="{variant}"}[2m]))'],
    )
    treatment: Asked | None = Field(
        default=None, description="In place of `query`: what is asked for treatment."
    )
    control: Asked | None = Field(
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
        if self.control is not None and self._form(self.treatment) != self._form(self.control):
            raise ValueError("`treatment` and `control` ask for different things: ask the same")
        if self.counters and self.newest is not None:
            raise ValueError("`newest` is not for counters: those that rise no more are a gap")
        return self

    @staticmethod
    def _form(asked: str | CountersDocument | None) -> tuple[str, ...]:
        """Return which counters are asked for; none: it is a number."""
        if not isinstance(asked, CountersDocument):
            return ()
        return tuple(name for name, query in asked.queries.items() if query is not None)

    @property
    def counters(self) -> dict[str, CountersDocument]:
        """The counters that are asked for, by the field that they are in; none for a number."""
        fields = {"query": self.query, "treatment": self.treatment, "control": self.control}
        return {name: one for name, one in fields.items() if isinstance(one, CountersDocument)}


def _is_one(value: object) -> bool:
    return value == 1


def _read_prometheus(value: Any) -> Any:
    """Return the mapping that a bare query, or bare counters, stand for."""
    is_counters = isinstance(value, dict) and not value.keys().isdisjoint(_COUNTERS)
    return {"query": value} if isinstance(value, str) or is_counters else value


def _read_share(value: Any, otherwise: str) -> Any:
    """Return the number of a text such as `10%`; `otherwise` says how to write one."""
    if not isinstance(value, str):
        return value
    share = parse_share(value)
    if share is None:
        raise ValueError(f"{value[:40]!r} {otherwise}")
    return share


def _read_margin(value: Any) -> Any:
    """Return the number of a margin such as `10%`."""
    return _read_share(value, "is not a margin: write it as in 10% or 0.1")


def _read_threshold(value: Any) -> Any:
    """Return the number of a threshold such as `1%`."""
    return _read_share(value, "is no number: write it as in 0.3 or 1%")


WrittenPrometheus = Annotated[
    PrometheusDocument,
    BeforeValidator(
        _read_prometheus, json_schema_input_type=PrometheusDocument | CountersDocument | Query
    ),
]
WrittenMargin = Annotated[
    Margin,
    BeforeValidator(
        _read_margin, json_schema_input_type=Margin | Annotated[str, Field(max_length=20)]
    ),
]

WrittenThreshold = Annotated[
    Threshold,
    BeforeValidator(
        _read_threshold, json_schema_input_type=Threshold | Annotated[str, Field(max_length=20)]
    ),
]


class ExternalMetricDocument(StrictModel):
    """One number or share of a monitoring system, and the threshold that it has to keep."""

    name: Name = Field(description="The metric's name; unique in the plan.")
    prometheus: WrittenPrometheus = Field(
        description="A query that gives one number, counters of events, or a mapping with one of "
        "them for each arm."
    )
    at_most: WrittenThreshold | None = Field(
        default=None,
        description="Treatment's number misses when it is larger. For counters: the share of bad "
        "events that is allowed, as in 1% or 0.01.",
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
    repeats: Annotated[int, Field(strict=True, ge=1, le=1_000)] = Field(
        default=1,
        exclude_if=_is_one,  # earlier releases read the documents of numbers
        description="Counters only: how many bad events one failure can make, by retries or by the "
        "requests of one page. So many count as one. 1: each fails for itself.",
    )
    newest_within: Annotated[Duration, up_to("1d")] = Field(
        default=parse_duration("2m"),
        validate_default=True,
        description="A number whose newest sample, or whose answer, is older is no number. Nor do "
        "counters say anything that have not risen for so long.",
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
