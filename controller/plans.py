"""Plans from files: reading YAML and JSON with the place of every fault.

The rules a plan must keep to work, and templates.

The form of a plan is `schemas/plan.py`. What stands here is advice to its author, so every finding
says where, what and how to fix it, and all are told at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, ValidationError

from controller.core.metrics import kind_of
from controller.core.plan import FreezeWindow
from controller.core.serving import EARLIER_SUFFIX
from controller.core.timeline import frozen_until
from controller.errors import ConfigInvalid
from schemas.fields import format_duration
from schemas.plan import (
    SMALLEST_MARGIN,
    AdvisorDocument,
    Comparison,
    ConditionDocument,
    FreezeWindowDocument,
    GuardrailDocument,
    PlanDocument,
    StageDocument,
    Variants,
    VariantShare,
)
from schemas.terms import NAME, AdvisorMode, ControlArm, MetricRole, Severity

Path = tuple[str | int, ...]
Places = dict[Path, tuple[int, int]]

#: What fits into one command record (`schemas.envelope.MAX_BYTES`); a plan of 100 stages has 10 KB.
MAX_BYTES = 200_000
#: Values a file may expand to: aliases make a short YAML file arbitrarily large.
MAX_VALUES = 20_000
MAX_DEPTH = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a plan that its author should know."""

    at: Path  # keys and indexes from the top, () for the plan as a whole
    severity: Severity  # CRITICAL: the plan is refused. WARNING: it works, but perhaps not as meant
    message: str
    fix: str
    line: int | None = None  # 1-based; None when the plan was not read from text
    column: int | None = None

    @property
    def is_error(self) -> bool:
        """True when the plan is refused because of it."""
        return self.severity is Severity.CRITICAL

    def __str__(self) -> str:
        """Return `stages[1].percent: what; how to fix it`, without the place in the file."""
        where = "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.at
        ).removeprefix(".")
        return f"{where or 'plan'}: {self.message}; {self.fix}"

    def located(self, source_name: str) -> str:
        """Return the finding as compilers write it: `file:line:column: severity: ...`."""
        place = source_name if self.line is None else f"{source_name}:{self.line}:{self.column}"
        return f"{place}: {'error' if self.is_error else 'warning'}: {self}"


def load_plan(text: str, source_name: str, now: datetime | None = None) -> PlanDocument:
    """Return the plan that `text` writes, in YAML or JSON.

    `now` is what its dates are compared with; None: they are not. Raises ConfigInvalid, one line
    per fault, when the plan cannot be read or cannot work.
    """
    document, findings = lint_text(text, now)
    errors = [finding.located(source_name) for finding in findings if finding.is_error]
    if document is None or errors:
        raise ConfigInvalid("\n".join(errors))
    return document


def lint_text(
    text: str,
    now: datetime | None = None,
    further: Callable[[PlanDocument], Iterable[Finding]] | None = None,
) -> tuple[PlanDocument | None, list[Finding]]:
    """Return the plan, None when it cannot be read.

    And everything to say about it, in the order of the text.

    `further` is asked what else there is to say about a plan without errors.
    """
    values, places, findings = _read(text)
    document = None
    if not any(finding.is_error for finding in findings if finding.at == ()):
        try:
            document = PlanDocument.model_validate(values)
        except ValidationError as error:
            findings += [
                _of_shape(fault, values)
                for fault in error.errors(include_url=False, include_context=False)
            ]
        else:
            findings += lint(document, now)
            if further is not None and not any(finding.is_error for finding in findings):
                findings += further(document)
    placed = [_placed(finding, places) for finding in findings]
    return document, sorted(
        placed, key=lambda finding: (finding.line or 0, finding.column or 0, not finding.is_error)
    )


# --- rules
# --------------------------------------------------------------------------------------------------


def lint(document: PlanDocument, now: datetime | None = None) -> list[Finding]:
    """Return what is wrong or doubtful about a plan of the right form.

    Without errors among it, the plan can work.
    """
    rules = (
        *(_stages, _rings, _audiences, _variants, _guardrails, _watched),
        *(_zones, _freeze_windows, _dates, _traffic, _rest),
    )
    return [finding for rule in rules for finding in rule(document, now)]


