"""The state of a flag in our environment of Unleash, as read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from controller.adapters.unleash.api import Environment, Strategy
from controller.adapters.unleash.strategies import Content, Mark
from controller.adapters.unleash.target import Target


@dataclass(frozen=True, slots=True)
class OwnStrategy:
    """A strategy that carries our mark."""

    strategy: Strategy
    mark: Mark
    content: Content

    @property
    def is_edited(self) -> bool:
        """True when it is not as we wrote it."""
        return self.content.digest != self.mark.digest


@dataclass(frozen=True)
class UnleashFlagState:
    """The strategies of one flag, ours apart from all others."""

    is_on: bool
    ours: tuple[OwnStrategy, ...]  # by part, the oldest first
    others: tuple[Strategy, ...]  # enabled ones that we did not write
    is_in_order: bool  # ours stand in the order of their parts

    @classmethod
    def of(cls, environment: Environment, *, passive: frozenset[str] = frozenset()) -> Self:
        """Return an environment's state; `passive` are the names of variants without treatment."""
        marked = [(each, Mark.read(each.title)) for each in environment.strategies]
        ours = [
            OwnStrategy(each, mark, Content.of(each, passive=passive))
            for each, mark in marked
            if mark is not None
        ]
        others = [each for each, mark in marked if mark is None and not each.disabled]
        parts = [each.mark.part for each in ours]
        return cls(
            is_on=environment.enabled,
            ours=tuple(sorted(ours, key=lambda each: (each.mark.part, each.strategy.id))),
            others=tuple(others),
            is_in_order=parts == sorted(parts),
        )

    @cached_property
    def percent(self) -> float:
        """The largest share of users who are let in."""
        if not self.is_on:
            return 0.0
        own = max((each.content.percent for each in self.ours), default=0.0)
        return max(own, *(Content.of(each).percent for each in self.others)) if self.others else own

    @property
    def newest(self) -> Mark | None:
        """The mark of the latest revision that wrote here."""
        return max((each.mark for each in self.ours), key=lambda mark: mark.revision, default=None)

    @property
    def is_edited(self) -> bool:
        """True when our strategies are not as we wrote them, or not in our order."""
        return any(each.is_edited for each in self.ours) or not self.is_in_order

    @property
    def names_of_others(self) -> str:
        """The titles of the enabled strategies that we did not write, quoted."""
        return ", ".join(repr(each.title or each.name) for each in self.others)

    def parts(self) -> Mapping[int, OwnStrategy]:
        """Return our strategies by part, of twins the older one."""
        parts: dict[int, OwnStrategy] = {}
        for each in self.ours:
            parts.setdefault(each.mark.part, each)
        return parts

    def surplus(self, target: Target) -> Sequence[OwnStrategy]:
        """Return our strategies that the target lacks: twins, and parts of earlier revisions."""
        kept = self.parts()
        return [
            each
            for each in self.ours
            if kept[each.mark.part] is not each or each.mark.part > len(target.parts)
        ]
