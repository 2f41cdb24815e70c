"""What a flag looks like in Unleash.

The strategies we want there, the mark on each, and what of it is not as wanted.

Pure: no calls. Each strategy of ours carries in its title what we decided, by which revision, and a
digest of all its fields that decide who is let in. So a strategy tells by itself whether it is
ours, how old it is and whether anybody changed it since, also to a process that has just started.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import Any, Self

import xxhash

from controller.adapters.unleash.api import Change, Environment, Strategy
from controller.adapters.unleash.rules import Rule, is_fractional, rules
from controller.core.rollout import Aborted, RolledBack, Rollout
from controller.core.serving import serving

NAME = "flexibleRollout"
_MARK = re.compile(
    r"rolloutd: (?P<says>off|[0-9]{1,3} %) by revision (?P<revision>[0-9]{1,15}) "
    r"\((?P<rollout>[0-9a-f]{8})\.(?P<part>[0-9]{1,2})\.(?P<digest>[0-9a-f]{8})\)"
)


def _digest(text: str) -> str:
    return xxhash.xxh64_hexdigest(text.encode())[:8]


@dataclass(frozen=True, slots=True)
class Content:
    """All of a strategy that decides who is let in, in one form, whatever Unleash adds or leaves out or sorts."""

    rollout: str  # percentage, as Unleash has it
    stickiness: str
    group: str
    constraints: tuple[str, ...] = ()  # each as JSON
    variants: tuple[str, ...] = ()  # each as JSON, in Unleash's order: by name
    segments: tuple[int, ...] = ()
    is_disabled: bool = False
    name: str = NAME
    gives_treatment: bool = field(
        default=True, compare=False
    )  # False: it only tells who is control or nothing

    @classmethod
    def of(cls, strategy: Strategy, *, passive: frozenset[str] = frozenset()) -> Self:
        """Return what Unleash says; `passive` are the names of variants that are not treatment."""
        parameters = strategy.parameters
        names = {str(each.get("name")) for each in strategy.variants or ()}
        return cls(
            rollout=str(parameters.get("rollout", "")),
            stickiness=str(parameters.get("stickiness", "")),
            group=str(parameters.get("groupId", "")),
            constraints=tuple(sorted(_constraint(each) for each in strategy.constraints)),
            variants=tuple(sorted(_canonical(each) for each in strategy.variants or ())),
            segments=tuple(sorted(strategy.segments or ())),
            is_disabled=bool(strategy.disabled),
            name=strategy.name,
            gives_treatment=not names or not names <= passive,
        )

    @property
    def percent(self) -> float:
        """Share of users that it gives treatment, at most."""
        if self.is_disabled or not self.gives_treatment:
            return 0.0
        try:
            percent = float(self.rollout) if self.name == NAME else 100.0
        except ValueError:
            return 100.0  # nobody can tell what an SDK makes of it
        return min(max(percent, 0.0), 100.0) if isfinite(percent) else 100.0

    @property
    def at_zero(self) -> Self:
        """The same letting nobody in."""
        return replace(self, rollout="0", is_disabled=False, name=NAME)

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that another content does not have."""
        fields = (
            self.name,
            self.rollout,
            self.stickiness,
            self.group,
            self.constraints,
            self.variants,
            self.segments,
        )
        return _digest(json.dumps([*fields, self.is_disabled]))

    def fields(self) -> dict[str, Any]:
        """Return them as Unleash takes them, by name."""
        return {
            "parameters": {
                "rollout": self.rollout,
                "stickiness": self.stickiness,
                "groupId": self.group,
            },
            "constraints": [json.loads(each) for each in self.constraints],
            "variants": [json.loads(each) for each in self.variants],
            "segments": list(self.segments),
            "disabled": self.is_disabled,
        }


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def _constraint(value: Mapping[str, Any]) -> str:
    """Return a constraint without what is only a default said aloud."""
    return _canonical(
        {key: each for key, each in value.items() if each not in (None, False, "") and each != []}
    )


