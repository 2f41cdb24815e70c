"""Faults in the form of a plan: pydantic's findings in our words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from controller.plans.finding import Finding, error, nearest_word
from controller.yaml_places import Path
from schemas.audiences import ConditionDocument
from schemas.guardrails import Comparison, GuardrailDocument
from schemas.plan import (
    AdvisorDocument,
    FreezeWindowDocument,
    PlanDocument,
    StageDocument,
    Variants,
    VariantShare,
)

_MODELS: dict[Path, type[BaseModel]] = {
    (): PlanDocument,
    ("variants",): Variants,
    ("variants", "split", "*"): VariantShare,
    ("audiences", "*", "*"): ConditionDocument,
    ("audiences", "*", "*", "*"): ConditionDocument,
    ("stages", "*"): StageDocument,
    ("guardrails", "*"): GuardrailDocument,
    ("guardrails", "*", "compare"): Comparison,
    ("freeze_windows", "*"): FreezeWindowDocument,
    ("advisor",): AdvisorDocument,
}


def _keys_at(at: Path) -> Sequence[str]:
    """Return the keys that a mapping at this path may have."""
    model = _MODELS.get(
        tuple(
            "*" if isinstance(step, int) or at[:place] == ("audiences",) else step
            for place, step in enumerate(at)
        )
    )
    return (
        [] if model is None else [field.alias or name for name, field in model.model_fields.items()]
    )


def _at(at: Path, values: Any) -> Path:
    """Return where a fault stands in the text.

    The model reads an audience of plain conditions as a list of one list; the text has one level
    less.
    """
    if at[:1] == ("audiences",) and len(at) > 3:
        audience = values["audiences"][at[1]]
        if not any(isinstance(item, list) for item in audience):
            return (*at[:2], *at[3:])
    return at


def in_our_words(fault: Any, values: Any) -> Finding:
    """Return one of pydantic's faults as a finding; `values` are what was validated."""
    at: Path = _at(tuple(step for step in fault["loc"] if step != "[key]"), values)
    message = str(fault["msg"]).removeprefix("Value error, ")
    match fault["type"]:
        case "extra_forbidden":
            keys = _keys_at(at[:-1])
            near = nearest_word(str(at[-1]), keys)
            fix = f"did you mean {near}?" if near else f"there are: {', '.join(keys)}"
            return error(at, "unknown key", fix)
        case "missing":
            return error(at, "is missing", f"add `{at[-1]}: ...`")
        case "value_error":
            problem, _, fix = message.partition(": " if "; " not in message else "; ")
            return error(at, problem, fix or "fix it")
        case "timezone_aware":
            return error(at, "has no offset from UTC", "write it as in 2026-11-21T03:00:00Z")
        case "enum" | "literal_error":
            return error(
                at,
                f"{_quoted(fault['input'])} is not known",
                message.replace("Input should be", "write"),
            )
        case "string_pattern_mismatch":
            return error(
                at, f"{_quoted(fault['input'])} does not fit", _FORMS.get(at[-1], "write it so")
            )
        case "string_type" if isinstance(fault["input"], int | float | bool):
            return error(
                at,
                f"{_quoted(fault['input'])} is read as a {_kind(fault['input'])}",
                "put it in quotes",
            )
        case _:
            return error(
                at, f"{_quoted(fault['input'])}: {message[:1].lower()}{message[1:]}", "write it so"
            )


def _quoted(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


_FORMS: dict[str | int, str] = {"from": "write it as in 06:00", "to": "write it as in 18:30"}


def _kind(value: Any) -> str:
    return "truth value" if isinstance(value, bool) else "number"
