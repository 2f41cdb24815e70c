"""Field types that several records share: names, moments, durations and numbers.

Each is written in one way. Other forms that are accepted (a duration as `24h`, `1w 2d` or `P1D`)
are accepted everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
)

from schemas.envelope import Name, without_control_characters

__all__ = [
    "LARGEST_INTEGER",
    "LONGEST",
    "Count",
    "Duration",
    "Line",
    "Moment",
    "Name",
    "Number",
    "OpenModel",
    "Percent",
    "PlanMoment",
    "StoredMoment",
    "StrictModel",
    "Switch",
    "at_most",
    "build_models",
    "format_duration",
    "parse_duration",
    "parse_share",
]


class OpenModel(BaseModel):
    """A record that we write: frozen, and open to fields that a later version adds."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        serialize_by_alias=True,
        defer_build=True,  # see build_models
    )


class StrictModel(BaseModel):
    """A record that people or we write, and that we act on.

    An unknown key is refused, because ignoring it could change what the record means.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        serialize_by_alias=True,
        defer_build=True,  # see build_models
    )


def build_models() -> None:
    """Build the validators of all models that are defined so far.

    A command builds only those that it reads or writes, when it does: a quarter of its start. The
    daemon calls this before its event loop runs, so that no record waits for its validator there,
    and no two threads build one at a time.

    A model is built after the models of its fields: it then refers to their validators. One that is
    built before them has a copy of each: with all models 4 MB more, made in twice the time.
    """
    built: set[type[BaseModel]] = set()
    for model in BaseModel.__subclasses__():
        _build(model, built)


def _build(model: type[BaseModel], built: set[type[BaseModel]]) -> None:
    if model in built:
        return
    built.add(model)
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            _build(inner, built)
    model.model_rebuild()
    for derived in model.__subclasses__():
        _build(derived, built)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a field's type names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


Line = Annotated[str, Field(max_length=1000), AfterValidator(without_control_characters)]
"""Text for people. Characters that could forge a line of a log or terminal are replaced."""

#: Integers beyond it are not the same in every reader of JSON.
LARGEST_INTEGER: Final = 2**53

Count = Annotated[int, Field(strict=True, ge=0, le=LARGEST_INTEGER)]
Number = Annotated[float, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]


def _written_moment(value: Any) -> Any:
    """Refuse numbers, which could be seconds or milliseconds."""
    if isinstance(value, str | datetime):
        return value
    raise ValueError("a time is written as in 2026-11-21T03:00:00Z")


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time lies between the years 1 and 9999 in UTC") from None


Moment = Annotated[
    AwareDatetime,
    BeforeValidator(
        _written_moment,
        json_schema_input_type=Annotated[str, Field(json_schema_extra={"format": "date-time"})],
    ),
    AfterValidator(_in_utc),
]
"""A moment, RFC 3339 with its offset; kept in UTC, to the microsecond."""

#: Dates in a plan lie between these years, so that whatever a plan adds to one stays a date.
FIRST_PLAN_YEAR: Final = 2000
LAST_PLAN_YEAR: Final = 2199


def _near_now(value: datetime) -> datetime:
    if not FIRST_PLAN_YEAR <= value.year <= LAST_PLAN_YEAR:
        years = f"{FIRST_PLAN_YEAR} to {LAST_PLAN_YEAR}"
        raise ValueError(f"{value.year} is not a year from {years}; check the date")
    return value


PlanMoment = Annotated[Moment, AfterValidator(_near_now)]
"""A date in a plan."""


def _of_a_rollout(value: datetime) -> datetime:
    if not 1970 <= value.year <= LAST_STORED_YEAR:
        raise ValueError(f"{value.year} is not a year from 1970 to {LAST_STORED_YEAR}")
    return value


#: Centuries after the last date of a plan plus all its durations, and long before the last
#: datetime, so that the core may add durations to any moment that it reads.
LAST_STORED_YEAR: Final = 2999

StoredMoment = Annotated[Moment, AfterValidator(_of_a_rollout)]
"""A moment in a rollout's document."""

#: Microseconds by unit. Months and years have no fixed length and are not accepted.
_MICROSECONDS = {
    "w": 7 * 86_400_000_000,
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
    "us": 1,
}
_UNIT_NAMES = {
    **{unit: unit for unit in _MICROSECONDS},
    "week": "w",
    "day": "d",
    "hour": "h",
    "hr": "h",
    "minute": "m",
    "min": "m",
    "second": "s",
    "sec": "s",
    "weeks": "w",
    "days": "d",
    "hours": "h",
    "minutes": "m",
    "seconds": "s",
    "mins": "m",
    "secs": "s",
}
_AMOUNT = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([a-z]+)", re.ASCII)
_ISO_8601 = re.compile(
    r"P(?:([0-9]{1,9})W|(?:([0-9]{1,9})D)?"
    r"(?:T(?:([0-9]{1,9})H)?(?:([0-9]{1,9})M)?(?:([0-9]{1,9}(?:\.[0-9]{1,6})?)S)?)?)",
    re.ASCII,
)
#: No stage, deadline or window is meant to be longer: ten years.
LONGEST = timedelta(days=3650)


