"""One event partition in our hands, and the pair it belongs to.

Where each stands between the log, memory and the store.

Belongs here: state and its names. Does not belong here: what is done with it (`folding.py`,
`ingest.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from controller.counting.partition_totals import PartitionTotals
from controller.ports import Record, TopicPartition
from schemas.totals import PartitionCounts


@dataclass(frozen=True, slots=True)
class Pacing:
    """What bounds counting in time and memory and is no operator's choice.

    The choices are `CountingSettings`.
    """

    longest_flush_seconds: float = (
        2.0  # between two saves of a partition, however long saving takes
    )
    saving_share: float = (
        0.2  # of the time that may go to saving: with many flags saves become rarer, not slower
    )
    backlog_seconds: float = (
        0.4  # longer, while there is a backlog: a save takes as long as some hundred events
    )
    heartbeat_seconds: float = (
        0.9  # an idle partition is saved as often: silence of traffic is not silence of its owner
    )
    commit_seconds: float = 1.0
    pending_records: int = (
        5_000  # fetched and not yet folded, per partition; beyond, its fetching pauses
    )
    join_grace_seconds: float = (
        0.25  # an outcome waits so long for evaluations that may be under way, when none are there
    )
    join_patience_seconds: float = (
        5.0  # and so long for evaluations that the log says are there and that do not come
    )
    revoke_seconds: float = 2.0  # for the last save before a partition is handed over
    drain_seconds: float = 2.0  # for the last saves at the end
    quarantine_seconds: float = 2.0  # a save waits at most so long for its refusals to be written
    ends_seconds: float = 1.0  # between two questions where the log ends
    sweep_seconds: float = 60.0  # between two looks for rollouts that ended
    failed_seconds: float = 0.5  # before a partition is loaded again after a mistake of ours
    stopped_seconds: float = 10.0  # between two tries of a partition that is stopped
    retry_seconds: float = 0.2  # between two tries of a call that failed within its own deadline


class PartitionState(StrEnum):
    """Where a partition stands."""

    LOADING = "loading"
    READY = "ready"
    STOPPED = "stopped"  # a person is needed; it is tried again now and then
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
    unmoved_seconds: (
        float  # since the saved offset last moved, or the partition was last seen without lag
    )
    trouble: str  # why it is stopped, else empty
    unsaved_seconds: float = 0.0  # age of the oldest change that is counted and not saved
    heard_seconds: float | None = None  # since the brokers last answered for it; None: never
    counts_exposures: bool = True  # evaluations; else outcomes
    saved_seconds: float = 0.0  # since it was last saved; idle partitions are saved, too

    @property
    def lag(self) -> int | None:
        """Records not yet saved, None when the log's end is not known."""
        return (
            None if self.end_offset is None else max(0, self.end_offset - (self.saved_offset or 0))
        )


TRIES = 3
"""Mistakes of ours in one partition, one after the other, before it counts as stopped."""


class OwnedPartition:
    """One partition that is assigned to us."""

    __slots__ = (
        "asked_at",
        "bounds_at",
        "careful_to",
        "delivered_at",
        "end",
        "failed_at",
        "failures",
        "holes_seen",
        "is_busy",
        "is_counting_exposures",
        "is_faulty",
        "is_leaving",
        "is_paused",
        "key",
        "last_timestamp_ms",
        "loaded",
        "looked_last_ms",
        "looked_to",
        "moved_at",
        "partition",
        "pending",
        "poisoned",
        "rebased_at",
        "reported",
        "save_at",
        "saved",
        "saved_at",
        "saved_rebased",
        "set_aside",
        "shrunk",
        "state",
        "swept_at",
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
        #: With the fence found, None for none, and how often it was rebased.
        self.loaded: tuple[PartitionTotals, int | None, int] | None = None
        self.saved: int | None = None  # the fence we expect to find
        self.saved_at = now
        self.moved_at = now
        self.swept_at = now
        self.holes_seen = 0
        self.looked_to = 0  # up to this position all holes are accounted for
        self.looked_last_ms = 0  # timestamp of the last record before it
        self.reported = (
            0,
            0,
            0,
            0,
        )  # counted, quarantined, late, ignored, as far as the metrics know
        self.pending: list[Record] = []
        self.is_counting_exposures = totals.counts_exposures
        self.is_paused = False
        self.is_busy = False  # being encoded: nothing may be folded
        self.is_leaving = False  # being handed over: nothing more is folded
        self.last_timestamp_ms: float = -inf  # of the last record folded
        self.delivered_at = now  # when the log last gave a record
        self.saved_rebased = 0  # a part of the fence we expect to find
        self.unsaved_since: float | None = None  # when the oldest unsaved change was counted
        self.end: int | None = None  # of the log, as asked for
        self.asked_at: float | None = None  # when that was answered
        self.bounds_at: float | None = None  # when the brokers answered the load
        self.shrunk = 0  # times in a row that the log ended before our position
        self.failures = 0  # mistakes of ours since it last got beyond the place of the first
        self.failed_at = 0  # position of the last one
        self.careful_to = -1  # up to this offset records are tried one by one: some may fail
        self.trial: PartitionTotals | None = None  # on which they are tried first
        self.poisoned: dict[int, str] = {}  # offset of a record that failed all the same -> why
        self.save_at = -1  # what is counted up to here is saved before more is tried
        self.set_aside: list[tuple[int, str]] = []  # records and why, not yet reported
        self.is_faulty = False  # reported as a fault
        self.rebased_at: float | None = None  # when it was last rebased

    @property
    def name(self) -> str:
        """Topic and partition, as faults are named."""
        return f"{self.partition[0]}/{self.partition[1]}"

    @property
    def is_rebased(self) -> bool:
        """Whether it counts another log than the one that is stored; not yet saved."""
        return self.totals.records.rebased != self.saved_rebased

    @property
    def counted_from(self) -> int:
        """The offset from which on nothing is saved yet."""
        if self.state is PartitionState.READY and (self.saved is None or self.is_rebased):
            return self.totals.records.start
        return self.saved or 0

    @property
    def is_careful(self) -> bool:
        """Whether its next records are tried before they are counted."""
        return self.careful_to >= self.totals.position

    def end_trial(self) -> None:
        """Let go of what records were tried on."""
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
        "saving",
    )

    def __init__(self) -> None:
        """Start with neither."""
        self.evaluations: OwnedPartition | None = None
        self.outcomes: OwnedPartition | None = None
        self.saving: asyncio.Task[None] | None = None
        self.next_save_at = 0.0
        self.encode_seconds = 0.0
        self.held_since: float | None = None  # an outcome waits for evaluations since then

    def owned(self) -> Iterator[OwnedPartition]:
        """Yield the partitions, outcomes first.

        Saved in this order, exposures are never stored ahead of their outcomes.
        """
        if self.outcomes is not None:
            yield self.outcomes
        if self.evaluations is not None:
            yield self.evaluations
