"""The strategies of Unleash that serve what was decided: constraints, percentage, variants.

The first strategy that lets a user in decides, and all use one group id, so that a user's bucket is
the same in each. A share of everybody is one strategy, and `is_enabled` is the answer. With
audiences or an arm of equal size that is not enough: users without treatment must learn whether
they are control or in neither arm. Then some strategy lets in every user of an audience, and the
variant's name is the answer: apps ask `get_variant`.

Values in Unleash's contexts are texts, so types cannot be distinguished. Its SDKs read whole
versions (`2.4.0`) and RFC 3339 times only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, product
from json import dumps
from math import floor, prod
from typing import Any

from controller.core.audience import Audience, Condition, full_version, version_range
from controller.core.serving import EARLIER_SUFFIX, Part, Ring, Serving
from schemas.terms import Operator

#: Unleash's own limit for one flag in one environment.
MAX_RULES = 30
#: What the weights of a strategy's variants add up to.
VARIANT_WEIGHTS = 1_000

Constraint = Mapping[str, Any]


class Unservable(ValueError):
    """Unleash cannot express it; the message says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One strategy: lets in users who meet all constraints, in the lowest `percent` of buckets."""

    percent: int
    constraints: tuple[Constraint, ...] = ()
    variants: tuple[Mapping[str, Any], ...] = ()  # none: being let in is the answer
    gives_treatment: bool = True


def is_simple(served: Serving) -> bool:
    """Return whether `is_enabled` alone is the whole answer."""
    return served.is_plain and not served.split and served.values.get(served.treatment) is True


def is_fractional(served: Serving) -> bool:
    """Return whether a share is no whole percent; Unleash has no others, so it is rounded down."""
    return any(weight % 100 for ring in served.rings for _, weight in ring.slices)


def rules(served: Serving, *, stickiness: str) -> tuple[Rule, ...]:
    """Return the strategies for what is to be served, at least one. Raises Unservable."""
    if served.is_plain:
        percent = floor(served.rings[0].slices[0][1] / 100)
        variants = () if is_simple(served) else _variants(served, Part.TREATMENT, stickiness)
        return (Rule(percent, variants=variants),)
    strategies: list[Rule] = []
    for ring in served.rings:
        for constraints in constraint_sets(ring.audience, stickiness=stickiness):
            strategies += [
                Rule(
                    percent,
                    constraints,
                    _variants(served, part, stickiness),
                    part in (Part.TREATMENT, Part.EARLIER),
                )
                for part, percent in _ends(ring)
            ]
    if served.rings[-1].audience is not None:
        strategies.append(
            Rule(100, (), _variants(served, Part.UNASSIGNED, stickiness), gives_treatment=False)
        )
    if len(strategies) > MAX_RULES:
        raise _no_room("it", len(strategies))
    return tuple(strategies)


def _ends(ring: Ring) -> Iterator[tuple[Part, int]]:
    """Yield (part, percentage of buckets up to its end), lowest first.

    Treatment and an arm of equal size are rounded down.
    """
    for index, (part, weight) in enumerate(ring.slices):
        if index == 0:
            end = floor(weight / 100)
        elif index == len(ring.slices) - 1:
            end = 100
        else:
            end = 100 - floor(ring.slices[-1][1] / 100)
        if weight:
            yield part, end


# --- variants ---


def _variants(served: Serving, part: Part, stickiness: str) -> tuple[Mapping[str, Any], ...]:
    if part in (Part.CONTROL, Part.UNASSIGNED):
        shares = [(served.name(part), VARIANT_WEIGHTS)]
    else:
        suffix = EARLIER_SUFFIX if part is Part.EARLIER else ""
        shares = [
            (name + suffix, weight)
            for name, weight in _thousandths(served.split or ((served.treatment, 1),))
        ]
    return tuple(
        {
            "name": name,
            "weight": weight,
            # Unleash gives the rest to the variable ones, so all but one are fixed.
            "weightType": "variable" if index == len(shares) - 1 else "fix",
            "stickiness": stickiness,
            **_payload(served.values.get(name)),
        }
        for index, (name, weight) in enumerate(shares)
    )


def _thousandths(split: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the weights as parts of 1000, rounded; the rest goes to the last."""
    total = sum(weight for _, weight in split)
    left, shares = VARIANT_WEIGHTS, []
    for name, weight in split[:-1]:
        share = min(left, round(VARIANT_WEIGHTS * weight / total))
        left -= share
        shares.append((name, share))
    return [*shares, (split[-1][0], left)]


