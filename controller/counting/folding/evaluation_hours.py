"""Evaluations of each flag by hour and arm that were counted here and are not saved yet.

For people alone: whether a flag is still evaluated, also long after its rollout has ended, when
nothing else is counted of it. Each partition adds its own every few seconds (`saving.py`), and
about once a minute they are taken (`controller/running/use_keeper.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from schemas.terms import Arm

HOUR_MS: Final = 3_600_000
#: Entries kept while nobody can save them: half a day of 10,000 flags with both arms.
MOST_ENTRIES: Final = 240_000

#: What is counted of a flag: an arm, or None for contexts in neither arm and for unknown variants.
FlagArm = tuple[str, Arm | None]


class EvaluationHours:
    """Counts by hour, flag and arm; bounded: the oldest hours go first."""

    def __init__(self, most_entries: int = MOST_ENTRIES) -> None:
        """Start empty."""
        self._most_entries = most_entries
        self._hours: dict[int, Counter[FlagArm]] = {}

    def add(self, flag_key: str, arm: Arm | None, count: int, at_ms: int) -> None:
        """Add evaluations of about this time, in ms since the epoch."""
        hour = at_ms // HOUR_MS
        counts = self._hours.get(hour)
        if counts is None:
            counts = self._hours[hour] = Counter()
            while sum(map(len, self._hours.values())) > self._most_entries:
                del self._hours[min(self._hours)]
        counts[flag_key, arm] += count

    def take(self) -> Mapping[int, Counter[FlagArm]]:
        """Return the counts by hour since the epoch, and begin again."""
        taken, self._hours = self._hours, {}
        return taken
