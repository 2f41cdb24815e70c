"""Remembers which evidence was given last, to avoid repeated work.

Pure but for the worker that is asked. Does not belong here: reading, and when workers get what
(`totals_reader.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from controller.core.evidence import (
    Evidence,
    PartitionProgress,
    Reading,
    VisitTotals,
    WebhookReply,
)
from controller.core.judging.staleness import Age, ages, has_older_than, uncounted
from controller.core.rollout import Rollout
from controller.deciding.flag.flag_worker import FlagWorker

#: The fences are read so often at least, and the totals where one has moved. What a worker got less
#: than so long ago is new enough.
READ_EVERY_SECONDS: Final = 1.0

Visits = tuple[str, Sequence[int]]
"""A rollout's id and the numbers of its visits."""


class Progress:
    """The event partitions as they were read together, and what of them is too old for a plan."""

    def __init__(
        self, partitions: tuple[PartitionProgress, ...], expected_partitions: int, at: datetime
    ) -> None:
        """`expected_partitions` is how many event partitions there are."""
        self.partitions = partitions
        self.expected_partitions = expected_partitions
        self.at = at
        self.losses = tuple(partition.losses for partition in partitions)
        self.lagging = any(one.lag for one in partitions)
        self._ages: dict[timedelta, frozenset[tuple[str, Age]]] = {}

    def ages(self, fresh_within: timedelta) -> frozenset[tuple[str, Age]]:
        """Return what is too old, or of the future; most plans have the same `fresh_within`."""
        if fresh_within not in self._ages:
            self._ages[fresh_within] = ages(self.partitions, fresh_within, self.at)
        return self._ages[fresh_within]

    def says_as(self, before: Progress, fresh_within: timedelta) -> bool:
        """Return whether it says the same as before, but for records that wait to be counted."""
        return (
            self.expected_partitions == before.expected_partitions
            and self.ages(fresh_within) == before.ages(fresh_within)
            and self.losses == before.losses
        )

    def is_behind(self, moment: datetime) -> bool:
        """Return whether a partition with records to count has counted none since then."""
        return any(has_older_than(one, moment) for one in self.partitions)


class Facts(NamedTuple):
    """What is known of one rollout, without the event partitions: the other fields of `Evidence`.

    Most times these are the same as before, and no evidence is made of them.
    """

    visits: Mapping[int, VisitTotals]
    actuation_drift: str | None
    readings: Mapping[str, Reading]
    replies: Mapping[str, WebhookReply]

    def evidence(self, progress: Progress, at: datetime) -> Evidence:
        """Return these facts with the event partitions, as evidence at a time."""
        return Evidence(
            at,
            self.visits,
            progress.partitions,
            progress.expected_partitions,
            self.actuation_drift,
            self.readings,
            self.replies,
        )


@dataclass(frozen=True, slots=True)
class Given:
    """What a flag's worker got last."""

    rollout: Rollout
    facts: Facts
    progress: Progress
    at: float  # when that turn began; monotonic seconds

    def is_enough(
        self,
        rollout: Rollout,
        facts: Facts,
        progress: Progress,
        worker: FlagWorker,
        now: float,
        at: datetime,
    ) -> bool:
        """Return whether a look at newer facts now would find the same, but for some time.

        `now` is in monotonic seconds, `at` the same in UTC. Until the worker has handled what it
        got last, it gets the totals again.
        """
        if facts.visits != self.facts.visits:
            return False
        if now - self.at < READ_EVERY_SECONDS:
            return True
        return (
            rollout is self.rollout
            and self.rests_until(worker, at) is not None
            and facts[1:] == self.facts[1:]  # all but the visits
            and self._is_progress_enough(rollout, facts, progress)
        )

    def rests_until(self, worker: FlagWorker, at: datetime) -> datetime | None:
        """Return until when the same totals lead to the same; None: they may not now, at `at`.

        A look before that moment finds nothing, also where the next turn comes after it.
        """
        until = worker.quiet_until(self.at)
        return until if until is not None and at < until else None

    def _is_progress_enough(self, rollout: Rollout, facts: Facts, progress: Progress) -> bool:
        """Return whether newer partitions say the same of this rollout."""
        before, within = self.progress, rollout.plan.fresh_within
        return progress.says_as(before, within) and (
            not (progress.lagging or before.lagging)
            or _is_all_counted(rollout, facts, progress)
            == _is_all_counted(rollout, self.facts, before)
        )


def _is_all_counted(rollout: Rollout, facts: Facts, progress: Progress) -> bool:
    """Return whether all is counted that has happened in the present visit, as a gap would say."""
    at = progress.at
    evidence = facts.evidence(progress, at)
    return uncounted(rollout.plan, rollout.visits[-1], evidence, None, at) is None
