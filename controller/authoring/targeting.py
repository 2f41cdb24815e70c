"""An audience from a description: conditions as plans have them, tried on sample users.

Belongs here: which conditions a file of attributes allows.
Does not belong here: what they mean (`core/audience.py`), and how plans (`schemas/audiences.py`)
and flag planes (`codec/flagd.py`, `adapters/unleash/rules.py`) write them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from controller.adapters.llm.prompts import (
    DESCRIPTION_MAX_CHARS,
    NAME_MAX_CHARS,
    Prompt,
    fill,
    quoted,
)
from controller.adapters.unleash.rules import constraint_sets
from controller.authoring.drafting import Draft, Model, draft
from controller.codec.flagd import belongs
from controller.codec.plans import to_core_plan
from controller.core.audience import Attributes, Audience, Scalar, matcher
from controller.errors import ConfigInvalid
from controller.plans import lint_text
from schemas.advice import parse_form
from schemas.audiences import ATTRIBUTE_PATTERN
from schemas.terms import Operator

VERSION = "targeting-v2"
MAX_CONDITIONS = 8
MAX_VALUES = 20
MAX_VALUE_CHARS = 100
MAX_ATTRIBUTES = 40
MAX_SEGMENTS_BYTES = 200_000

#: The operators for an attribute, by its type.
OPERATORS = {
    "text": (Operator.EQ, Operator.IN, Operator.STARTS_WITH, Operator.ENDS_WITH),
    "number": (Operator.EQ, Operator.IN, Operator.GTE, Operator.LTE),
    "version": (Operator.SEM_VER,),
    "date": (Operator.BEFORE, Operator.AFTER),
}
_SEVERAL = (Operator.IN, Operator.STARTS_WITH, Operator.ENDS_WITH)

#: Unleash's field for the context's id: the default of `planes.unleash.stickiness`.
_STICKINESS = "userId"

#: At most 15 digits before the point, which every plane's floats hold.
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?\Z", re.ASCII)
_WORD = re.compile(r"\w+(?:[.@'-]\w+)*")
#: Words that rule out what follows them.
_NEGATIONS = frozenset(
    (
        *("not", "no", "non", "never", "without", "except", "excluding", "exclude", "excludes"),
        *("outside", "neither", "nor", "unless", "minus", "besides", "than"),
    )
)
_CLAUSE_END = re.compile(r"[,;:()]|\.(?:\s|$)|\bbut\b")

#: The rest of a plan, for linting an audience.
_PLAN = {"name": "draft", "flag": "draft", "guardrails": ["error_rate < 1%"]}


_Value = Annotated[str, Field(min_length=1, max_length=MAX_VALUE_CHARS)]


# --- the file ---


class Attribute(BaseModel):
    """What the apps send about a user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text", "number", "version", "date"] = "text"
    #: All values that it can have; empty: any.
    values: list[_Value] = Field(default=[], max_length=200)

    @model_validator(mode="after")
    def _listed_texts(self) -> Self:
        if self.values and self.type != "text":
            raise ValueError("only texts have listed values")
        return self


