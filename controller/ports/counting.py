"""The event log, the topology and the store of totals: what counting needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.core.evidence import PartitionProgress, VisitTotals
from schemas.totals import LatelyChanged


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record, as ingest needs it. `aiokafka.ConsumerRecord` satisfies the same names."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # ms since the epoch, by producer or broker
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class StoredPartition:
    """A partition's hash as read on assignment."""

    next_offset: int | None  # None: never counted, begin at the earliest record
    fields: Mapping[str, bytes]  # everything else, as written


@dataclass(frozen=True, slots=True)
class PartitionHead:
    """What a partition's hash says besides totals."""

    progress: PartitionProgress
    changed: LatelyChanged | None  # None: which totals have changed lately is not known


TopicPartition = tuple[str, int]


class EventLog(Protocol):
    """One member of a consumer group.

    Reading begins where `seek` says. The committed offset is informational: see `committed`.
    """

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions this member owns now.

        May change between any two awaits; records of others are to be dropped.
        """

    def on_revoked(self, callback: Callable[[frozenset[TopicPartition]], Awaitable[None]]) -> None:
        """Set what is awaited, bounded in time, before partitions are handed over: a last save."""

    async def fetch(
        self, max_records: int, timeout_seconds: float
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        """Return what has arrived, at most `max_records`, waiting at most `timeout_seconds`.

        Empty when nothing arrived. Offsets rise within a partition's records.
        """

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from `offset`. Ignored for partitions no longer assigned."""

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch nothing from these until resumed."""

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch from these again."""

    async def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        """Return (first offset kept, offset after the last). Raises EventLogUnavailable."""

    def end_offset(self, partition: TopicPartition) -> int | None:
        """Return the offset after the last record as of the latest fetch, None when not known.

        Without I/O. The last records may be of a transaction that is still open: then they cannot
        be read yet, and `ends` returns the offset where it begins.
        """

    def position(self, partition: TopicPartition) -> int | None:
        """Return the offset to read next, None before the partition was sought or read.

        Without I/O. All records before it were returned. It may be beyond the last of them: the end
        of a transaction takes up an offset, and so does a record that compaction removed.
        """

    def heard_at(self, partition: TopicPartition) -> float | None:
        """Return when the brokers last answered for this partition, with records or without.

        Monotonic seconds; None: never since it was assigned. Without I/O. This distinguishes a
        quiet topic from a broker that hangs.
        """

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return the offset after the last record of each, asked of the brokers now.

        Raises EventLogUnavailable.
        """

    async def committed(self, partition: TopicPartition) -> int | None:
        """Return the group's committed offset, None for none."""

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit next offsets: for lag tools, and for command topics.

        A failure is logged, never raised.
        """


class Topology(Protocol):
    """What the topics look like now: they grow and are created again while the daemon runs."""

    def partitions(self, logical: str) -> int:
        """Return how many partitions a topic has, as last known.

        `logical` is its name without the prefix: `commands`, `evaluations`, ... Raises KeyError
        for a topic that was never seen.
        """

    def topic_id(self, logical: str) -> str | None:
        """Return what distinguishes this topic from an earlier one of its name.

        None when brokers do not say.
        """


NO_FENCE = -1
"""The answer of `Totals.save` when it expected a fence and none is stored.

The store was emptied: load again.
"""


class Totals(Protocol):
    """The per-partition hashes: fence and absolute totals, written together.

    Layout and encoding: `schemas/totals.py`.
    """

    async def load(self, partition_key: str) -> StoredPartition:
        """Return everything stored for one partition."""

    async def save(
        self,
        partition_key: str,
        *,
        expected: int | None,
        next_offset: int,
        fields: Mapping[str, bytes],
        rebased: int = 0,
    ) -> int | None:
        """Write `fields` and the new fence in one atomic step.

        Return None when written, now or by an earlier try.

        Returns the stored fence instead, and writes nothing, when it is not `expected` (None: no
        fence yet), or when another writer set it to `next_offset`: what the caller holds in
        memory is void, so load again and read from there. `rebased` is what must stand in the field
        of this name, 0 for nothing: a part of the fence, because a log that was created again has
        the offsets of the one before. `fields` may hold a greater one; in that save alone the fence
        may move back.

        `next_offset` equal to `expected` is a heartbeat. Safe to repeat with the same arguments: a
        digest of them distinguishes a repeat from another writer's save. Raises StoreUnavailable
        when the outcome is unknown, and ValueError for more than
        `schemas.totals.MAX_FIELDS_PER_SAVE` fields.
        """

    async def drop(self, partition_key: str, fields: Sequence[str]) -> None:
        """Delete fields of rollouts that are over; idempotent, not fenced."""

    async def read(
        self, partition_keys: Sequence[str], wanted: Mapping[str, tuple[str, Sequence[int]]]
    ) -> tuple[Mapping[str, Mapping[int, VisitTotals]], Sequence[PartitionProgress]]:
        """Return merged totals and the partitions' progress, one round trip per partition.

        `wanted` is flag key -> (rollout id, visits); the answer is flag key -> visit -> totals.
        Missing fields are zeros. A partition whose progress cannot be read is missing in the
        answer, one whose part of a visit cannot be read is named by `VisitTotals.unreadable`;
        neither raises.
        """

    async def heads(self, partition_keys: Sequence[str]) -> Sequence[PartitionHead]:
        """Return how far partitions are counted, and whose totals have changed lately.

        A partition that cannot be read is missing.
        """

    async def discard(self, partition_key: str) -> bool:
        """Delete everything stored for one partition; return whether there was something.

        Its owner then finds no fence, and counts again what the log still has.
        """
