"""Judges every difference between the running plan and the one that would follow it.

A change that only makes the rollout more careful, or that changes nothing for users, is taken at
once. One that makes it less careful needs a reason; if it concerns the present stage, that stage
starts again. What would move people or change their values is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final

from controller.core.judging.questions import gate_margin
from controller.core.plan import (
    AdvisorPolicy,
    Guardrail,
    Plan,
    Stage,
)
from controller.core.plan_changes.external import external_changes
from controller.core.plan_changes.stages import counterpart, disorder
from controller.core.plan_changes.webhooks import webhook_changes
from controller.core.plan_changes.windows import covers, duration_words, pairs, window_words
from schemas.terms import (
    AdvisorMode,
    Approval,
    ChangeEffect,
    GapPolicy,
    HealthGap,
    MetricRole,
    OnBreach,
)

_AT_ONCE, _LOWERS = ChangeEffect.AT_ONCE, ChangeEffect.LOWERS
_NEEDS_REASON, _RESTARTS = ChangeEffect.NEEDS_REASON, ChangeEffect.RESTARTS
_REFUSED = ChangeEffect.REFUSED

_START_NEW: Final = "this is fixed for a rollout: start a new one"
_WOULD_MOVE: Final = "people would move between the variants: start a new rollout"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between the running plan and the one that follows it."""

    path: str  # as in the plan: `stages[10%].bake`, `guardrails[error_rate].limit`
    before: str  # in words; empty: there was none
    after: str  # in words; empty: there is none any more
    effect: ChangeEffect
    why: str = ""  # of a refusal

    def __str__(self) -> str:
        """Return `path: before -> after`, with `added` or `removed` where one is missing."""
        if not self.before:
            words = f"added ({self.after})"
        elif not self.after:
            words = f"removed ({self.before})"
        else:
            words = f"{self.before} -> {self.after}"
        return f"{self.path}: {words}" + (f": {self.why}" if self.why else "")


def compare(old: Plan, new: Plan, present: int | None) -> Iterator[Change]:
    """Yield every change from `old` to `new`, whose stages are combined with those of `old`.

    `present` is the index of the present stage in both plans, None before the start.
    """
    yield from _plan_changes(old, new, present)
    yield from _stage_changes(old, new, present)
    yield from _guardrail_changes(old, new, present)
    for name, before, after, effect in external_changes(old, new, present):
        yield Change(f"external[{name}]", before, after, effect)
    for name, before, after, effect in webhook_changes(old, new):
        yield Change(f"gate_webhooks[{name}]", before, after, effect)
    yield from _health_changes(old, new, present)
    yield from _advisor_changes(old.advisor, new.advisor)
    yield from _audience_changes(old, new, present)
    yield from _window_changes(old, new)
    yield from _active_changes(old, new)


def _change(
    path: str, before: object, after: object, effect: ChangeEffect, why: str = ""
) -> Iterator[Change]:
    """Yield the change, nothing where both are the same."""
    if before != after:
        yield Change(path, _words(before), _words(after), effect, why)


def _ordered(before: Any, after: Any, strictest_last: Any, looser: ChangeEffect) -> ChangeEffect:
    """Return the effect of a change along a scale."""
    scale = tuple(strictest_last)
    return _AT_ONCE if scale.index(after) >= scale.index(before) else looser


# --- the plan as a whole

#: Fields that others of these functions judge.
_ELSEWHERE: Final = frozenset(
    {
        "version",
        "stages",
        "guardrails",
        "external",
        "tested",
        "gate_webhooks",
        "advisor",
        "freeze_windows",
        "active",
        "gap_policies",
    }
    | {"audiences"}
)
#: What of a plan changes nothing for users or evidence.
_HARMLESS: Final = frozenset({"name", "owner", "description", "flag_type"})
_FIXED: Final = frozenset({"flag_key", "treatment", "control", "unassigned", "split", "values"})


