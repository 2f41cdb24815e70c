"""A Kafka cluster in memory, and members of its consumer groups.

`MemoryEventLog` is `controller.ports.EventLog`. Nothing here sleeps or reads a clock but its
`fetch`, which waits for records on the running loop's time.
"""

from __future__ import annotations

import asyncio
import zlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from controller.adapters.memory.clock import ManualClock
from controller.adapters.memory.outage import Outage
from controller.errors import (
    EventLogUnavailable,
)
from controller.ports import (
    Record,
    TopicPartition,
)


class MemoryBroker:
    """Topics, their records, and the consumer groups that `MemoryEventLog`s are members of."""

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

        Without `partition` the key's CRC-32 chooses one (Kafka has another hash), and 0 without a
        key.
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
        """Give a topic more partitions, as `kafka-topics --alter` does, and assign all again."""
        if partitions < self.topics[topic]:
            raise ValueError("a topic never gets fewer partitions")
        self.topics[topic] = partitions
        for group in list(self._members):
            await self._rebalance(group)

    async def remake(self, topic: str) -> None:
        """Delete a topic with its records and make it again.

        Its offsets begin at 0 again, and its partitions are revoked and assigned.
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
        records = self._records[partition]
        begin = bisect_left(records, offset, key=lambda record: record.offset)
        return records[begin : begin + count]

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """Return the committed offsets of a group, to read and to write."""
        return self._committed[group]

    async def join(self, member: MemoryEventLog) -> None:
        """Add a member to its group and assign the partitions again."""
        self._members[member.group].append(member)
        await self._rebalance(member.group)

    async def leave(self, member: MemoryEventLog) -> None:
        """Remove a member from its group and assign the partitions again."""
        self._members[member.group].remove(member)
        await member.reassign(frozenset())
        await self._rebalance(member.group)

    async def _rebalance(self, group: str) -> None:
        """Assign by range: partition i of all equally divided topics goes to one member.

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

    Reads from the first record kept until it is sought elsewhere.
    """

    def __init__(self, broker: MemoryBroker, group: str, topics: Sequence[str]) -> None:
        self.group = group
        self.topics = frozenset(topics)
        self._broker = broker
        self._positions: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._answered_at: dict[TopicPartition, float] = {}
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
            self._answered_at.pop(partition, None)
        for partition in partitions - self.assignment:
            self._positions[partition] = self._broker.bounds(partition)[0]
        self.wake()

    def wake(self) -> None:
        """Let a waiting `fetch` check again."""
        self._arrived.set()

    async def fetch(
        self, max_records: int, timeout_seconds: float
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        self._broker.outage.before()
        await asyncio.sleep(0)  # a reader in a loop must not starve the writers
        records = self._read(max_records)
        if records or timeout_seconds <= 0:
            return records
        self._arrived.clear()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._arrived.wait()
        except TimeoutError:
            return {}
        self._broker.outage.before()
        return self._read(max_records)

    def _read(self, max_records: int) -> dict[TopicPartition, Sequence[Record]]:
        fetched: dict[TopicPartition, Sequence[Record]] = {}
        left = max_records
        for partition in sorted(self._positions):
            first, end = self._broker.bounds(partition)
            self._ends[partition] = end
            if partition in self._paused or left == 0:
                continue
            self._record_answers([partition])
            records = self._broker.read(partition, max(first, self._positions[partition]), left)
            if records:
                fetched[partition] = records
                left -= len(records)
            # After all records, offsets without a record behind the last one are passed, too.
            has_all = left > 0 and self._positions[partition] >= first
            following = records[-1].offset + 1 if records else self._positions[partition]
            self._positions[partition] = max(following, end) if has_all else following
        return fetched

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
        self._record_answers([partition])
        return self._broker.bounds(partition)

    def end_offset(self, partition: TopicPartition) -> int | None:
        return self._ends.get(partition)

    def position(self, partition: TopicPartition) -> int | None:
        return self._positions.get(partition)

    def heard_at(self, partition: TopicPartition) -> float | None:
        return self._answered_at.get(partition)

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._broker.outage.before()
        self._record_answers(partitions)
        return {partition: self._broker.bounds(partition)[1] for partition in partitions}

    def _record_answers(self, partitions: Sequence[TopicPartition]) -> None:
        now = self._broker.clock.monotonic()
        self._answered_at.update((one, now) for one in partitions if one in self._positions)

    async def committed(self, partition: TopicPartition) -> int | None:
        self._broker.outage.before()
        return self._broker.committed(self.group).get(partition)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not self._broker.outage.is_down:
            self._broker.committed(self.group).update(offsets)