@dataclass(frozen=True, slots=True)
class Mark:
    """What we write into a strategy's title."""

    says: str  # off, or the percentage
    revision: int
    rollout: str  # digest of the rollout's id
    part: int  # which of our strategies of this flag, from 1
    digest: str  # of the content it was written with

    @classmethod
    def read(cls, title: str | None) -> Self | None:
        """Return a title's mark, None when it is not ours."""
        found = _MARK.fullmatch(title or "")
        if found is None:
            return None
        return cls(
            found["says"],
            int(found["revision"]),
            found["rollout"],
            int(found["part"]),
            found["digest"],
        )

    def __str__(self) -> str:
        return (
            f"rolloutd: {self.says} by revision {self.revision} "
            f"({self.rollout}.{self.part}.{self.digest})"
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one rollout asks of Unleash."""

    flag_key: str
    percent: float  # decided, of the widest ring
    parts: tuple[Content, ...]  # in order: the first that lets a user in decides; one at least
    passive: frozenset[str]  # names of variants that are not treatment
    is_fractional: bool  # Unleash cannot serve what was decided
    # rolled back or aborted: the environment is switched off, whatever else may stand there
    is_off: bool
    revision: int
    rollout: str

    @property
    def served_percent(self) -> float:
        """What can be served of it: whole percents, rounded down."""
        return max(part.percent for part in self.parts)

    def mark(self, part: int, content: Content) -> str:
        """Return the title for a strategy of ours with this content."""
        says = "off" if self.is_off else f"{content.rollout} %"
        return str(Mark(says, self.revision, self.rollout, part, content.digest))

    def is_late_for(self, mark: Mark) -> bool:
        """True when a newer revision of the same rollout has written.

        We change nothing any more.
        """
        return mark.revision > self.revision and mark.rollout == self.rollout

    def is_unordered_with(self, mark: Mark) -> bool:
        """True when another rollout wrote by a higher revision.

        Revisions have been counted anew since, or we are late.

        Nobody can tell, so that lowering is allowed and raising is not.
        """
        return mark.revision > self.revision and mark.rollout != self.rollout


def wanted(rollout: Rollout, *, stickiness: str) -> Wanted:
    """Return what a rollout asks of Unleash. Raises Unservable.

    The group id is the flag key and never changes: it decides who is in.
    """
    served = serving(rollout)
    return Wanted(
        flag_key=rollout.flag_key,
        percent=max(ring.percent for ring in served.rings),
        parts=tuple(
            _content(rule, rollout.flag_key, stickiness)
            for rule in rules(served, stickiness=stickiness)
        ),
        passive=frozenset({served.control, served.unassigned}),
        is_fractional=is_fractional(served),
        is_off=isinstance(rollout.phase, RolledBack | Aborted),
        revision=rollout.revision,
        rollout=_digest(rollout.rollout_id),
    )


def _content(rule: Rule, flag_key: str, stickiness: str) -> Content:
    return Content(
        rollout=str(rule.percent),
        stickiness=stickiness,
        group=flag_key,
        constraints=tuple(sorted(_constraint(each) for each in rule.constraints)),
        variants=tuple(sorted(_canonical(each) for each in rule.variants)),
        gives_treatment=rule.gives_treatment,
    )


@dataclass(frozen=True, slots=True)
class Ours:
    """A strategy that carries our mark."""

    strategy: Strategy
    mark: Mark
    content: Content

    @property
    def is_edited(self) -> bool:
        """True when it is not as we wrote it."""
        return self.content.digest != self.mark.digest


@dataclass(frozen=True)
class State:
    """A flag in our environment, as read."""

    is_on: bool
    ours: tuple[Ours, ...]  # by part, the oldest first
    others: tuple[Strategy, ...]  # enabled ones that we did not write
    is_in_order: bool  # ours stand in the order of their parts

    @classmethod
    def of(cls, environment: Environment, *, passive: frozenset[str] = frozenset()) -> Self:
        """Return what stands there; `passive` are the names of variants that are not treatment."""
        marked = [(each, Mark.read(each.title)) for each in environment.strategies]
        ours = [
            Ours(each, mark, Content.of(each, passive=passive))
            for each, mark in marked
            if mark is not None
        ]
        others = [each for each, mark in marked if mark is None and not each.disabled]
        return cls(
            is_on=environment.enabled,
            ours=tuple(sorted(ours, key=lambda each: (each.mark.part, each.strategy.id))),
            others=tuple(others),
            is_in_order=[each.mark.part for each in ours]
            == sorted(each.mark.part for each in ours),
        )

    @cached_property
    def percent(self) -> float:
        """Share of the users who are let in, at most."""
        if not self.is_on:
            return 0.0
        own = max((each.content.percent for each in self.ours), default=0.0)
        return max(own, *(Content.of(each).percent for each in self.others)) if self.others else own

    @property
    def newest(self) -> Mark | None:
        """The mark of the latest revision that wrote here."""
        return max((each.mark for each in self.ours), key=lambda mark: mark.revision, default=None)

    def parts(self) -> Mapping[int, Ours]:
        """Return our strategies by part, of twins the older one."""
        found: dict[int, Ours] = {}
        for each in self.ours:
            found.setdefault(each.mark.part, each)
        return found

    def surplus(self, asked: Wanted) -> Sequence[Ours]:
        """Return strategies of ours that are not wanted.

        Twins, and parts of an earlier revision.
        """
        kept = self.parts()
        return [
            each
            for each in self.ours
            if kept[each.mark.part] is not each or each.mark.part > len(asked.parts)
        ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is not as wanted, in words, and whether we could have left it so ourselves."""

    faults: tuple[str, ...] = ()
    needs_editor: bool = False  # somebody else may have done it: the audit trail tells
    is_lower: bool = (
        False  # it certainly lets in fewer than wanted, though the percentage does not show it
    )


def compare(asked: Wanted, state: State, *, environment: str) -> Comparison:
    """Compare what stands in Unleash with what is wanted."""
    faults: list[str] = []
    found = state.parts()
    is_edited = any(each.is_edited for each in state.ours) or not state.is_in_order
    is_lower = False
    newest = state.newest
    if newest is not None and asked.is_late_for(newest):
        return Comparison(
            (
                (
                    f"was written by revision {newest.revision}, which is newer than our "
                    f"{asked.revision}"
                ),
            )
        )
    if asked.is_off:
        if state.is_on and (state.ours or state.others):
            faults.append(
                f"is still switched on in {environment}, letting in up to {state.percent:g} %"
            )
        if any(each.content.percent > 0 for each in state.ours):
            faults.append("has a strategy of ours above 0 %")
        return Comparison(
            tuple(faults), needs_editor=bool(faults) and (is_edited or bool(state.others))
        )
    if asked.served_percent > 0 or state.ours:
        for part, content in enumerate(asked.parts, 1):
            there = found.get(part)
            if there is None:
                faults.append(
                    "has no strategy of ours yet"
                    if not state.ours
                    else f"lacks part {part} of our strategy"
                )
            elif there.content != content:
                faults.append(_difference(there.content, content))
                is_lower = is_lower or _is_narrower(there.content, content)
    if len(asked.parts) > 1:
        is_lower = all(
            _is_at_most(found.get(part), content) for part, content in enumerate(asked.parts, 1)
        )
    if state.surplus(asked):
        faults.append("has more strategies of ours than wanted")
        is_lower = False
    if not state.is_in_order:
        faults.append("has our strategies in another order")
        is_lower = False
    is_off_by_hand = asked.served_percent > 0 and not state.is_on
    if is_off_by_hand:
        faults.append(f"is switched off in {environment}")
    if state.others and (state.is_on or asked.served_percent > 0):
        names = ", ".join(repr(each.title or each.name) for each in state.others)
        faults.append(f"has another enabled strategy, {names}")
    if not faults and asked.is_fractional:
        faults.append(
            f"serves {asked.served_percent:g} %, decided is {asked.percent:g} %: Unleash "
            f"takes whole percents only, so give "
            "the plan's stages whole ones"
        )
    needs_editor = (
        is_edited or is_off_by_hand or (bool(state.others) and state.is_on) or not state.ours
    )
    return Comparison(
        tuple(faults),
        bool(faults) and needs_editor,
        is_lower and not (state.others and state.is_on),
    )


def _is_at_most(there: Ours | None, content: Content) -> bool:
    """True when a strategy of several certainly gives treatment to nobody who is not to have it, and else is as wanted."""
    if there is None or there.content.is_disabled:
        return content.gives_treatment
    found = there.content
    if not content.gives_treatment or found == content:
        return found == content
    return found.percent <= content.percent and replace(found, rollout=content.rollout) == content


def _difference(there: Content, content: Content) -> str:
    if there.is_disabled:
        return "has our strategy disabled"
    if there.rollout != content.rollout:
        return f"serves {there.rollout} %, decided is {content.rollout} %"
    changed = [
        name
        for name, one, other in (
            ("stickiness", there.stickiness, content.stickiness),
            ("group id", there.group, content.group),
            ("constraints", there.constraints, content.constraints),
            ("variants", there.variants, content.variants),
            ("segments", there.segments, content.segments),
            ("type", there.name, content.name),
        )
        if one != other
    ]
    return f"has other {' and '.join(changed)} in our strategy than decided"


def _is_narrower(there: Content, content: Content) -> bool:
    """True when conditions were added and nothing else.

    Whom they keep out cannot be said in percent.
    """
    if there.percent > content.percent:
        return False
    has_more = set(there.constraints) > set(content.constraints) or set(there.segments) > set(
        content.segments
    )
    same = replace(there, rollout="", constraints=(), segments=()) == replace(
        content, rollout="", constraints=(), segments=()
    )
    return has_more and same and set(there.constraints) >= set(content.constraints)


# --- who did it
# --------------------------------------------------------------------------------------------------

_STRATEGY_CHANGES = ("feature-strategy-add", "feature-strategy-update")
_SWITCHES = {"feature-environment-enabled": True, "feature-environment-disabled": False}
_CREATION = "feature-created"
_REMOVALS = (
    "feature-strategy-remove",
    "feature-archived",
    "feature-deleted",
    "feature-project-change",
)


@dataclass(frozen=True, slots=True)
class Trail:
    """What the audit trail says about a difference."""

    editor: (
        str | None
    )  # who changed something after our last write; None: nobody, so we did not finish
    has_been_ours: bool  # we have written to this flag


def follow(changes: Sequence[Change], *, environment: str) -> Trail:
    """Go back from the newest change to the last that is ours."""
    editor: str | None = None
    for change in changes:
        if change.environment not in (None, environment):
            continue
        name = change.created_by or "somebody"
        if change.type in _STRATEGY_CHANGES:
            strategy = _strategy(change.data)
            mark = None if strategy is None else Mark.read(strategy.title)
            if (
                strategy is not None
                and mark is not None
                and Content.of(strategy).digest == mark.digest
            ):
                return Trail(
                    editor or _switched_against(mark, changes, change.id, environment),
                    has_been_ours=True,
                )
            editor = editor or name
        elif change.type in _REMOVALS:
            editor = editor or name
        elif change.type == _CREATION:
            break  # what came before was another flag of this name
    return Trail(None, has_been_ours=False)


def _switched_against(
    mark: Mark, changes: Sequence[Change], after: int, environment: str
) -> str | None:
    """Return who switched the environment last after our write, if not the way that it says."""
    for change in changes:
        if change.id <= after:
            return None
        if change.environment == environment and change.type in _SWITCHES:
            is_as_written = _SWITCHES[change.type] == (mark.says != "off")
            return None if is_as_written else change.created_by or "somebody"
    return None


def _strategy(data: Any) -> Strategy | None:
    """Return the strategy an audit entry tells of, None for what cannot be read as one."""
    if not isinstance(data, Mapping):
        return None
    try:
        strategy = Strategy(
            id=str(data["id"]),
            name=str(data["name"]),
            title=None if data.get("title") is None else str(data["title"]),
            disabled=bool(data.get("disabled")),
            parameters=dict(data.get("parameters") or {}),
            constraints=[dict(each) for each in data.get("constraints") or ()],
            variants=[dict(each) for each in data.get("variants") or ()],
            segments=[int(each) for each in data.get("segments") or ()],
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return strategy