def _plan_changes(old: Plan, new: Plan, present: int | None) -> Iterator[Change]:
    """Yield the changes of a plan's own fields.

    A field that no rule knows restarts the stage: nothing new is taken for harmless.
    """
    if old.flag_key != new.flag_key:
        why = "a plan is for one flag"
        yield Change("flag", old.flag_key, new.flag_key, _REFUSED, why)
    if (why_not := disorder(new.stages)) is not None:
        yield Change("stages", "as they are running", "as in the new plan", _REFUSED, why_not)
    for field in fields(Plan):
        name = field.name
        if name in _ELSEWHERE or name == "flag_key":
            continue
        before, after = getattr(old, name), getattr(new, name)
        if name in _FIXED:
            yield from _change(f"variants.{name}", before, after, _REFUSED, _START_NEW)
        elif name in _HARMLESS:
            yield from _change(_PLAN_WORDS.get(name, name), before, after, _AT_ONCE)
        elif (rule := _PLAN_RULES.get(name)) is not None:
            yield from _change(name, before, after, rule(before, after, present))
        else:
            yield from _change(name, before, after, _of_present(present))


def _of_present(present: int | None) -> ChangeEffect:
    """Return the effect of a change that makes what is served now less careful."""
    return _NEEDS_REASON if present is None else _RESTARTS


def _later_is_looser(before: datetime | None, after: datetime | None, _: int | None) -> Any:
    """An end that comes later, or never, is less careful."""
    is_earlier = after is not None and (before is None or after <= before)
    return _AT_ONCE if is_earlier else _NEEDS_REASON


def _start_effect(before: datetime | None, after: datetime | None, present: int | None) -> Any:
    """A start that comes earlier is less careful; after the start it does nothing."""
    is_later = after is not None and (before is None or after >= before)
    return _AT_ONCE if present is not None or is_later else _NEEDS_REASON


_PlanRule = Callable[[Any, Any, int | None], ChangeEffect]
_PLAN_RULES: Final[Mapping[str, _PlanRule]] = {
    "beta": lambda b, a, present: _AT_ONCE if a < b else _of_present(present),
    "fresh_within": lambda b, a, present: _AT_ONCE if a < b else _of_present(present),
    "health_grace": lambda b, a, present: _AT_ONCE if a < b else _of_present(present),
    "blind": lambda _, is_blind, present: _of_present(present) if is_blind else _AT_ONCE,
    "four_eyes": lambda _, is_asked, __: _AT_ONCE if is_asked else _NEEDS_REASON,
    "expires_at": _later_is_looser,
    "ends_at": _later_is_looser,
    "start_at": _start_effect,
    # A probability that is chosen after evidence was seen holds only for evidence to come.
    "alpha": lambda _, __, present: _of_present(present),
}
_PLAN_WORDS: Final = {"flag_type": "type"}


# --- stages


def _stage_changes(old: Plan, new: Plan, present: int | None) -> Iterator[Change]:
    """Yield the changes of the present stage and of those to come; earlier ones do not change."""
    if present is not None and present < len(new.stages):
        here, wanted = old.stages[present], new.stages[present]
        yield from _one_stage(here, wanted, is_present=True)
    begin = 0 if present is None else present + 1
    left = list(old.stages[begin:])
    for stage in new.stages[begin:]:
        index = counterpart(stage, left)
        if index is not None:
            yield from _one_stage(left.pop(index), stage, is_present=False)
            continue
        # A step in between makes the way up slower. One above the last makes it longer.
        is_between = any(
            other.audience == stage.audience and other.percent >= stage.percent
            for other in old.stages[begin:]
        )
        effect = _AT_ONCE if is_between else _NEEDS_REASON
        yield Change(f"stages[{stage.name}]", "", _stage_words(stage), effect)
    for stage in left:
        # Without it a stage that came after it is reached sooner.
        after = old.stages[old.stages.index(stage) + 1 :]
        is_skipped = any(counterpart(other, new.stages[begin:]) is not None for other in after)
        effect = _NEEDS_REASON if is_skipped else _AT_ONCE
        yield Change(f"stages[{stage.name}]", _stage_words(stage), "", effect)


