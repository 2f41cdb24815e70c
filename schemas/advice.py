"""The language model's answer: its required form, and the record that is kept of it.

The form uses only what LocalAI's grammar converter supports: the root has `type` and `properties`
only, choices are inlined, and there is no reference and no `number`, because no converter bounds
those. What a grammar cannot bound is checked here.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from schemas.fields import Count, OpenModel
from schemas.terms import AdviceChoice

TYPE = "io.rolloutd.advice.v1"

#: An answer in the form has at most 5 reasons of 200 characters. As JSON escapes a character has at
#: most 12 bytes: a little more than 12,000 bytes.
ANSWER_MAX_BYTES = 16_384
MAX_REASONS = 5
REASON_MAX_CHARS = 200


class AdviceAnswer(BaseModel):
    """The model's opinion in its own words."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    # In this order the verdict follows from the reasons. A converter may emit another order.
    reasons: list[Annotated[str, Field(max_length=REASON_MAX_CHARS)]] = Field(
        max_length=MAX_REASONS
    )
    verdict: Literal["proceed", "hold", "roll_back"]
    confidence: Annotated[int, Field(ge=0, le=100)]


#: The `schema` of `response_format`, the same for every server. Written by hand, because pydantic's
#: has parts that LocalAI drops. A test compares the two.
ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reasons": {
            "type": "array",
            "items": {"type": "string", "maxLength": REASON_MAX_CHARS},
            "maxItems": MAX_REASONS,
        },
        "verdict": {"type": "string", "enum": ["proceed", "hold", "roll_back"]},
        "confidence": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["reasons", "verdict", "confidence"],
    "additionalProperties": False,
}

#: An explanation is for people; no code acts on it.
CAUSE_MAX_CHARS = 400
MAX_STEPS = 4
STEP_MAX_CHARS = 200


class ExplanationAnswer(BaseModel):
    """The model's guess at why something happened, in its own words."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    likely_cause: str = Field(min_length=1, max_length=CAUSE_MAX_CHARS)
    next_steps: list[Annotated[str, Field(max_length=STEP_MAX_CHARS)]] = Field(max_length=MAX_STEPS)


EXPLANATION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "likely_cause": {"type": "string", "minLength": 1, "maxLength": CAUSE_MAX_CHARS},
        "next_steps": {
            "type": "array",
            "items": {"type": "string", "maxLength": STEP_MAX_CHARS},
            "maxItems": MAX_STEPS,
        },
    },
    "required": ["likely_cause", "next_steps"],
    "additionalProperties": False,
}

#: Anomalies that one check of all rollouts may report.
MAX_ANOMALIES = 3


class AnomalyAnswer(BaseModel):
    """One thing that is unusual; `rollout` is its number in the question."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    rollout: Annotated[int, Field(ge=1)]
    what: Annotated[str, Field(min_length=1, max_length=REASON_MAX_CHARS)]


class AnomaliesAnswer(BaseModel):
    """The anomalies that the model reports, usually none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    unusual: list[AnomalyAnswer] = Field(max_length=MAX_ANOMALIES)


ANOMALIES_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unusual": {
            "type": "array",
            "maxItems": MAX_ANOMALIES,
            "items": {
                "type": "object",
                "properties": {
                    "rollout": {"type": "integer", "minimum": 1},
                    "what": {"type": "string", "minLength": 1, "maxLength": REASON_MAX_CHARS},
                },
                "required": ["rollout", "what"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["unusual"],
    "additionalProperties": False,
}

#: One Markdown fence around the whole answer, which small models often add. What is inside is read
#: as strictly as without it.
_FENCED = re.compile(r"```(?:json)?[ \t]*\r?\n(.*)\r?\n[ \t]*```\Z", re.DOTALL)


FormT = TypeVar("FormT", bound=BaseModel)


def parse_form(answer: bytes | str, form: type[FormT]) -> FormT:
    """Return a model's answer that is exactly in the form.

    Raises ValueError with the reason for any other answer. Accepted besides the bare object: white
    space around it, and one Markdown fence around the whole. Refused: text before or after, more
    than `ANSWER_MAX_BYTES`, a key twice, missing or unknown, NaN, `80.0` or `"80"` for 80, too many
    or too long texts. Control characters in texts are replaced by spaces, because texts are shown
    in terminals and logs.
    """
    raw = answer.encode("utf-8", "surrogatepass") if isinstance(answer, str) else answer
    if len(raw) > ANSWER_MAX_BYTES:
        raise ValueError(f"answer of {len(raw)} bytes, at most {ANSWER_MAX_BYTES} are read")
    try:
        text = raw.decode("utf-8").strip(" \t\r\n")
    except UnicodeDecodeError:
        raise ValueError("answer is not UTF-8") from None
    if not text:
        raise ValueError("answer is empty")
    if fenced := _FENCED.match(text):
        text = fenced[1]
    try:
        fields = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"answer is not one JSON object: {error.msg} at character {error.pos}"
        ) from None
    except RecursionError:
        raise ValueError("answer is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("answer is not a JSON object")  # noqa: TRY004
    try:
        return form.model_validate(_printable(fields))
    except RecursionError:
        raise ValueError("answer is nested too deeply") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        raise ValueError(
            f"answer is not in the form: {_printable(where)}: {first['msg']}"
        ) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object with a key twice: readers differ on which value counts."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("answer has a key twice")
    return fields


def _no_constant(name: str) -> Any:
    """Refuse NaN and infinities, which JSON does not have."""
    raise ValueError(f"answer has {name}, which is not JSON")


def _printable(value: Any) -> Any:
    """Return a value with a space for everything unprintable in its texts."""
    match value:
        case str():
            return "".join(char if char.isprintable() else " " for char in value)
        case list():
            return [_printable(each) for each in value]
        case dict():
            return {key: _printable(each) for key, each in value.items()}
        case _:
            return value


def _encodable(text: Any) -> Any:
    """Return text that can be encoded in UTF-8.

    A server's JSON may hold half a character, and the audit log must not fail on it.
    """
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_encodable, json_schema_input_type=str)]


class AdviceRecord(OpenModel):
    """Advice as it is kept in decisions and in the rollout document."""

    choice: AdviceChoice
    confidence: Count = Field(
        le=100, description="The model's own claim, 0 to 100; recorded, never acted on."
    )
    reasons: list[Text]
    model: Text
    prompt_sha256: str
    latency_ms: Count
    raw: Text = Field(default="", description="The answer as received, capped.")
    server: Text = Field(default="", description="Address of the server, without path and key.")
    prompt: str = Field(default="", description="Name and version of the prompt's text.")
    parameters: Text = Field(
        default="", description="The other parameters of the request, as JSON: enough to repeat it."
    )
    prompt_tokens: Count | None = Field(
        default=None, description="As the server counts; null where it does not."
    )
    completion_tokens: Count | None = None


class ExplanationRecord(OpenModel):
    """A model's guess at why something happened, attached to an alert.

    Only people act on it.
    """

    likely_cause: Text
    next_steps: list[Text]
    model: Text
    server: Text
    prompt: str = Field(description="Name and version of the prompt's text.")
    prompt_sha256: str
    latency_ms: Count
