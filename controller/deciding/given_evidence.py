"""Remembers which totals were read and given last, to avoid repeated work.

Pure but for the worker that is asked. Does not belong here: reading, and when workers get what
(`totals_reader.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controller.core.evidence import Evidence, PartitionProgress, VisitTotals
from controller.core.judging.staleness import Age, ages, uncounted
from controller.core.rollout import Rollout
from controller.deciding.flag.flag_worker import FlagWorker

#: The fences are read so often at least, and the totals where one has moved. What a worker got less
#: than so long ago is new enough.
READ_EVERY_SECONDS: Final = 1.0

Visits = tuple[str, Sequence[int]]
"""A rollout's id and the numbers of its visits."""


class Progress:
    """The event partitions as they were read together, and what of them is too old for a plan."""

    def __init__(self, partitions: tuple[PartitionProgress, ...], at: datetime) -> None:
        self.partitions = partitions
        self.at = at
        self.losses = tuple(partition.losses for partition in partitions)
        self.fences = {one.topic_partition: one.next_offset for one in partitions}
        #: Partitions with records to count.
        self.lagging = frozenset(
            one.topic_partition for one in partitions if one.end_offset > one.next_offset
        )
        self._ages: dict[timedelta, frozenset[tuple[str, Age]]] = {}

    def ages(self, fresh_within: timedelta) -> frozenset[tuple[str, Age]]:
        """Return what is too old, or of the future; most plans have the same `fresh_within`."""
        if fresh_within not in self._ages:
            self._ages[fresh_within] = ages(self.partitions, fresh_within, self.at)
        return self._ages[fresh_within]


@dataclass(frozen=True, slots=True)
class Known:
    """All totals as they were read last, and where the fences stood before."""

    read_at: float  # monotonic seconds
    fences: Mapping[str, int]
    wanted: Mapping[str, Visits]
    totals: Mapping[str, Mapping[int, VisitTotals]]


@dataclass(frozen=True, slots=True)
class Given:
    """The evidence that a flag's worker got last."""

    rollout: Rollout
    evidence: Evidence
    progress: Progress
    at: float  # monotonic seconds

    def is_enough(
        self,
        rollout: Rollout,
        evidence: Evidence,
        progress: Progress,
        worker: FlagWorker,
        now: float,
        turn: timedelta = timedelta(0),
    ) -> bool:
        """Return whether a look at `evidence` now would find the same, but for some time.

        `now` is in monotonic seconds, `turn` the time until the flag has its next turn.
        Until the worker has handled what it got last, it gets the totals again.
        """
        if evidence.visits != self.evidence.visits:
            return False
        if now - self.at < READ_EVERY_SECONDS:
            return True
        within = rollout.plan.fresh_within
        return (
            rollout is self.rollout
            and worker.needs_no_totals(self.at, evidence.at + turn)
            and progress.ages(within) == self.progress.ages(within)
            and progress.losses == self.progress.losses
            and (
                progress.lagging == self.progress.lagging
                or _is_all_counted(rollout, evidence) == _is_all_counted(rollout, self.evidence)
            )
            and _beside_counts(evidence) == _beside_counts(self.evidence)
        )


def _is_all_counted(rollout: Rollout, evidence: Evidence) -> bool:
    """Return whether all is counted that has happened in the present visit, as a gap would say."""
    return uncounted(rollout.plan, rollout.visits[-1], evidence, None, evidence.at) is None


def _beside_counts(evidence: Evidence) -> tuple[object, ...]:
    """Return what decides something beside counts and partitions."""
    return (
        evidence.expected_partitions,
        evidence.actuation_drift,
        evidence.readings,
        evidence.replies,
    )
