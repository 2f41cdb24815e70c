"""Where the fence of each event partition stands, and for how long, by what replicas reported last.

Pure: time is an argument. Does not belong here: for how long a fence may stand (`blindness.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from controller.core.evidence import PartitionProgress
from controller.running.blindness import Partitions, ReadPartitions


class PartitionsRead(Protocol):
    """Event partitions as they were read for one rollout, and when."""

    @property
    def progress(self) -> ReadPartitions | None: ...

    @property
    def read_at(self) -> float | None: ...


@dataclass(slots=True)
class _FencePosition:
    """Where a partition's fence stands, and since when it stands there with records waiting."""

    offset: int
    since: float  # monotonic seconds
    waiting_since: float  # since when records have waited, wherever it stood


class FenceWatch:
    """Follows the fences of all event partitions."""

    def __init__(self) -> None:
        self._fences: dict[str, _FencePosition] = {}

    def follow(self, views: Iterable[PartitionsRead], now: float, at: datetime) -> Partitions:
        """Return how long each partition's fence has stood, by what was reported last of it.

        A rollout that waits for its turn has older evidence. What partitions do is known as of the
        newest reading: while the reader is busy, they only look silent. `now` and `read_at` are
        monotonic seconds, `at` is `now` as UTC.
        """
        newest: dict[str, PartitionProgress] = {}
        # By identity: most were read together.
        read = {id(view.progress): view for view in views if view.progress is not None}
        for view in read.values():
            for one in () if view.progress is None else view.progress.partitions:
                known = newest.get(one.topic_partition)
                if known is None or one.reported_at >= known.reported_at:
                    newest[one.topic_partition] = one
        as_of = max((view.read_at for view in read.values() if view.read_at), default=now)
        for gone in self._fences.keys() - newest.keys():
            del self._fences[gone]
        for partition, one in newest.items():
            offset, has_more = one.next_offset, one.lag > 0
            fence = self._fences.get(partition)
            if fence is None or not has_more:
                self._fences[partition] = _FencePosition(offset, as_of, as_of)
            elif fence.offset != offset:
                self._fences[partition] = _FencePosition(offset, as_of, fence.waiting_since)
        stands = {name: as_of - fence.since for name, fence in self._fences.items()}
        waits = {name: as_of - fence.waiting_since for name, fence in self._fences.items()}
        return Partitions(at - timedelta(seconds=now - as_of), stands, waits, newest.values())
