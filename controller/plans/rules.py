"""The rules that a plan must keep to work, one function each.

Belongs here: the order of the rules, and those about stages, audiences, variants and dates.
Does not belong here: the form of a plan (`schemas/plan.py`), rules about guardrails
(`guardrail_rules.py`) and about freeze windows (`window_rules.py`), or about active windows
(`active_rules.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from controller.core.serving import EARLIER_SUFFIX
from controller.plans.active_rules import (
    active_window_faults,
    always_frozen_windows,
    windows_closed_for_good,
)
from controller.plans.advice_rules import advice_faults
from controller.plans.external_rules import external_faults, external_stage_faults
from controller.plans.finding import (
    STAGE_TIMES,
    Finding,
    error,
    is_servable,
    nearest_word,
    percent_words,
    warning,
)
from controller.plans.guardrail_rules import (
    guardrail_faults,
    impossible_bounds,
    unwatched_guardrails,
    unwatched_stages,
)
from controller.plans.health_rules import health_faults
from controller.plans.webhook_rules import webhook_faults
from controller.plans.window_rules import (
    endless_freezes,
    time_zones_of_one_machine,
    unknown_time_zones,
)
from controller.text import is_blank, plural
from controller.yaml_places import Path
from schemas.audiences import ConditionDocument
from schemas.fields import format_duration
from schemas.plan import PlanDocument, StageDocument
from schemas.terms import NAME, ControlArm

Rule = Callable[[PlanDocument, datetime | None], Iterator[Finding]]


def lint(
    document: PlanDocument, now: datetime | None = None, incomplete: Collection[str] = ()
) -> list[Finding]:
    """Return what is wrong or doubtful about a plan of the right form.

    A plan without errors among its findings can work. Without `now` its dates are not checked
    against the present. Rules about what a plan lacks are left out for the sections in
    `incomplete`, of which parts could not be read.
    """
    return [
        finding
        for rule, needed in _RULES
        if not set(needed) & set(incomplete)
        for finding in rule(document, now)
    ]


def unrunnable(document: PlanDocument) -> list[Finding]:
    """Return why a plan of the right form cannot be run at all, in any phase.

    This is for plans of rollouts under way. It requires less than `lint`, so that a rule that a
    later release adds to `lint` stops none of them.
    """
    rules = (_unreachable_stages, impossible_bounds, unknown_time_zones)
    return [finding for rule in rules for finding in rule(document, None)]


def _unreachable_stages(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find a plan without stages, and stages that can serve nobody."""
    if not document.stages:
        yield error(("stages",), "there is no stage", "a rollout needs one")
    for index, stage in enumerate(document.stages):
        if not is_servable(stage.percent):
            what = f"{percent_words(stage.percent)} is not in (0, 100]"
            yield error(("stages", index, "percent"), what, "it is a share")
        if stage.audience is not None and stage.audience not in document.audiences:
            what = f"there is no audience {stage.audience!r}"
            yield error(("stages", index, "audience"), what, "a stage needs its audience")


def _is_in_steps(percent: float) -> bool:
    """Return whether a percentage is a multiple of 0.01, as flag planes can serve it."""
    return percent == round(percent, 2)


