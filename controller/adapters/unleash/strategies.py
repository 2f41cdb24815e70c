"""One activation strategy of ours in Unleash: its content, and the mark in its title.

Pure: no calls. Each strategy of ours carries in its title what was decided, by which revision, and
a digest of all its fields that decide who is let in. So the strategy itself tells whether it is
ours, how old it is and whether somebody changed it since, also to a process that has just started.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Final, Self

import xxhash

from controller.adapters.unleash.api import Strategy

#: Unleash's name for the type of our strategies.
NAME: Final = "flexibleRollout"
#: The share in the mark of a strategy that the end of a rollout switched off.
OFF: Final = "off"
_MARK = re.compile(
    r"rolloutd: (?P<share>off|[0-9]{1,3} %) by revision (?P<revision>[0-9]{1,15}) "
    r"\((?P<rollout>[0-9a-f]{8})\.(?P<part>[0-9]{1,2})\.(?P<digest>[0-9a-f]{8})\)"
)


def short_digest(text: str) -> str:
    """Return eight hexadecimal digits of a text."""
    return xxhash.xxh64_hexdigest(text.encode())[:8]


def canonical_json(value: Mapping[str, Any]) -> str:
    """Return JSON that is equal for equal values."""
    return json.dumps(value, sort_keys=True)


def canonical_constraint(value: Mapping[str, Any]) -> str:
    """Return a constraint as JSON without fields that only repeat Unleash's defaults."""
    return canonical_json(
        {key: each for key, each in value.items() if each not in (None, False, "") and each != []}
    )


@dataclass(frozen=True, slots=True)
class Content:
    """All of a strategy that decides who is let in.

    One form, whatever Unleash adds, leaves out or sorts.
    """

    rollout: str  # percentage, as Unleash has it
    stickiness: str
    group: str
    constraints: tuple[str, ...] = ()  # each as JSON
    variants: tuple[str, ...] = ()  # each as JSON, in Unleash's order: by name
    segments: tuple[int, ...] = ()
    is_disabled: bool = False
    name: str = NAME
    # False: it only says who is control or in neither arm
    gives_treatment: bool = field(default=True, compare=False)

    @classmethod
    def of(cls, strategy: Strategy, *, passive: frozenset[str] = frozenset()) -> Self:
        """Return a strategy's content; `passive` are the names of variants without treatment."""
        parameters = strategy.parameters
        names = {str(each.get("name")) for each in strategy.variants or ()}
        return cls(
            rollout=str(parameters.get("rollout", "")),
            stickiness=str(parameters.get("stickiness", "")),
            group=str(parameters.get("groupId", "")),
            constraints=tuple(sorted(canonical_constraint(each) for each in strategy.constraints)),
            variants=tuple(sorted(canonical_json(each) for each in strategy.variants or ())),
            segments=tuple(sorted(strategy.segments or ())),
            is_disabled=bool(strategy.disabled),
            name=strategy.name,
            gives_treatment=not names or not names <= passive,
        )

    @property
    def percent(self) -> float:
        """The largest share of users that it gives treatment."""
        if self.is_disabled or not self.gives_treatment:
            return 0.0
        try:
            percent = float(self.rollout) if self.name == NAME else 100.0
        except ValueError:
            return 100.0  # an SDK may read it in any way
        return min(max(percent, 0.0), 100.0) if isfinite(percent) else 100.0

    @property
    def at_zero(self) -> Self:
        """The same content at 0 %."""
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
        return short_digest(json.dumps([*fields, self.is_disabled]))

    def fields(self) -> dict[str, Any]:
        """Return the fields as Unleash takes them, by name."""
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


@dataclass(frozen=True, slots=True)
class Mark:
    """The title of a strategy of ours."""

    share: str  # "off", or the percentage
    revision: int
    rollout: str  # digest of the rollout's id
    part: int  # which of our strategies of this flag, from 1
    digest: str  # of the content that it was written with

    @classmethod
    def read(cls, title: str | None) -> Self | None:
        """Return a title's mark, None when the strategy is not ours."""
        match = _MARK.fullmatch(title or "")
        if match is None:
            return None
        return cls(
            match["share"],
            int(match["revision"]),
            match["rollout"],
            int(match["part"]),
            match["digest"],
        )

    def __str__(self) -> str:
        return (
            f"rolloutd: {self.share} by revision {self.revision} "
            f"({self.rollout}.{self.part}.{self.digest})"
        )
