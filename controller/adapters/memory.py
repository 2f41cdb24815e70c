"""Every port in memory, deterministic: for tests, and for simulating rollouts without a broker.

Twins, not mocks: the contract tests run the same sentences on these and on the real adapters. Each
has an `outage` to switch off, or to let it do what it was asked and lose the reply, which is what a
network does. Nothing here sleeps or reads a clock but `MemoryEventLog.fetch`, which waits for
records on the running loop's time.
"""

from __future__ import annotations

import asyncio
import copy
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from controller.codec.merging import (
    Merger,
    ReadFaults,
    Reading,
    check_totals_save,
    digest_of,
    fields_of,
    outbox_number,
    stored_partition,
    visits_of,
)
from controller.core.evidence import PartitionProgress, VisitTotals
from controller.core.judging.judgement import Advice
from controller.core.rollout import AskAdvice, Rollout
from controller.errors import (
    AdviceUnavailableError,
    EventLogUnavailable,
    FlagPlaneUnavailable,
    OperatingTrouble,
    StoreUnavailable,
)
from controller.health import Faults
from controller.ports import (
    NO_FENCE,
    OutboxEntry,
    Record,
    Served,
    StoredPartition,
    StoredRollout,
    TopicPartition,
)
from schemas.totals import FORMAT, MAX_FIELDS_PER_SAVE, rebased_field


@dataclass(slots=True)
class Outage:
    """What is wrong with a surrounding system just now.

    `trouble` is raised while it `is_down` and for each lost reply.
    """

    trouble: type[OperatingTrouble]
    is_down: bool = False  # calls do nothing and raise
    lost_replies: int = 0  # so many next calls do their work and raise all the same

    def before(self) -> None:
        """Raise when nothing can be done."""
        if self.is_down:
            raise self.trouble("down, by order of the test")

    def after(self) -> None:
        """Raise when what was done is not to be known."""
        if self.lost_replies > 0:
            self.lost_replies -= 1
            raise self.trouble("reply lost, by order of the test")


# --- time
# --------------------------------------------------------------------------------------------------


class ManualClock:
    """A clock that stands until it is moved."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._now = start

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return (self._now - self._start).total_seconds()

    def advance(self, by: timedelta) -> datetime:
        """Move forward by `by` (at least 0) and return the new time."""
        if by < timedelta(0):
            raise ValueError("a clock never runs backwards")
        self._now += by
        return self._now


# --- counting
# --------------------------------------------------------------------------------------------------


class MemoryTotals:
    """The partitions' hashes as dicts. Fence, repeats and refusals as in the Redis adapter."""

    max_fields = MAX_FIELDS_PER_SAVE

    def __init__(self, faults: Faults | None = None) -> None:
        """What `read` cannot read is reported to `faults`."""
        self.hashes: dict[str, dict[str, bytes]] = {}
        self.outage = Outage(StoreUnavailable)
        self._merger = Merger()
        self._faults = ReadFaults(faults)

    async def load(self, partition_key: str) -> StoredPartition:
        self.outage.before()
        fields = dict(self.hashes.get(partition_key, {}))
        self.outage.after()
        return stored_partition(partition_key, fields)

    async def save(
        self,
        partition_key: str,
        *,
        expected: int | None,
        next_offset: int,
        fields: Mapping[str, bytes],
        rebased: int = 0,
    ) -> int | None:
        check_totals_save(expected, next_offset, fields, rebased)
        self.outage.before()
        answer = self._save(partition_key, expected, next_offset, fields, rebased)
        self.outage.after()
        return answer

    def _save(
        self,
        partition_key: str,
        expected: int | None,
        next_offset: int,
        fields: Mapping[str, bytes],
        rebased: int,
    ) -> int | None:
        stored = self.hashes.get(partition_key, {})
        digest = digest_of(expected, next_offset, fields).encode()
        fence = int(stored["next"]) if "next" in stored else None
        if fence == next_offset and stored["digest"] == digest:
            return None
        if fence != expected or stored.get("rebased", b"") != rebased_field(rebased):
            return NO_FENCE if fence is None else fence
        self.hashes[partition_key] = {
            **stored,
            **fields,
            "next": b"%d" % next_offset,
            "digest": digest,
            "format": b"%d" % FORMAT,
        }
        return None

    async def drop(self, partition_key: str, fields: Sequence[str]) -> None:
        self.outage.before()
        stored = self.hashes.get(partition_key, {})
        for name in fields:
            stored.pop(name, None)
        self.outage.after()

    async def discard(self, partition_key: str) -> bool:
        self.outage.before()
        gone = self.hashes.pop(partition_key, None)
        self.outage.after()
        return gone is not None

    async def read(
        self, partition_keys: Sequence[str], wanted: Mapping[str, tuple[str, Sequence[int]]]
    ) -> tuple[Mapping[str, Mapping[int, VisitTotals]], Sequence[PartitionProgress]]:
        self.outage.before()
        self.outage.after()
        hashes = [self.hashes.get(key, {}) for key in partition_keys]
        visits = visits_of(wanted)
        names = fields_of(visits)
        reading = Reading(self._merger, partition_keys, wanted)
        reading.take_heads(hashes)
        for stored in hashes:
            reading.take_row({name: stored.get(name) for name in names})
        for visit in visits:
            reading.merge(visit)
        self._faults.note(reading.unreadable, reading.damaged)
        return reading.found, reading.progress


