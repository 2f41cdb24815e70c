"""The requirements of one rollout on Unleash: the strategies of its flag, in order."""

from __future__ import annotations

from dataclasses import dataclass

from controller.adapters.unleash.rules import Rule, is_fractional, rules
from controller.adapters.unleash.strategies import (
    OFF,
    Content,
    Mark,
    canonical_constraint,
    canonical_json,
    short_digest,
)
from controller.core.rollout import Aborted, Retired, RolledBack, Rollout
from controller.core.serving import serving


@dataclass(frozen=True, slots=True)
class Target:
    """The state of a flag in Unleash that a rollout requires."""

    flag_key: str
    percent: float  # decided, of the widest ring
    parts: tuple[Content, ...]  # in order: the first that lets a user in decides; at least one
    passive: frozenset[str]  # names of variants that are not treatment
    is_fractional: bool  # Unleash cannot serve what was decided
    is_off: bool  # rolled back or aborted: the environment is switched off, whatever is there
    revision: int
    rollout: str  # digest of the rollout's id

    @property
    def served_percent(self) -> float:
        """The share of it that Unleash can serve: whole percents, rounded down."""
        return max(part.percent for part in self.parts)

    def mark(self, part: int, content: Content) -> str:
        """Return the title for a strategy of ours with this content."""
        share = OFF if self.is_off else f"{content.rollout} %"
        return str(Mark(share, self.revision, self.rollout, part, content.digest))

    def is_late_for(self, mark: Mark) -> bool:
        """Return whether a newer revision of the same rollout wrote the mark.

        Then nothing may be changed any more.
        """
        return mark.revision > self.revision and mark.rollout == self.rollout

    def is_unordered_with(self, mark: Mark) -> bool:
        """Return whether another rollout wrote the mark by a higher revision.

        Either revisions began again since, or we are late. It cannot be known which, so lowering is
        allowed and raising is not.
        """
        return mark.revision > self.revision and mark.rollout != self.rollout


def target_of(rollout: Rollout, *, stickiness: str) -> Target:
    """Return what a rollout requires of Unleash. Raises Unservable.

    The group id is the flag key and never changes: it decides who is let in.
    """
    served = serving(rollout)
    return Target(
        flag_key=rollout.flag_key,
        percent=max(ring.percent for ring in served.rings),
        parts=tuple(
            _content(rule, rollout.flag_key, stickiness)
            for rule in rules(served, stickiness=stickiness)
        ),
        passive=frozenset({served.control, served.unassigned}),
        is_fractional=is_fractional(served),
        is_off=isinstance(rollout.phase, RolledBack | Aborted | Retired),
        revision=rollout.revision,
        rollout=short_digest(rollout.rollout_id),
    )


def _content(rule: Rule, flag_key: str, stickiness: str) -> Content:
    return Content(
        rollout=str(rule.percent),
        stickiness=stickiness,
        group=flag_key,
        constraints=tuple(sorted(canonical_constraint(each) for each in rule.constraints)),
        variants=tuple(sorted(canonical_json(each) for each in rule.variants)),
        gives_treatment=rule.gives_treatment,
    )