def _stage_faults(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find what is wrong with each stage by itself."""
    for index, stage in enumerate(document.stages):
        at: Path = ("stages", index)
        if not is_servable(stage.percent):
            yield error(
                (*at, "percent"),
                f"{percent_words(stage.percent)} is not in (0, 100]",
                "write a percentage such as 5 or 0.5",
            )
        elif not _is_in_steps(stage.percent):
            yield error(
                (*at, "percent"),
                f"{percent_words(stage.percent)} is not in steps of 0.01",
                f"write {max(round(stage.percent, 2), 0.01):g}: flag planes serve "
                f"hundredths of a percent",
            )
        if stage.bake <= timedelta(0):
            yield error(
                (*at, "bake"),
                "bakes for no time at all",
                "give it time to gather evidence, as in 24h",
            )
        elif stage.settle >= stage.bake:
            yield warning(
                (*at, "settle" if "settle" in stage.model_fields_set else "bake"),
                f"settle ({format_duration(stage.settle)}) is not shorter than the bake "
                f"({format_duration(stage.bake)}) that follows it: of the "
                f"{format_duration(stage.settle + stage.bake)} that the stage takes at least, only "
                f"the bake gathers evidence",
                _settle_fix(stage),
            )
        if stage.max_bake is not None and stage.max_bake < stage.bake:
            yield error(
                (*at, "max_bake"),
                f"max_bake ({format_duration(stage.max_bake)}) is shorter than bake "
                f"({format_duration(stage.bake)})",
                "make it at least bake: past it an undecided gate pauses the rollout",
            )
        if stage.min_sample < 1:
            yield error(
                (*at, "min_sample"),
                f"{plural(stage.min_sample, 'sample proves', 'samples prove')} nothing",
                "write at least 1, better 100; a ramp without evidence says `blind: true`",
            )
    yield from _repeated_names(document)


def _settle_fix(stage: StageDocument) -> str:
    """Return what to do about a settling time that is as long as the bake."""
    meaning = "the time that apps need to ask for the new percentage"
    if "settle" in stage.model_fields_set:
        return f"check that both are meant: settle is {meaning}"
    shorter = min(timedelta(seconds=5), stage.bake / 4)
    return (
        f"add `settle: {format_duration(shorter)}` to this stage if that is {meaning}; "
        f"{format_duration(stage.settle)} is the default"
    )


def _last_stage(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find a plan without stages, and a last stage below 100 %."""
    if not document.stages:
        yield error(("stages",), "there is no stage", "add one, as in `- {percent: 1, bake: 24h}`")
    last = document.stages[-1] if document.stages else None
    if last is not None and (last.percent < 100 or last.audience is not None):
        yield warning(
            ("stages", len(document.stages) - 1, "percent"),
            f"the rollout completes at {percent_words(last.percent)}"
            + (f" of {last.audience}" if last.audience else ""),
            "add a stage of 100 % if everybody is to get it",
        )


def _repeated_names(document: PlanDocument) -> Iterator[Finding]:
    """Find stages of one name: commands and `apply` could not tell them apart."""
    first: dict[str, int] = {}
    for index, stage in enumerate(document.stages):
        if stage.name is not None and first.setdefault(stage.name, index) != index:
            yield error(
                ("stages", index, "name"),
                f"stages[{first[stage.name]}] is called {stage.name} already",
                "give each stage a name of its own",
            )


def _audience_order(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find stages that reach nobody new, and those without room for their control arm."""
    reached: dict[str | None, float] = {}
    unknown = 0
    for index, stage in enumerate(document.stages):
        at: Path = ("stages", index)
        before, everybody = reached.get(stage.audience), reached.get(None)
        if stage.audience is not None and stage.audience not in document.audiences:
            unknown += 1
            near = nearest_word(stage.audience, document.audiences) if unknown <= 3 else None
            yield error(
                (*at, "audience"),
                f"there is no audience {stage.audience!r}",
                f"did you mean {near}?" if near else "describe it under `audiences`",
            )
        elif before is not None and stage.percent <= before:
            of = "" if stage.audience is None else f" of {stage.audience}"
            percent, reached_before = percent_words(stage.percent), percent_words(before)
            yield error(
                (*at, "percent"),
                f"{percent}{of} does not rise above the {reached_before} of an earlier stage",
                "order the stages by rising percent"
                if stage.audience is None
                else "let each audience's percent only rise",
            )
        elif stage.audience is not None and everybody is not None and stage.percent <= everybody:
            yield error(
                (*at, "percent"),
                f"{percent_words(stage.percent)} of {stage.audience} reaches nobody: "
                f"{percent_words(everybody)} of everybody have it",
                "put the stage before that one, or raise its percent above it",
            )
        if 0 < stage.percent <= 100:  # any other is a fault of this stage alone
            reached[stage.audience] = max(stage.percent, before or 0.0)
        if stage.control is ControlArm.EQUAL and stage.percent > 50:
            yield error(
                (*at, "control"),
                f"beside {percent_words(stage.percent)} no control arm of equal size has room",
                "write `control: rest`, or a percent of at most 50",
            )


def _audience_faults(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find audiences that nobody can belong to."""
    for name, clauses in document.audiences.items():
        at: Path = ("audiences", name)
        for conditions in clauses:
            for attribute, why in _contradictions(conditions):
                yield error(
                    at,
                    f"nobody belongs to it: {attribute} {why}",
                    "fix the condition, or part them into two lists",
                )


def _unused_audiences(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find audiences that no stage names."""
    named = {stage.audience for stage in document.stages}
    for name in document.audiences:
        if name not in named:
            yield warning(
                ("audiences", name),
                "no stage names this audience",
                "name it in a stage, as in `audience: " + name + "`, or remove it",
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


def _variant_faults(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find variants without a name of their own, and values that some flag plane cannot serve."""
    variants = document.variants
    served = [share.name for share in variants.split] or [variants.treatment]
    if variants.treatment == variants.control:
        yield error(
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
        yield error(
            ("variants",), f"two variants are called {name!r}", "give each a name of its own"
        )
    if any(not NAME.match(name) for name in more):
        yield error(
            ("variants",),
            f"with {EARLIER_SUFFIX!r} at its end a variant's name is too long",
            "shorten it: contexts of earlier audiences are served under such a name",
        )
    if not variants.values:
        if variants.split:
            yield error(
                ("variants", "split"),
                f"{', '.join(served)} would all be served true",
                "say what each is under `values`, control too, as in `values: {off: blue, "
                "a: red, b: green}`",
            )
        return
    for name in sorted({variants.control, *served} - set(variants.values)):
        yield error(("variants", "values"), f"there is no value for {name}", f"add `{name}: ...`")
    for name, value in variants.values.items():
        at: Path = ("variants", "values", name)
        if name not in (variants.control, *served):
            yield error(
                at,
                "no such variant is served",
                f"there are: {', '.join((variants.control, *served))}",
            )
        elif _json_kind(value) in ("null", "a list"):
            yield error(
                at,
                f"{_json_kind(value)} is no flag's value",
                "write a boolean, string, number or object",
            )
    kinds = {_json_kind(value) for value in variants.values.values()}
    if len(kinds) > 1 and not kinds & {"null", "a list"}:
        yield error(
            ("variants", "values"),
            f"the values are {' and '.join(sorted(kinds))}",
            "make them of one type: apps read one",
        )


def _too_early_expiry(document: PlanDocument, now: datetime | None) -> Iterator[Finding]:
    """Find a plan that expires before its stages can be over."""
    if document.expires_at is None:
        return
    begins = max(
        (moment for moment in (document.start_at, now) if moment is not None), default=None
    )
    least = sum((stage.settle + stage.bake for stage in document.stages), timedelta(0))
    if now is not None and document.expires_at <= now:
        yield error(("expires_at",), "the plan has expired", "give it a later date, or none")
    elif begins is not None and document.expires_at - begins < least:
        yield error(
            ("expires_at",),
            f"the plan expires before it can be through: its stages take at least "
            f"{format_duration(least)}",
            "give it a later date, or bake for less",
        )


def _unreachable_end(document: PlanDocument, now: datetime | None) -> Iterator[Finding]:
    """Find a plan that ends before it begins, and one whose stages are not over by then."""
    ends_at, start_at = document.ends_at, document.start_at
    if ends_at is None:
        return
    at: Path = ("ends_at",)
    if now is not None and ends_at <= now:
        yield error(at, "the plan's end has passed", "give it a later date, or none")
    elif start_at is not None and ends_at <= start_at:
        yield error(at, "the plan ends before it starts", "let ends_at come after start_at")
    elif (begins := max(filter(None, (start_at, now)), default=None)) is not None:
        least = sum((stage.settle + stage.bake for stage in document.stages), timedelta(0))
        if ends_at - begins < least:
            yield warning(
                at,
                f"the plan ends before it can be through: its stages take at least "
                f"{format_duration(least)}",
                "end later, or bake for less, if the last stage is to be reached",
            )


def _too_little_traffic(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find stages whose smaller arm the stated traffic cannot fill in time."""
    if document.traffic is None or document.blind:
        return
    for index, stage in enumerate(document.stages):
        if not 0 < stage.percent <= 100 or not _is_in_steps(stage.percent):
            continue  # reported by another rule; a share of nearly nothing would divide by zero
        if stage.audience is not None:
            continue  # how many belong to an audience is not known
        smaller = stage.percent if stage.percent == 100 else min(stage.percent, 100 - stage.percent)
        per_hour = document.traffic * smaller / 100
        needed = timedelta(hours=min(stage.min_sample / per_hour, 80_000_000))
        longest = _about(stage.longest_bake)
        summary = (
            f"{document.traffic:g} contexts per hour give the smaller arm {per_hour:g} per hour: "
            f"min_sample {stage.min_sample} takes about {_about(needed)}"
        )
        at: Path = (
            "stages",
            index,
            "min_sample" if "min_sample" in stage.model_fields_set else "percent",
        )
        if needed > stage.longest_bake:
            yield error(
                at,
                f"{summary}, longer than max_bake ({longest}): the gate would never pass",
                "ask for fewer samples, expose more, or raise max_bake",
            )
        elif needed > stage.bake:
            yield warning(
                at, f"{summary}, longer than bake ({_about(stage.bake)})", "expect the gate to wait"
            )


def _about(duration: timedelta) -> str:
    """Return a duration to the minute, or as it is when shorter than an hour."""
    is_long = duration >= timedelta(hours=1)
    return format_duration(
        timedelta(minutes=duration // timedelta(minutes=1)) if is_long else duration
    )


def _nothing_fresh(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find a limit of freshness that no event keeps."""
    if document.fresh_within <= timedelta(0):
        yield error(("fresh_within",), "no event can be fresh", "write a duration, as in 1m")


def _nobody_to_ask(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find a plan without an owner."""
    if is_blank(document.owner):
        yield warning(
            ("owner",) if "owner" in document.model_fields_set else (),
            "nobody is named to ask when the rollout needs a person",
            "add `owner`",
        )


#: Each rule, and the sections that it needs whole: where a part could not be read, nobody can say
#: that something is missing.
_RULES: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (_stage_faults, ()),
    (_last_stage, ("stages",)),
    (_audience_order, ("audiences",)),
    (_audience_faults, ()),
    (_unused_audiences, ("stages",)),
    (_variant_faults, ("variants",)),
    (guardrail_faults, ()),
    (unwatched_guardrails, ("stages",)),
    (unwatched_stages, ("guardrails", "external", "blind")),
    (external_faults, ("variants",)),
    (external_stage_faults, ("stages", STAGE_TIMES, "blind")),
    (unknown_time_zones, ()),
    (time_zones_of_one_machine, ()),
    (endless_freezes, ("freeze_windows",)),
    (windows_closed_for_good, ()),
    (active_window_faults, ("active",)),
    (always_frozen_windows, ("active", "freeze_windows")),
    (_too_early_expiry, ()),
    (_unreachable_end, ()),
    (_too_little_traffic, (STAGE_TIMES,)),
    (health_faults, ("health",)),
    (advice_faults, ("advisor",)),
    (webhook_faults, ("gate_webhooks", STAGE_TIMES)),
    (_nothing_fresh, ()),
    (_nobody_to_ask, ("owner",)),
)
