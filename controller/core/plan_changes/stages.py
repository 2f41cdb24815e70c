"""Puts the stages of the running plan and of a new one together.

Stages that were entered stay as they are: people are in treatment by them. The present stage is
found in the new plan by its name, else by its percentage. It may be lowered here, never raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from controller.core.plan import Stage

Stages = tuple[Stage, ...]


def counterpart(stage: Stage, among: Sequence[Stage]) -> int | None:
    """Return the index of the same stage in another plan; None: there is none."""
    return next(counterparts(stage, among), None)


def counterparts(stage: Stage, among: Sequence[Stage]) -> Iterator[int]:
    """Yield the indexes of what may be the same stage: by its name, then by its share."""
    for index, other in enumerate(among):
        if other.name == stage.name:
            yield index
    for index, other in enumerate(among):
        if (other.audience, other.percent) == (stage.audience, stage.percent):
            yield index


def combined_stages(old: Stages, new: Stages, present: int | None) -> Stages:
    """Return the stages that a rollout in stage `present` of `old` goes on with.

    - Stages before the present one stay, whatever the new plan says of them.
    - The present stage is that of the new plan, which may have lowered its percentage.
    - A present stage that the new plan does not have, or whose percentage grew, is lowered to the
      highest stage that the new plan has below it. Without one it stays as it is until its gate.
    - What follows is the new plan's.
    """
    if present is None:
        return new
    before, here = old[:present], old[present]
    past = [index for stage in before if (index := counterpart(stage, new)) is not None]
    begin = max(past, default=-1) + 1
    # A stage that has grown, or that is over, is not the present one.
    likely = [index for index in counterparts(here, new) if new[index].percent <= here.percent]
    place = next((index for index in likely if index not in past), None)
    if place is None:
        place = _lower_stage(here, before, new, begin)
    if place is not None:
        return (*before, new[place], *new[place + 1 :])
    after = _rising(new[begin:], here)
    is_name_taken = any(stage.name == here.name for stage in after)
    return (*before, replace(here, given_name="") if is_name_taken else here, *after)


def _lower_stage(here: Stage, before: Stages, new: Stages, begin: int) -> int | None:
    """Return the highest stage of the new plan that lies between those before and the present."""
    reached = max((one.percent for one in before if one.audience == here.audience), default=0.0)
    lower = [
        index
        for index, stage in enumerate(new)
        if index >= begin
        and stage.audience == here.audience
        and reached < stage.percent < here.percent
    ]
    return max(lower, key=lambda index: new[index].percent, default=None)


def _rising(stages: Stages, here: Stage) -> Stages:
    """Return the stages that the present one does not cover already."""
    return tuple(
        stage for stage in stages if stage.audience != here.audience or stage.percent > here.percent
    )


def disorder(stages: Stages) -> str | None:
    """Return why these stages cannot follow each other, None when they can."""
    reached: dict[str | None, float] = {}
    names: set[str] = set()
    for stage in stages:
        floor = max(reached.get(stage.audience, 0.0), reached.get(None, 0.0))
        if stage.percent <= floor:
            return f"{stage.name} does not rise above the {floor:g} % that was given before it"
        if stage.name in names:
            return f"two stages are called {stage.name}; one of them was entered already"
        reached[stage.audience] = stage.percent
        names.add(stage.name)
    return None
