"""Decides which contexts belong to an audience, by conditions on attributes and their operators.

The operators are defined so that the rules of every flag plane can express them with the same
result. No operator converts types. An attribute that is missing, or has a type that the operator is
not for, never matches. `controller/codec/flagd.py` writes the same conditions as JsonLogic, and
tests compare the two.

| operator | matches when the attribute is |
|---|---|
| `eq`, `in` | equal to a value and of its type; 1 and 1.0 are equal, 1 and true are not |
| `gte`, `lte` | a number of at least, at most the value |
| `starts_with`, `ends_with` | a text that starts, ends with one of the values, by code points |
| `sem_ver` | a text that is a version in the range, see below |
| `before` | a text that looks like a date or RFC 3339 time, before the value |
| `after` | such a text, not before the value |

Versions are ordered as in SemVer 2.0; a leading `v` and missing numbers are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne

from schemas.terms import Operator

Scalar = str | int | float | bool

Attributes = Mapping[str, object]
"""The attributes of a context as JSON values, with its id as `targetingKey`."""

#: Moments are compared to the second: `2026-03-01T12:00:00`.
MOMENT_LENGTH = 19


@dataclass(frozen=True, slots=True)
class Condition:
    """One requirement on an attribute."""

    attribute: str
    operator: Operator
    #: At least one; one that matches suffices. For `sem_ver` ranges such as `>= 2.4.0`.
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Audience:
    """A group of contexts that stages may name."""

    name: str
    any_of: tuple[tuple[Condition, ...], ...]  # in one of these all conditions must hold


def matcher(audience: Audience) -> Callable[[Attributes], bool]:
    """Return the function from attributes to whether they belong to the audience.

    The function never raises.
    """
    clauses = tuple(
        tuple((one.attribute, _test(one)) for one in conditions) for conditions in audience.any_of
    )

    def matches(attributes: Attributes) -> bool:
        return any(
            all(test(attributes.get(attribute)) for attribute, test in conditions)
            for conditions in clauses
        )

    return matches


_Test = Callable[[object], bool]


def _test(condition: Condition) -> _Test:
    """Return the test of one attribute's value; the value of a missing attribute is None."""
    match condition.operator:
        case Operator.EQ | Operator.IN:
            return _equal_to_one_of(condition.values)
        case Operator.GTE:
            least = condition.values[0]
            return lambda value: _is_number(value) and value >= least  # type: ignore[operator]
        case Operator.LTE:
            most = condition.values[0]
            return lambda value: _is_number(value) and value <= most  # type: ignore[operator]
        case Operator.STARTS_WITH:
            starts = tuple(map(str, condition.values))
            return lambda value: isinstance(value, str) and value.startswith(starts)
        case Operator.ENDS_WITH:
            ends = tuple(map(str, condition.values))
            return lambda value: isinstance(value, str) and value.endswith(ends)
        case Operator.SEM_VER:
            ranges = [_version_test(*version_range(str(text))) for text in condition.values]
            return lambda value: isinstance(value, str) and any(test(value) for test in ranges)
        case Operator.BEFORE:
            edge = comparable_moment(str(condition.values[0]))
            return lambda value: isinstance(moment := _moment_in(value), str) and moment < edge
        case Operator.AFTER:
            edge = comparable_moment(str(condition.values[0]))
            return lambda value: isinstance(moment := _moment_in(value), str) and moment >= edge


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal_to_one_of(values: tuple[Scalar, ...]) -> _Test:
    """Return the test for equality without conversion; in Python itself True equals 1."""
    switches = frozenset(value for value in values if isinstance(value, bool))
    numbers = frozenset(value for value in values if _is_number(value))
    texts = frozenset(value for value in values if isinstance(value, str))

    def test(value: object) -> bool:
        if isinstance(value, str):
            return value in texts
        if isinstance(value, bool):
            return value in switches
        return isinstance(value, int | float) and value in numbers

    return test


# --- moments ---


def comparable_moment(text: str) -> str:
    """Return a condition's date or UTC time as the text that attributes are compared with.

    Of an attribute the first `MOMENT_LENGTH` characters are compared. Midnight becomes the bare
    date, so that a date in an attribute is its own midnight, before everything later that day.
    """
    return text.removesuffix("Z").removesuffix("T00:00:00")


def _moment_in(value: object) -> str | None:
    """Return the compared part of a text that looks like a date or time, None for other values."""
    if isinstance(value, str) and value[4:5] == "-" and value[7:8] == "-":
        return value[:MOMENT_LENGTH]
    return None


# --- versions ---

_PART = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"  # of a pre-release
_VERSION = re.compile(
    r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    rf"(?:-({_PART}(?:\.{_PART})*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?\Z",
    re.ASCII,
)
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)?\Z", re.ASCII)
_RANGE = re.compile(r"(=|!=|<=|>=|<|>|\^|~)\s*(.+)\Z", re.DOTALL)
#: Longer texts are no versions: a number of a million digits would take long to read.
_VERSION_MAX = 256

_Version = tuple[int, int, int, tuple[object, ...]]
_COMPARISONS: Mapping[str, Callable[[_Version, _Version], bool]] = {
    "=": eq,
    "!=": ne,
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
    "^": lambda mine, edge: mine[0] == edge[0],
    "~": lambda mine, edge: mine[:2] == edge[:2],
}


def version_range(text: str) -> tuple[str, str]:
    """Return (comparison, version) of a range such as `>= 2.4.0`. Raises ValueError."""
    found = _RANGE.match(text)
    if found is None or _version(found[2]) is None:
        raise ValueError(f"{text[:40]!r} is no version range")
    return found[1], found[2]


def _version_test(comparison: str, text: str) -> Callable[[str], bool]:
    compare, edge = _COMPARISONS[comparison], _version(text)
    assert edge is not None

    def test(value: str) -> bool:
        mine = _version(value)
        return mine is not None and compare(mine, edge)

    return test


def _version(text: str) -> _Version | None:
    """Return a version as a value in the order of SemVer 2.0, section 11; None for other texts.

    Texts are read as flagd does: a leading `v` is dropped, and `1` and `1.2` stand for `1.0.0` and
    `1.2.0`. A pre-release needs all three numbers: `2026-03-01` is no version. Build metadata is
    ignored.
    """
    found = _VERSION.match(full_version(text)) if len(text) <= _VERSION_MAX else None
    if found is None:
        return None
    major, minor, patch = (int(part) for part in found.groups()[:3])
    if found[4] is None:
        return major, minor, patch, (1,)  # a release comes after all its pre-releases
    parts = tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in found[4].split(".")
    )
    return major, minor, patch, (0, parts)


def full_version(text: str) -> str:
    """Return `2.4.0` for `v2.4`: without `v`, and with three numbers if it is numbers alone."""
    text = text[1:] if text[:1] in ("v", "V") else text
    return text + ".0" * (2 - text.count(".")) if _NUMBERS.match(text) else text
