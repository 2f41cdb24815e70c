"""An audience as people write it: conditions on the attributes of a context."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, model_validator

from schemas.fields import StrictModel
from schemas.terms import Operator

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
#: Beyond it planes that have only floats would compare other numbers than the plan names.
_Whole = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
_Fraction = Annotated[float, Field(strict=True, ge=-(2**53), le=2**53)]
_Scalar = StrictBool | _Whole | _Fraction | _Text


def _in_a_list(value: Any) -> Any:
    """Return a single text as a list."""
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
    """Return a date, or a moment in UTC to the second, as attributes of contexts write it."""
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
    """One condition on an attribute of a context. It has exactly one of the operators.

    A context without the attribute, or with one of another type, never meets the condition.
    """

    attribute: Annotated[str, Field(pattern=ATTRIBUTE_PATTERN)] = Field(
        description="A top-level attribute of the evaluation context; `targetingKey` is the "
        "context's id."
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
        """Return what `operator` compares the attribute with, None where it is not given."""
        return self.one_of if operator is Operator.IN else getattr(self, operator.value)


def _clauses(value: Any) -> Any:
    """Return plain conditions, which must all hold, as a list of one list.

    A list of lists is returned as it is.
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
