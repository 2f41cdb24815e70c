"""Targeting rules from a few words: for flagd and for Unleash, tried on sample users before anyone uses them.

A user gets the treatment when every rule matches. A text, number or version that a user does not have matches no rule, except
`is_not_one_of`; the written rules are made so that flagd and Unleash agree on that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from controller.adapters.prompts import DESCRIPTION_MAX_CHARS, NAME_MAX_CHARS, Prompt, fill, quoted
from controller.authoring.drafting import Draft, Model, draft
from controller.errors import ConfigInvalid
from schemas.advice import parse_form

VERSION = "targeting-v1"
MAX_RULES = 8
MAX_VALUES = 20
MAX_ATTRIBUTES = 40
MAX_SEGMENTS_BYTES = 200_000

_SEMVER = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\Z", re.ASCII)
_WORD = re.compile(r"\w+(?:[.@-]\w+)*")


class Operator(StrEnum):
    """How a user's attribute is compared."""

    IS_ONE_OF = "is_one_of"
    IS_NOT_ONE_OF = "is_not_one_of"
    STARTS_WITH = "starts_with"
    ENDS_WITH = "ends_with"
    AT_LEAST = "at_least"
    LESS_THAN = "less_than"
    NEWER_THAN = "newer_than"
    OLDER_THAN = "older_than"


OPERATORS = {
    "text": (Operator.IS_ONE_OF, Operator.IS_NOT_ONE_OF, Operator.STARTS_WITH, Operator.ENDS_WITH),
    "number": (Operator.AT_LEAST, Operator.LESS_THAN),
    "version": (Operator.NEWER_THAN, Operator.OLDER_THAN),
}
_LISTING = (Operator.IS_ONE_OF, Operator.IS_NOT_ONE_OF)


class Attribute(BaseModel):
    """What the apps send about a user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text", "number", "version"] = "text"
    values: list[str] = Field(default=[], max_length=200)  # all there are; empty: any

    @model_validator(mode="after")
    def _listed_texts(self) -> Self:
        if self.values and self.type != "text":
            raise ValueError("only texts have listed values")
        return self


class Segments(BaseModel):
    """The file: which attributes there are, and users to try rules on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attributes: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], Attribute] = Field(
        min_length=1, max_length=MAX_ATTRIBUTES
    )
    samples: list[dict[str, str | int | float | bool | None]] = Field(min_length=1, max_length=200)


