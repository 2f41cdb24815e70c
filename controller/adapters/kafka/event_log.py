"""Kafka as the event log: `controller.ports.EventLog` for one member of a consumer group.

Belongs here: reading so that every call ends in time and loses no record, and what is asked of the
brokers about offsets. Does not belong here: what a record means; the group (`group_member.py`);
publishing (`publisher.py`); topics (`topics.py`).

What aiokafka does not do, and this module therefore does:
- A call may wait forever for a broker that accepts a connection and never answers.
- `getmany` moves positions before it has returned. When it then raises, for example for a broken
  checksum, the caller never gets those records. So positions are kept here, and after an error
  every partition is put back to its own.
- An offset that retention has deleted is silently reset to the oldest one. Here such a partition is
  revoked and assigned again, so that its owner asks for the log's bounds and finds the gap.
- It raises errors of any type: AttributeError, AssertionError, KeyError, struct.error. From here
  come only EventLogUnavailable, and BrokenInvariant for a static member id that is used twice.
- It sets no limit to what it unpacks, and believes what a batch says of itself: see
  `record_batches.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from controller.adapters.kafka import client
from controller.adapters.kafka import consumer_calls as calls
from controller.adapters.kafka.assigned_partitions import AssignedPartitions
from controller.adapters.kafka.client import must_propagate, names_of
from controller.adapters.kafka.consumer_records import UNREADABLE
from controller.adapters.kafka.group_member import GroupMember
from controller.adapters.kafka.record_runs import ReadBatches
from controller.errors import EventLogUnavailable
from controller.health import Faults
from controller.ports import Record, TopicPartition
from controller.settings import KafkaSettings

_FENCED_INSTANCE = "82"  # FENCED_INSTANCE_ID, which aiokafka 0.14 does not know by name

_T = TypeVar("_T")


class KafkaEventLog:
    """One member of a consumer group: `controller.ports.EventLog`, with start, stop and rebuild.

    A partition that was never sought is read from the group's committed offset, or from its first
    record.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        group_id: str,
        *,
        faults: Faults | None = None,
        bare_records: bool = False,
        reads_committed: bool = True,
        read_batches: ReadBatches | None = None,
    ) -> None:
        """Belong to `group_id` once started.

        `topics` are full names; those of equal partition counts are assigned alike. `faults` gets
        partitions that stand still at a record that cannot be read. `bare_records`: `fetch` leaves
        out each record's `topic` and `partition`, which are its key, and takes half the time.

        `reads_committed`: leave out what a transaction aborted, because it never happened. False
        reads all at once: commands are written without transactions, and one that a stranger leaves
        open would delay them for as long as it lasts.

        `read_batches`, with `bare_records`: the native reader; plain batches then come as runs of
        its records.
        """
        self._settings = settings
        self._topics = frozenset(topics)
        self._group_id = group_id
        self._logger = structlog.get_logger(__name__).bind(group=group_id)
        self._partitions = AssignedPartitions(faults)
        self._member = GroupMember(
            settings,
            topics,
            group_id,
            self._partitions,
            bare_records=bare_records,
            reads_committed=reads_committed,
            read_batches=read_batches,
        )
        # Topics that were deleted and made again. The next fetch takes their partitions away.
        self._remade: set[str] = set()
        self._last_fetch: float | None = None

    # --- life and assignment ---

    async def start(self) -> None:
        """Join the group.

        Raises EventLogUnavailable when that takes longer than `start_seconds`; call it again then.
        """
        await self._member.start()

    async def stop(self) -> None:
        """Leave the group after a last save, within `stop_seconds`, whatever the brokers do."""
        await self._member.stop()

    async def rebuild(self) -> None:
        """Replace the consumer by a new one, for the watchdog.

        Raises EventLogUnavailable; `fetch` then tries again.
        """
        await self._member.rebuild()

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        return self._partitions.owned

    @property
    def assignments(self) -> int:
        """How many times the group has assigned partitions to this member."""
        return self._member.assignments

    @property
    def rebuilds(self) -> int:
        """How many times the consumer was replaced."""
        return self._member.rebuilds

    def on_revoked(self, callback: Callable[[frozenset[TopicPartition]], Awaitable[None]]) -> None:
        self._member.on_revoked(callback)

    def topic_remade(self, topic: str) -> None:
        """Record that a topic, by its full name, was deleted and made again.

        Its partitions are taken away at the next fetch and returned at the one after, so that their
        owner loads them again.
        """
        if topic in self._topics:
            self._remade.add(topic)

    async def _take_away_remade(self) -> None:
        remade = frozenset(one for one in self._partitions.owned if one[0] in self._remade)
        self._remade.clear()
        if remade:
            self._logger.error("topic_remade", partitions=names_of(remade))
            await self._take_away(remade)

    async def _take_away(self, partitions: frozenset[TopicPartition]) -> None:
        """Take partitions from their owner until the next fetch."""
        await self._member.give_back(partitions)
        self._partitions.to_return |= partitions

    def _return_partitions(self, consumer: AIOKafkaConsumer, now: float) -> None:
        """Assign again what was taken away, and try unreadable records again that are due."""
        partitions = self._partitions
        if partitions.to_return:
            still_ours = consumer.assignment()
            returned = frozenset(one for one in partitions.to_return if one in still_ours)
            partitions.to_return.clear()
            partitions.owned |= returned
            self._logger.warning("partitions_left_the_log", partitions=names_of(returned))
        for partition in partitions.unreadable:
            if partition not in partitions.paused and partitions.unreadable.begin_try(
                partition, now
            ):
                calls.resume(consumer, partition)

    # --- reading ---

    async def fetch(
        self, max_records: int, timeout_seconds: float
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        loop = asyncio.get_running_loop()
        self._last_fetch = loop.time()
        consumer = self._member.consumer
        if consumer is None or self._member.is_broken:
            await self._member.revive(timeout_seconds)
            return {}
        if self._member.shares_its_id():
            raise self._member.fenced()
        self._return_partitions(consumer, loop.time())
        await self._take_away_remade()
        try:
            batches = await calls.read(consumer, max_records, timeout_seconds)
        except UNREADABLE as error:
            batches = await self._read_up_to_unreadable(consumer, error, max_records)
        except BaseException as error:
            if must_propagate(error):
                raise
            if self._is_replaced(consumer):
                return {}
            self._rewind(consumer)
            if _FENCED_INSTANCE in str(error) and self._settings.static_member_id is not None:
                raise self._member.fenced() from error
            # Anything but a refusal is a fault of aiokafka or of the network: make a new consumer.
            self._member.is_broken = not (
                isinstance(error, KafkaError) and client.is_refusal(error)
            )
            raise self._member.unavailable("reading", error) from error
        return {} if self._is_replaced(consumer) else await self._deliver(consumer, batches)

    async def _deliver(
        self, consumer: AIOKafkaConsumer, batches: calls.Batches
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        """Return the records for their owner, and record how far each partition was read.

        A partition whose expected offset the log no longer has is taken away instead.

        Positions move last, and nothing is awaited from there to the owner. So the owner never
        meets a position whose records it was not given, and no failure loses any.
        """
        positions = self._partitions.positions
        reached, jumps = self._progress_in(consumer, batches)
        before = {partition: positions.get(partition) for partition in reached}
        try:
            for partition in await self._lost_in(jumps):
                del reached[partition]
                await self._take_away(frozenset((partition,)))
        except BaseException:
            self._rewind(consumer)
            for partition in batches.keys() - positions.keys():
                calls.seek(consumer, partition, batches[partition][0].offset)
            raise
        if self._is_replaced(consumer):
            return {}
        fetched: dict[TopicPartition, Sequence[Record]] = {}
        for partition, position in reached.items():
            is_owned = partition in self._partitions.owned
            if not is_owned or positions.get(partition) != before[partition]:
                continue  # taken away, or sought, while the brokers were asked
            positions[partition] = position
            if partition not in batches:
                continue
            kafka_partition = KafkaPartition(*partition)
            fetched[partition] = batches[kafka_partition]
            self._partitions.unreadable.remove(partition)
            if self._member.guard is not None:
                self._member.guard.careful.pop(kafka_partition, None)
        return fetched

    def _progress_in(
        self, consumer: AIOKafkaConsumer, batches: calls.Batches
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, tuple[int, int]]]:
        """Return each partition's next offset, and the (expected, first) offsets that differ.

        A partition that is not its owner's yet is put back.
        """
        partitions = self._partitions
        reached: dict[TopicPartition, int] = {}
        jumps: dict[TopicPartition, tuple[int, int]] = {}
        for partition, records in batches.items():
            first = records[0].offset
            if partition not in partitions.owned:
                calls.seek(consumer, partition, first)
                continue
            # Behind the last record, and behind the end of a transaction that follows it.
            reached[partition] = max(
                records[-1].offset + 1, calls.position_of(consumer, partition) or 0
            )
            expected = partitions.positions.get(partition)
            if expected is not None and first != expected:
                jumps[partition] = (expected, first)
        for partition, expected in partitions.positions.items():
            position = calls.position_of(consumer, partition)
            if position is None or position <= expected or partition in partitions.unreadable:
                continue
            if partition not in batches:
                reached[partition], jumps[partition] = position, (expected, position)
        return reached, jumps

    async def _lost_in(
        self, jumps: Mapping[TopicPartition, tuple[int, int]]
    ) -> frozenset[TopicPartition]:
        """Return the partitions whose expected offset is no longer in the log.

        `jumps` are (expected, first) offsets. Ends of transactions and compaction leave harmless
        holes, too. Raises EventLogUnavailable.
        """
        ahead = [one for one, (expected, first) in jumps.items() if first > expected]
        starts = await self._starts(ahead) if ahead else {}
        return frozenset(
            one for one, (expected, _) in jumps.items() if starts.get(one, expected + 1) > expected
        )

    def _is_replaced(self, consumer: AIOKafkaConsumer) -> bool:
        """Return whether another consumer, or none, is in place; this one no longer matters."""
        return consumer is not self._member.consumer

    def _rewind(self, consumer: AIOKafkaConsumer) -> None:
        """Put every partition back to what its owner was given."""
        for partition, offset in self._partitions.positions.items():
            calls.seek(consumer, partition, offset)

    async def _read_up_to_unreadable(
        self, consumer: Any, error: KafkaError, max_records: int
    ) -> calls.Batches:
        """Return what precedes a record that cannot be read; without any, stop its partition.

        First the partition is fetched once more and every record is checked: a record that only
        aiokafka cannot read becomes one that our readers refuse. When that is no help, the
        partition stops and is tried again later. The others go on.
        """
        if self._is_replaced(consumer):
            return {}
        self._rewind(consumer)
        partition, guard = client.partition_in(error), self._member.guard
        if partition is None or guard is None:
            self._member.is_broken = True
            raise self._member.unavailable("reading", error) from error
        place = {"topic": partition.topic, "partition": partition.partition}
        if not guard.is_read_carefully(partition):
            self._logger.warning("record_not_read", **place, reason=str(error))
            guard.read_carefully(partition)
            return {}
        records, trouble = await calls.read_singly(
            consumer, partition, max_records, self._settings.call_seconds
        )
        if isinstance(trouble, UNREADABLE):
            if not records:
                self._stop_at_unreadable(consumer, partition, str(trouble))
        elif trouble is not None:
            self._logger.info("corrupt_not_read", **place, reason=str(trouble))
        return {partition: records} if records else {}

    def _stop_at_unreadable(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, why: str
    ) -> None:
        """Stop reading a partition for a while."""
        offset, guard = self._partitions.positions.get(partition), self._member.guard
        following = None
        if offset is not None:
            calls.seek(consumer, partition, offset)
            if guard is not None:
                following = guard.following(KafkaPartition(*partition), offset)
        calls.pause(consumer, partition)
        now = asyncio.get_running_loop().time()
        self._partitions.unreadable.add(partition, offset, next_offset=following, why=why, now=now)

    @property
    def corrupt(self) -> Mapping[TopicPartition, int | None]:
        """The partitions that stand still at a record that cannot be read, with its offset."""
        positions = self._partitions.positions
        return {partition: positions.get(partition) for partition in self._partitions.unreadable}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        consumer, partitions = self._member.consumer, self._partitions
        if consumer is None or partition not in partitions.owned:
            return
        partitions.positions[partition] = offset
        if partitions.unreadable.remove(partition) and partition not in partitions.paused:
            calls.resume(consumer, partition)
        calls.seek(consumer, partition, offset)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            if self._member.consumer is not None and partition in self._partitions.owned:
                self._partitions.paused.add(partition)
                calls.pause(self._member.consumer, partition)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self._partitions.paused.discard(partition)
            if (
                self._member.consumer is not None
                and partition in self._partitions.owned
                and partition not in self._partitions.unreadable
            ):
                calls.resume(self._member.consumer, partition)

    # --- offsets ---

    async def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        async def request(consumer: AIOKafkaConsumer) -> tuple[int, int]:
            first = await calls.first_offsets(consumer, [partition])
            end = await calls.end_offsets(consumer, [partition])
            return first[partition], end[partition]

        bounds = await self._ask(f"looking up the bounds of {names_of([partition])}", request)
        self._partitions.record_answers((partition,))
        return bounds

    async def _starts(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        request = partial(calls.first_offsets, partitions=partitions)
        starts = await self._ask("looking up first offsets", request)
        self._partitions.record_answers(starts)
        return starts

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        if not partitions:
            return {}
        request = partial(calls.end_offsets, partitions=partitions)
        ends = await self._ask("looking up end offsets", request)
        self._partitions.record_answers(ends)
        return ends

    def position(self, partition: TopicPartition) -> int | None:
        return self._partitions.positions.get(partition)

    def heard_at(self, partition: TopicPartition) -> float | None:
        return self._partitions.answered_at.get(partition)

    @property
    def heard_before(self) -> float | None:
        """When the brokers last answered, while this member waits for an assignment.

        Seconds on the loop's clock. None: the group has assigned something since.
        """
        return self._partitions.answered_before

    def end_offset(self, partition: TopicPartition) -> int | None:
        consumer = self._member.consumer
        if consumer is None or partition not in self._partitions.owned:
            return None
        try:
            end: int | None = consumer.highwater(KafkaPartition(*partition))
        except Exception:  # it is being assigned at this moment
            return None
        return end

    async def committed(self, partition: TopicPartition) -> int | None:
        async def request(consumer: AIOKafkaConsumer) -> int | None:
            offset: int | None = await consumer.committed(KafkaPartition(*partition))
            return offset

        return await self._ask(
            f"looking up the committed offset of {names_of([partition])}", request
        )

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        consumer = self._member.consumer
        ours = {
            KafkaPartition(*one): offset
            for one, offset in offsets.items()
            if one in self._partitions.owned
        }
        if consumer is None or not ours:
            return
        try:
            async with asyncio.timeout(self._settings.call_seconds):
                await consumer.commit(ours)
        except BaseException as error:
            if must_propagate(error):
                raise
            self._logger.warning(
                "commit_failed", error_type=type(error).__name__, reason=str(error)
            )

    async def _ask(self, doing: str, request: Callable[[AIOKafkaConsumer], Awaitable[_T]]) -> _T:
        """Return what the brokers answer.

        Raises EventLogUnavailable for every error, within `call_seconds`.
        """
        consumer = self._member.running_consumer()
        try:
            async with asyncio.timeout(self._settings.call_seconds):
                return await request(consumer)
        except BaseException as error:
            if must_propagate(error):
                raise
            raise self._member.unavailable(doing, error) from error

    # --- for the watchdog ---

    def seconds_since_fetch(self) -> float | None:
        """Return how long ago somebody last asked for records, None when nobody ever did."""
        if self._last_fetch is None:
            return None
        return asyncio.get_running_loop().time() - self._last_fetch

    async def progress(self) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return (next offset, end offset) of each partition that is being read.

        The ends are asked of the brokers. Left out are partitions that have reason to stand still:
        not sought yet, paused, or at an unreadable record. Raises EventLogUnavailable, also while
        the group is rebalancing: no partition and no answer are two things.
        """
        consumer, partitions = self._member.running_consumer(), self._partitions
        if consumer._subscription.reassignment_in_progress:
            raise EventLogUnavailable(f"{self._group_id}: the group is rebalancing")
        read: dict[TopicPartition, int] = {}
        standing: list[TopicPartition] = []
        for one, offset in partitions.positions.items():
            if one not in partitions.owned:
                continue
            if one in partitions.paused or one in partitions.unreadable:
                standing.append(one)
            else:
                read[one] = offset
        ends = await self.ends(list(read))
        # Nothing is fetched from these, so only this question shows that the brokers answer.
        with suppress(EventLogUnavailable):
            await self.ends(standing)
        return {
            one: (partitions.positions.get(one, offset), ends[one]) for one, offset in read.items()
        }
