"""One event partition that is ours, and the pair it belongs to.

Where each stands between the log, memory and the store. Belongs here: state and its names. Does not
belong here: what is done with it (`assignment.py`, `pair_order.py`, `saving.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from controller.counting.partition_totals import PartitionTotals
from controller.counting.pending_records import PendingRecords
from controller.ports import TopicPartition
from schemas.totals import PartitionCounts


class PartitionState(StrEnum):
    """Where a partition stands."""

    LOADING = "loading"
    READY = "ready"
    STOPPED = "stopped"  # a person must repair it; it is tried again now and then
    GONE = "gone"  # not ours any more


@dataclass(frozen=True, slots=True)
class PartitionView:
    """One partition as operators and the watchdog see it."""

    topic: str
    partition: int
    state: PartitionState
    next_offset: int  # folded up to here
    saved_offset: int | None
    end_offset: int | None
    records: PartitionCounts
    unmoved_seconds: float  # since the saved offset last moved, or there was last no lag
    trouble: str  # why it is stopped, else empty
    unsaved_seconds: float = 0.0  # age of the oldest change that is not saved
    heard_seconds: float | None = None  # since the brokers last answered for it; None: never
    counts_exposures: bool = True  # evaluations; else outcomes
    saved_seconds: float = 0.0  # since it was last saved; an idle one is saved, too
    save_trouble: str = ""  # why the last try to save failed; empty: it did not

    @property
    def lag(self) -> int | None:
        """Records not yet saved, None when the log's end is not known."""
        if self.end_offset is None:
            return None
        return max(0, self.end_offset - (self.saved_offset or 0))


TRIES = 3
"""Consecutive mistakes of ours in one partition before it is stopped."""


class OwnedPartition:
    """One partition that is assigned to us."""

    __slots__ = (
        "bounds_at",
        "careful_to",
        "checked_last_ms",
        "checked_to",
        "delivered_at",
        "end",
        "end_answered_at",
        "failed_at",
        "failures",
        "hidden_since",
        "holes_checked",
        "is_busy",
        "is_by_reference",
        "is_counting_exposures",
        "is_faulty",
        "is_leaving",
        "is_paused",
        "key",
        "last_timestamp_ms",
        "loaded",
        "moved_at",
        "noted_at",
        "noted_hour",
        "partition",
        "pending",
        "poisoned",
        "rebased_at",
        "reported",
        "save_at",
        "save_trouble",
        "saved",
        "saved_at",
        "saved_rebased",
        "set_aside",
        "state",
        "swept_at",
        "times_short",
        "totals",
        "trial",
        "trouble",
        "unsaved_since",
    )

    def __init__(
        self, partition: TopicPartition, key: str, totals: PartitionTotals, now: float
    ) -> None:
        """Start with nothing loaded.

        `key` is the name its hash is stored under, `now` monotonic seconds.
        """
        self.partition = partition
        self.key = key
        self.totals = totals
        self.state = PartitionState.LOADING
        self.trouble = ""
        self.save_trouble = ""  # of the last try to save; empty: it was saved
        #: Totals that were loaded, the stored fence (None for none), how often it was rebased.
        self.loaded: tuple[PartitionTotals, int | None, int] | None = None
        self.saved: int | None = None  # the fence that we expect in the store
        self.saved_at = now
        self.moved_at = now
        self.swept_at = now
        self.noted_at = now  # when its evaluations were last passed on, to this hour
        self.noted_hour = 0
        self.holes_checked = 0
        self.checked_to = 0  # up to this position all holes are accounted for
        self.checked_last_ms = 0  # timestamp of the last record before it
        # Counted, quarantined, late and ignored, as far as the metrics know.
        self.reported = (0, 0, 0, 0)
        self.pending = PendingRecords()
        self.is_counting_exposures = totals.counts_exposures
        self.is_paused = False
        self.is_busy = False  # being encoded: nothing may be folded
        self.is_by_reference = False  # since a fault of the native fold
        self.is_leaving = False  # being handed over: nothing more is folded
        self.last_timestamp_ms: float = -inf  # of the last record folded
        self.delivered_at = now  # when the log last gave a record
        self.saved_rebased = 0  # the part of the fence that we expect
        self.unsaved_since: float | None = None  # when the oldest unsaved change was counted
        self.end: int | None = None  # the log's end, as last answered
        self.end_answered_at: float | None = None  # when that was
        self.hidden_since: float | None = None  # since an open transaction hides records
        self.bounds_at: float | None = None  # when the brokers answered the load
        self.times_short = 0  # times in a row that the log ended before our position
        self.failures = 0  # consecutive mistakes of ours at one place
        self.failed_at = 0  # position of the last one
        self.careful_to = -1  # up to this offset records are tried one by one
        self.trial: PartitionTotals | None = None  # on which they are tried
        self.poisoned: dict[
            int, str
        ] = {}  # offset -> why a record fails, although its trial does not
        self.save_at = -1  # up to here all is saved before more is tried
        self.set_aside: list[tuple[int, str]] = []  # records and why, not yet reported
        self.is_faulty = False  # reported as a fault
        self.rebased_at: float | None = None  # when it was last rebased

    @property
    def name(self) -> str:
        """Topic and partition, as in the names of faults."""
        return f"{self.partition[0]}/{self.partition[1]}"

    @property
    def is_rebased(self) -> bool:
        """Whether it counts another log than the stored one, and that is not saved yet."""
        return self.totals.progress.rebased != self.saved_rebased

    @property
    def counted_from(self) -> int:
        """The offset from which on nothing is saved yet."""
        if self.state is PartitionState.READY and (self.saved is None or self.is_rebased):
            return self.totals.progress.start
        return self.saved or 0

    @property
    def is_careful(self) -> bool:
        """Whether its next records are tried before they are counted."""
        return self.careful_to >= self.totals.position

    def end_trial(self) -> None:
        """Free the totals that records were tried on."""
        if self.trial is not None:
            self.trial.flags.close()
            self.trial = None

    def set_failures_behind(self, offset: int) -> None:
        """Forget which records failed before `offset`: the fence has passed them."""
        if self.poisoned:
            self.poisoned = {where: why for where, why in self.poisoned.items() if where >= offset}
        if self.careful_to < offset:
            self.careful_to = -1
            self.end_trial()
        if self.save_at <= offset:
            self.save_at = -1

    @property
    def has_changed(self) -> bool:
        """Whether there is something to save."""
        totals = self.totals
        return totals.position != self.saved or totals.flags.has_changed or self.is_rebased


class PartitionPair:
    """The partitions of one number, of both topics, as far as they are ours."""

    __slots__ = (
        "encode_seconds",
        "evaluations",
        "held_since",
        "next_save_at",
        "outcomes",
        "save_pause",
        "saving",
    )

    def __init__(self) -> None:
        """Start with neither."""
        self.evaluations: OwnedPartition | None = None
        self.outcomes: OwnedPartition | None = None
        self.saving: asyncio.Task[None] | None = None
        self.next_save_at = 0.0
        self.save_pause = 0.0  # seconds from the last save to that moment
        self.encode_seconds = 0.0
        self.held_since: float | None = None  # since then an outcome waits for evaluations

    def owned(self) -> Iterator[OwnedPartition]:
        """Yield the partitions, outcomes first.

        Saved in this order, exposures are never stored before their outcomes.
        """
        if self.outcomes is not None:
            yield self.outcomes
        if self.evaluations is not None:
            yield self.evaluations