def _one_stage(old: Stage, new: Stage, *, is_present: bool) -> Iterator[Change]:
    looser = _RESTARTS if is_present else _NEEDS_REASON
    for field in fields(Stage):
        before, after = getattr(old, field.name), getattr(new, field.name)
        name = "name" if field.name == "given_name" else field.name
        path = f"stages[{old.name}].{name}"
        match field.name:
            case "given_name":
                if before != after:
                    yield Change(path, old.name, new.name, _AT_ONCE)
            case "percent":
                # A stage to come that is moved down no longer stands before a high percentage.
                lower = _LOWERS if is_present else _NEEDS_REASON
                effect = lower if after < before else looser
                yield from _change(path, f"{before:g} %", f"{after:g} %", effect)
            case "bake" | "min_sample":
                yield from _change(path, before, after, _AT_ONCE if after > before else looser)
            case "settle":  # a shorter one ends the stage sooner, in a longer one nothing is judged
                yield from _change(path, before, after, _NEEDS_REASON)
            case "max_bake":  # it lets nothing pass sooner
                yield from _change(path, before, after, _AT_ONCE)
            case "approval":
                effect = _AT_ONCE if after is Approval.REQUIRED else looser
                yield from _change(path, before, after, effect)
            case "audience":
                effect = _REFUSED if is_present else _NEEDS_REASON
                why = _WOULD_MOVE if is_present else ""
                yield from _change(path, before or "everybody", after or "everybody", effect, why)
            case "control":
                yield from _change(path, before, after, looser if is_present else _AT_ONCE)
            case _:
                yield from _change(path, before, after, looser)


def _stage_words(stage: Stage) -> str:
    of = "" if stage.audience is None else f" of {stage.audience}"
    return f"{stage.percent:g} %{of}, bake {_words(stage.bake)}"


# --- guardrails


def _guardrail_changes(old: Plan, new: Plan, present: int | None) -> Iterator[Change]:
    """Yield what changes for each metric, in the first stage where it does.

    Both plans are asked what they watch at each percentage from the present one on, so a guardrail
    may be divided by percentage without seeming to be removed.
    """
    begin = 0 if present is None else present
    found: dict[str, Change] = {}
    for index, stage in enumerate(new.stages[begin:], begin):
        is_present = index == present
        before, after = _watched(old, stage.percent), _watched(new, stage.percent)
        for metric in sorted({*before, *after}):
            one, other = before.get(metric), after.get(metric)
            effect = _guardrail_effect(one, other, stage.percent, is_present=is_present)
            if effect is None:
                continue
            at = "" if is_present or present is None else f" at {stage.name}"
            change = Change(
                f"guardrails[{metric}]{at}", _guardrail_words(one), _guardrail_words(other), effect
            )
            known = found.get(metric)
            if known is None or _RANK[known.effect] < _RANK[effect]:
                found[metric] = change
    yield from found.values()
    if not found and old.guardrails != new.guardrails:
        yield Change("guardrails", "written as before", "written otherwise", _AT_ONCE)


_RANK: Final = {effect: rank for rank, effect in enumerate(ChangeEffect)}


def _watched(plan: Plan, percent: float) -> dict[str, Guardrail]:
    """Return the guardrails that can judge a stage of this percentage, by metric."""
    return {
        one.metric: one
        for one in plan.guardrails
        if one.is_watched_at(percent) and (one.limit is not None or percent < 100)
    }


def _guardrail_effect(
    old: Guardrail | None, new: Guardrail | None, percent: float, *, is_present: bool
) -> ChangeEffect | None:
    """Return the effect of a change of what watches one metric, None for no change."""
    looser = _RESTARTS if is_present else _NEEDS_REASON
    if new is None:
        return None if old is None else looser
    if old is None:
        # Counting knows only the conversions that some guardrail names: the stage's earlier ones
        # are not counted.
        is_uncounted = is_present and new.kind.conversion is not None
        return _RESTARTS if is_uncounted else _AT_ONCE
    if _questions(old, percent) == _questions(new, percent):
        return None
    return _AT_ONCE if _is_tighter(old, new, percent) else looser


def _questions(guardrail: Guardrail, percent: float) -> tuple[object, ...]:
    """Return what a guardrail asks in a stage of this percentage, and what it does."""
    margin = None if guardrail.margin is None else gate_margin(guardrail, percent)
    return (
        guardrail.role,
        guardrail.on_breach,
        guardrail.limit,
        guardrail.margin,
        guardrail.in_points,
        margin,
        guardrail.within if guardrail.has_floor else None,
    )


def _is_tighter(old: Guardrail, new: Guardrail, percent: float) -> bool:
    """Return whether the new guardrail asks at least as much as the old one in every way."""
    if old.margin is not None and new.margin is not None:
        if old.in_points != new.in_points:  # which of the two is tighter depends on control's rate
            return False
        if gate_margin(new, percent) > gate_margin(old, percent):
            return False
    return (
        new.role.strength >= old.role.strength
        and new.on_breach.strength >= old.on_breach.strength
        and _is_closer(old.limit, new.limit, old.kind.is_better_when_higher)
        and _is_closer(old.margin, new.margin, False)
        # Less time to convert leaves more contexts that did not.
        and (new.within <= old.within or not old.has_floor)
    )


