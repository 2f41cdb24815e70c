"""Writes the reference pages of plans, settings and metrics from the models.

Belongs here: the pages' text as pure functions of the models. The pages are compared with it, and
written again, by `tests/unit/test_reference_pages.py`.
"""

from __future__ import annotations

import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from prometheus_client.core import Metric
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from controller.settings import Settings
from controller.settings.gate_webhooks import GateEndpointSettings
from controller.settings.hooks import HookSettings
from controller.settings.notifications import ChannelSettings
from controller.settings.planes import FilePlaneSettings, HttpPlaneSettings
from controller.settings.section import Section, named_section
from controller.telemetry import Metrics
from schemas.api import (
    BASE,
    ENDPOINTS,
    FittingCommand,
    RolloutList,
    RolloutSummary,
    RolloutView,
    SafeToAdvance,
    StageView,
    UnwatchedRecord,
)
from schemas.audiences import ConditionDocument
from schemas.decision import (
    ArmRecord,
    GapRecord,
    HarmRecord,
    JudgementRecord,
    MetricRecord,
    PlanReference,
    WebhookRecord,
)
from schemas.external import CountersDocument, ExternalMetricDocument, PrometheusDocument
from schemas.fields import format_duration
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
from schemas.report import ArmPoint, HistoryPoint, MetricPoint, PlaneRecord, StageHistory

ROOT = Path(__file__).parents[1]
COLUMNS = 98
_REWRITE = (
    "What follows is generated from the code;\n"
    "`ROLLOUTD_REWRITE=1 pytest tests/unit/test_reference_pages.py` writes it again."
)


def wrapped(text: str, first: str = "", later: str = "") -> str:
    """Return a paragraph in lines of at most 98 columns."""
    return textwrap.fill(
        " ".join(text.split()),
        COLUMNS,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


# --- fields ---


def entry(name: str, field: FieldInfo, meaning: str) -> str:
    """Return one list entry: name, type, range, default and meaning of a field."""
    facts = [type_words(field.annotation, field.metadata), *range_words(field)]
    facts.append(default_words(field))
    return wrapped(f"`{name}` ({', '.join(fact for fact in facts if fact)}): {meaning}", "- ", "  ")


def type_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return a type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(args[0], args[1:])
    if origin in (typing.Union, types.UnionType):
        inner = [one for one in args if one is not type(None)]
        return " or ".join(dict.fromkeys(type_words(one) for one in inner))
    if origin is typing.Literal:
        return " or ".join(f"`{one}`" for one in args)
    if origin in (list, tuple):
        return f"list of {_plural(type_words(args[0]))}"
    if origin is dict:
        return f"mapping of names to {_plural(type_words(args[1]))}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{one.value}`" for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        title = _TITLES.get(annotation, annotation.__name__)
        return f"[{title.lower()}](#{_anchor(title)})"
    names = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
        Path: "path",
        timedelta: "duration",
        SecretStr: "secret",
    }
    return names.get(annotation, "time" if "atetime" in str(annotation) else "value")


def _plural(words: str) -> str:
    if words.startswith("list of "):
        return words.replace("list of ", "lists of ", 1)
    return words if words.startswith(("[", "`")) or " or " in words else f"{words}s"


def range_words(field: FieldInfo) -> Iterator[str]:
    """Yield the limits of a field's value: those that are written for people, if there are any."""
    extra = field.json_schema_extra
    if isinstance(extra, dict):
        words = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most"}
        for key, word in words.items():
            bound = extra.get(key)
            if isinstance(bound, int | float):
                yield f"{word} {_number(bound)}"
        if words.keys() & extra.keys():
            return
    for limit in _limits(field.annotation, field.metadata):
        match limit:
            case Gt(gt=value):
                yield f"above {_number(value)}"
            case Ge(ge=value):
                yield f"at least {_number(value)}"
            case Lt(lt=value):
                yield f"below {_number(value)}"
            case Le(le=value):
                yield f"at most {_number(value)}"
            case MaxLen(max_length=value):
                yield f"at most {_number(value)} {_unit_of_length(field.annotation)}"
            case MinLen(min_length=value):
                yield f"at least {_number(value)} {_unit_of_length(field.annotation)}"