# --- rollouts
# --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Flag:
    """One flag's hash."""

    token: int = 0
    last_save: object = None  # the arguments of the last save
    rollout: Rollout | None = None
    tests: bytes = b""
    outbox: dict[str, OutboxEntry] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    trouble: str = ""
    is_newer: bool = False


class MemoryRollouts:
    """The flags' hashes as objects. Compare-and-set and repeats as in the Redis adapter."""

    def __init__(self) -> None:
        self.outage = Outage(StoreUnavailable)
        self._flags: dict[str, _Flag] = {}

    async def load(self, flag_key: str) -> StoredRollout:
        self.outage.before()
        self.outage.after()
        flag = self._flags.get(flag_key, _Flag())
        return StoredRollout(
            None if flag.trouble else flag.rollout,
            flag.token,
            flag.tests,
            sorted(flag.outbox.values(), key=lambda entry: outbox_number(entry.field)),
            flag.trouble,
            flag.is_newer,
        )

    def damage(self, flag_key: str, trouble: str, *, is_newer: bool = False) -> None:
        """Make a flag's document unreadable, until it is written or discarded."""
        flag = self._flags.setdefault(flag_key, _Flag())
        flag.trouble, flag.is_newer = trouble, is_newer

    def snapshot(self) -> object:
        """Return all that is stored, for `restore`."""
        return copy.deepcopy(self._flags)

    def restore(self, snapshot: object) -> None:
        """Fall back to a snapshot, as a stale replica that is promoted does."""
        assert isinstance(snapshot, dict)
        self._flags = copy.deepcopy(snapshot)

    async def discard(self, flag_key: str) -> bool:
        """Delete everything stored for a flag; False when there was nothing."""
        self.outage.before()
        gone = self._flags.pop(flag_key, None)
        self.outage.after()
        return gone is not None

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
        for entry in outbox:
            outbox_number(entry.field)
        self.outage.before()
        is_done = self._save(flag_key, expected_token, rollout, tests, tuple(outbox), answer)
        self.outage.after()
        return is_done

    def _save(
        self,
        flag_key: str,
        expected_token: int,
        rollout: Rollout | None,
        tests: bytes | None,
        outbox: tuple[OutboxEntry, ...],
        answer: tuple[str, bytes] | None,
    ) -> bool:
        arguments = (rollout, tests, outbox, answer)
        flag = self._flags.get(flag_key, _Flag())
        if flag.token == expected_token + 1 and flag.last_save == arguments:
            return True
        if flag.token != expected_token:
            return False
        self._flags[flag_key] = _Flag(
            token=expected_token + 1,
            last_save=arguments,
            rollout=flag.rollout if rollout is None else rollout,
            tests=flag.tests if tests is None else tests,
            outbox={**flag.outbox, **{entry.field: entry for entry in outbox}},
            answers=flag.answers if answer is None else {**flag.answers, answer[0]: answer[1]},
            trouble=flag.trouble if rollout is None else "",
            is_newer=flag.is_newer and rollout is None,
        )
        return True

    async def answer_to(self, flag_key: str, command_id: str) -> bytes | None:
        self.outage.before()
        self.outage.after()
        return self._flags.get(flag_key, _Flag()).answers.get(command_id)

    async def settle(self, flag_key: str, fields: Sequence[str]) -> None:
        for name in fields:
            outbox_number(name)
        self.outage.before()
        flag = self._flags.get(flag_key, _Flag())
        for name in fields:
            flag.outbox.pop(name, None)
        self.outage.after()

    async def flag_keys(self) -> Sequence[str]:
        self.outage.before()
        self.outage.after()
        return sorted(self._flags)

    async def newer_than(self, revisions: Mapping[str, int]) -> Sequence[Rollout]:
        self.outage.before()
        self.outage.after()
        readable = (self._flags[key] for key in sorted(self._flags) if not self._flags[key].trouble)
        stored = (flag.rollout for flag in readable)
        return [
            each
            for each in stored
            if each is not None and each.revision > revisions.get(each.flag_key, 0)
        ]


