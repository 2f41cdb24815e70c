"""The sound parts of a plan that has faults of form, so that the rules can judge them too.

What has a fault is replaced by a stand-in that breaks no rule, because a plan without it could
break others: a stage with a fault still is a stage. Of a stage with a fault in its times alone the
rest is judged.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple

from controller.plans.finding import STAGE_TIMES, Finding, nearest_word
from controller.yaml_places import Path
from schemas.metric_names import METRIC_KINDS, METRICS
from schemas.plan import PlanDocument, StageDocument
from schemas.terms import NAME, WEEKDAYS

#: Of metrics that apps name, so that no other guardrail watches the stand-in's.
_PREFIX: Final = next(kind.prefix for kind in METRIC_KINDS if kind.prefix)
_STAND_IN: Final = "rolloutd-stand-in"
_SECTIONS: Final = tuple(PlanDocument.model_fields)
_STAGE_FIELDS: Final = tuple(StageDocument.model_fields)
_TIMES: Final = ("bake", "settle", "max_bake")
#: Sections in which one entry gets a stand-in. Of any other, all of it is left out.
_ENTRIES: Final = (
    "stages",
    "guardrails",
    "external",
    "gate_webhooks",
    "audiences",
    "freeze_windows",
    "active",
)
WINDOWS: Final = ("freeze_windows", "active")
#: What each field of a window with a fault becomes, so that its other fields can be judged. One
#: that is not here is left out.
_WINDOW_STAND_INS: Final = {
    "days": list(WEEKDAYS),
    "from": "00:00",
    "to": "12:00",
    "lasts": "1m",
    "timezone": "UTC",
}


class SoundParts(NamedTuple):
    """A plan that has faults of form, with stand-ins for what has one."""

    values: dict[str, Any]
    #: Sections that have a fault, and `STAGE_TIMES`.
    incomplete: set[str]
    #: The places of stand-ins, and of what was left out.
    replaced: list[Path]


def sound_parts(values: dict[str, Any], faults: Iterable[Path]) -> SoundParts:
    """Return the plan with stand-ins for what has a fault.

    `faults` are the places of all faults of form. The answer shares nothing with `values`.
    """
    plan = copy.deepcopy(values)
    incomplete: set[str] = set()
    replaced: list[Path] = []
    stage_faults: dict[int, set[str]] = {}
    for path in faults:
        if not path:
            continue
        section = str(path[0])
        if section == "guardrails" and len(path) > 2 and _has_sound_rest(plan, path):
            incomplete.add(section)
            replaced.append(_replace_in_guardrail(_entry(plan, path), path))
            continue
        if section == "stages" and len(path) > 2:
            stage_faults.setdefault(int(path[1]), set()).add(str(path[2]))
            continue
        if section not in _SECTIONS:
            incomplete.add(nearest_word(section, _SECTIONS) or section)
            plan.pop(section, None)
            continue
        if section != "audiences" or len(path) == 1:
            incomplete.add(section)
        if section in WINDOWS and len(path) > 1 and isinstance(_entry(plan, path), dict):
            replaced += _replace_in_window(_entry(plan, path), path)
            continue
        if section in ("name", "flag"):
            plan[section] = _STAND_IN
        elif section in _ENTRIES and len(path) > 1 and section in plan:
            _replace_entry(plan, section, path[1])
            replaced.append(path[:2])
            continue
        else:
            plan[section] = [] if section == "stages" else None
        replaced.append(path[:1])
    for index, fields in stage_faults.items():
        if not isinstance(plan.get("stages"), list):
            continue
        if any(_is_central(field) for field in fields):
            incomplete.add("stages")
            _replace_entry(plan, "stages", index)
            replaced.append(("stages", index))
            continue
        for field in fields:
            left_out = _leave_out(plan["stages"][index], field)
            replaced += [("stages", index, each) for each in left_out]
            if _meant(field) in (*_TIMES, "min_sample"):
                incomplete.add(STAGE_TIMES)
    known = {key: value for key, value in plan.items() if value is not None}
    return SoundParts(known, incomplete, replaced)


def _entry(plan: dict[str, Any], path: Path) -> Any:
    """Return the entry of a list that a path leads into, None where there is none."""
    entries, index = plan.get(str(path[0])), path[1]
    if not isinstance(entries, list) or not isinstance(index, int) or index >= len(entries):
        return None
    return entries[index]


def _replace_in_window(window: dict[str, Any], path: Path) -> list[Path]:
    """Put a stand-in for one field of a window; for both ends where they contradict each other."""
    if len(path) == 2:
        window.pop("to", None)
        window["lasts"] = _WINDOW_STAND_INS["lasts"]
        return [(*path, "to"), (*path, "lasts")]
    field = str(path[2])
    window.pop(field, None)
    if field in _WINDOW_STAND_INS:
        window[field] = _WINDOW_STAND_INS[field]
    return [path[:3]]


def _has_sound_rest(plan: dict[str, Any], path: Path) -> bool:
    """Return whether the other fields of a guardrail mean something without the one at fault."""
    entry = _entry(plan, path)
    if not isinstance(entry, dict):
        return False
    return path[2] != "metric" or _meant_metric(entry.get("metric")) is not None


def _meant_metric(written: object) -> str | None:
    """Return a metric with the units of the one that was probably meant."""
    return nearest_word(written, METRICS) if isinstance(written, str) else None


def _replace_in_guardrail(guardrail: dict[str, Any], path: Path) -> Path:
    """Put a stand-in for one field of a guardrail, or leave it out; return its place."""
    field, compare = str(path[2]), guardrail.get("compare")
    if field == "metric":
        guardrail["metric"] = _meant_metric(guardrail["metric"])
    elif field == "compare" and len(path) > 3 and isinstance(compare, dict):
        compare.pop(str(path[3]), None)
        if path[3] == "margin":
            compare["margin"] = 0.1
        return path[:4]
    else:
        guardrail.pop(field, None)
        if field in ("limit", "compare"):
            guardrail["limit"] = 0.5
    return path[:3]


def _meant(field: str) -> str | None:
    """Return the field of a stage that a key is, or seems to be."""
    return field if field in _STAGE_FIELDS else nearest_word(field, _STAGE_FIELDS)


def _is_central(field: str) -> bool:
    """Return whether a stage means nothing without this field, as other stages rest on it."""
    return _meant(field) in ("percent", "audience")


def _leave_out(stage: dict[str, Any], field: str) -> tuple[str, ...]:
    """Take a field with a fault out of a stage; return the fields nothing can be said about."""
    stage.pop(field, None)
    if _meant(field) not in _TIMES:
        return (field,)
    # They are compared with each other. The least times add up to no more than the author's.
    for each in _TIMES:
        stage.pop(each, None)
    stage |= {"bake": "1s", "settle": "0s"}
    return (field, *_TIMES)


def _replace_entry(plan: dict[str, Any], section: str, entry: str | int) -> None:
    """Put a stand-in for one entry of a section."""
    if section == "audiences" and NAME.match(str(entry)) is None:
        # Gone already when the name and what it names have a fault each.
        plan[section].pop(entry, None)
    elif section == "audiences":
        plan[section][entry] = [{"attribute": "any", "eq": "any"}]
    elif section == "stages":
        # Of an audience of its own, so that no other stage has to rise above it.
        name = f"{_STAND_IN}-{entry}"
        plan[section][entry] = {"percent": 0.01, "bake": "1s", "settle": "0s", "audience": name}
        audiences = plan.get("audiences")
        plan["audiences"] = audiences if isinstance(audiences, dict) else {}
        plan["audiences"][name] = [{"attribute": "any", "eq": "any"}]
    elif section == "guardrails":
        metric = f"{_PREFIX}{_STAND_IN}-{entry}"
        plan[section][entry] = {"metric": metric, "role": "observe", "limit": 0.5}
    elif section == "external":
        name = f"{_STAND_IN}-{entry}"
        plan[section][entry] = {"name": name, "prometheus": "1", "at_most": 1}
    elif section == "gate_webhooks":
        plan[section][entry] = {"endpoint": f"{_STAND_IN}-{entry}"}
    else:
        plan[section][entry] = {"days": ["mon"], "from": "00:00", "lasts": "1m"}


def is_of_sound_part(finding: Finding, replaced: Collection[Path]) -> bool:
    """Return whether a finding is about what its author wrote, and not about a stand-in."""
    if any(_STAND_IN in str(step) for step in finding.path) or _STAND_IN in finding.message:
        return False
    partial = [path[:2] for path in replaced if path[0] == "guardrails" and len(path) > 2]
    if finding.path in partial or any(f"guardrails[{at[1]}]" in finding.message for at in partial):
        return False  # about a guardrail as a whole, which is not as its author meant it
    return not any(finding.path[: len(path)] == path for path in replaced)


def is_further_fault(finding: Finding, replaced: Collection[Path]) -> bool:
    """Return whether a fault of form, which a stand-in has let appear, is the author's.

    The ends of a window are compared once its fields are sound. What is around any other stand-in
    may be wrong because of it.
    """
    is_around = any(path[: len(finding.path)] == finding.path for path in replaced)
    is_window = finding.path[:1] and finding.path[0] in WINDOWS
    return is_of_sound_part(finding, replaced) and (bool(is_window) or not is_around)
