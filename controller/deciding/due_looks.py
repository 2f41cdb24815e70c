"""Which flags need a look now: of all others nothing has changed that their workers would use.

A flag rests while its worker would find the same again. It wakes when something of it is noted, at
the moment that its worker named, and when the event partitions say something else. So what a pass
over thousands of quiet flags costs follows what has changed.

Pure. Does not belong here: what is compared at a look (`given_evidence.py`).
"""

from __future__ import annotations

import heapq
from datetime import datetime, timedelta

from controller.core.rollout import Rollout
from controller.deciding.given_evidence import Progress


class DueLooks:
    """The flags that are awake, and until when the others rest."""

    def __init__(self) -> None:
        self._awake: set[str] = set()
        self._rests: dict[str, datetime] = {}  # flag -> until then (UTC)
        #: When flags are to be asked for, soonest first; of each flag the soonest time counts.
        self._alarms: list[tuple[datetime, str]] = []
        self._alarm_of: dict[str, datetime] = {}
        #: What the partitions said when the flags that rest were looked at.
        self._progress: Progress | None = None
        self._within: set[timedelta] = set()  # `fresh_within` of their plans
        self._counts_from: datetime | None = None  # the newest beginning of their visits

    def wake(self, flag_key: str) -> None:
        """Have a flag looked at: something of it may be new."""
        self._rests.pop(flag_key, None)
        self._awake.add(flag_key)

    def forget(self, flag_key: str) -> None:
        """Drop a flag that is not watched here any more."""
        self._rests.pop(flag_key, None)
        self._awake.discard(flag_key)

    def rest(self, rollout: Rollout, until: datetime, progress: Progress) -> None:
        """Let a flag rest that was looked at with the newest `progress`; with others it goes on."""
        begins, flag_key = rollout.visits[-1].counts_from, rollout.flag_key
        if progress is not self._progress or rollout.plan.external or begins > progress.at:
            return  # answers of monitoring systems come at any time
        self._awake.discard(flag_key)
        self._rests[flag_key] = until
        self._set_alarm(flag_key, until)
        self._within.add(rollout.plan.fresh_within)
        self._counts_from = max(self._counts_from or begins, begins)

    def due(self, progress: Progress, until: datetime) -> set[str]:
        """Return the flags that are awake, with those that wake until then.

        `progress` is what the partitions say now.
        """
        if self._progress is None or not self._says_the_same(self._progress, progress):
            self._awake |= self._rests.keys()
            self._rests.clear()
            self._within.clear()
            self._counts_from = None
        self._progress = progress
        while self._alarms and self._alarms[0][0] <= until:
            at, flag_key = heapq.heappop(self._alarms)
            if self._alarm_of.get(flag_key) != at:
                continue  # a sooner one was set
            del self._alarm_of[flag_key]
            end = self._rests.get(flag_key)
            if end is not None and end <= until:
                self.wake(flag_key)
            elif end is not None:  # it was looked at meanwhile
                self._set_alarm(flag_key, end)
        return set(self._awake)

    def _set_alarm(self, flag_key: str, at: datetime) -> None:
        known = self._alarm_of.get(flag_key)
        if known is None or at < known:
            self._alarm_of[flag_key] = at
            heapq.heappush(self._alarms, (at, flag_key))

    def _says_the_same(self, before: Progress, now: Progress) -> bool:
        """Return whether the partitions say the same of every flag that rests."""
        newest = self._counts_from
        is_behind = newest is not None and (now.is_behind(newest) or before.is_behind(newest))
        return not is_behind and all(now.says_as(before, within) for within in self._within)
