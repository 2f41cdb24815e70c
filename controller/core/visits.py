"""Visits of stages: when a rollout was in which stage, and when it was closed there.

They are the timeline that gives each event its stage: see `timeline.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

#: Every transition writes all closings of its rollout, 70 bytes each. A stage that lasts a year
#: with daily windows has 365.
MOST_CLOSINGS = 1000


@dataclass(frozen=True, slots=True)
class Closing:
    """A time outside the plan's active windows, in which everybody had control.

    No event from `since` to `counts_from` counts.
    """

    since: datetime
    counts_from: datetime | None = None  # when it opened, plus settle; None: closed still


@dataclass(frozen=True, slots=True)
class Visit:
    """The time from entering a stage to leaving it.

    A stage that is stepped back to gets a second visit, and its evidence counts from zero.
    """

    stage: int
    percent: float
    entered_at: datetime
    counts_from: datetime  # entered_at + settle
    left_at: datetime | None = None  # None: still there
    #: Oldest first, at most `MOST_CLOSINGS`. They go on after the completion of the rollout. Then
    #: only the last is kept, because no event counts any more.
    closings: tuple[Closing, ...] = ()

    @property
    def counting_since(self) -> datetime:
        """Since when events count without a break; while closed, since before it closed."""
        opened = (one.counts_from for one in self.closings if one.counts_from is not None)
        return max(opened, default=self.counts_from)

    def counted_until(self, at: datetime) -> timedelta:
        """Return for how long events have counted by `at`."""
        total, begin = timedelta(0), self.counts_from
        for closing in self.closings:
            total += max(min(closing.since, at) - begin, timedelta(0))
            begin = max(begin, closing.counts_from or at)
        return total + max(at - begin, timedelta(0))

    def still_after(self, since: datetime, at: datetime) -> timedelta:
        """Return for how long bakes and gates stood still between `since` and `at`."""
        spans = ((max(one.since, since), min(one.counts_from or at, at)) for one in self.closings)
        return sum((max(end - begin, timedelta(0)) for begin, end in spans), timedelta(0))

    def closed(self, at: datetime) -> Visit:
        """Return the visit when it closes at `at`."""
        left_at = self.left_at
        kept = (one for one in self.closings if left_at is None or one.since < left_at)
        return replace(self, closings=(*kept, Closing(at)))

    @property
    def is_full(self) -> bool:
        """Whether no more closings may be added: the stage begins a new visit."""
        return self.left_at is None and len(self.closings) >= MOST_CLOSINGS

    def opened(self, counts_from: datetime) -> Visit:
        """Return the visit when it opens, and events count from `counts_from` on."""
        *earlier, last = self.closings
        return replace(self, closings=(*earlier, replace(last, counts_from=counts_from)))
