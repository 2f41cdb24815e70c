"""Faults in the form of a plan: pydantic's findings in our words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from controller.plans.finding import Finding, error, nearest_word
from controller.yaml_places import Path
from schemas.audiences import ConditionDocument
from schemas.external import (
    COUNTERS_TAG,
    QUERY_TAG,
    CountersDocument,
    ExternalMetricDocument,
    PrometheusDocument,
)
from schemas.gate_webhooks import GateWebhookDocument
from schemas.guardrails import Comparison, GuardrailDocument
from schemas.plan import (
    ActiveWindowDocument,
    AdvisorDocument,
    FreezeWindowDocument,
    PlanDocument,
    StageDocument,
    Variants,
    VariantShare,
)

#: What pydantic puts between the steps of the text.
_NO_STEPS = ("[key]", QUERY_TAG, COUNTERS_TAG)
_MODELS: dict[Path, type[BaseModel]] = {
    (): PlanDocument,
    ("variants",): Variants,
    ("variants", "split", "*"): VariantShare,
    ("audiences", "*", "*"): ConditionDocument,
    ("audiences", "*", "*", "*"): ConditionDocument,
    ("stages", "*"): StageDocument,
    ("guardrails", "*"): GuardrailDocument,
    ("guardrails", "*", "compare"): Comparison,
    ("external", "*"): ExternalMetricDocument,
    ("external", "*", "prometheus"): PrometheusDocument,
    ("external", "*", "prometheus", "query"): CountersDocument,
    ("external", "*", "prometheus", "treatment"): CountersDocument,
    ("external", "*", "prometheus", "control"): CountersDocument,
    ("gate_webhooks", "*"): GateWebhookDocument,
    ("freeze_windows", "*"): FreezeWindowDocument,
    ("active", "*"): ActiveWindowDocument,
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


def _place_of(key: str) -> str | None:
    """Return where in a plan a key belongs, None for one that belongs nowhere or in two places."""
    places = [
        at[:1]
        for at, model in _MODELS.items()
        if key in {field.alias or name for name, field in model.model_fields.items()}
    ]
    if len(places) != 1:
        return None
    return f"`{places[0][0]}`" if places[0] else "the plan itself"


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
    at: Path = _at(tuple(step for step in fault["loc"] if step not in _NO_STEPS), values)
    message = str(fault["msg"]).removeprefix("Value error, ")
    match fault["type"]:
        case "extra_forbidden":
            keys = _keys_at(at[:-1])
            near = nearest_word(str(at[-1]), keys)
            place = _place_of(str(at[-1]))
            if place is not None:
                return error(at, "does not belong here", f"write it in {place}")
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
            known = message.replace("Input should be", "write")
            near = nearest_word(str(fault["input"]), re.findall(r"'([^']+)'", known))
            fix = f"did you mean {near}? There are: {known.removeprefix('write ')}"
            return error(at, f"{_quoted(fault['input'])} is not known", fix if near else known)
        case "string_pattern_mismatch":
            return error(at, f"{_quoted(fault['input'])} does not fit", _form(at, fault["input"]))
        case "string_type" if isinstance(fault["input"], int | float | bool):
            return error(
                at,
                f"{_quoted(fault['input'])} is read as a {_kind(fault['input'])}",
                "put it in quotes",
            )
        case kind if kind in _KINDS:
            return error(at, f"{_quoted(fault['input'])} is not {_KINDS[kind]}", _KIND_FIXES[kind])
        case _:
            _, _, bound = message.partition(" should ")
            problem = f"{_quoted(fault['input'])} should {bound}" if bound else message
            return error(at, problem, "correct the value")


_KINDS = {
    **dict.fromkeys(("float_type", "int_type", "int_from_float", "finite_number"), "a number"),
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    **dict.fromkeys(("dict_type", "model_type"), "a mapping"),
}
_KIND_FIXES = {
    **dict.fromkeys(("float_type", "finite_number"), "write a number, as in 5 or 0.5"),
    **dict.fromkeys(("int_type", "int_from_float"), "write a whole number, as in 100"),
    "bool_type": "write true or false",
    "string_type": "write text",
    "list_type": "write a list, as in `[a, b]` or with `- ` before each entry",
    **dict.fromkeys(("dict_type", "model_type"), "write `key: value` pairs"),
}


def _quoted(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


_FORMS: dict[str | int, str] = {
    "from": "write it as in 06:00",
    "to": "write it as in 18:30",
    "attribute": "begin with a letter or _; letters, digits, _ and - may follow, up to 64",
    "dates": "write it as in 2026-11-27, or 2026-11-27..2026-11-30 with both days included",
}
#: A local time whose hour lacks its zero.
_SHORT_HOUR = re.compile(r"[0-9]:[0-5][0-9]")


def _form(at: Path, given: Any) -> str:
    """Return how to write what does not fit."""
    if at[-1] in ("from", "to") and isinstance(given, str) and _SHORT_HOUR.fullmatch(given):
        return f'write "0{given}"'
    return _FORMS.get(at[-1], "see ops/plan.md for its form")


def _kind(value: Any) -> str:
    return "truth value" if isinstance(value, bool) else "number"