#: Characters of a duration or a percentage.
_MAX_WRITTEN = 100
_WRITTEN_SHARE = r"^\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*%\s*$"


def parse_duration(text: str) -> timedelta:
    """Return the duration that `text` writes, exact to the microsecond.

    Written as in `24h`, `30s`, `1w 2d`, `1.5 hours`, or in ISO 8601 as in `P1DT12H`. Raises
    ValueError, also for a number without a unit and for more than ten years.
    """
    if len(text) > _MAX_WRITTEN:
        raise ValueError(f"a duration has at most {_MAX_WRITTEN} characters")
    microseconds = _iso_8601(text) if text.startswith("P") else _amounts(text)
    if microseconds is None:
        raise ValueError(
            f"{text[:40]!r} is not a duration: write it as in 30s, 24h, 1w 2d or P1DT12H"
        )
    if microseconds > LONGEST // timedelta(microseconds=1):
        raise ValueError(f"{text[:40]!r} is longer than ten years")
    if microseconds != int(microseconds):
        raise ValueError(f"{text[:40]!r} is finer than a microsecond")
    return timedelta(microseconds=int(microseconds))


def _iso_8601(text: str) -> Decimal | None:
    match = _ISO_8601.fullmatch(text)
    if match is None or text in ("P", "PT") or text.endswith("T"):
        return None
    return sum(
        (
            Decimal(amount) * _MICROSECONDS[unit]
            for amount, unit in zip(match.groups(), "wdhms", strict=True)
            if amount
        ),
        Decimal(0),
    )


def _amounts(text: str) -> Decimal | None:
    total, position = Decimal(0), 0
    text = text.strip()
    while position < len(text):
        match = _AMOUNT.match(text, position)
        unit = _UNIT_NAMES.get(match[2]) if match else None
        if match is None or unit is None:
            return None
        total += Decimal(match[1]) * _MICROSECONDS[unit]
        position = match.end()
    return total if text else None


def format_duration(duration: timedelta) -> str:
    """Return the shortest form in whole units, largest first: `1w 2d`, `1d 12h`, `0s`."""
    rest = duration // timedelta(microseconds=1)
    parts = []
    for unit, size in _MICROSECONDS.items():
        amount, rest = divmod(rest, size)
        if amount:
            parts.append(f"{amount}{unit}")
    return " ".join(parts) or "0s"


def _read_duration(value: Any) -> Any:
    if isinstance(value, timedelta):
        if not timedelta(0) <= value <= LONGEST:
            raise ValueError("a duration is from 0 s to ten years")
        return value
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError("a duration needs a unit: write it as in 30s, 24h, 1w 2d or P1DT12H")


Duration = Annotated[
    timedelta,
    BeforeValidator(
        _read_duration,
        json_schema_input_type=Annotated[
            str,
            Field(examples=["30s", "24h", "1w 2d", "P1DT12H"], max_length=_MAX_WRITTEN),
        ],
    ),
    PlainSerializer(format_duration, return_type=str),
]
"""A length of time with its unit, at most ten years."""


def at_most(longest: str) -> AfterValidator:
    """Return a validator that refuses a `Duration` longer than `longest`, written as in `30d`."""
    bound = parse_duration(longest)

    def check(value: timedelta) -> timedelta:
        if value > bound:
            written = format_duration(value)
            raise ValueError(f"{written} is longer than {longest}; write at most {longest}")
        return value

    return AfterValidator(check)


def _read_percent(value: Any) -> Any:
    """Return the number that `5%` or `0.5 %` writes; values of another type as they are."""
    if not isinstance(value, str):
        return value
    share = parse_share(value)
    if share is None:
        raise ValueError(f"{value[:40]!r} is not a percentage: write it as in 5 or 5%")
    return float(Decimal(repr(share)) * 100)


Percent = Annotated[
    Number,
    BeforeValidator(
        _read_percent,
        json_schema_input_type=Annotated[
            Number, Field(json_schema_extra={"minimum": 0, "maximum": 100})
        ]
        | Annotated[str, Field(pattern=_WRITTEN_SHARE, examples=["5%"], max_length=_MAX_WRITTEN)],
    ),
]
"""A percentage: 5 or `5%`."""


def parse_points(text: str) -> float | None:
    """Return 0.005 for `0.5pp` or `0.5 pp`, percentage points, None for anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*pp\s*", text, re.ASCII)
    return None if match is None else float(Decimal(match[1]) / 100)


def parse_share(text: str) -> float | None:
    """Return 0.01 for `1%` or `1 %`, None for anything else."""
    match = re.fullmatch(_WRITTEN_SHARE, text, re.ASCII)
    return None if match is None else float(Decimal(match[1]) / 100)