# --- the event log
# --------------------------------------------------------------------------------------------------


class MemoryBroker:
    """Topics, their records and the consumer groups on them.

    What `MemoryEventLog` members are members of.
    """

    def __init__(self, clock: ManualClock, topics: Mapping[str, int]) -> None:
        """`topics` is name -> number of partitions."""
        self.clock = clock
        self.topics = dict(topics)
        self.outage = Outage(EventLogUnavailable)
        self._records: dict[TopicPartition, list[Record]] = defaultdict(list)
        self._first: dict[TopicPartition, int] = defaultdict(int)
        self._next: dict[TopicPartition, int] = defaultdict(int)
        self._committed: dict[str, dict[TopicPartition, int]] = defaultdict(dict)
        self._members: dict[str, list[MemoryEventLog]] = defaultdict(list)

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> Record:
        """Add one record and return it.

        Without `partition` it is the key's CRC-32 that picks one (Kafka has another hash), and 0
        without a key.
        """
        if partition is None:
            partition = 0 if key is None else zlib.crc32(key) % self.topics[topic]
        if not 0 <= partition < self.topics[topic]:
            raise ValueError(f"{topic} has no partition {partition}")
        where = (topic, partition)
        at = round(self.clock.now().timestamp() * 1000) if timestamp_ms is None else timestamp_ms
        record = Record(topic, partition, self._next[where], at, key, value, tuple(headers))
        self._records[where].append(record)
        self._next[where] += 1
        for members in self._members.values():
            for member in members:
                member.wake()
        return record

    def skip(self, partition: TopicPartition, count: int = 1) -> None:
        """Use up `count` offsets without a record, as transaction markers and compaction do."""
        self._next[partition] += count

    def truncate(self, partition: TopicPartition, first: int) -> None:
        """Forget every record before offset `first`, as retention does."""
        self._first[partition] = max(first, self._first[partition])
        self._records[partition] = [
            record for record in self._records[partition] if record.offset >= first
        ]

    def cut(self, partition: TopicPartition, end: int) -> None:
        """Forget every record from offset `end` on, as an unclean election does."""
        kept = [record for record in self._records[partition] if record.offset < end]
        self._records[partition] = kept
        self._next[partition] = end

    async def grow(self, topic: str, partitions: int) -> None:
        """Give a topic more partitions, as `kafka-topics --alter` does, and share all out anew."""
        if partitions < self.topics[topic]:
            raise ValueError("a topic never gets fewer partitions")
        self.topics[topic] = partitions
        for group in list(self._members):
            await self._rebalance(group)

    async def remake(self, topic: str) -> None:
        """Delete a topic with its records and make it again.

        Offsets start over, its partitions are revoked and assigned.
        """
        for where in [(topic, number) for number in range(self.topics[topic])]:
            self._records[where] = []
            self._first[where] = self._next[where] = 0
            for committed in self._committed.values():
                committed.pop(where, None)
        for group, members in list(self._members.items()):
            for member in members:
                await member.reassign(
                    frozenset(one for one in member.assignment if one[0] != topic)
                )
            await self._rebalance(group)

    def records(self, topic: str) -> list[Record]:
        """Return all records kept, partition by partition."""
        return [
            record
            for partition in range(self.topics[topic])
            for record in self._records[(topic, partition)]
        ]

    def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        """Return (first offset kept, offset after the last)."""
        return self._first[partition], self._next[partition]

    def read(self, partition: TopicPartition, offset: int, count: int) -> list[Record]:
        """Return at most `count` records from `offset` on."""
        return [record for record in self._records[partition] if record.offset >= offset][:count]

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """Return the committed offsets of a group, to read and to write."""
        return self._committed[group]

    async def join(self, member: MemoryEventLog) -> None:
        """Add a member to its group and share the partitions out anew."""
        self._members[member.group].append(member)
        await self._rebalance(member.group)

    async def leave(self, member: MemoryEventLog) -> None:
        """Take a member out of its group and share the partitions out anew."""
        self._members[member.group].remove(member)
        await member.reassign(frozenset())
        await self._rebalance(member.group)

    async def _rebalance(self, group: str) -> None:
        """Share out by range: partition i of all equally divided topics goes to one member.

        Revokes before it assigns.
        """
        members = self._members[group]
        shares: dict[MemoryEventLog, set[TopicPartition]] = {member: set() for member in members}
        for topic, count in sorted(self.topics.items()):
            takers = [member for member in members if topic in member.topics]
            for partition in range(count):
                if takers:
                    shares[takers[partition * len(takers) // count]].add((topic, partition))
        for member in members:
            await member.reassign(member.assignment & shares[member])
        for member in members:
            await member.reassign(frozenset(shares[member]))


class MemoryEventLog:
    """One member of a consumer group on a `MemoryBroker`.

    Reads from the first record kept until it is told to seek.
    """

    def __init__(self, broker: MemoryBroker, group: str, topics: Sequence[str]) -> None:
        self.group = group
        self.topics = frozenset(topics)
        self._broker = broker
        self._positions: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._heard: dict[TopicPartition, float] = {}
        self._paused: set[TopicPartition] = set()
        self._arrived = asyncio.Event()
        self._revoked: Callable[[frozenset[TopicPartition]], Awaitable[None]] | None = None

    async def start(self) -> None:
        """Join the group."""
        await self._broker.join(self)

    async def stop(self) -> None:
        """Leave the group."""
        await self._broker.leave(self)

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._positions)

    def on_revoked(self, callback: Callable[[frozenset[TopicPartition]], Awaitable[None]]) -> None:
        self._revoked = callback

    async def reassign(self, partitions: frozenset[TopicPartition]) -> None:
        """Own exactly `partitions` from now on; the callback is awaited before any is given up."""
        lost = self.assignment - partitions
        if lost and self._revoked is not None:
            await self._revoked(lost)
        for partition in lost:
            del self._positions[partition]
            self._paused.discard(partition)
            self._ends.pop(partition, None)
            self._heard.pop(partition, None)
        for partition in partitions - self.assignment:
            self._positions[partition] = self._broker.bounds(partition)[0]
        self.wake()

    def wake(self) -> None:
        """Let a waiting `fetch` look again."""
        self._arrived.set()

    async def fetch(
        self, max_records: int, timeout_seconds: float
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        self._broker.outage.before()
        await asyncio.sleep(0)  # a reader in a loop must not starve the writers
        found = self._take(max_records)
        if found or timeout_seconds <= 0:
            return found
        self._arrived.clear()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._arrived.wait()
        except TimeoutError:
            return {}
        self._broker.outage.before()
        return self._take(max_records)

    def _take(self, max_records: int) -> dict[TopicPartition, Sequence[Record]]:
        found: dict[TopicPartition, Sequence[Record]] = {}
        left = max_records
        for partition in sorted(self._positions):
            first, end = self._broker.bounds(partition)
            self._ends[partition] = end
            if partition in self._paused or left == 0:
                continue
            self._note_answered([partition])
            records = self._broker.read(partition, max(first, self._positions[partition]), left)
            if records:
                found[partition] = records
                left -= len(records)
            # With all that there is, what takes up offsets behind the last record is passed, too.
            has_all = left > 0 and self._positions[partition] >= first
            following = records[-1].offset + 1 if records else self._positions[partition]
            self._positions[partition] = max(following, end) if has_all else following
        return found

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition in self._positions:
            self._positions[partition] = offset
            self.wake()

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(partition for partition in partitions if partition in self._positions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)
        self.wake()

    async def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        self._broker.outage.before()
        self._note_answered([partition])
        return self._broker.bounds(partition)

    def end_offset(self, partition: TopicPartition) -> int | None:
        return self._ends.get(partition)

    def position(self, partition: TopicPartition) -> int | None:
        return self._positions.get(partition)

    def heard_at(self, partition: TopicPartition) -> float | None:
        return self._heard.get(partition)

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._broker.outage.before()
        self._note_answered(partitions)
        return {partition: self._broker.bounds(partition)[1] for partition in partitions}

    def _note_answered(self, partitions: Sequence[TopicPartition]) -> None:
        now = self._broker.clock.monotonic()
        self._heard.update((one, now) for one in partitions if one in self._positions)

    async def committed(self, partition: TopicPartition) -> int | None:
        self._broker.outage.before()
        return self._broker.committed(self.group).get(partition)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not self._broker.outage.is_down:
            self._broker.committed(self.group).update(offsets)


class MemoryPublisher:
    """Keeps what was published, in order, repeats included.

    Onto a `MemoryBroker` too when it is given one.
    """

    def __init__(
        self, broker: MemoryBroker | None = None, topics: Mapping[str, str] | None = None
    ) -> None:
        """`topics` is logical name -> topic name on the broker.

        A name that is missing stands for itself.
        """
        self.published: list[OutboxEntry] = []
        self.outage = Outage(EventLogUnavailable)
        self._broker = broker
        self._topics = dict(topics or {})

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        self.outage.before()
        self.published.extend(entries)
        if self._broker is not None:
            for entry in entries:
                topic = self._topics.get(entry.topic, entry.topic)
                self._broker.append(topic, entry.value, key=entry.key.encode())
        self.outage.after()

    def partition_of(self, key: str, partitions: int) -> int:
        return zlib.crc32(key.encode()) % partitions

    def distinct(self, topic: str | None = None) -> list[OutboxEntry]:
        """Return each effect once, in the order of its first publication, of one logical topic or of all."""
        first = {entry.effect_id: entry for entry in reversed(self.published)}
        seen: set[str] = set()
        kept = []
        for entry in self.published:
            if entry.effect_id not in seen and topic in (None, entry.topic):
                kept.append(first[entry.effect_id])
            seen.add(entry.effect_id)
        return kept


class MemoryStateFeed:
    """The state topic as a list of documents."""

    def __init__(self, documents: Sequence[Rollout] = ()) -> None:
        """`documents` were in the topic at start."""
        self._documents = list(documents)
        self._at_start = len(self._documents)
        self._arrived = asyncio.Event()
        self._caught_up = asyncio.Event()

    def append(self, rollout: Rollout) -> None:
        """Add a document, as another replica's publisher does."""
        self._documents.append(rollout)
        self._arrived.set()

    async def documents(self) -> AsyncIterator[Rollout]:
        position = 0
        while True:
            if position >= self._at_start:
                self._caught_up.set()
            while position >= len(self._documents):
                self._arrived.clear()
                await self._arrived.wait()
            yield self._documents[position]
            position += 1

    async def caught_up(self) -> None:
        await self._caught_up.wait()


# --- the rest of the world
# --------------------------------------------------------------------------------------------------


class MemoryFlagPlane:
    """Serves percentages from a dict."""

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self.outage = Outage(FlagPlaneUnavailable)
        self.history: list[
            tuple[str, int, float]
        ] = []  # (flag key, revision, percent), each change once
        self._served: dict[str, tuple[int, float]] = {}
        self._edited: set[str] = set()

    @property
    def name(self) -> str:
        return self._name

    async def serve(self, rollout: Rollout) -> None:
        self.outage.before()
        revision, percent = self._served.get(rollout.flag_key, (-1, None))
        if rollout.revision >= revision:
            self._served[rollout.flag_key] = (rollout.revision, rollout.percent)
            self._edited.discard(rollout.flag_key)
            if rollout.percent != percent:
                self.history.append((rollout.flag_key, rollout.revision, rollout.percent))
        self.outage.after()

    async def look(self, rollout: Rollout) -> Served:
        self.outage.before()
        self.outage.after()
        served = self._served.get(rollout.flag_key)
        editor = "somebody" if rollout.flag_key in self._edited else None
        return Served.compared(
            None if served is None else served[1], rollout.percent, edited_by=editor
        )

    def meddle(self, flag_key: str, percent: float) -> None:
        """Serve another percentage than was decided, as a person in the plane's own console can."""
        revision, _ = self._served.get(flag_key, (-1, None))
        self._served[flag_key] = (revision, percent)
        self._edited.add(flag_key)


class MemoryAdvisor:
    """Gives prepared answers, one a question, the last one for ever; None is no advice."""

    def __init__(self, *answers: Advice | None) -> None:
        self.outage = Outage(AdviceUnavailableError)
        self.asked: list[AskAdvice] = []
        self._answers = list(answers)

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        self.outage.before()
        self.asked.append(question)
        answer = (
            self._answers[min(len(self.asked), len(self._answers)) - 1] if self._answers else None
        )
        self.outage.after()
        if answer is None:
            raise AdviceUnavailableError("no advice was prepared")
        return replace(answer)
