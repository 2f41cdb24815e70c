"""Which totals are known, and which have to be read.

The owner of an event partition writes with each save whose totals the last ones have changed. So a
reader has to read these alone, whichever replica counts them. Where that does not say enough, as
after a partition has changed hands or Redis was lost, all are read.

Pure. Does not belong here: reading, and what workers get (`totals_reader.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from controller.core.evidence import VisitTotals
from controller.deciding.given_evidence import Progress, Visits
from controller.ports import PartitionHead

AsOf = tuple[Progress, float]
"""How far the partitions were counted, and when that was read (monotonic seconds)."""


class KnownTotals:
    """The totals of the flags that are watched here, as they were read last."""

    def __init__(self) -> None:
        self.wanted: dict[str, Visits] = {}
        #: Flags that have to be read. Of all others `totals` has what is stored, as of the heads.
        self.unknown: set[str] = set()
        self.totals: dict[str, Mapping[int, VisitTotals]] = {}
        self._heads: Mapping[str, PartitionHead] | None = None  # by `topic/partition`
        self._heads_as_of: AsOf | None = None
        self._read: dict[str, AsOf] = {}  # by flag

    def want(self, flag_key: str, visits: Visits | None) -> None:
        """Note which visits of a flag are to be known; None: none any more."""
        if visits is None:
            self.wanted.pop(flag_key, None)
            self.unknown.discard(flag_key)
            self.totals.pop(flag_key, None)
            self._read.pop(flag_key, None)
        elif self.wanted.get(flag_key) != visits:
            self.wanted[flag_key] = visits
            self.doubt([flag_key])

    def take_heads(self, heads: Sequence[PartitionHead], as_of: AsOf) -> None:
        """Take where the partitions stand now: what has changed since is unknown."""
        before, now = self._heads, {head.progress.topic_partition: head for head in heads}
        changed = None if before is None else _changed(before, now)
        self.doubt(self.wanted if changed is None else changed & self.wanted.keys())
        self._heads, self._heads_as_of = now, as_of

    def doubt(self, flag_keys: Iterable[str]) -> None:
        """Have the totals of these flags read; they were known until now."""
        for flag_key in flag_keys:
            if flag_key not in self.unknown:
                as_of = self.as_of(flag_key)
                if as_of is not None:
                    self._read[flag_key] = as_of
                self.unknown.add(flag_key)

    def take(self, flag_key: str, visits: Mapping[int, VisitTotals], as_of: AsOf) -> None:
        """Take a flag's totals. They stay unknown where a part of them cannot be read."""
        if flag_key in self.wanted:
            self.totals[flag_key], self._read[flag_key] = visits, as_of
            if not any(one.unreadable for one in visits.values()):
                self.unknown.discard(flag_key)

    def as_of(self, flag_key: str) -> AsOf | None:
        """Return how old the totals of a flag are that are known; None: they were never read.

        What has not changed is as new as the heads that say so.
        """
        read, heads = self._read.get(flag_key), self._heads_as_of
        if read is None or heads is None or flag_key in self.unknown or read[1] > heads[1]:
            return read
        return heads

    def same_until(self, flag_key: str) -> datetime | None:
        """Return until when (UTC) the totals of a flag are known to have been the same."""
        as_of = self.as_of(flag_key)
        return None if as_of is None else as_of[0].at


def _changed(
    before: Mapping[str, PartitionHead], now: Mapping[str, PartitionHead]
) -> set[str] | None:
    """Return the flags whose totals have changed since, None: perhaps those of all."""
    if before.keys() != now.keys():
        return None
    changed: set[str] = set()
    for name, head in now.items():
        flag_keys = _changed_in_one(before[name], head)
        if flag_keys is None:
            return None
        changed |= flag_keys
    return changed


def _changed_in_one(before: PartitionHead, now: PartitionHead) -> frozenset[str] | None:
    """Return the same of one partition. While the fence of an older release stands, none have."""
    if before.changed is not None and now.changed is not None:
        return now.changed.after(before.changed)
    is_older = before.changed is None and now.changed is None
    stands = before.progress.next_offset == now.progress.next_offset
    return frozenset() if is_older and stands else None