def _scalar(value: object) -> object:
    if (
        value is None
        or isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    raise ValueError("is none of a text, a number, true, false and null")


class Segments(BaseModel):
    """The file: the attributes, and sample users to try an audience on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attributes: dict[Annotated[str, Field(pattern=ATTRIBUTE_PATTERN)], Attribute] = Field(
        min_length=1, max_length=MAX_ATTRIBUTES
    )
    samples: list[dict[str, Annotated[Scalar | None, PlainValidator(_scalar)]]] = Field(
        min_length=1, max_length=200
    )


class _Loader(yaml.SafeLoader):
    """Reads dates as the texts they are to an app."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the form that PyYAML asks for
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_segments(text: str, source: str) -> Segments:
    """Return the file's content. Raises ConfigInvalid with every fault."""
    if len(text) > MAX_SEGMENTS_BYTES:
        raise ConfigInvalid(f"{source}: larger than {MAX_SEGMENTS_BYTES} bytes")
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - derived from SafeLoader
        segments = Segments.model_validate(document)
    except yaml.YAMLError as error:
        raise ConfigInvalid(f"{source}: not YAML: {error}") from None
    except ValidationError as error:
        faults = (
            f"{source}: {'.'.join(map(str, fault['loc'])) or 'file'}: {_fault_words(fault)}"
            for fault in error.errors(include_url=False)
        )
        raise ConfigInvalid("\n".join(faults)) from None
    if misfits := [f"{source}: {misfit}" for misfit in _misfits(segments)]:
        raise ConfigInvalid("\n".join(misfits))
    return segments


def _fault_words(fault: Any) -> str:
    if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
        return f"{_kind(fault['input'])}: put it in quotes"
    return str(fault["msg"]).removeprefix("Value error, ")


def _misfits(segments: Segments) -> Iterator[str]:
    """Yield sample values of another type than the file says.

    Flag planes differ on whether they convert such values.
    """
    for number, sample in enumerate(segments.samples):
        for name, value in sample.items():
            attribute = segments.attributes.get(name)
            if attribute is None or value is None:
                continue
            if attribute.type == "number" and isinstance(value, str | bool):
                yield f"samples.{number}.{name}: {_kind(value)}, and {name} is a number"
            elif attribute.type != "number" and not isinstance(value, str):
                yield (
                    f"samples.{number}.{name}: {_kind(value)}, and {name} is a "
                    f"{attribute.type}: put it in quotes"
                )


def _kind(value: Scalar) -> str:
    kind = (
        "text" if isinstance(value, str) else "truth value" if isinstance(value, bool) else "number"
    )
    return f"{str(value)[:40]!r} is read as a {kind}"


# --- what a model writes ---


class ConditionAnswer(BaseModel):
    """One condition as a model drafts it: values as texts, whatever the attribute's type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: str = Field(max_length=64)
    operator: Operator
    values: list[_Value] = Field(min_length=1, max_length=MAX_VALUES)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    conditions: list[ConditionAnswer] = Field(max_length=MAX_CONDITIONS)


async def draft_audience(
    model: Model | None, description: str, segments: Segments, name: str
) -> Draft[Suggestion]:
    """Return an audience that uses only the attributes of the file."""
    return await draft(
        model,
        _prompt(description, segments),
        _form(segments),
        read=lambda content: suggest(parse_form(content, _Answer).conditions, segments, name),
        template=lambda: suggest(by_words(description, segments), segments, name),
    )


def _form(segments: Segments) -> dict[str, Any]:
    types = {attribute.type for attribute in segments.attributes.values()}
    operators = [
        operator.value
        for operator in Operator
        if any(operator in OPERATORS[kind] for kind in types)
    ]
    return {
        "type": "object",
        "properties": {
            "conditions": {
                "type": "array",
                "maxItems": MAX_CONDITIONS,
                "items": {
                    "type": "object",
                    "properties": {
                        "attribute": {"type": "string", "enum": list(segments.attributes)},
                        "operator": {"type": "string", "enum": operators},
                        "values": {
                            "type": "array",
                            "items": {"type": "string", "maxLength": MAX_VALUE_CHARS},
                            "maxItems": MAX_VALUES,
                        },
                    },
                    "required": ["attribute", "operator", "values"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["conditions"],
        "additionalProperties": False,
    }


def _prompt(description: str, segments: Segments) -> Prompt:
    lines = []
    for name, attribute in segments.attributes.items():
        values = ", ".join(quoted(value, NAME_MAX_CHARS) for value in attribute.values[:MAX_VALUES])
        lines.append(f"- {name}: {attribute.type}{f', one of {values}' if values else ''}")
    return fill(
        VERSION,
        _form(segments),
        attributes="\n".join(lines),
        description=quoted(description, DESCRIPTION_MAX_CHARS),
    )


def by_words(description: str, segments: Segments) -> list[ConditionAnswer]:
    """Return conditions for the listed values that the description names as whole words.

    Values that it rules out are drafted as a list of the attribute's other values. Where those are
    none, or too many for a condition, nothing is drafted.
    """
    found = []
    for name, attribute in segments.attributes.items():
        named, ruled_out = _named_values(description, attribute.values)
        kept = [value for value in attribute.values if value not in ruled_out]
        values = [value for value in named if value in kept] or kept
        if ruled_out and not 0 < len(values) <= MAX_VALUES:
            return []
        if named or ruled_out:
            found.append(
                ConditionAnswer(attribute=name, operator=Operator.IN, values=values[:MAX_VALUES])
            )
    return found[:MAX_CONDITIONS]


def has_negation(description: str) -> bool:
    """Return whether a description rules something out."""
    return any(_is_negation(word) for word in _WORD.findall(description.casefold()))


def _is_negation(word: str) -> bool:
    return word in _NEGATIONS or word.endswith("n't")


def _named_values(description: str, values: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return the values that the description asks for, and those that it rules out.

    A negation reaches to the end of its clause. It also covers values of the same attribute that
    the next clauses list, as in "not in fr, de".
    """
    by_word = {value.casefold(): value for value in values}
    named: list[str] = []
    ruled_out: set[str] = set()
    for clause in _CLAUSE_END.split(description.casefold()):
        # Nothing but values continues a list: "not in fr, de", unlike "not in fr, only de".
        words = _WORD.findall(clause)
        is_negated = bool(ruled_out) and set(words) <= {*by_word, "or", "and"}
        for word in words:
            is_negated = is_negated or _is_negation(word)
            value = by_word.get(word)
            if value is not None and is_negated:
                ruled_out.add(value)
            elif value is not None and value not in named:
                named.append(value)
    return named, ruled_out


# --- the audience ---


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A drafted audience, as the core has it, and as plans and flag planes write it."""

    audience: Audience | None  # None: everybody
    block: Mapping[str, Any]  # a plan's `audiences`; none for everybody
    unleash: Sequence[Mapping[str, Any]]  # strategies, of each what it asks for; one suffices

    def includes(self, user: Attributes) -> bool:
        """Return whether a user belongs to the audience."""
        return self.audience is None or matcher(self.audience)(user)

    def to_yaml(self) -> str:
        """Return the block as it stands in a plan."""
        return _to_yaml({"audiences": self.block})

    def to_flagd(self, treatment: str, control: str) -> dict[str, Any] | None:
        """Return the `targeting` of a flagd flag, None for everybody."""
        return (
            None if self.audience is None else {"if": [belongs(self.audience), treatment, control]}
        )


def suggest(conditions: Sequence[ConditionAnswer], segments: Segments, name: str) -> Suggestion:
    """Return the audience for which all conditions hold; everybody without conditions.

    Raises ValueError for conditions that the file does not allow, that a plan may not have, or that
    Unleash has no room for.
    """
    written = [_condition(one, segments) for one in conditions]
    block = {name: written} if written else {}
    audience = _as_in_a_plan(name, block) if written else None
    strategies = [
        {"constraints": list(constraints)}
        for constraints in constraint_sets(audience, stickiness=_STICKINESS)
    ]
    return Suggestion(audience, block, strategies)


def _condition(answer: ConditionAnswer, segments: Segments) -> dict[str, Any]:
    """Return a condition as plans write it.

    Raises ValueError for a condition that the attribute's type or values rule out.
    """
    attribute, operator = segments.attributes.get(answer.attribute), answer.operator
    if attribute is None:
        raise ValueError(
            f"a condition uses {answer.attribute!r}, which is no attribute of the file"
        )
    if operator not in OPERATORS[attribute.type]:
        raise ValueError(
            f"a condition compares the {attribute.type} {answer.attribute} by {operator}"
        )
    if operator not in _SEVERAL and len(answer.values) != 1:
        raise ValueError(f"a condition gives {operator} more than one value")
    is_equality = operator in (Operator.EQ, Operator.IN)
    if attribute.values and is_equality and (unknown := set(answer.values) - set(attribute.values)):
        raise ValueError(
            f"a condition gives {answer.attribute} a value it never has: {min(unknown)!r}"
        )
    is_number = attribute.type == "number"
    values = [_number(value, answer.attribute) if is_number else value for value in answer.values]
    return {
        "attribute": answer.attribute,
        operator.value: values if operator in _SEVERAL else values[0],
    }


def _number(text: str, attribute: str) -> int | float:
    if _NUMBER.match(text) is None:
        raise ValueError(f"a condition compares the number {attribute} with {text!r}")
    return float(text) if "." in text else int(text)


def _as_in_a_plan(name: str, block: Mapping[str, Any]) -> Audience:
    """Return the audience of a plan with this block.

    Raises ValueError with the errors of `plan lint`.
    """
    stages = [{"percent": 100, "bake": "1h", "audience": name}]
    document, findings = lint_text(_to_yaml({**_PLAN, "audiences": block, "stages": stages}))
    errors = [str(finding) for finding in findings if finding.is_error]
    if document is None or errors:
        raise ValueError("the drafted audience would be refused: " + "; ".join(errors))
    return to_core_plan(document).audiences[0]


def _to_yaml(document: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(
        document, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )
    return text