class Rule(BaseModel):
    """One condition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: str = Field(max_length=64)
    operator: Operator
    values: list[Annotated[str, Field(max_length=100)]] = Field(min_length=1, max_length=MAX_VALUES)


class _Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: list[Rule] = Field(max_length=MAX_RULES)


def read_segments(text: str, source: str) -> Segments:
    """Return the file's content. Raises ConfigInvalid with every fault."""
    if len(text) > MAX_SEGMENTS_BYTES:
        raise ConfigInvalid(f"{source}: larger than {MAX_SEGMENTS_BYTES} bytes")
    try:
        return Segments.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigInvalid(f"{source}: not YAML: {error}") from None
    except ValidationError as error:
        faults = (
            f"{source}: {'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise ConfigInvalid("\n".join(faults)) from None


async def draft_rules(model: Model | None, description: str, segments: Segments) -> Draft[tuple[Rule, ...]]:
    """Return rules that use only what the file knows."""

    def read(content: str) -> tuple[Rule, ...]:
        rules = tuple(parse_form(content, _Rules).rules)
        for rule in rules:
            check_rule(rule, segments)
        return rules

    return await draft(
        model,
        _prompt(description, segments),
        _form(segments),
        read=read,
        template=lambda: by_words(description, segments),
    )


def _form(segments: Segments) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "rules": {
                "type": "array",
                "maxItems": MAX_RULES,
                "items": {
                    "type": "object",
                    "properties": {
                        "attribute": {"type": "string", "enum": list(segments.attributes)},
                        "operator": {"type": "string", "enum": [operator.value for operator in Operator]},
                        "values": {"type": "array", "items": {"type": "string", "maxLength": 100}, "maxItems": MAX_VALUES},
                    },
                    "required": ["attribute", "operator", "values"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["rules"],
        "additionalProperties": False,
    }


def _prompt(description: str, segments: Segments) -> Prompt:
    lines = []
    for name, attribute in segments.attributes.items():
        values = ", ".join(quoted(value, NAME_MAX_CHARS) for value in attribute.values[:MAX_VALUES])
        lines.append(f"- {name}: {attribute.type}{f', one of {values}' if values else ''}")
    return fill(VERSION, _form(segments), attributes="\n".join(lines), description=quoted(description, DESCRIPTION_MAX_CHARS))


def check_rule(rule: Rule, segments: Segments) -> None:
    """Refuse a rule that could not mean what it says. Raises ValueError."""
    attribute = segments.attributes.get(rule.attribute)
    if attribute is None:
        raise ValueError(f"a rule uses {rule.attribute!r}, which is no attribute of the file")
    if rule.operator not in OPERATORS[attribute.type]:
        raise ValueError(f"a rule compares the {attribute.type} {rule.attribute} with {rule.operator}")
    if rule.operator not in _LISTING and len(rule.values) != 1:
        raise ValueError(f"a rule gives {rule.operator} more than one value")
    if attribute.values and rule.operator in _LISTING and (unknown := set(rule.values) - set(attribute.values)):
        raise ValueError(f"a rule gives {rule.attribute} a value it never has: {sorted(unknown)[0]!r}")
    for value in rule.values:
        if attribute.type == "number" and _number(value) is None:
            raise ValueError(f"a rule compares the number {rule.attribute} with {value!r}")
        if attribute.type == "version" and _version(value) is None:
            raise ValueError(f"a rule compares the version {rule.attribute} with {value!r}")


def by_words(description: str, segments: Segments) -> tuple[Rule, ...]:
    """Return rules for the listed values that the description names as whole words: all that a template can know."""
    words = {word.casefold() for word in _WORD.findall(description)}
    rules = []
    for name, attribute in segments.attributes.items():
        named = [value for value in attribute.values if value.casefold() in words]
        if named:
            rules.append(Rule(attribute=name, operator=Operator.IS_ONE_OF, values=named[:MAX_VALUES]))
    return tuple(rules[:MAX_RULES])


# --- what rules mean, and how flag planes write them ------------------------------------------------------------------------


def matches(rules: Sequence[Rule], user: Mapping[str, object]) -> bool:
    """Tell whether a user gets the treatment."""
    return all(_is_met(rule, user.get(rule.attribute)) for rule in rules)


def _is_met(rule: Rule, value: object) -> bool:
    match rule.operator:
        case Operator.IS_ONE_OF:
            return isinstance(value, str) and value in rule.values
        case Operator.IS_NOT_ONE_OF:
            return value not in rule.values
        case Operator.STARTS_WITH:
            return isinstance(value, str) and value.startswith(rule.values[0])
        case Operator.ENDS_WITH:
            return isinstance(value, str) and value.endswith(rule.values[0])
        case Operator.AT_LEAST | Operator.LESS_THAN:
            limit = _number(rule.values[0])
            if limit is None or isinstance(value, bool) or not isinstance(value, int | float):
                return False
            return value >= limit if rule.operator is Operator.AT_LEAST else value < limit
        case Operator.NEWER_THAN | Operator.OLDER_THAN:
            edge, mine = _version(rule.values[0]), _version(value) if isinstance(value, str) else None
            if edge is None or mine is None:
                return False
            return mine > edge if rule.operator is Operator.NEWER_THAN else mine < edge


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 1e15 else None


def _version(text: str) -> tuple[int, ...] | None:
    found = _SEMVER.match(text)
    return tuple(int(part) for part in found.groups()) if found else None


def to_flagd(rules: Sequence[Rule], treatment: str, control: str) -> dict[str, Any] | None:
    """Return the `targeting` of a flagd flag, None for everybody."""
    if not rules:
        return None
    return {"if": [{"and": [_flagd(rule) for rule in rules]}, treatment, control]}


def _flagd(rule: Rule) -> dict[str, Any]:
    variable = {"var": rule.attribute}
    match rule.operator:
        case Operator.IS_ONE_OF:
            return {"in": [variable, list(rule.values)]}
        case Operator.IS_NOT_ONE_OF:
            return {"!": [{"in": [variable, list(rule.values)]}]}
        case Operator.STARTS_WITH | Operator.ENDS_WITH:
            return {rule.operator.value: [variable, rule.values[0]]}
        case Operator.NEWER_THAN:
            return {"sem_ver": [variable, ">", rule.values[0]]}
        case Operator.OLDER_THAN:
            return {"sem_ver": [variable, "<", rule.values[0]]}
        case Operator.AT_LEAST | Operator.LESS_THAN:
            compared = {">=" if rule.operator is Operator.AT_LEAST else "<": [variable, _number(rule.values[0])]}
            return {"and": [{"!=": [variable, None]}, compared]}  # JsonLogic takes nothing for 0


_UNLEASH = {
    Operator.IS_ONE_OF: "IN",
    Operator.IS_NOT_ONE_OF: "NOT_IN",
    Operator.STARTS_WITH: "STR_STARTS_WITH",
    Operator.ENDS_WITH: "STR_ENDS_WITH",
    Operator.AT_LEAST: "NUM_GTE",
    Operator.LESS_THAN: "NUM_LT",
    Operator.NEWER_THAN: "SEMVER_GT",
    Operator.OLDER_THAN: "SEMVER_LT",
}
_ONE_VALUE = (Operator.AT_LEAST, Operator.LESS_THAN, Operator.NEWER_THAN, Operator.OLDER_THAN)


def to_unleash(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """Return the constraints of an Unleash strategy; none for everybody."""
    return [
        {
            "contextName": rule.attribute,
            "operator": _UNLEASH[rule.operator],
            "inverted": False,
            "caseInsensitive": False,
            **({"value": rule.values[0]} if rule.operator in _ONE_VALUE else {"values": list(rule.values)}),
        }
        for rule in rules
    ]