def _limits(annotation: Any, metadata: Iterable[Any]) -> Iterator[Any]:
    for one in metadata:
        yield from getattr(one, "metadata", None) or (one,)
    if get_origin(annotation) is Annotated:
        yield from _limits(get_args(annotation)[0], get_args(annotation)[1:])
    elif get_origin(annotation) in (typing.Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _limits(inner, ())


def _unit_of_length(annotation: Any) -> str:
    return "entries" if get_origin(annotation) in (list, dict, tuple) else "characters"


def _number(value: Any) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def default_words(field: FieldInfo) -> str:
    """Return a field's default in words; empty for a section, whose fields have their own."""
    value = field.default
    if value is PydanticUndefined:
        return "required" if field.default_factory is None else ""
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "default: none"
    if isinstance(value, bool):
        return f"default: {str(value).lower()}"
    if isinstance(value, Enum):
        return f"default: `{value.value}`"
    if isinstance(value, timedelta):
        return f"default: {format_duration(value)}"
    if isinstance(value, list | tuple | dict | str) and not value:
        return "default: empty"
    if isinstance(value, tuple | list):
        return f"default: `[{', '.join(map(str, value))}]`"
    return f"default: `{value}`" if isinstance(value, str) else f"default: {_number(value)}"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


# --- the plan ---

_PLAN_SECTIONS: dict[type[BaseModel], str] = {
    PlanDocument: "The plan",
    StageDocument: "A stage",
    Variants: "Variants",
    VariantShare: "A share of treatment",
    GuardrailDocument: "A guardrail",
    Comparison: "A comparison",
    ExternalMetricDocument: "An external metric",
    PrometheusDocument: "The queries",
    CountersDocument: "Counters",
    GateWebhookDocument: "A gate webhook",
    ConditionDocument: "A condition",
    FreezeWindowDocument: "A freeze window",
    ActiveWindowDocument: "An active window",
    AdvisorDocument: "The advisor",
}
_API_SECTIONS: dict[type[BaseModel], str] = {
    RolloutList: "A list of rollouts",
    RolloutSummary: "A rollout in one line",
    UnwatchedRecord: "Unwatched",
    SafeToAdvance: "Safe to advance",
    RolloutView: "A rollout",
    StageView: "A stage of a rollout",
    FittingCommand: "A command",
    PlaneRecord: "A plane",
    JudgementRecord: "A judgement",
    GapRecord: "A gap",
    WebhookRecord: "A gate webhook's reply",
    HarmRecord: "Harm",
    MetricRecord: "A metric",
    ArmRecord: "An arm",
    PlanReference: "A plan by name",
    StageHistory: "The course of a stage",
    HistoryPoint: "A point of a course",
    MetricPoint: "A metric at a point",
    ArmPoint: "An arm at a point",
}
_TITLES: dict[type[BaseModel], str] = {
    **_PLAN_SECTIONS,
    **_API_SECTIONS,
    FilePlaneSettings: "planes.files.NAME",
    ChannelSettings: "notifications.channels.NAME",
    HookSettings: "hooks.endpoints.NAME",
    GateEndpointSettings: "gate_webhooks.endpoints.NAME",
    HttpPlaneSettings: "planes.http.NAME",
}


def with_fields(page: str, sections: Iterable[str]) -> str:
    """Return a page with everything after its marker replaced by these sections."""
    head, marker, _ = page.partition("<!-- generated -->\n")
    assert marker, "the page has no marker"
    return head + marker + "\n" + "\n\n".join([_REWRITE, *sections]) + "\n"


def plan_sections() -> Iterator[str]:
    """Yield the reference of every field of a plan."""
    for model, title in _PLAN_SECTIONS.items():
        lines = [
            entry(field.alias or name, field, (field.description or "").strip())
            for name, field in model.model_fields.items()
        ]
        words = wrapped((model.__doc__ or "").split("\n\n")[0])
        yield f"## {title}\n\n{words}\n\n" + "\n".join(lines)


# --- the settings ---


def setting_sections(
    section: type[Section] = Settings, where: str = "", *, is_named: bool = False
) -> Iterator[str]:
    """Yield the reference of each section of the settings, those within it after it."""
    title = f"`{where}`" if where else "At the top"
    words = [
        wrapped(paragraph)
        for paragraph in (section.__doc__ or "").split("\n\n")
        if where  # the whole has an introduction of its own
    ]
    fields, inner = [], []
    for name, field in section.model_fields.items():
        place = f"{where}.{name}" if where else name
        named = named_section(field.annotation)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            inner.append((field.annotation, place, False))
            continue
        if named is not None:
            inner.append((named, f"{place}.NAME", True))
        fields.append(entry(place, field, section.meaning(name)))
    if fields:
        yield "\n\n".join([f"## {title}", *words, "\n".join(fields)])
    for model, place, below in inner:
        yield from setting_sections(model, place, is_named=below)


# --- the HTTP API ---


def api_sections() -> Iterator[str]:
    """Yield the reference of every path of the HTTP API, then of what is answered."""
    lines = []
    for endpoint in ENDPOINTS:
        title = _API_SECTIONS.get(endpoint.answer)
        answer = "" if title is None else f" Answers [{title.lower()}](#{_anchor(title)})."
        method = "GET" if endpoint.body is None else "POST"
        words = f"`{method} {BASE}{endpoint.path}`: {endpoint.summary}{answer}"
        lines.append(wrapped(words, "- ", "  "))
        for one in endpoint.parameters:
            values = one.schema.get("enum")
            of = f" One of `{'`, `'.join(values)}`." if values else ""
            lines.append(wrapped(f"`{one.name}`: {one.description}{of}", "  - ", "    "))
    yield "## Paths\n\n" + "\n".join(lines)
    for model, title in _API_SECTIONS.items():
        fields = [answered(name, field) for name, field in model.model_fields.items()]
        words = wrapped((model.__doc__ or "").split("\n\n")[0])
        yield f"## {title}\n\n{words}\n\n" + "\n".join(fields)


def answered(name: str, field: FieldInfo) -> str:
    """Return one list entry of an answer: name, type and meaning."""
    words = f"`{name}` ({type_words(field.annotation, field.metadata)}): {field.description or ''}"
    return wrapped(words.removesuffix(": "), "- ", "  ")


# --- the metrics ---


def metric_sections() -> Iterator[str]:
    """Yield the reference of every metric of rolloutd's own."""
    families = [
        family
        for family in Metrics(version="0").registry.collect()
        if family.name.startswith("rolloutd_")
    ]
    yield "## All metrics\n\n" + "\n".join(
        metric_entry(family) for family in sorted(families, key=lambda one: one.name)
    )


def metric_entry(family: Metric) -> str:
    """Return one list entry: name, type, labels with their values, and meaning."""
    name = family.name + ("_total" if family.type == "counter" else "")
    labels: dict[str, set[str]] = {one: set() for one in getattr(family, "_labelnames", ())}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label != "le":
                labels.setdefault(label, set()).add(value)
    written = ",".join(labels)
    lines = [
        wrapped(
            f"`{name}{'{' + written + '}' if labels else ''}` ({family.type}): "
            f"{family.documentation}",
            "- ",
            "  ",
        )
    ]
    for label, values in labels.items():
        if len(values) > 1 and name != "rolloutd_build_info":
            lines.append(wrapped(f"`{label}`: {' '.join(sorted(values))}.", "  ", "  "))
    return "\n".join(lines)
