"""Describes in words what in Unleash is not as decided.

Pure: no calls. One check per kind of deviation; `CHECKS` lists those that look at the flag as a
whole, and our strategies are compared one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from controller.adapters.unleash.flag_state import OwnStrategy, UnleashFlagState
from controller.adapters.unleash.strategies import Content
from controller.adapters.unleash.target import Target


@dataclass(frozen=True, slots=True)
class Deviation:
    """What is not as decided, and whether we could have left it so ourselves."""

    faults: tuple[str, ...] = ()
    needs_editor: bool = False  # somebody else may have done it: the audit trail says who
    # it certainly lets in fewer than decided, though the percentage does not show it
    is_lower: bool = False


def compare(target: Target, state: UnleashFlagState, *, environment: str) -> Deviation:
    """Compare the state in Unleash with what is decided."""
    newest = state.newest
    if newest is not None and target.is_late_for(newest):
        why = (
            f"was written by revision {newest.revision}, which is newer than our {target.revision}"
        )
        return Deviation((why,))
    if target.is_off:
        return _compare_switched_off(state, environment)
    faults = [*_part_faults(target, state)]
    faults += [fault for check in CHECKS if (fault := check(target, state, environment))]
    if not faults and target.is_fractional:
        faults.append(
            f"serves {target.served_percent:g} %, decided is {target.percent:g} %: Unleash "
            f"takes whole percents only, so give the plan's stages whole ones"
        )
    return Deviation(
        tuple(faults),
        needs_editor=bool(faults) and _has_sign_of_edit(target, state),
        is_lower=_is_certainly_lower(target, state),
    )


def _compare_switched_off(state: UnleashFlagState, environment: str) -> Deviation:
    faults: list[str] = []
    if state.is_on and (state.ours or state.others):
        faults.append(
            f"is still switched on in {environment}, letting in up to {state.percent:g} %"
        )
    if any(each.content.percent > 0 for each in state.ours):
        faults.append("has a strategy of ours above 0 %")
    needs_editor = bool(faults) and (state.is_edited or bool(state.others))
    return Deviation(tuple(faults), needs_editor=needs_editor)


# --- the flag as a whole ---


def _surplus_strategies(target: Target, state: UnleashFlagState, environment: str) -> str | None:
    return "has more strategies of ours than wanted" if state.surplus(target) else None


def _wrong_order(target: Target, state: UnleashFlagState, environment: str) -> str | None:
    return None if state.is_in_order else "has our strategies in another order"


def _switched_off_by_hand(target: Target, state: UnleashFlagState, environment: str) -> str | None:
    if state.is_on or target.served_percent == 0:
        return None
    return f"is switched off in {environment}"


def _other_strategies(target: Target, state: UnleashFlagState, environment: str) -> str | None:
    if not state.others or not (state.is_on or target.served_percent > 0):
        return None
    return f"has another enabled strategy, {state.names_of_others}"


#: In the order in which they are reported. Each returns what is wrong, None for nothing.
CHECKS: Final[Sequence[Callable[[Target, UnleashFlagState, str], str | None]]] = (
    _surplus_strategies,
    _wrong_order,
    _switched_off_by_hand,
    _other_strategies,
)


def _has_sign_of_edit(target: Target, state: UnleashFlagState) -> bool:
    """Return whether somebody else may have caused the deviation."""
    is_off_by_hand = target.served_percent > 0 and not state.is_on
    lets_others_in = bool(state.others) and state.is_on
    return state.is_edited or is_off_by_hand or lets_others_in or not state.ours


def _is_certainly_lower(target: Target, state: UnleashFlagState) -> bool:
    """Return whether the state certainly gives treatment to fewer than decided."""
    if state.surplus(target) or not state.is_in_order or (state.others and state.is_on):
        return False
    present = state.parts()
    if len(target.parts) > 1:
        return all(
            _is_at_most(present.get(part), content) for part, content in enumerate(target.parts, 1)
        )
    only = present.get(1)
    return only is not None and _is_narrower(only.content, target.parts[0])


# --- one strategy ---


def _part_faults(target: Target, state: UnleashFlagState) -> Iterator[str]:
    if target.served_percent == 0 and not state.ours:
        return  # nothing of ours is needed yet
    present = state.parts()
    for part, content in enumerate(target.parts, 1):
        own = present.get(part)
        if own is None:
            yield (
                f"lacks part {part} of our strategy"
                if state.ours
                else "has no strategy of ours yet"
            )
        elif own.content != content:
            yield _content_difference(own.content, content)


def _content_difference(present: Content, decided: Content) -> str:
    if present.is_disabled:
        return "has our strategy disabled"
    if present.rollout != decided.rollout:
        return f"serves {present.rollout} %, decided is {decided.rollout} %"
    changed = [
        name
        for name, one, other in (
            ("stickiness", present.stickiness, decided.stickiness),
            ("group id", present.group, decided.group),
            ("constraints", present.constraints, decided.constraints),
            ("variants", present.variants, decided.variants),
            ("segments", present.segments, decided.segments),
            ("type", present.name, decided.name),
        )
        if one != other
    ]
    return f"has other {' and '.join(changed)} in our strategy than decided"


def _is_at_most(own: OwnStrategy | None, decided: Content) -> bool:
    """Return whether one of several strategies gives treatment to no user beyond the decided ones.

    It must otherwise be as decided.
    """
    if own is None or own.content.is_disabled:
        return decided.gives_treatment
    present = own.content
    if not decided.gives_treatment or present == decided:
        return present == decided
    is_as_decided = replace(present, rollout=decided.rollout) == decided
    return present.percent <= decided.percent and is_as_decided


def _is_narrower(present: Content, decided: Content) -> bool:
    """Return whether conditions were added and nothing else.

    How many users they keep out cannot be said in percent.
    """
    if present.percent > decided.percent:
        return False
    constraints, segments = set(present.constraints), set(present.segments)
    has_more = constraints > set(decided.constraints) or segments > set(decided.segments)
    is_same_otherwise = _without_conditions(present) == _without_conditions(decided)
    return has_more and is_same_otherwise and constraints >= set(decided.constraints)


def _without_conditions(content: Content) -> Content:
    return replace(content, rollout="", constraints=(), segments=())
