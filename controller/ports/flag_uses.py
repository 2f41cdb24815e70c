"""What is known of flags beside their rollouts, for the inventory: how they are used.

Nothing is decided by it. Belongs here: its values, and where every replica keeps and reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from schemas.terms import DecisionKind, UseKind


class Use(NamedTuple):
    """What is counted by hour, or noted, of a flag."""

    kind: UseKind
    flag_key: str


@dataclass(frozen=True, slots=True)
class Lift:
    """By how much more often treatment converts than control: 0.04 is 4 % more often."""

    conversion: str
    estimate: float | None  # None: control has not converted yet
    low: float | None  # None: not bounded
    high: float | None
    at: datetime  # of the judgement


@dataclass(frozen=True, slots=True)
class LastDecision:
    """The newest decision about a flag."""

    kind: DecisionKind
    at: datetime


@dataclass(frozen=True, slots=True)
class FlagSummary:
    """What is noted of a flag's present rollout, longer than its reports and events are kept."""

    rollout_id: str
    revision: int  # up to which `decision` is known to be the newest
    decision: LastDecision | None = None
    lifts: tuple[Lift, ...] = ()


@dataclass(frozen=True, slots=True)
class FlagUse:
    """How a flag is used."""

    #: Evaluations in the last 24 hours, the present one among them, by arm.
    treatment: int = 0
    control: int = 0
    neither: int = 0
    #: When it was evaluated last, to the hour; None: not since `watched_since`.
    evaluated_at: datetime | None = None
    #: Since when its evaluations are counted, to the hour.
    watched_since: datetime | None = None
    #: Its newest decision; None: not known.
    decision: LastDecision | None = None
    #: The newest lift of each conversion in its present rollout.
    lifts: tuple[Lift, ...] = ()

    @property
    def evaluations(self) -> int:
        """Evaluations in the last 24 hours."""
        return self.treatment + self.control + self.neither


@dataclass(frozen=True, slots=True)
class FlagUses:
    """How all flags are used, as it was known last; of a flag that is missing nothing is known."""

    by_flag: Mapping[str, FlagUse] = field(default_factory=dict)
    #: Events in the last 24 hours, at least, of flags without a rollout: the most frequent first.
    unknown: Mapping[str, int] = field(default_factory=dict)
    version: int = 0  # another one with each reading


class FlagUseStore(Protocol):
    """Counts by hour that all replicas add to, and notes. Each call raises StoreUnavailable."""

    async def add(self, hour: int, counts: Mapping[Use, int], *, writer: str, number: int) -> None:
        """Add to the counts of an hour since the epoch; they go a day after it.

        `number` grows with each call of a writer: a repeat, and an earlier one, changes nothing.
        """

    async def hour(self, hour: int) -> Mapping[Use, int]:
        """Return the counts of an hour."""

    async def notes(self) -> Mapping[Use, bytes]:
        """Return all notes."""

    async def write_notes(self, notes: Mapping[Use, bytes]) -> None:
        """Write notes; they stay until they are dropped."""

    async def drop_notes(self, uses: Iterable[Use]) -> None:
        """Delete notes."""
