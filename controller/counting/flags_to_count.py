"""Lists the flags that are counted, and the intervals of time in which they are.

What counting needs of each rollout is computed once per document and kept. Belongs here also what
is recorded of everything else: flags without a rollout, variants of no plan, contexts in two
partitions. Does not belong here: anything counted (`counted_flags.py`, `fold.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from sys import intern
from typing import Final

from controller.core.rollout import Ended, Rollout, Visit
from controller.core.serving import counted_as_treatment, uncounted_variants

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
#: An ended rollout is counted and kept for so long, for late evidence and for questions. An hour is
#: two attribution windows, and longer than anybody inspects what has just happened.
KEPT_AFTER_END_MS: Final = 3_600_000
_SCATTER_MASK = 63  # one context in 64 is checked for appearing in two partitions
_MAX_SCATTER = 16_384  # of those; with more, the check begins again

#: The end of a visit that lasts: later than any event. Not infinity, because integers compare
#: faster with each other.
OPEN_END_MS: Final = 2**62 - 1


def countable_intervals(visits: Sequence[Visit]) -> tuple[tuple[int, int, int], ...]:
    """Return (from, until, visit) in ms since the epoch, oldest first.

    They agree with `core.timeline.locate`. `until` is exclusive, and `OPEN_END_MS` while the visit
    lasts. Empty intervals are left out.
    """
    intervals = []
    for index, visit in enumerate(visits):
        ends = [later.entered_at for later in visits[index + 1 :]]
        if visit.left_at is not None:
            ends.append(visit.left_at)
        begin = _up_to_ms(max(visit.entered_at, visit.counts_from))
        until = min((_up_to_ms(end) for end in ends), default=OPEN_END_MS)
        if begin < until:
            intervals.append((begin, until, index))
    return tuple(intervals)


def _up_to_ms(at: datetime) -> int:
    """Return the first whole millisecond that is not before `at`."""
    return -((_EPOCH - at) // _MILLISECOND)


@dataclass(frozen=True, slots=True)
class CountedFlag:
    """What counting needs of a rollout."""

    flag_key: str
    rollout_id: str
    revision: int
    treatment: str  # variants
    control: str
    intervals: tuple[tuple[int, int, int], ...]  # see countable_intervals
    # Those that a guardrail names. Others are not counted, so that senders create no fields.
    conversions: frozenset[str]
    # The other variants among which the treatment is divided.
    more_treatments: frozenset[str] = frozenset()
    uncounted: frozenset[str] = frozenset()  # served to contexts in neither arm
    ended_ms: int | None = None  # None: it has not

    def is_over(self, now_ms: int) -> bool:
        """Return whether it ended so long ago that its totals are freed."""
        return self.ended_ms is not None and now_ms - self.ended_ms >= KEPT_AFTER_END_MS

    @classmethod
    def of(cls, rollout: Rollout) -> CountedFlag:
        """Return what counting needs of a rollout."""
        plan = rollout.plan
        treatment, *more_treatments = counted_as_treatment(plan)
        return cls(
            flag_key=rollout.flag_key,
            rollout_id=rollout.rollout_id,
            revision=rollout.revision,
            treatment=intern(treatment),  # of 10,000 flags most have the same two variants
            control=intern(plan.control),
            intervals=countable_intervals(rollout.visits),
            conversions=frozenset(
                guardrail.kind.conversion
                for guardrail in plan.guardrails
                if guardrail.kind.conversion is not None
            ),
            more_treatments=frozenset(more_treatments),
            uncounted=frozenset(uncounted_variants(plan)),
            ended_ms=_up_to_ms(rollout.phase.at) if isinstance(rollout.phase, Ended) else None,
        )


@dataclass(slots=True)
class FlagsToCount:
    """The flags that have a rollout, and what is recorded of others; one for all partitions."""

    unknown_names_limit: int = 100
    flags: dict[str, CountedFlag] = field(default_factory=dict)
    over: dict[str, int] = field(default_factory=dict)  # flag -> revision of its ended rollout
    unknown_flags: int = 0  # evaluations, and flags of outcomes, without a rollout
    unknown_names: dict[str, None] = field(default_factory=dict)  # the first names of those
    other_variants: int = 0  # of a known flag, that its plan does not serve
    unjoined: int = 0  # outcomes without flags whose context had no exposure within the window
    # Times that a sampled context was in another partition of a topic than before (packed formats).
    scattered: int = 0
    # (of evaluations, context's digest) -> partition.
    homes: dict[tuple[bool, int], int] = field(default_factory=dict)

    def count_for(self, rollout: Rollout, now_ms: int = 0) -> CountedFlag | None:
        """Count by a document from now on; return None when it changes nothing.

        That is a document not newer than the known one, and, of a flag that is not counted, one
        whose rollout was over long before `now_ms`.
        """
        flag_key = rollout.flag_key
        previous = self.flags.get(flag_key)
        if previous is not None and rollout.revision <= previous.revision:
            return None
        if rollout.revision <= self.over.get(flag_key, -1):
            return None
        counted = CountedFlag.of(rollout)
        self.unknown_names.pop(flag_key, None)
        if previous is None and counted.is_over(now_ms):
            self.over[flag_key] = counted.revision
            return None
        self.over.pop(flag_key, None)
        self.flags[flag_key] = counted
        return counted

    def end(self, now_ms: int) -> list[CountedFlag]:
        """Stop counting for rollouts that are over by `now_ms`, and return them."""
        over = [counted for counted in self.flags.values() if counted.is_over(now_ms)]
        for counted in over:
            del self.flags[counted.flag_key]
            self.over[counted.flag_key] = counted.revision
        return over

    def record_place(self, of_evaluations: bool, digest: int, partition: int) -> None:
        """Record where a context appears; in two partitions it is counted once in each."""
        if digest & _SCATTER_MASK:
            return
        home = self.homes.get((of_evaluations, digest))
        if home == partition:
            return
        if home is not None:
            self.scattered += 1
        elif len(self.homes) >= _MAX_SCATTER:
            self.homes.clear()
        self.homes[of_evaluations, digest] = partition

    def count_unknown(self, flag_key: str) -> None:
        """Count a flag without a rollout; a flag whose rollout has just ended does not count."""
        if flag_key in self.over:
            return
        self.unknown_flags += 1
        if len(self.unknown_names) < self.unknown_names_limit:
            self.unknown_names[flag_key] = None