def unrunnable(document: PlanDocument) -> list[Finding]:
    """Return why a plan of the right form could not be run at all, in whichever phase.

    For plans of rollouts under way: less than `lint` asks for, so that a rule that a later release
    adds there stops none of them.
    """
    rules = (_reachable, _limits, _zones)
    return [finding for rule in rules for finding in rule(document, None)]


def _reachable(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """That there are stages, each of a share of somebody."""
    if not document.stages:
        yield _error(("stages",), "there is no stage", "a rollout needs one")
    for index, stage in enumerate(document.stages):
        if not 0 < stage.percent <= 100:
            what = f"{_percent(stage.percent)} is not in (0, 100]"
            yield _error(("stages", index, "percent"), what, "it is a share")
        if stage.audience is not None and stage.audience not in document.audiences:
            what = f"there is no audience {stage.audience!r}"
            yield _error(("stages", index, "audience"), what, "a stage needs its audience")


def _error(at: Path, message: str, fix: str) -> Finding:
    return Finding(at, Severity.CRITICAL, message, fix)


def _warning(at: Path, message: str, fix: str) -> Finding:
    return Finding(at, Severity.WARNING, message, fix)


def _percent(value: float) -> str:
    return f"{value:.10g} %"


def _nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the word that may have been meant; what follows 40 characters is not compared."""
    names = {name[:40]: name for name in known}
    near = difflib.get_close_matches(word[:40], names, n=1)
    return names[near[0]] if near else None


def _is_in_steps(percent: float) -> bool:
    """Return whether a percentage is a multiple of 0.01, as flag planes can serve it."""
    return percent == round(percent, 2)


def _stages(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Each stage in itself, and that they rise."""
    if not document.stages:
        yield _error(("stages",), "there is no stage", "add one, as in `- {percent: 1, bake: 24h}`")
    for index, stage in enumerate(document.stages):
        at: Path = ("stages", index)
        if not 0 < stage.percent <= 100:
            yield _error(
                (*at, "percent"),
                f"{_percent(stage.percent)} is not in (0, 100]",
                "write a percentage such as 5 or 0.5",
            )
        elif not _is_in_steps(stage.percent):
            yield _error(
                (*at, "percent"),
                f"{_percent(stage.percent)} is not in steps of 0.01",
                f"write {max(round(stage.percent, 2), 0.01):g}: flag planes serve "
                f"hundredths of a percent",
            )
        if stage.bake <= timedelta(0):
            yield _error(
                (*at, "bake"),
                "bakes for no time at all",
                "give it time to gather evidence, as in 24h",
            )
        elif stage.settle >= stage.bake:
            yield _error(
                (*at, "settle" if "settle" in stage.model_fields_set else "bake"),
                f"settle ({format_duration(stage.settle)}) is not shorter than bake "
                f"({format_duration(stage.bake)})",
                "bake longer, or settle for less; bake begins after settle",
            )
        if stage.max_bake is not None and stage.max_bake < stage.bake:
            yield _error(
                (*at, "max_bake"),
                f"max_bake ({format_duration(stage.max_bake)}) is shorter than bake "
                f"({format_duration(stage.bake)})",
                "make it at least bake: past it an undecided gate pauses the rollout",
            )
        if stage.min_sample < 1:
            yield _error(
                (*at, "min_sample"),
                f"{stage.min_sample} samples prove nothing",
                "write at least 1, better 100; a ramp without evidence says `blind: true`",
            )
    last = document.stages[-1] if document.stages else None
    if last is not None and (last.percent < 100 or last.audience is not None):
        yield _warning(
            ("stages", len(document.stages) - 1, "percent"),
            f"the rollout completes at {_percent(last.percent)}"
            + (f" of {last.audience}" if last.audience else ""),
            "add a stage of 100 % if everybody is to get it",
        )


def _rings(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """That each stage reaches somebody the ones before did not, and can be compared as it asks."""
    reached: dict[str | None, float] = {}
    unknown = 0
    for index, stage in enumerate(document.stages):
        at: Path = ("stages", index)
        before, everybody = reached.get(stage.audience), reached.get(None)
        if stage.audience is not None and stage.audience not in document.audiences:
            unknown += 1
            near = _nearest(stage.audience, document.audiences) if unknown <= 3 else None
            yield _error(
                (*at, "audience"),
                f"there is no audience {stage.audience!r}",
                f"did you mean {near}?" if near else "describe it under `audiences`",
            )
        elif before is not None and stage.percent <= before:
            of = "" if stage.audience is None else f" of {stage.audience}"
            yield _error(
                (*at, "percent"),
                f"{_percent(stage.percent)}{of} does not rise above the {_percent(before)} "
                f"of an earlier stage",
                "order the stages by rising percent"
                if stage.audience is None
                else "let each audience's percent only rise",
            )
        elif stage.audience is not None and everybody is not None and stage.percent <= everybody:
            yield _error(
                (*at, "percent"),
                f"{_percent(stage.percent)} of {stage.audience} reaches nobody: "
                f"{_percent(everybody)} of everybody have it",
                "put the stage before that one, or raise its percent above it",
            )
        reached[stage.audience] = max(stage.percent, before or 0.0)
        if stage.control is ControlArm.EQUAL and stage.percent > 50:
            yield _error(
                (*at, "control"),
                f"beside {_percent(stage.percent)} no control arm of equal size has room",
                "write `control: rest`, or a percent of at most 50",
            )


def _audiences(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Each audience in itself: used, and possible."""
    used = {stage.audience for stage in document.stages}
    for name, clauses in document.audiences.items():
        at: Path = ("audiences", name)
        if name not in used:
            yield _warning(
                at,
                "no stage names this audience",
                "name it in a stage, as in `audience: " + name + "`, or remove it",
            )
        for conditions in clauses:
            for attribute, why in _contradictions(conditions):
                yield _error(
                    at,
                    f"nobody belongs to it: {attribute} {why}",
                    "fix the condition, or part them into two lists",
                )


def _contradictions(conditions: Sequence[ConditionDocument]) -> Iterator[tuple[str, str]]:
    """Yield (attribute, why) for bounds of one list that nothing can meet together."""
    for attribute in dict.fromkeys(condition.attribute for condition in conditions):
        own = [condition for condition in conditions if condition.attribute == attribute]
        least = [condition.gte for condition in own if condition.gte is not None]
        most = [condition.lte for condition in own if condition.lte is not None]
        after = [condition.after for condition in own if condition.after is not None]
        before = [condition.before for condition in own if condition.before is not None]
        if least and most and max(least) > min(most):
            yield attribute, f"would be at least {max(least):g} and at most {min(most):g}"
        if after and before and max(after) >= min(before):
            yield attribute, f"would be after {max(after)} and before {min(before)}"
        listed = [
            {
                (type(value) is bool, value)
                for value in ([condition.eq] if condition.one_of is None else condition.one_of)
            }
            for condition in own
            if condition.eq is not None or condition.one_of is not None
        ]
        if listed and not set.intersection(*listed):
            yield attribute, "would be two different values at once"


_JSON_KINDS = (
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "a string"),
    (dict, "an object"),
)


def _json_kind(value: Any) -> str:
    return next(
        (name for kind, name in _JSON_KINDS if isinstance(value, kind)),
        "null" if value is None else "a list",
    )


def _variants(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """That every variant has its own name, and the values are what any flag plane can serve."""
    variants = document.variants
    served = [share.name for share in variants.split] or [variants.treatment]
    if variants.treatment == variants.control:
        yield _error(
            ("variants",),
            f"both arms are {variants.control!r}",
            "name the variant to roll out and the one it replaces",
        )
        return
    needs_more = any(
        stage.audience is not None or stage.control is ControlArm.EQUAL for stage in document.stages
    )
    more = [variants.unassigned, *(name + EARLIER_SUFFIX for name in served)] if needs_more else []
    names = [variants.control, *served, *more]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield _error(
            ("variants",), f"two variants are called {name!r}", "give each a name of its own"
        )
    if any(not NAME.match(name) for name in more):
        yield _error(
            ("variants",),
            f"with {EARLIER_SUFFIX!r} at its end a variant's name is too long",
            "shorten it: contexts of earlier audiences are served under such a name",
        )
    if not variants.values:
        if variants.split:
            yield _error(
                ("variants", "split"),
                f"{', '.join(served)} would all be served true",
                "say what each is under `values`, control too, as in `values: {off: blue, "
                "a: red, b: green}`",
            )
        return
    for name in sorted({variants.control, *served} - set(variants.values)):
        yield _error(("variants", "values"), f"there is no value for {name}", f"add `{name}: ...`")
    for name, value in variants.values.items():
        at: Path = ("variants", "values", name)
        if name not in (variants.control, *served):
            yield _error(
                at,
                "no such variant is served",
                f"there are: {', '.join((variants.control, *served))}",
            )
        elif _json_kind(value) in ("null", "a list"):
            yield _error(
                at,
                f"{_json_kind(value)} is no flag's value",
                "write a boolean, string, number or object",
            )
    kinds = {_json_kind(value) for value in variants.values.values()}
    if len(kinds) > 1 and not kinds & {"null", "a list"}:
        yield _error(
            ("variants", "values"),
            f"the values are {' and '.join(sorted(kinds))}",
            "make them of one type: apps read one",
        )


def _covers(guardrail: GuardrailDocument, percent: float) -> bool:
    """Return whether the guardrail can judge a stage of `percent`.

    In its range, and with a control if it only compares.
    """
    to_percent = 100.0 if guardrail.to_percent is None else guardrail.to_percent
    return guardrail.from_percent <= percent <= to_percent and (
        guardrail.limit is not None or percent < 100
    )


def _guardrails(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Each guardrail in itself, and that no two say different things about one metric."""
    for index, guardrail in enumerate(document.guardrails):
        at: Path = ("guardrails", index)
        yield from _bounds(guardrail, at)
        to_percent = 100.0 if guardrail.to_percent is None else guardrail.to_percent
        if not 0 <= guardrail.from_percent <= to_percent <= 100:
            yield _error(
                at,
                f"watches {guardrail.from_percent:g} % to {to_percent:g} %",
                "let 0 <= from <= to <= 100",
            )
            continue
        in_range = [
            s.percent for s in document.stages if guardrail.from_percent <= s.percent <= to_percent
        ]
        is_told_100 = guardrail.to_percent is not None or guardrail.from_percent > 0
        if not in_range and document.stages:
            yield _error(
                at,
                "watches no stage at all",
                "let from_percent and to_percent enclose a stage's percent",
            )
        elif (
            guardrail.limit is None
            and guardrail.compare
            and 100 in in_range
            and (is_told_100 or in_range == [100])
        ):
            yield _error(
                at,
                "compares with control at 100 %, where nobody is left to compare with",
                "add an absolute `limit`, or end with `to_percent` below 100",
            )
    for (first, one), (second, other) in combinations(enumerate(document.guardrails), 2):
        if one.metric == other.metric and any(
            _covers(one, stage.percent) and _covers(other, stage.percent)
            for stage in document.stages
        ):
            yield _error(
                ("guardrails", second),
                f"{other.metric} is watched by guardrails[{first}] already, in the same stage",
                "join them, as in `error_rate < 1% and < control + 10%`, or part them by "
                "from_percent and to_percent",
            )


def _limits(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Each guardrail in itself."""
    for index, guardrail in enumerate(document.guardrails):
        yield from _bounds(guardrail, ("guardrails", index))


def _bounds(guardrail: GuardrailDocument, at: Path) -> Iterator[Finding]:
    """Limit and margins: there, and of a size that can be meant."""
    kind = kind_of(guardrail.metric)
    if guardrail.limit is None and guardrail.compare is None:
        yield _error(
            at,
            f"{guardrail.metric} has neither limit nor compare",
            "add one, as in `limit: 1%` or `compare: {margin: 10%}`",
        )
    if guardrail.limit is not None and (fault := kind.limit_fault(guardrail.limit)) is not None:
        yield _error((*at, "limit"), fault.message, fault.fix)
    if guardrail.compare is None:
        return
    in_points = guardrail.compare.in_points
    if in_points and not kind.takes_points:
        yield _error(
            (*at, "compare"),
            f"{guardrail.metric} is not compared in percentage points",
            "write the margin as in 10%",
        )
        return
    highest = 1.0 if in_points else kind.largest_margin
    for name in ("margin", "gate_margin"):
        margin = getattr(guardrail.compare, name)
        if margin is not None and not SMALLEST_MARGIN <= margin < highest:
            yield _error(
                (*at, "compare", name),
                f"a margin of {margin:g} means {margin * 100:g} "
                f"{'pp' if in_points else '%'} worse than control",
                "write the harm you tolerate, as in 10% of control's value or 0.5pp",
            )


def _watched(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """That something can roll every stage back, unless the plan says aloud that nothing does."""
    armed = [
        guardrail for guardrail in document.guardrails if guardrail.role is MetricRole.GUARDRAIL
    ]
    if document.blind:
        if document.guardrails:
            yield _error(
                ("blind",),
                "a blind plan looks at no guardrail",
                "remove `blind`, or the guardrails",
            )
        return
    if not armed:
        yield _error(
            ("guardrails",) if document.guardrails else (),
            "no guardrail: nothing would roll the flag back",
            "add one, as in `guardrails: [error_rate < 1%]`, or say `blind: true` for a timed ramp",
        )
        return
    for index, stage in enumerate(document.stages):
        if not any(_covers(guardrail, stage.percent) for guardrail in armed):
            yield _error(
                ("stages", index),
                f"no guardrail watches the stage of {_percent(stage.percent)}",
                "add an absolute `limit` to one: without a control only limits can be judged"
                if stage.percent == 100
                else "widen from_percent or to_percent of one",
            )


_WEEK_MINUTES = 7 * 24 * 60
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
#: Moments in winter and in summer, from which is seen whether windows of several zones ever leave
#: a gap.
_SEASONS = (datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 7, 6, tzinfo=UTC))
_NEVER_THAWED = timedelta(days=50)


def _zones(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """That time zones exist."""
    for index, window in enumerate(document.freeze_windows):
        if not _is_zone(window.timezone):
            yield _error(
                ("freeze_windows", index, "timezone"),
                f"unknown time zone {window.timezone!r}",
                "write an IANA name, as in Europe/Berlin",
            )


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # not found, a directory, or outside the tree
        return False
    return True


def _freeze_windows(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """That a week has a minute in which something may advance."""
    by_zone: dict[str, list[FreezeWindow]] = {}
    for window in document.freeze_windows:
        if _is_zone(window.timezone):
            by_zone.setdefault(window.timezone, []).append(_core_window(window))
    whole = [zone for zone, windows in by_zone.items() if _is_whole_week(windows)]
    for zone in whole:
        yield _error(
            ("freeze_windows",),
            f"the windows in {zone} freeze the whole week",
            "leave a time in which it may advance",
        )
    together = tuple(window for windows in by_zone.values() for window in windows)
    lasting = [(frozen_until(together, at) or at) - at for at in _SEASONS]
    if not whole and max(lasting) > _NEVER_THAWED:
        yield _error(
            ("freeze_windows",),
            f"the windows in {', '.join(by_zone)[:200]} together freeze whole weeks",
            "leave a time in which it may advance",
        )


def _is_whole_week(windows: Sequence[FreezeWindow]) -> bool:
    """Return whether windows of one zone leave no minute of a week."""
    pairs = ((window, (day - 1) * 24 * 60) for window in windows for day in window.weekdays)
    starts = sorted((midnight + window.start_minute, window.minutes) for window, midnight in pairs)
    reached = starts[0][0] if starts else 0
    # The second time round is what a window of the week before still covers.
    for week in (0, _WEEK_MINUTES):
        for start, minutes in starts:
            if start + week > reached:
                return False
            reached = max(reached, start + week + minutes)
    return reached >= starts[0][0] + _WEEK_MINUTES if starts else False


def _core_window(window: FreezeWindowDocument) -> FreezeWindow:
    return FreezeWindow(
        frozenset(_DAYS.index(day) + 1 for day in window.days),
        _minute(window.begins),
        min(_length(window), _WEEK_MINUTES),
        window.timezone,
    )


def _minute(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)


def _length(window: FreezeWindowDocument) -> int:
    """Return a window's length in minutes.

    An end that is not after the start lies on the next day.
    """
    if window.lasts is not None:
        return window.lasts // timedelta(minutes=1)
    return (_minute(window.ends or window.begins) - _minute(window.begins)) % (24 * 60) or 24 * 60


def _dates(document: PlanDocument, now: datetime | None) -> Iterator[Finding]:
    """That the plan can be through before it expires."""
    if document.expires_at is None:
        return
    begins = max(
        (moment for moment in (document.start_at, now) if moment is not None), default=None
    )
    least = sum((stage.settle + stage.bake for stage in document.stages), timedelta(0))
    if now is not None and document.expires_at <= now:
        yield _error(("expires_at",), "the plan has expired", "give it a later date, or none")
    elif begins is not None and document.expires_at - begins < least:
        yield _error(
            ("expires_at",),
            f"the plan expires before it can be through: its stages take at least "
            f"{format_duration(least)}",
            "give it a later date, or bake for less",
        )


def _traffic(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """That the stated traffic can fill each stage's smaller arm."""
    if document.traffic is None or document.blind:
        return
    for index, stage in enumerate(document.stages):
        if not 0 < stage.percent <= 100 or not _is_in_steps(stage.percent):
            continue  # said elsewhere, and a share of nearly nothing would divide by zero
        if stage.audience is not None:
            continue  # how many belong to an audience is not known
        smaller = stage.percent if stage.percent == 100 else min(stage.percent, 100 - stage.percent)
        per_hour = document.traffic * smaller / 100
        needed = timedelta(hours=min(stage.min_sample / per_hour, 80_000_000))
        longest = _about(stage.longest_bake)
        told = (
            f"{document.traffic:g} contexts per hour give the smaller arm {per_hour:g} per hour: "
            f"min_sample {stage.min_sample} takes about {_about(needed)}"
        )
        at: Path = (
            "stages",
            index,
            "min_sample" if "min_sample" in stage.model_fields_set else "percent",
        )
        if needed > stage.longest_bake:
            yield _error(
                at,
                f"{told}, longer than max_bake ({longest}): the gate would never pass",
                "ask for fewer samples, expose more, or raise max_bake",
            )
        elif needed > stage.bake:
            yield _warning(
                at, f"{told}, longer than bake ({_about(stage.bake)})", "expect the gate to wait"
            )


def _about(duration: timedelta) -> str:
    """Return a duration to the minute, or as it is when shorter than an hour."""
    is_long = duration >= timedelta(hours=1)
    return format_duration(
        timedelta(minutes=duration // timedelta(minutes=1)) if is_long else duration
    )


def _rest(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Advisor, freshness, owner."""
    if document.advisor.mode is not AdvisorMode.OFF and document.advisor.deadline <= timedelta(0):
        yield _error(
            ("advisor", "deadline"),
            "the model gets no time to answer",
            "write a duration, as in 30s",
        )
    if document.fresh_within <= timedelta(0):
        yield _error(("fresh_within",), "no event can be fresh", "write a duration, as in 1m")
    if not document.owner.strip():
        yield _warning(
            ("owner",) if "owner" in document.model_fields_set else (),
            "nobody is named to ask when the rollout needs a person",
            "add `owner`",
        )


# --- reading
# --------------------------------------------------------------------------------------------------


class _PlanLoader(yaml.SafeLoader):
    """YAML with the scalars of its 1.2 core schema.

    `on` is a variant's name, not true, and `22:00` a time, not 1320.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name


_PlanLoader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_PlanLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_PlanLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]{1,18}$"), list("-+0123456789")
)
_PlanLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?$"),
    list("-+.0123456789"),
)


def _read(text: str) -> tuple[Any, Places, list[Finding]]:
    """Return the values of a text, where each stands, and what stood in the way."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        return None, {}, [_error((), f"the text is larger than {MAX_BYTES} bytes", "is it a plan?")]
    is_json = text.lstrip().startswith("{")
    values: Any = None
    if is_json:
        try:
            values = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            if not _may_be_flow_yaml(text):
                return None, {}, [_json_fault(error)]
            is_json = False
    try:
        # JSON allows tabs between its tokens and any character in its strings, YAML does not; only
        # places are read off it.
        readable = (
            yaml.reader.Reader.NON_PRINTABLE.sub("?", text.replace("\t", " ")) if is_json else text
        )
        root = yaml.compose(readable, Loader=_PlanLoader)
        if root is None:
            return (
                None,
                {},
                [
                    _error(
                        (),
                        "the text is empty",
                        "`rolloutctl plan templates` shows plans to begin with",
                    )
                ],
            )
        walk = _Walk()
        from_yaml = walk.value(root, (), 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        fault = _error(
            (), f"not YAML: {error.problem or error.context}", "fix the line, or the one before it"
        )
        return (
            None,
            {},
            [replace(fault, line=mark.line + 1, column=mark.column + 1) if mark else fault],
        )
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return (
            None,
            {},
            [_error((), f"not YAML: {' '.join(str(error).split())[:200]}", "fix the text")],
        )
    if not isinstance(from_yaml, dict):
        return (
            None,
            {},
            [_error((), "a plan is a mapping", "begin with `name: ...` and `flag: ...`")],
        )
    return values if is_json else from_yaml, walk.places, walk.findings


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _may_be_flow_yaml(text: str) -> bool:
    """Return whether text that is no JSON reads as YAML.

    Whose flow style begins with a brace too.
    """
    try:
        return yaml.compose(text, Loader=_PlanLoader) is not None
    except (yaml.YAMLError, ValueError, RecursionError):
        return False


def _json_fault(error: ValueError | RecursionError) -> Finding:
    fault = _error(
        (), f"not JSON: {getattr(error, 'msg', error)}", "fix the line, or the one before it"
    )
    if isinstance(error, json.JSONDecodeError):
        return replace(fault, line=error.lineno, column=error.colno)
    return fault


class _Walk:
    """Turns YAML nodes into values, noting where each key and item stands."""

    def __init__(self) -> None:
        self.places: Places = {}
        self.findings: list[Finding] = []
        self._values = 0

    def value(self, node: yaml.Node, at: Path, depth: int) -> Any:
        """Return the node's value. Raises ValueError for what has no place in a plan."""
        self._values += 1
        if self._values > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES} values, or nested deeper than {MAX_DEPTH}")
        self.places.setdefault(at, _place(node))
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, at, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [
                self.value(item, (*at, index), depth + 1) for index, item in enumerate(node.value)
            ]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise ValueError(
            f"line {node.start_mark.line + 1}: the tag {node.tag} has no place in a plan"
        )

    def _mapping(self, node: yaml.MappingNode, at: Path, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key is a word")  # noqa: TRY004
            inner = (*at, key.value)
            if key.value in values:
                line, column = _place(key)
                first = self.places[inner][0]
                fault = _error(
                    inner,
                    f"is given twice, first on line {first}",
                    "keep one: YAML would drop the first",
                )
                self.findings.append(replace(fault, line=line, column=column))
            self.places[inner] = _place(key)
            values[key.value] = self.value(value, inner, depth + 1)
        return values

    @staticmethod
    def _scalar(node: yaml.ScalarNode) -> Any:
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "null":
                return None
            case "bool":
                return node.value.lower() == "true"
            case "int":
                return int(node.value)
            case "float":
                return float(node.value)
            case "str":
                return node.value
        raise ValueError(
            f"line {node.start_mark.line + 1}: the tag {node.tag} has no place in a plan"
        )


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _placed(finding: Finding, places: Places) -> Finding:
    """Return the finding with its line: that of its key, or of the nearest one around it."""
    if finding.line is not None:
        return finding
    for length in range(len(finding.at), -1, -1):
        if (place := places.get(finding.at[:length])) is not None:
            return replace(finding, line=place[0], column=place[1])
    return finding


# --- faults of form
# --------------------------------------------------------------------------------------------------

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

    An audience of plain conditions was read as a list of one list.
    """
    if at[:1] == ("audiences",) and len(at) > 3:
        audience = values["audiences"][at[1]]
        if not any(isinstance(item, list) for item in audience):
            return (*at[:2], *at[3:])
    return at


def _of_shape(fault: Any, values: Any) -> Finding:
    """Return pydantic's finding in our words."""
    at: Path = _at(tuple(step for step in fault["loc"] if step != "[key]"), values)
    message = str(fault["msg"]).removeprefix("Value error, ")
    match fault["type"]:
        case "extra_forbidden":
            known = _keys_at(at[:-1])
            near = _nearest(str(at[-1]), known)
            fix = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
            return _error(at, "unknown key", fix)
        case "missing":
            return _error(at, "is missing", f"add `{at[-1]}: ...`")
        case "value_error":
            said, _, fix = message.partition(": " if "; " not in message else "; ")
            return _error(at, said, fix or "fix it")
        case "timezone_aware":
            return _error(at, "has no offset from UTC", "write it as in 2026-11-21T03:00:00Z")
        case "enum" | "literal_error":
            return _error(
                at,
                f"{_shown(fault['input'])} is not known",
                message.replace("Input should be", "write"),
            )
        case "string_pattern_mismatch":
            return _error(
                at, f"{_shown(fault['input'])} does not fit", _FORMS.get(at[-1], "write it so")
            )
        case "string_type" if isinstance(fault["input"], int | float | bool):
            return _error(
                at,
                f"{_shown(fault['input'])} is read as a {_kind(fault['input'])}",
                "put it in quotes",
            )
        case _:
            return _error(
                at, f"{_shown(fault['input'])}: {message[:1].lower()}{message[1:]}", "write it so"
            )


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


_FORMS: dict[str | int, str] = {"from": "write it as in 06:00", "to": "write it as in 18:30"}


def _kind(value: Any) -> str:
    return "truth value" if isinstance(value, bool) else "number"


# --- templates
# --------------------------------------------------------------------------------------------------

_PLACEHOLDER = "flag: my-flag"


def _template_names() -> Iterable[str]:
    files = resources.files("schemas") / "templates"
    return sorted(
        file.name.removesuffix(".yaml") for file in files.iterdir() if file.name.endswith(".yaml")
    )


def templates() -> dict[str, str]:
    """Return each template's name and what it does, in one line."""
    return {name: template(name, "my-flag").description for name in _template_names()}


def template_text(name: str, flag: str) -> str:
    """Return a template as YAML with its comments, for `flag`: a file to begin with.

    Raises ConfigInvalid for unknown names.
    """
    names = list(_template_names())
    if name not in names:
        raise ConfigInvalid(f"there is no template {name!r}; there are: {', '.join(names)}")
    text = (resources.files("schemas") / "templates" / f"{name}.yaml").read_text(encoding="utf-8")
    return text.replace(_PLACEHOLDER, f"flag: {json.dumps(flag)}", 1)


def template(name: str, flag: str) -> PlanDocument:
    """Return a template as the plan of `flag`.

    Raises ConfigInvalid for unknown names and unusable flag keys.
    """
    return load_plan(template_text(name, flag), f"template {name}")