def _payload(value: Any) -> dict[str, Any]:
    """Return a value as Unleash has it; its `json` type is only for objects and lists."""
    match value:
        case None:
            return {}
        case bool():
            kind, text = "string", "true" if value else "false"
        case str():
            kind, text = "string", value
        case int() | float():
            kind, text = "number", dumps(value)
        case _:
            kind, text = "json", dumps(value, sort_keys=True)
    return {"payload": {"type": kind, "value": text}}


# --- constraints ---


def constraint_sets(audience: Audience | None, *, stickiness: str) -> list[tuple[Constraint, ...]]:
    """Return sets of constraints; a user of the audience meets all of one set.

    `audience` None means everybody. Each set belongs to one strategy, so there are `MAX_RULES` at
    most. They are counted before they are made, because conditions multiply them. Raises
    Unservable.
    """
    if audience is None:
        return [()]
    clauses = [
        [_alternatives(condition, stickiness) for condition in conditions]
        for conditions in audience.any_of
    ]
    count = sum(prod(map(len, clause)) for clause in clauses)
    if count > MAX_RULES:
        raise _no_room(f"the audience {audience.name!r}", count)
    return [tuple(chain.from_iterable(choice)) for clause in clauses for choice in product(*clause)]


def _no_room(what: str, count: int) -> Unservable:
    return Unservable(
        f"{what} takes {count} strategies, and Unleash has room for {MAX_RULES}: use fewer "
        f"or simpler audiences"
    )


def _alternatives(condition: Condition, stickiness: str) -> list[tuple[Constraint, ...]]:
    """Return alternatives that together are the condition: all of one must hold.

    Raises Unservable.
    """
    field = stickiness if condition.attribute == "targetingKey" else condition.attribute
    values = condition.values

    def one(operator: str, value: object) -> tuple[Constraint, ...]:
        return ({"contextName": field, "operator": operator, "value": str(value)},)

    def several(operator: str, texts: Sequence[str]) -> tuple[Constraint, ...]:
        if "" in texts:
            raise Unservable(
                f"Unleash cannot compare {condition.attribute!r} with an empty text: leave it out"
            )
        return ({"contextName": field, "operator": operator, "values": list(texts)},)

    match condition.operator:
        case Operator.EQ | Operator.IN:
            texts = [_text(value) for value in values if isinstance(value, str | bool)]
            numbers = [value for value in values if not isinstance(value, str | bool)]
            return [
                *([several("IN", texts)] if texts else []),
                *(one("NUM_EQ", dumps(number)) for number in numbers),
            ]
        case Operator.GTE:
            return [one("NUM_GTE", dumps(values[0]))]
        case Operator.LTE:
            return [one("NUM_LTE", dumps(values[0]))]
        case Operator.STARTS_WITH:
            return [several("STR_STARTS_WITH", [str(value) for value in values])]
        case Operator.ENDS_WITH:
            return [several("STR_ENDS_WITH", [str(value) for value in values])]
        case Operator.SEM_VER:
            return [
                tuple(constraint for name, version in choice for constraint in one(name, version))
                for text in values
                for choice in _version_choices(*version_range(str(text)))
            ]
        case Operator.BEFORE:
            return [one("DATE_BEFORE", _rfc3339(str(values[0])))]
        case Operator.AFTER:  # not before it, where Unleash's is later than it
            return [one("DATE_AFTER", _rfc3339(str(values[0]), timedelta(milliseconds=-1)))]


def _text(value: str | bool) -> str:
    return value if isinstance(value, str) else dumps(value)


def _version_choices(comparison: str, text: str) -> list[list[tuple[str, str]]]:
    """Return a range as alternatives of the three comparisons that every SDK has.

    A pre-release `-0` comes before all others.
    """
    version = full_version(text).partition("+")[0]
    equal, lower, higher = ("SEMVER_EQ", version), ("SEMVER_LT", version), ("SEMVER_GT", version)
    match comparison:
        case "=":
            return [[equal]]
        case "!=":
            return [[lower], [higher]]
        case "<":
            return [[lower]]
        case "<=":
            return [[lower], [equal]]
        case ">":
            return [[higher]]
        case ">=":
            return [[higher], [equal]]
        case _:
            major, minor = (int(number) for number in version.split("-")[0].split(".")[:2])
            first = f"{major}.0.0-0" if comparison == "^" else f"{major}.{minor}.0-0"
            end = f"{major + 1}.0.0-0" if comparison == "^" else f"{major}.{minor + 1}.0-0"
            return [[("SEMVER_GT", first), ("SEMVER_LT", end)], [("SEMVER_EQ", first)]]


def _rfc3339(text: str, shift: timedelta = timedelta(0)) -> str:
    """Return a date or time as RFC 3339 in UTC."""
    at = datetime.fromisoformat(text)
    at = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC) + shift
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
