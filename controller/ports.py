"""What the daemon needs from the outside, as Protocols: here its parts and the adapters meet.

Every call is bounded in time by the adapter (one deadline, from settings) and raises only
exceptions of `controller.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol, Self, TypeVar, runtime_checkable

from controller.core.evidence import PartitionProgress, VisitTotals
from controller.core.judging.judgement import Advice, Explanation, Judgement
from controller.core.rollout import AskAdvice, RaiseAlert, Rollout
from schemas.quarantine import Refusal

S_contra = TypeVar("S_contra", contravariant=True)


class Clock(Protocol):
    """Wall time for records, monotonic time for durations inside the process."""

    def now(self) -> datetime:
        """Return UTC now; never runs backwards in a process, even if the wall clock is set back."""

    def monotonic(self) -> float:
        """Return seconds of a clock that nobody can set."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The time of another machine, and two moments of our monotonic clock around it."""

    at: datetime  # UTC
    asked_at: float
    answered_at: float


# --- counting ---


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

        Without I/O.
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

    async def discard(self, partition_key: str) -> bool:
        """Delete everything stored for one partition; return whether there was something.

        Its owner then finds no fence, and counts again what the log still has.
        """


# --- rollouts ---


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An effect that is saved and not yet known to be published."""

    field: str  # its name in the hash: outbox:<n>
    effect_id: str  # flag/revision/n: receivers drop repeats by it
    topic: str  # logical topic name: decisions, alerts, results, state
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """What is kept for one flag."""

    rollout: Rollout | None
    token: int  # grows by one with every save; the compare-and-set is on it
    tests: bytes  # the sequential tests' state, opaque here; b"" for none
    outbox: Sequence[OutboxEntry]
    #: Why the document cannot be read; empty: it can, or there is none. `rollout` is then the copy
    #: that the outbox still holds, None for none.
    trouble: str = ""
    is_newer: bool = False  # a newer release wrote it: never to be written over


class Rollouts(Protocol):
    """The flags' hashes: document, tests' state, answers and outbox, written together."""

    async def load(self, flag_key: str) -> StoredRollout:
        """Return what is stored; a flag never seen has no rollout and token 0.

        A document that cannot be read is described in `trouble`. Raises DocumentUnreadable when not
        even the token can be read.
        """

    async def save(
        self,
        flag_key: str,
        *,
        expected_token: int,
        rollout: Rollout | None = None,
        tests: bytes | None = None,
        outbox: Sequence[OutboxEntry] = (),
        answer: tuple[str, bytes] | None = None,
    ) -> bool:
        """Write everything given in one atomic step with token `expected_token + 1`.

        None leaves a part as it is.

        Returns False, and writes nothing, when the token is another one: somebody else decided.
        Safe to repeat with the same arguments. Raises StoreUnavailable when the outcome is unknown.
        """

    async def answer_to(self, flag_key: str, command_id: str) -> bytes | None:
        """Return the stored result of a command id, None when it was never answered."""

    async def remove_effects(self, flag_key: str, fields: Sequence[str]) -> None:
        """Delete outbox fields that are published; idempotent."""

    async def flag_keys(self) -> Sequence[str]:
        """Return every flag that has a hash."""

    async def newer_than(self, revisions: Mapping[str, int]) -> Sequence[Rollout]:
        """Return the stored rollouts whose revision exceeds the one given for their flag.

        It is 0 for a flag that is not named. A document that cannot be read is left out and
        reported: it concerns its flag alone.
        """


# --- everything else ---


class RefusedRecords(Protocol):
    """Records that cannot be used, until the quarantine topic has them. Bounded."""

    def add(self, topic: str, partition: int, refusals: Sequence[Refusal]) -> None:
        """Queue refusals for the quarantine topic."""

    async def flushed(self, seconds: float) -> None:
        """Return once everything added so far is published, or does not get through.

        After `seconds` at the latest.
        """


class Publisher(Protocol):
    """Writes records to our own topics."""

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """Return once every entry is acknowledged by all in-sync replicas.

        Raises EventLogUnavailable; a repeat is harmless.
        """

    def partition_of(self, key: str, partitions: int) -> int:
        """Return the partition that a record with this key goes to, in a topic of so many."""


class Advisor(Protocol):
    """A language model that is asked for its opinion at a gate."""

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        """Return parsed advice before `question.until`.

        Raises AdviceUnavailableError for whatever else the server does.
        """


class Commentator(Protocol):
    """A language model that is asked for information for people.

    Nothing waits for it, and no decision follows from it.
    """

    async def explain(self, rollout: Rollout, alert: RaiseAlert) -> Explanation:
        """Return a guess at why an alert was raised. Raises AdviceUnavailableError."""

    async def review(
        self, seen: Mapping[str, tuple[Rollout, Judgement]]
    ) -> Sequence[tuple[str, str]]:
        """Return (flag key, one sentence) for what is unusual in all evidence together.

        Raises AdviceUnavailableError.
        """


@dataclass(frozen=True, slots=True)
class Served:
    """What a flag plane serves for one flag, as read from it."""

    percent: (
        float | None
    )  # share of contexts that get treatment; None: the plane does not know the flag
    difference: str | None  # in words, what is not as decided; None: all is
    edited_by: str | None = (
        None  # who changed it after we wrote it last; None: nobody, or the plane cannot tell
    )

    @classmethod
    def compared(
        cls, percent: float | None, decided: float, *, edited_by: str | None = None
    ) -> Served:
        """Return what a plane serves that knows nothing but percentages."""
        if percent == decided:
            return cls(percent, None)
        serves = "does not know the flag" if percent is None else f"serves {percent:g} %"
        return cls(percent, f"{serves}, decided is {decided:g} %", edited_by)

    def short_of(self, beyond: str | None) -> Served:
        """Return the same for a plane that serves percentages alone, when more was decided.

        `beyond` names what was decided besides, None for nothing.
        """
        if beyond is None or self.difference is not None:
            return self
        return replace(
            self,
            difference=f"cannot serve {beyond}; everybody else gets the decided "
            f"{self.percent or 0:g} %",
        )


@dataclass(frozen=True, slots=True)
class PlaneStanding:
    """Whether a flag plane serves what was decided for one flag, as last observed."""

    plane: str
    is_converged: bool
    decided_percent: float
    percent: (
        float | None
    )  # as read last; None: nothing was read yet, or the plane does not know the flag
    why: str | None  # why it has not converged
    since: datetime | None  # since when it has not converged
    looked_at: datetime | None  # when it last answered; None: not yet


class FlagPlane(Protocol):
    """A system that serves flags to apps.

    A plane that the settings describe is a `ConfiguredPlane`. A plane may also be a
    `FollowingPlane`, a `RunningPlane` or a `ClosablePlane`, by having the method. All planes are
    wired alike: see `controller/planes.py`.
    """

    @property
    def name(self) -> str:
        """A short name for logs, alerts and metrics."""

    async def serve(self, rollout: Rollout) -> None:
        """Make the plane serve what `rollout` says; idempotent.

        An older revision than the plane has seen changes nothing.

        Raises FlagPlaneUnavailable when it is not known to be served.
        """

    async def look(self, rollout: Rollout) -> Served:
        """Return what the plane serves now, compared with what `rollout` says.

        Raises FlagPlaneUnavailable.
        """


class ConfiguredPlane(FlagPlane, Protocol[S_contra]):
    """A flag plane that a section of the settings describes: one row of `controller/planes.py`.

    `S_contra` is the type of the section.
    """

    @classmethod
    def from_settings(cls, name: str, settings: S_contra, clock: Clock) -> Self:
        """Return the plane; nothing is connected yet.

        `name` is the operator's name for it where there can be several such planes.
        Raises ConfigInvalid.
        """

    @staticmethod
    def can_serve_audiences(settings: S_contra) -> bool:
        """Return whether the plane can serve audiences and divided treatments.

        Other planes serve only a share of all contexts. It is known before the plane is made.
        """


@runtime_checkable
class FollowingPlane(Protocol):
    """A flag plane that serves the flags of all replicas, not only those that run here."""

    def update(self, rollout: Rollout) -> object:
        """Serve a newer document, whoever decided it; an older one changes nothing.

        Returns at once.
        """


@runtime_checkable
class RunningPlane(Protocol):
    """A flag plane with work of its own beside `serve` and `look`."""

    async def run(self) -> None:
        """Run from the time when everything decided so far is known, until cancelled."""


@runtime_checkable
class ClosablePlane(Protocol):
    """A flag plane with connections of its own."""

    async def close(self) -> None:
        """Drop the connections, within a deadline."""


class StateFeed(Protocol):
    """The compacted state topic, followed from its beginning by every replica."""

    def documents(self) -> AsyncIterator[Rollout]:
        """Yield each flag's document, oldest first, then live."""

    async def caught_up(self) -> None:
        """Return once everything that was in the topic at start has been yielded."""
