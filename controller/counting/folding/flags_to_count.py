"""Lists the flags that are counted, and the intervals of time in which they are.

What counting needs of each rollout is computed once per document and kept. Belongs here also what
is recorded of everything else: flags without a rollout, variants of no plan, contexts in two
partitions. Does not belong here: anything counted (`counted_flags.py`, `events.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from heapq import nlargest
from sys import intern
from typing import Final

from controller.core.rollout import Ended, Rollout
from controller.core.serving import counted_as_treatment, uncounted_variants
from controller.core.visits import Visit
from controller.counting.folding.evaluation_hours import EvaluationHours
from schemas.terms import Arm

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
#: An ended rollout is counted and kept for so long, for late evidence and for questions. An hour is
#: two attribution windows, and longer than anybody inspects what has just happened.
KEPT_AFTER_END_MS: Final = 3_600_000
_SCATTER_MASK = 63  # one context in 64 is checked for appearing in two partitions
_MAX_SCATTER = 16_384  # of those; with more, the check begins again
_MOST_UNKNOWN = 10
#: Events of a flag without a rollout before people are shown it, and how many flags at a time.
_LEAST_TAKEN: Final = 20
_MOST_TAKEN: Final = 100
_RETIRED_KEPT = 10_000

#: The end of a visit that lasts: later than any event. Not infinity, because integers compare
#: faster with each other.
OPEN_END_MS: Final = 2**62 - 1


def countable_intervals(visits: Sequence[Visit]) -> tuple[tuple[int, int, int], ...]:
    """Return (from, until, visit) in ms since the epoch, oldest first.

    A visit that was closed in between has several.

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
        for closing in visit.closings:
            closed = min(_up_to_ms(closing.since), until)
            if begin < closed:
                intervals.append((begin, closed, index))
            opened = closing.counts_from
            begin = max(begin, OPEN_END_MS if opened is None else _up_to_ms(opened))
        if begin < until:
            intervals.append((begin, until, index))
    return tuple(intervals)


def closed_intervals(visits: Sequence[Visit]) -> tuple[tuple[int, int], ...]:
    """Return (from, until) of each closing in ms since the epoch, oldest first.

    `until` is when events counted again, `OPEN_END_MS` while it is closed.
    """
    return tuple(
        (
            _up_to_ms(one.since),
            OPEN_END_MS if one.counts_from is None else _up_to_ms(one.counts_from),
        )
        for visit in visits
        for one in visit.closings
    )


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
    began_ms: int | None = None  # when the first stage was entered; None: not yet
    left_ms: int | None = None  # when the last stage was left; None: not yet
    #: When it was closed by its active windows: (from, until) in ms, until events counted again.
    closed: tuple[tuple[int, int], ...] = ()
    present_visit: int | None = None  # None: no visit lasts

    def interval_at(self, time_ms: int) -> tuple[int, int, int] | None:
        """Return the interval that an event's time is in, None for none.

        Every event of a closed time asks, and there may be a thousand intervals.
        """
        intervals = self.intervals
        place = bisect_right(intervals, (time_ms, OPEN_END_MS, OPEN_END_MS))
        if not place:
            return None
        interval = intervals[place - 1]
        return interval if time_ms < interval[1] else None

    @property
    def arms(self) -> Mapping[str, Arm]:
        """The arm of each variant that is in one."""
        return _arms(self.treatment, self.more_treatments, self.control)

    def is_over(self, now_ms: int) -> bool:
        """Return whether it ended so long ago that its totals are freed."""
        return self.ended_ms is not None and now_ms - self.ended_ms >= KEPT_AFTER_END_MS

    @classmethod
    def of(cls, rollout: Rollout) -> CountedFlag:
        """Return what counting needs of a rollout."""
        plan = rollout.plan
        treatment, *more_treatments = counted_as_treatment(plan)
        last = rollout.visits[-1] if rollout.visits else None
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
            began_ms=_up_to_ms(rollout.visits[0].entered_at) if rollout.visits else None,
            left_ms=None if last is None or last.left_at is None else _up_to_ms(last.left_at),
            closed=closed_intervals(rollout.visits),
            present_visit=(
                None if last is None or last.left_at is not None else rollout.visit_index
            ),
        )


@lru_cache(maxsize=1_000)
def _arms(treatment: str, more_treatments: frozenset[str], control: str) -> Mapping[str, Arm]:
    """Return the arm of each variant; kept, because most flags have the same two variants."""
    treatments = dict.fromkeys((treatment, *more_treatments), Arm.TREATMENT)
    return {**treatments, control: Arm.CONTROL}