def _is_closer(old: float | None, new: float | None, is_floor: bool) -> bool:
    """Return whether a bound lets no more pass than before; None is no bound."""
    if old is None or new is None:
        return old is None
    return new >= old if is_floor else new <= old


def _guardrail_words(guardrail: Guardrail | None) -> str:
    if guardrail is None:
        return ""
    sign = ">" if guardrail.kind.is_better_when_higher else "<"
    parts = [] if guardrail.role is MetricRole.GUARDRAIL else [guardrail.role.value]
    if guardrail.limit is not None:
        is_share = guardrail.kind.is_share
        limit = f"{100 * guardrail.limit:g}%" if is_share else f"{guardrail.limit:g}ms"
        parts.append(f"{sign} {limit}")
    unit = "pp" if guardrail.in_points else "%"
    if guardrail.margin is not None:
        worse = "-" if guardrail.kind.is_better_when_higher else "+"
        parts.append(f"{sign} control {worse} {100 * guardrail.margin:g}{unit}")
    if guardrail.gate_margin is not None:
        parts.append(f"gate margin {100 * guardrail.gate_margin:g}{unit}")
    if guardrail.on_breach is not OnBreach.ROLL_BACK:
        parts.append(f"on breach {guardrail.on_breach}")
    return ", ".join(parts)


# --- health, advice, audiences, windows


def _health_changes(old: Plan, new: Plan, present: int | None) -> Iterator[Change]:
    scale = (GapPolicy.WAIT, GapPolicy.PAUSE, GapPolicy.ROLL_BACK)
    for gap in HealthGap:
        before, after = old.gap_policies.get(gap), new.gap_policies.get(gap)
        if before is None or after is None or not {before, after} <= set(scale):
            effect = _of_present(present)
        else:
            effect = _ordered(before, after, scale, _of_present(present))
        yield from _change(f"health.{gap}", before, after, effect)


def _advisor_changes(old: AdvisorPolicy, new: AdvisorPolicy) -> Iterator[Change]:
    """Yield the changes of the advisor. Advice can only hold, so less of it voids no evidence."""
    for field in fields(AdvisorPolicy):
        before, after = getattr(old, field.name), getattr(new, field.name)
        effect = _AT_ONCE
        if field.name == "mode":
            effect = _ordered(before, after, AdvisorMode, _NEEDS_REASON)
        yield from _change(f"advisor.{field.name}", before, after, effect)


def _audience_changes(old: Plan, new: Plan, present: int | None) -> Iterator[Change]:
    """Yield the changes of who belongs to an audience; one in use cannot change."""
    served = {stage.audience for stage in old.stages[: 0 if present is None else present + 1]}
    before = {audience.name: audience for audience in old.audiences}
    after = {audience.name: audience for audience in new.audiences}
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name):
            continue
        is_served = name in served
        old_words = "its conditions" if name in before else ""
        new_words = "other conditions" if name in after else ""
        effect = _REFUSED if is_served else _NEEDS_REASON
        why = _WOULD_MOVE if is_served else ""
        yield Change(f"audiences[{name}]", old_words, new_words, effect, why)


def _window_changes(old: Plan, new: Plan) -> Iterator[Change]:
    """Yield changed freeze windows. A window that a longer one covers is no loss."""
    for before, after in pairs(old.freeze_windows, new.freeze_windows):
        is_kept = before is None or any(covers(other, before) for other in new.freeze_windows)
        effect = _AT_ONCE if is_kept else _NEEDS_REASON
        yield Change("freeze_windows", window_words(before), window_words(after), effect)


def _active_changes(old: Plan, new: Plan) -> Iterator[Change]:
    """Yield changed active windows. A plan without any is always active."""
    for before, after in pairs(old.active, new.active):
        if after is None:
            is_narrower = bool(new.active)
        else:
            is_narrower = not old.active or any(covers(other, after) for other in old.active)
        effect = _AT_ONCE if is_narrower else _NEEDS_REASON
        yield Change("active", window_words(before), window_words(after), effect)


# --- words


def _words(value: object) -> str:
    """Return a value as people write it in a plan; empty for none."""
    match value:
        case None | "":
            return ""
        case bool():
            return "yes" if value else "no"
        case timedelta():
            return duration_words(value)
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S} UTC"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
