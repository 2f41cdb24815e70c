"""Plans from YAML or JSON text, with the place of every fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NoReturn

import yaml
from pydantic import ValidationError

from controller.errors import ConfigInvalid
from controller.plans.finding import Finding, error
from controller.plans.rules import lint
from controller.plans.shape_faults import in_our_words
from controller.plans.sound_parts import is_further_fault, is_of_sound_part, sound_parts
from controller.yaml_places import CoreSchemaLoader, Path, Places, YamlRefused, is_yaml, read_yaml
from schemas.plan import PlanDocument

#: What fits into one command record (`schemas.envelope.MAX_BYTES`). A plan of 100 stages has 10 KB.
MAX_BYTES: Final = 200_000
#: A fault can hide another, as that of a window's `to` hides that it has `lasts` as well.
_MOST_ROUNDS: Final = 3


class _NotReadable(Exception):
    """The text holds no mapping at all; `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def load_plan(text: str, source_name: str) -> PlanDocument:
    """Return the plan that `text` writes, in YAML or JSON.

    Its dates are not compared with the present. Raises ConfigInvalid, one line per fault, when the
    plan cannot be read or cannot work.
    """
    document, findings = lint_text(text)
    errors = [finding.located(source_name) for finding in findings if finding.is_error]
    if document is None or errors:
        raise ConfigInvalid("\n".join(errors))
    return document


def lint_text(
    text: str,
    now: datetime | None = None,
    further: Callable[[PlanDocument], Iterable[Finding]] | None = None,
    by_settings: Callable[[PlanDocument], Iterable[Finding]] | None = None,
) -> tuple[PlanDocument | None, list[Finding]]:
    """Return the plan, None when it cannot be read, and all findings in the order of the text.

    `by_settings` adds findings about a plan that can be read, such as those of the rules for flags;
    `further` adds those about a plan without errors.
    """
    try:
        values, places, findings = _read(text)
    except _NotReadable as unreadable:
        return None, [unreadable.finding]
    document = None
    try:
        document = PlanDocument.model_validate(values)
    except ValidationError as refused:
        faults = refused.errors(include_url=False, include_context=False)
        findings += [in_our_words(fault, values) for fault in faults]
        findings += _of_sound_parts(values, [tuple(fault["loc"]) for fault in faults], now)
    else:
        findings += lint(document, now)
        if by_settings is not None:
            findings += by_settings(document)
        if further is not None and not any(finding.is_error for finding in findings):
            findings += further(document)
    return document, sorted((_placed(finding, places) for finding in findings), key=_text_order)


def _of_sound_parts(
    values: dict[str, Any], faults: Sequence[Path], now: datetime | None
) -> list[Finding]:
    """Return what the rules find in the parts of a plan that have no fault of form."""
    further: list[Finding] = []
    for _ in range(_MOST_ROUNDS):
        parts = sound_parts(values, faults)
        try:
            document = PlanDocument.model_validate(parts.values)
        except ValidationError as refused:
            hidden = refused.errors(include_url=False, include_context=False)
            words = [in_our_words(fault, values) for fault in hidden]
            further += [one for one in words if is_further_fault(one, parts.replaced)]
            faults = [*faults, *(tuple(fault["loc"]) for fault in hidden)]
            continue
        findings = lint(document, now, parts.incomplete)
        return [*further, *(one for one in findings if is_of_sound_part(one, parts.replaced))]
    return further  # the faults depend on each other: they have to be fixed first


def _text_order(finding: Finding) -> tuple[int, int, bool]:
    return finding.line or 0, finding.column or 0, not finding.is_error


def _placed(finding: Finding, places: Places) -> Finding:
    """Return the finding with the place of its key, or of the nearest key around it."""
    if finding.line is not None:
        return finding
    path = finding.path
    if path[3:4] == ("query",) and path not in places:
        shorter = (*path[:3], *path[4:])  # the text may leave `query` out, see PrometheusDocument
        path = shorter if shorter in places else path
    for length in range(len(path), -1, -1):
        if (place := places.get(path[:length])) is not None:
            return replace(finding, line=place[0], column=place[1])
    return finding


def _read(text: str) -> tuple[dict[str, Any], Places, list[Finding]]:
    """Return the values of a text, the place of each, and a finding for each repeated key.

    Raises _NotReadable.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise _NotReadable(error((), f"the text is larger than {MAX_BYTES} bytes", "is it a plan?"))
    values = _read_json(text) if text.lstrip().startswith("{") else None
    # JSON allows tabs between its tokens and any character in its strings, YAML does not. Only the
    # places of a JSON text are read as YAML.
    readable = text if values is None else _as_yaml(text)
    try:
        document = read_yaml(readable, CoreSchemaLoader)
    except YamlRefused as refused:
        is_at_line = refused.line is not None
        fix = "fix the line, or the one before it" if is_at_line else "fix the text"
        finding = error((), f"not YAML: {refused}", fix)
        raise _NotReadable(replace(finding, line=refused.line, column=refused.column)) from None
    if document.is_empty:
        fix = "`rolloutctl plan templates` shows plans to begin with"
        raise _NotReadable(error((), "the text is empty", fix))
    if not isinstance(document.values, dict):
        fix = "begin with `name: ...` and `flag: ...`"
        raise _NotReadable(error((), "a plan is a mapping", fix))
    findings = []
    for repeated in document.repeated_keys:
        problem = f"is given twice, first on line {repeated.first_line}"
        finding = error(repeated.path, problem, "keep one: YAML would drop the first")
        findings.append(replace(finding, line=repeated.line, column=repeated.column))
    return document.values if values is None else values, document.places, findings


def _read_json(text: str) -> dict[str, Any] | None:
    """Return a JSON object, None for YAML in flow style, which begins with a brace too.

    Raises _NotReadable for what is neither.
    """
    try:
        values: dict[str, Any] = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as refused:
        if is_yaml(text, CoreSchemaLoader):
            return None
        problem = f"not JSON: {getattr(refused, 'msg', refused)}"
        finding = error((), problem, "fix the line, or the one before it")
        if isinstance(refused, json.JSONDecodeError):
            finding = replace(finding, line=refused.lineno, column=refused.colno)
        raise _NotReadable(finding) from None
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _as_yaml(text: str) -> str:
    return yaml.reader.Reader.NON_PRINTABLE.sub("?", text.replace("\t", " "))