@dataclass(slots=True)
class FlagsToCount:
    """The flags that have a rollout, and what is recorded of others; one for all partitions."""

    unknown_names_limit: int = 100
    flags: dict[str, CountedFlag] = field(default_factory=dict)
    over: dict[str, int] = field(default_factory=dict)  # flag -> revision of its ended rollout
    # Of those in `over` that were not retired: variant -> arm.
    ended_arms: dict[str, Mapping[str, Arm]] = field(default_factory=dict)
    evaluations: EvaluationHours = field(default_factory=EvaluationHours)
    unknown_flags: int = 0  # evaluations, and flags of outcomes, without a rollout
    # The most frequent names of those, each with at least how many events name it: `count_unknown`.
    unknown_names: dict[str, int] = field(default_factory=dict)
    other_variants: int = 0  # of a known flag, that its plan does not serve
    unjoined: int = 0  # outcomes without flags whose context had no exposure within the window
    # Times that a sampled context was in another partition of a topic than before (packed formats).
    scattered: int = 0
    # (of evaluations, context's digest) -> partition.
    homes: dict[tuple[bool, int], int] = field(default_factory=dict)
    _taken: dict[str, int] = field(default_factory=dict)  # of the unknown names: taken before
    _retired: dict[str, None] = field(default_factory=dict)  # of those in `over`, oldest first

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
            self.ended_arms[flag_key] = counted.arms
            return None
        self.over.pop(flag_key, None)
        self.ended_arms.pop(flag_key, None)
        self._retired.pop(flag_key, None)
        self.flags[flag_key] = counted
        return counted

    def retire(self, flag_key: str, revision: int) -> CountedFlag | None:
        """Stop counting for a flag that was retired as this revision; return what was counted.

        Its events are of an unknown flag from now on. What other replicas have stored of it is
        dropped as of any rollout that is over.
        """
        counted = self.flags.get(flag_key)
        if counted is not None and counted.revision > revision:
            return None
        self.flags.pop(flag_key, None)
        self.ended_arms.pop(flag_key, None)
        self.over.pop(flag_key, None)
        self.over[flag_key] = revision
        self._retired[flag_key] = None
        if len(self._retired) > _RETIRED_KEPT:
            oldest = next(iter(self._retired))
            del self._retired[oldest]
            self.over.pop(oldest, None)
        return counted

    def end(self, now_ms: int) -> list[CountedFlag]:
        """Stop counting for rollouts that are over by `now_ms`, and return them."""
        over = [counted for counted in self.flags.values() if counted.is_over(now_ms)]
        for counted in over:
            del self.flags[counted.flag_key]
            self.over[counted.flag_key] = counted.revision
            self.ended_arms[counted.flag_key] = counted.arms
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
        if flag_key in self.over and flag_key not in self._retired:
            return
        self.unknown_flags += 1
        names = self.unknown_names
        if flag_key in names:
            names[flag_key] += 1
        elif len(names) < self.unknown_names_limit:
            names[flag_key] = 1
        else:
            self._forget_rare_names()

    def _forget_rare_names(self) -> None:
        """Make room among the unknown names by taking one from the count of each.

        A name with a larger share of the events than 1 in `unknown_names_limit` + 1 stays in the
        list, whatever names senders make up. Each call takes back as many counts as were added, so
        on average an event costs a constant time.

        Source: J. Misra, D. Gries, Science of Computer Programming 2 (1982) 143-152.
        """
        self.unknown_names = {
            name: count - 1 for name, count in self.unknown_names.items() if count > 1
        }

    def take_unknown(self) -> dict[str, int]:
        """Return flags without a rollout, each with at least how many events came since then.

        They are those with the most new events. Names of few events may be made up.
        """
        taken, names = self._taken, self.unknown_names
        new = (
            (count - taken.get(name, 0), name)
            for name, count in names.items()
            if count >= _LEAST_TAKEN and count > taken.get(name, 0)
        )
        found = {name: count for count, name in nlargest(_MOST_TAKEN, new)}
        # A count that was taken back since is no new event when it is there again.
        self._taken = {
            name: count if name in found else min(count, taken[name])
            for name, count in names.items()
            if name in found or name in taken
        }
        return found

    def most_unknown(self) -> dict[str, float]:
        """Return the most frequent flags without a rollout, each with at least how many events.

        There are ten at most, because each is a series of a metric. May be called from another
        thread.
        """
        names = list(self.unknown_names.items())
        return dict(nlargest(_MOST_UNKNOWN, names, key=lambda each: each[1]))
