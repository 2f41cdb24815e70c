"""Kafka as the event log, as the place we publish to, and as the followed state topic.

Belongs here: everything that works around aiokafka, so that the service sees calls that end in time
and lose nothing. Does not belong here: what a record means; and what is asked of the cluster once,
at start (`kafka_topics.py`).

What aiokafka does not do for us, and this module therefore does:
- Nothing in it is bounded: `stop`, `commit`, a send to a broker that accepts and never answers, all
  may wait for ever.
- `getmany` moves positions before it has returned; when it then raises (a broken checksum), records
  are lost to the caller. So positions are kept here, and after an error every partition is put back
  to its own.
- An offset that retention has eaten is reset to the oldest one silently. Here such a partition is
  revoked and assigned again, so that its owner looks at the log's bounds and finds the gap.
- A rebalance opens partitions before the listener has run, and a listener's exception is swallowed.
- It raises what it stumbles over: AttributeError, AssertionError, KeyError, struct.error.
  From here comes only EventLogUnavailable.
- What it unpacks, and what a batch says of itself, knows no bounds: see `kafka_records.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, ConsumerRecord
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    ConsumerStoppedError,
    KafkaError,
    MessageSizeTooLargeError,
)

from controller.adapters.kafka.consumer_records import UNREADABLE, Guard, leave_bare, name_faults
from controller.adapters.kafka.record_batches import RefusedBatch
from controller.adapters.kafka.topics import client_options, cluster_id, ensure_topics, partition_of
from controller.errors import BrokenInvariant, EventLogUnavailable
from controller.health import Faults, Scope
from controller.ports import ClockReading, OutboxEntry, Record, TopicPartition
from controller.settings import KafkaSettings
from schemas.envelope import HEADERS

__all__ = [
    "KafkaEventLog",
    "KafkaPublisher",
    "cluster_id",
    "ensure_topics",
    "partition_of",
    "trimmed",
]

log = structlog.get_logger(__name__)

# : Called with what went wrong, for a metric: `commit_failed`, `revoke_failed`, `rebuilt`, ... A
# small fixed set.
CountTrouble = Callable[[str], None]

_HEADERS = list(HEADERS)  # everything we write is a structured CloudEvent
_NAMED_PARTITION = re.compile(r"TopicPartition\(topic='([^']+)', partition=(\d+)\)")
_RECORDS = "records"  # who reports a partition that stands still at a record, and alone clears it
_CORRUPT_RETRY_SECONDS = (
    5.0  # a bit flipped on the wire is gone at the next try; one on the disk stays
)
_CORRUPT_LONGEST_RETRY_SECONDS = (
    60.0  # doubled up to this: another replica of the partition may take over
)
_FENCED_INSTANCE = "82"  # FENCED_INSTANCE_ID, which aiokafka 0.14 does not know by name
_DUEL_JOINS = 6  # joins within _DUEL_HEARTBEATS heartbeats that no honest rebalancing needs
_DUEL_HEARTBEATS = 10
_COORDINATOR_TASKS = (
    "_coordination_task",
    "_heartbeat_task",
    "_commit_refresh_task",
    "_reset_committed_task",
)
_STOP_GRACE_SECONDS = (
    0.2  # at most, of each of three steps, for tasks whose connections were just cut
)
_READINGS_KEPT = (
    8  # of the newest acknowledgements, the one that came quickest tells the broker's clock best
)
_READING_SECONDS = 600.0
_YEAR_2000_MS = 946_684_800_000

_T = TypeVar("_T")


@dataclass(slots=True)
class _Broken:
    """A record that cannot be read, at which its partition stands still."""

    offset: int | None  # None: nobody has said yet where the partition is to be read
    retry_at: float  # on the loop's clock
    times: int = 1
    following: int | None = None  # the offset behind its batch, None when that cannot be told


def ignore(trouble: str) -> None:
    """Count nothing."""


class KafkaEventLog:
    """One member of a consumer group: `controller.ports.EventLog`, with start, stop and rebuild.

    Reads committed records only: what a transaction aborted never happened. A partition that was
    never sought is read from the group's committed offset, or from its first record.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        group_id: str,
        *,
        count: CountTrouble = ignore,
        faults: Faults | None = None,
        bare_records: bool = False,
        reads_committed: bool = True,
    ) -> None:
        """Belong to `group_id` once started.

        `topics` are full names; those of equal partition counts are assigned alike.

        `bare_records`: `fetch` leaves out each record's `topic` and `partition`, which are its key,
        and takes half the time. `faults` gets partitions that stand still at a record that cannot
        be read.

        `reads_committed`: leave out what a transaction aborted. False reads all at once: orders are
        written without transactions, and one that a stranger leaves open would hold them up for as
        long as it lasts.
        """
        self._settings = settings
        self._topics = tuple(topics)
        self._group_id = group_id
        self._count = count
        self._faults = faults
        self._bare_records = bare_records
        self._reads_committed = reads_committed
        self._log = log.bind(group=group_id)
        self._revoked: Callable[[frozenset[TopicPartition]], Awaitable[None]] | None = None
        # One that has started, never one that is about to.
        self._consumer: AIOKafkaConsumer | None = None
        self._guard: Guard | None = None  # of that consumer
        self._joining: AIOKafkaConsumer | None = None
        # What the joining one was given so far.
        self._joined: frozenset[TopicPartition] = frozenset()
        self._starting: asyncio.Future[None] | None = None  # of the joining one
        self._switching = (
            asyncio.Lock()
        )  # one start, stop or rebuild at a time; never held while records are read
        self._is_wanted = False
        self._is_broken = False
        self._assignment: frozenset[TopicPartition] = frozenset()
        self._returning: set[TopicPartition] = (
            set()
        )  # taken away from the owner, to be given back at the next fetch
        self._positions: dict[TopicPartition, int] = {}  # next offset of what was sought or read
        self._paused: set[TopicPartition] = set()
        self._corrupt: dict[TopicPartition, _Broken] = {}
        # When brokers answered last, on the loop's clock.
        self._heard: dict[TopicPartition, float] = {}
        # When they answered last about what was taken from us, until the group has spoken again.
        self._heard_before: float | None = None
        # Topics that were made anew, to be taken away from their owner.
        self._remade: set[str] = set()
        self._joined_at: deque[float] = deque(maxlen=_DUEL_JOINS)
        self._last_fetch: float | None = None

    # --- life ---

    async def start(self) -> None:
        """Join the group. Raises EventLogUnavailable when that takes longer than `start_seconds`; call it again then."""
        async with self._switching:
            self._is_wanted = True
            if self._consumer is None:
                await self._open()

    async def stop(self) -> None:
        """Leave the group, after a last save.

        Returns within `stop_seconds`, whatever the brokers or the save do.
        """
        self._is_wanted = False
        if self._starting is not None:
            # Waiting for brokers that do not answer takes longer than we have.
            self._starting.cancel()
        async with self._switching:
            await self._close()

    async def rebuild(self) -> None:
        """Replace the consumer by a new one, for the watchdog.

        Raises EventLogUnavailable, and is then tried by `fetch`.
        """
        async with self._switching:
            await self._close()
            self._count("rebuilt")
            if self._is_wanted:
                await self._open()

    async def _open(self) -> None:
        settings = self._settings
        consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=self._group_id,
            group_instance_id=settings.static_member_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed" if self._reads_committed else "read_uncommitted",
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=round(settings.session_timeout_seconds * 1000),
            heartbeat_interval_ms=round(settings.heartbeat_interval_seconds * 1000),
            rebalance_timeout_ms=round(settings.session_timeout_seconds * 1000),
            # A member that cannot work (Redis away) still must rejoin when it can; the watchdog
            # sees one that never does.
            max_poll_interval_ms=86_400_000,
            fetch_max_wait_ms=round(settings.fetch_max_wait_seconds * 1000),
        )
        consumer.subscribe(list(self._topics), listener=_Listener(self, consumer))
        guard = Guard(
            consumer, heard=partial(self._note_heard, consumer), refused=self._note_refused
        )
        self._joining, self._joined = consumer, frozenset()
        self._is_broken = False
        try:
            # A task of its own, so that `stop` can end it.
            self._starting = asyncio.ensure_future(consumer.start())
            async with asyncio.timeout(settings.start_seconds):
                await self._starting
            (leave_bare if self._bare_records else name_faults)(consumer)
        except BaseException as error:
            self._joining = None
            await self._end(consumer, self._settings.stop_seconds)
            if not must_pass(error):
                raise self._unavailable("joining the group", error) from error
            raise
        # No await from here: nobody sees a consumer without its partitions, or partitions without
        # their consumer.
        self._joining = None
        self._consumer, self._guard = consumer, guard
        self._assign(self._joined)
        self._log.info("consumer_started", partitions=_shown(self._assignment))

    async def _close(self) -> None:
        """Give everything back and let the consumer go.

        A static member keeps its partitions until its session ends.
        """
        consumer, self._consumer, self._guard = self._consumer, None, None
        if consumer is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.stop_seconds
        await self._give_back(self._assignment, self._settings.stop_seconds / 2)
        self._forget()
        self._heard.clear()
        await self._end(consumer, deadline - loop.time())

    async def _end(self, consumer: AIOKafkaConsumer, seconds: float) -> None:
        await stop_in_time(
            "consumer", consumer.stop(), consumer._client, lambda: tasks_of(consumer), seconds
        )

    def _forget(self) -> None:
        """Forget what was asked for partitions that may be another member's by now."""
        self._paused.clear()
        self._returning.clear()
        for partition in list(self._corrupt):
            self._read_again(partition)

    # --- assignment ---

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        return self._assignment

    def on_revoked(self, callback: Callable[[frozenset[TopicPartition]], Awaitable[None]]) -> None:
        self._revoked = callback

    async def _give_back(self, partitions: frozenset[TopicPartition], seconds: float) -> None:
        """Let the owner save what it has, within `seconds`.

        Then the partitions are no longer ours.
        """
        try:
            if partitions and self._revoked is not None:
                async with asyncio.timeout(seconds):
                    await self._revoked(partitions)
        except Exception as error:
            # The new owner starts from the fence, so a save that failed costs repeated work and
            # nothing else. Raising here would go to aiokafka, which drops it.
            self._count("revoke_failed")
            self._log.warning("revoke_failed", error_type=type(error).__name__, reason=str(error))
        finally:
            self._assignment -= partitions
            heard = [self._heard[one] for one in partitions if one in self._heard]
            if heard and not self._assignment:
                self._heard_before = min(heard)
            for partition in partitions:
                self._positions.pop(partition, None)
                self._heard.pop(partition, None)
                self._read_again(partition)

    def _take_over(self, consumer: AIOKafkaConsumer, partitions: Iterable[KafkaPartition]) -> None:
        assigned = frozenset((one.topic, one.partition) for one in partitions)
        if consumer is self._joining:
            self._joined = assigned
        elif consumer is self._consumer:
            self._assign(assigned)

    def _assign(self, partitions: frozenset[TopicPartition]) -> None:
        self._forget()
        self._heard_before = None
        self._assignment = partitions
        self._joined_at.append(asyncio.get_running_loop().time())
        self._log.info("partitions_assigned", partitions=_shown(partitions))

    async def _lose(self, consumer: AIOKafkaConsumer) -> None:
        """Hand over what a consumer had, because its group is being shared out again."""
        if consumer is self._joining:
            self._joined = frozenset()
        elif consumer is self._consumer:
            await self._give_back(self._assignment, self._settings.revoke_seconds)

    def topic_remade(self, topic: str) -> None:
        """Note that a topic, by its full name, was deleted and made again.

        Its owner shall load its partitions afresh.

        They are taken away at the next fetch, and given back at the one after.
        """
        if topic in self._topics:
            self._remade.add(topic)

    async def _take_away_remade(self) -> None:
        partitions = frozenset(one for one in self._assignment if one[0] in self._remade)
        self._remade.clear()
        if partitions:
            self._count("topic_remade")
            self._log.error("topic_remade", partitions=_shown(partitions))
            await self._give_back(partitions, self._settings.revoke_seconds)
            self._returning |= partitions

    def _is_duelling(self) -> bool:
        """Whether another process uses our static member id.

        aiokafka's heartbeats do not carry the id, so the older process is not told that it was
        fenced: it joins again, fences the younger, and so on with every heartbeat.
        """
        return (
            self._settings.static_member_id is not None
            and len(self._joined_at) == _DUEL_JOINS
            and self._joined_at[-1] - self._joined_at[0]
            < _DUEL_HEARTBEATS * self._settings.heartbeat_interval_seconds
        )

    # --- reading ---

    async def fetch(
        self, max_records: int, timeout_seconds: float
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        loop = asyncio.get_running_loop()
        self._last_fetch = loop.time()
        consumer = self._consumer
        if consumer is None or self._is_broken:
            await self._revive(timeout_seconds)
            return {}
        if self._is_duelling():
            raise self._fenced()
        self._give_again(consumer, loop.time())
        await self._take_away_remade()
        try:
            batches = await self._read(consumer, max_records, timeout_seconds)
        except UNREADABLE as error:
            batches = await self._read_up_to_corrupt(consumer, error, max_records)
        except BaseException as error:
            if must_pass(error):
                raise
            if self._has_replaced(consumer):
                return {}
            self._rewind(consumer)
            if _FENCED_INSTANCE in str(error) and self._settings.static_member_id is not None:
                raise self._fenced() from error
            # With anything but a refusal aiokafka fell over its own feet, or over the network. Put
            # back, and begin again.
            self._is_broken = not (isinstance(error, KafkaError) and _is_refusal(error))
            raise self._unavailable("reading", error) from error
        return {} if self._has_replaced(consumer) else await self._owned(consumer, batches)

    async def _read(
        self, consumer: AIOKafkaConsumer, max_records: int, timeout_seconds: float
    ) -> Mapping[KafkaPartition, Sequence[ConsumerRecord]]:
        """Return what has arrived.

        Raises whatever aiokafka raises, and KafkaError when a part of it has died in silence.
        """
        dead = dead_part(consumer)
        if dead is not None:
            raise KafkaError(f"{dead} has ended")
        try:
            batches: Mapping[KafkaPartition, Sequence[ConsumerRecord]] = {}
            if not consumer._subscription.reassignment_in_progress:
                batches = await consumer.getmany(
                    max_records=max_records
                )  # waits for nothing, so needs no timer
            if not batches:
                # While the group rebalances, getmany waits without regard to its timeout;
                # cancelling it loses no records.
                async with asyncio.timeout(timeout_seconds + 0.05):
                    batches = await consumer.getmany(
                        timeout_ms=round(timeout_seconds * 1000), max_records=max_records
                    )
        except (TimeoutError, ConsumerStoppedError):
            return {}
        return batches

    async def _owned(
        self, consumer: AIOKafkaConsumer, batches: Mapping[KafkaPartition, Sequence[ConsumerRecord]]
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        """Note how far each partition was read.

        One that is not its owner's yet, or that jumped, is put back.

        Positions move last, and from there to the owner nothing is awaited: it never sees a
        position whose records it was not given, and no failure loses any.
        """
        reached: dict[TopicPartition, int] = {}
        jumped: dict[TopicPartition, tuple[int, int]] = {}
        for partition, records in batches.items():
            first = records[0].offset
            if partition not in self._assignment:
                _seek(consumer, partition, first)
                continue
            # Behind the last record, and behind the end of a transaction that follows it.
            reached[partition] = max(records[-1].offset + 1, _position(consumer, partition) or 0)
            expected = self._positions.get(partition)
            if expected is not None and first != expected:
                jumped[partition] = (expected, first)
        for partition, expected in self._positions.items():
            position = _position(consumer, partition)
            if position is None or position <= expected or partition in self._corrupt:
                continue
            if partition not in batches:
                reached[partition], jumped[partition] = position, (expected, position)
        before = {partition: self._positions.get(partition) for partition in reached}
        try:
            for partition in await self._left_the_log(jumped):
                del reached[partition]
                await self._give_back(frozenset((partition,)), self._settings.revoke_seconds)
                self._returning.add(partition)
        except BaseException:
            self._rewind(consumer)
            for partition in batches.keys() - self._positions.keys():
                _seek(consumer, partition, batches[partition][0].offset)
            raise
        if self._has_replaced(consumer):
            return {}
        fetched: dict[TopicPartition, Sequence[Record]] = {}
        for partition, position in reached.items():
            if (
                partition not in self._assignment
                or self._positions.get(partition) != before[partition]
            ):
                continue  # taken away, or sought, while the brokers were asked
            self._positions[partition] = position
            if partition not in batches:
                continue
            fetched[partition] = batches[KafkaPartition(*partition)]
            if partition in self._corrupt:
                self._read_again(partition)
            if self._guard is not None:
                self._guard.careful.pop(KafkaPartition(*partition), None)
        return fetched

    async def _left_the_log(
        self, jumped: Mapping[TopicPartition, tuple[int, int]]
    ) -> frozenset[TopicPartition]:
        """Return whose (expected, first) offsets show that the expected one no longer exists.

        Ends of transactions and compaction leave harmless holes, too. Raises EventLogUnavailable.
        """
        ahead = [one for one, (expected, first) in jumped.items() if first > expected]
        starts = await self._starts(ahead) if ahead else {}
        return frozenset(
            one for one, (expected, _) in jumped.items() if starts.get(one, expected + 1) > expected
        )

    def _give_again(self, consumer: AIOKafkaConsumer, now: float) -> None:
        """Assign again what was taken away.

        And try corrupt partitions again when their time has come.
        """
        if self._returning:
            still_ours = consumer.assignment()
            back = frozenset(one for one in self._returning if one in still_ours)
            self._returning.clear()
            self._assignment |= back
            self._log.warning("partitions_left_the_log", partitions=_shown(back))
        for partition, broken in self._corrupt.items():
            if now >= broken.retry_at and partition not in self._paused:
                broken.retry_at = now + _retry_seconds(broken.times)
                _resume(consumer, partition)

    async def _revive(self, timeout_seconds: float) -> None:
        """Bring back a consumer that is gone; one attempt, which may take longer than a fetch."""
        if not self._is_wanted:
            raise EventLogUnavailable(f"{self._group_id}: not started")
        if self._switching.locked():  # somebody is at it
            await asyncio.sleep(timeout_seconds)
        elif self._is_broken:
            await self.rebuild()
        else:
            await self.start()

    def _has_replaced(self, consumer: AIOKafkaConsumer) -> bool:
        """Whether another consumer, or none, is there by now.

        What this one says no longer matters.
        """
        return consumer is not self._consumer

    def _rewind(self, consumer: AIOKafkaConsumer) -> None:
        """Put every partition back to what its owner has seen."""
        for partition, offset in self._positions.items():
            _seek(consumer, partition, offset)

    async def _read_up_to_corrupt(
        self, consumer: Any, error: KafkaError, max_records: int
    ) -> Mapping[KafkaPartition, Sequence[ConsumerRecord]]:
        """Return what precedes a record that cannot be read.

        When nothing does, stop reading its partition.

        First the partition is fetched once more and read carefully: a record that only aiokafka
        cannot read becomes one to refuse. What does not check out even so stops its partition. The
        others go on, and it is tried again. One by one, because the call that raises forgets what
        it has read.
        """
        if self._has_replaced(consumer):
            return {}
        self._rewind(consumer)
        partition, guard = named_partition(error), self._guard
        if partition is None or guard is None:
            self._is_broken = True
            raise self._unavailable("reading", error) from error
        if not guard.is_read_carefully(partition):
            self._log.warning(
                "record_not_read",
                topic=partition.topic,
                partition=partition.partition,
                reason=str(error),
            )
            guard.read_carefully(partition)
            return {}
        records: list[ConsumerRecord] = []
        try:
            async with asyncio.timeout(self._settings.call_seconds):
                while len(records) < max_records:
                    one = await consumer.getmany(partition, timeout_ms=1_000, max_records=1)
                    if partition not in one:
                        break
                    records += one[partition]
        except UNREADABLE as again:
            if not records:
                self._set_aside(consumer, partition, str(again))
        except Exception as again:
            log.info(
                "corrupt_not_read",
                topic=partition.topic,
                partition=partition.partition,
                reason=str(again),
            )
        return {partition: records} if records else {}

    def _set_aside(self, consumer: AIOKafkaConsumer, partition: TopicPartition, why: str) -> None:
        """Stop reading a partition for a while.

        From the second time at the same record on it is reported as a fault.
        """
        self._count("record_corrupt")
        offset = self._positions.get(partition)
        if offset is not None:
            _seek(consumer, partition, offset)
        _pause(consumer, partition)
        known = self._corrupt.get(partition)
        times = known.times + 1 if known is not None and known.offset == offset else 1
        following = (
            None
            if self._guard is None or offset is None
            else self._guard.following(KafkaPartition(*partition), offset)
        )
        retry_at = asyncio.get_running_loop().time() + _retry_seconds(times)
        self._corrupt[partition] = _Broken(offset, retry_at, times, following)
        self._log.error(
            "record_corrupt",
            topic=partition[0],
            partition=partition[1],
            offset=offset,
            attempt=times,
        )
        if times > 1 and self._faults is not None:
            place = f"{partition[0]}/{partition[1]}"
            behind = (offset or 0) + 1 if following is None else following
            self._faults.report(
                Scope.PARTITION,
                place,
                f"the record at offset {offset} of {place} cannot be read ({why}): nothing "
                f"behind it is read",
                "repair the broker's disk, or give up everything before offset "
                f"{behind} with `kafka-delete-records --offset-json-file`",
                reporter=_RECORDS,
            )

    def _read_again(self, partition: TopicPartition) -> None:
        """Forget that a partition stood still."""
        if self._corrupt.pop(partition, None) is not None and self._faults is not None:
            self._faults.clear(Scope.PARTITION, f"{partition[0]}/{partition[1]}", reporter=_RECORDS)

    @property
    def corrupt(self) -> Mapping[TopicPartition, int | None]:
        """Partitions that stand still at a record that cannot be read, with the offset.

        `skip` leads past it.
        """
        return {partition: self._positions.get(partition) for partition in self._corrupt}

    def skip(self, partition: TopicPartition, offset: int) -> int:
        """Give up the batch at which the partition stands still; return the offset to read next.

        Raises ValueError when it does not stand still there. A batch is broken as a whole, so all
        of its records are given up.
        """
        broken = self._corrupt.get(partition)
        if broken is None or broken.offset != offset:
            raise ValueError(
                f"{partition[0]}/{partition[1]} does not stand still at offset {offset}"
            )
        following = offset + 1 if broken.following is None else max(broken.following, offset + 1)
        self._count("record_skipped")
        self._log.error(
            "record_skipped",
            topic=partition[0],
            partition=partition[1],
            from_offset=offset,
            to_offset=following,
        )
        self.seek(partition, following)
        return following

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if self._consumer is None or partition not in self._assignment:
            return
        self._positions[partition] = offset
        if partition in self._corrupt:
            self._read_again(partition)
            if partition not in self._paused:
                _resume(self._consumer, partition)
        _seek(self._consumer, partition, offset)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            if self._consumer is not None and partition in self._assignment:
                self._paused.add(partition)
                _pause(self._consumer, partition)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self._paused.discard(partition)
            if (
                self._consumer is not None
                and partition in self._assignment
                and partition not in self._corrupt
            ):
                _resume(self._consumer, partition)

    # --- offsets ---

    async def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        asked = KafkaPartition(*partition)

        async def ask(consumer: AIOKafkaConsumer) -> tuple[int, int]:
            first = await consumer.beginning_offsets([asked])
            end = await consumer.end_offsets([asked])
            return int(first[asked]), int(end[asked])

        found = await self._ask(f"looking up the bounds of {_shown([partition])}", ask)
        self._note_answered((partition,))
        return found

    async def _starts(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        async def ask(consumer: AIOKafkaConsumer) -> Mapping[TopicPartition, int]:
            starts = await consumer.beginning_offsets([KafkaPartition(*one) for one in partitions])
            return {one: int(starts[KafkaPartition(*one)]) for one in partitions}

        found = await self._ask("looking up first offsets", ask)
        self._note_answered(found)
        return found

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        async def ask(consumer: AIOKafkaConsumer) -> Mapping[TopicPartition, int]:
            ends = await consumer.end_offsets([KafkaPartition(*one) for one in partitions])
            return {one: int(ends[KafkaPartition(*one)]) for one in partitions}

        found = await self._ask("looking up end offsets", ask) if partitions else {}
        self._note_answered(found)
        return found

    def position(self, partition: TopicPartition) -> int | None:
        return self._positions.get(partition)

    def heard_at(self, partition: TopicPartition) -> float | None:
        return self._heard.get(partition)

    @property
    def heard_before(self) -> float | None:
        """When the brokers answered last.

        While this member waits for its group to give it anything.

        None: the group has spoken since.
        """
        return self._heard_before

    def end_offset(self, partition: TopicPartition) -> int | None:
        if self._consumer is None or partition not in self._assignment:
            return None
        asked = KafkaPartition(*partition)
        try:
            stable: int | None = self._consumer.last_stable_offset(asked)
            end: int | None = self._consumer.highwater(asked)
        except Exception:  # being assigned anew at this moment
            return None
        return end if stable is None or stable < 0 else stable

    async def committed(self, partition: TopicPartition) -> int | None:
        async def ask(consumer: AIOKafkaConsumer) -> int | None:
            offset: int | None = await consumer.committed(KafkaPartition(*partition))
            return offset

        return await self._ask(f"looking up the committed offset of {_shown([partition])}", ask)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        consumer = self._consumer
        ours = {
            KafkaPartition(*one): offset
            for one, offset in offsets.items()
            if one in self._assignment
        }
        if consumer is None or not ours:
            return
        try:
            async with asyncio.timeout(self._settings.call_seconds):
                await consumer.commit(ours)
        except BaseException as error:
            if must_pass(error):
                raise
            self._count("commit_failed")
            self._log.warning("commit_failed", error_type=type(error).__name__, reason=str(error))

    def seconds_since_fetch(self) -> float | None:
        """Return how long ago somebody asked for records, None when nobody ever did.

        For the watchdog.
        """
        return (
            None
            if self._last_fetch is None
            else asyncio.get_running_loop().time() - self._last_fetch
        )

    async def progress(self) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return (next offset, end offset), asked of the brokers, of each partition that is being read; for the watchdog.

        Left out: partitions not sought yet, paused, or corrupt, which have reason to stand still.
        Raises EventLogUnavailable, also while the group is rebalancing: no partition at all and no
        answer are two things.
        """
        consumer = self._running()
        if consumer._subscription.reassignment_in_progress:
            raise EventLogUnavailable(f"{self._group_id}: the group is rebalancing")
        positions = {
            one: offset for one, offset in self._positions.items() if one in self._assignment
        }
        standing = [one for one in positions if one in self._paused or one in self._corrupt]
        read = {one: offset for one, offset in positions.items() if one not in standing}
        ends = await self.ends(list(read))
        # What is not fetched is asked for all the same: else nothing would be heard of it.
        with suppress(EventLogUnavailable):
            await self.ends(standing)
        return {one: (self._positions.get(one, offset), ends[one]) for one, offset in read.items()}

    # --- helpers ---

    async def _ask(self, doing: str, ask: Callable[[AIOKafkaConsumer], Awaitable[_T]]) -> _T:
        """Return what the brokers answer.

        Raises EventLogUnavailable for whatever goes wrong, within `call_seconds`.
        """
        consumer = self._running()
        try:
            async with asyncio.timeout(self._settings.call_seconds):
                return await ask(consumer)
        except BaseException as error:
            if must_pass(error):
                raise
            raise self._unavailable(doing, error) from error

    def _note_heard(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
        if consumer is self._consumer and partition in self._assignment:
            self._heard[partition] = asyncio.get_running_loop().time()

    def _note_answered(self, partitions: Iterable[TopicPartition]) -> None:
        now = asyncio.get_running_loop().time()
        self._heard.update(
            (partition, now) for partition in partitions if partition in self._assignment
        )

    def _note_refused(self, partition: TopicPartition, batch: RefusedBatch) -> None:
        self._count("batch_refused")

    def _running(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise EventLogUnavailable(f"{self._group_id}: not connected")
        return self._consumer

    def _fenced(self) -> BrokenInvariant:
        return BrokenInvariant(
            f"another process is in {self._group_id} as {self._settings.static_member_id}: "
            "kafka.static_member_id must differ from replica to replica"
        )

    def _unavailable(self, doing: str, error: BaseException) -> EventLogUnavailable:
        why = (
            "no answer in time"
            if isinstance(error, TimeoutError)
            else (str(error) or type(error).__name__)
        )
        return EventLogUnavailable(
            f"{self._group_id}: {doing}: {why} ({self._settings.bootstrap_servers})"
        )


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Tells an event log what its consumer was given.

    Of a consumer that was replaced nothing is heard any more.
    """

    def __init__(self, event_log: KafkaEventLog, consumer: AIOKafkaConsumer) -> None:
        self._event_log = event_log
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        await self._event_log._lose(self._consumer)

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        self._event_log._take_over(self._consumer, assigned)


# --- publishing
# --------------------------------------------------------------------------------------------------


class KafkaPublisher:
    """Writes to our topics: `controller.ports.Publisher`, with start and stop.

    Idempotent and acknowledged by all in-sync replicas. A batch that is not acknowledged within
    `call_seconds` is given up together with its producer, so that nothing of it arrives later,
    behind newer records.
    """

    def __init__(self, settings: KafkaSettings, *, count: CountTrouble = ignore) -> None:
        self._settings = settings
        self._count = count
        self._producer: AIOKafkaProducer | None = None
        self._switching = asyncio.Lock()
        # Effects of a batch that failed elsewhere, by id and content: not written twice. An id
        # alone may come again with other content, when Redis has fallen back.
        self._acknowledged: dict[tuple[str, bytes], None] = {}
        self._clock_readings: deque[ClockReading] = deque(maxlen=_READINGS_KEPT)

    async def start(self) -> None:
        """Connect. Raises EventLogUnavailable.

        `publish` connects too, so a failure here may be ignored.
        """
        await self._ready()

    async def stop(self) -> None:
        """Close within `stop_seconds`, whatever the brokers do."""
        async with self._switching:
            producer, self._producer = self._producer, None
            await self._close(producer)

    def partition_of(self, key: str, partitions: int) -> int:
        return partition_of(key, partitions)

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        identities = [(entry.effect_id, hashlib.sha256(entry.value).digest()) for entry in entries]
        records: list[tuple[str, bytes | None, bytes | None]] = []
        fit: list[tuple[OutboxEntry, tuple[str, bytes]]] = []
        unfit: list[str] = []
        for entry, identity in zip(entries, identities, strict=True):
            if identity in self._acknowledged:
                continue
            value = self._fit(entry, unfit)
            if value is not None:
                records.append((entry.topic, entry.key.encode(), value))
                fit.append((entry, identity))
        failures = await self._send(records)
        failed = [
            (entry, failures[index]) for index, (entry, _) in enumerate(fit) if index in failures
        ]
        if failed or unfit:
            for index, (_, identity) in enumerate(fit):
                if index not in failures:
                    self._acknowledged[identity] = None
            while len(self._acknowledged) > 10_000:
                del self._acknowledged[next(iter(self._acknowledged))]
            reasons = sorted(
                {f"{self._settings.topic(entry.topic)}: {why}" for entry, why in failed}
            )
            reasons += [
                f"{effect_id} is larger than {self._settings.max_record_bytes} bytes"
                for effect_id in unfit
            ]
            raise EventLogUnavailable(
                f"{len(failed) + len(unfit)} of {len(entries)} not published: {'; '.join(reasons)}"
            )
        for identity in identities:
            self._acknowledged.pop(identity, None)

    @property
    def clock_reading(self) -> ClockReading | None:
        """What the brokers' clock said, by the quickest of the newest answers.

        None while that is not known.

        Known from records whose topics have `message.timestamp.type=LogAppendTime`. A reading stays
        true while clocks only pass; it is forgotten after ten minutes, because the brokers' may
        have been set since.
        """
        oldest = time.monotonic() - _READING_SECONDS
        new = [one for one in self._clock_readings if one.answered_at >= oldest]
        return min(new, key=lambda one: one.answered_at - one.asked_at, default=None)

    def _note_clock(self, asked_at: float, acknowledged: asyncio.Future[Any]) -> None:
        """Read the brokers' clock off one acknowledgement.

        Its stamp lies between sending and this moment.
        """
        if acknowledged.cancelled() or acknowledged.exception() is not None:
            return
        stamp = acknowledged.result()
        # librdkafka's mock cluster stamps everything with 0: no clock of a broker stands before
        # 2000.
        if getattr(stamp, "timestamp_type", None) == 1 and (stamp.timestamp or 0) > _YEAR_2000_MS:
            at = datetime.fromtimestamp(stamp.timestamp / 1000, UTC)
            self._clock_readings.append(ClockReading(at, asked_at, time.monotonic()))

    async def publish_raw(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        """Return once one record is acknowledged. `topic` is a logical name.

        Raises EventLogUnavailable.
        """
        await self.publish_many([(topic, key, value)])

    async def publish_many(self, records: Sequence[tuple[str, bytes | None, bytes | None]]) -> None:
        """Return once all (logical topic, key, value) are acknowledged, in one batch.

        Raises EventLogUnavailable.
        """
        failures = await self._send(records)
        if failures:
            raise EventLogUnavailable(
                f"{len(failures)} of {len(records)} not published: "
                f"{'; '.join(sorted(set(failures.values())))}"
            )

    def _fit(self, entry: OutboxEntry, unfit: list[str]) -> bytes | None:
        """Return the value, trimmed when it is too large.

        None, and note it, when it must not be: state is recovered from.
        """
        limit = (
            self._settings.max_record_bytes - len(entry.key.encode()) - 256
        )  # headers of the record and its batch
        if len(entry.value) <= limit:
            return entry.value
        value = None if entry.topic == "state" else trimmed(entry.value, limit)
        self._count("record_trimmed" if value is not None else "record_too_large")
        log.error(
            "record_too_large",
            topic=entry.topic,
            effect_id=entry.effect_id,
            bytes=len(entry.value),
            trimmed=value is not None,
        )
        if value is None:
            unfit.append(entry.effect_id)
        return value

    async def _send(
        self, records: Sequence[tuple[str, bytes | None, bytes | None]]
    ) -> dict[int, str]:
        """Write in order per topic, all topics at once.

        Return why by index for those not acknowledged in time.
        """
        if not records:
            return {}
        producer = await self._ready()
        deadline = asyncio.get_running_loop().time() + self._settings.call_seconds
        pending: dict[int, asyncio.Future[Any]] = {}
        failures: dict[int, str] = {}
        by_topic: dict[str, list[int]] = {}
        for index, (topic, _, _) in enumerate(records):
            by_topic.setdefault(topic, []).append(index)

        async def queue(topic: str, indexes: Sequence[int]) -> None:
            """Hand one topic's records to the producer.

            A topic that is missing holds up no other.
            """
            name = self._settings.topic(topic)
            try:
                async with asyncio.timeout_at(deadline):
                    for index in indexes:
                        _, key, value = records[index]
                        asked_at = time.monotonic()
                        pending[index] = await producer.send(name, value, key, headers=_HEADERS)
                        pending[index].add_done_callback(partial(self._note_clock, asked_at))
            except TimeoutError:
                why = "the topic is missing, has no leader, or its queue is full"
            except Exception as error:
                why = str(error) or type(error).__name__
            else:
                return
            failures.update({index: why for index in indexes if index not in pending})

        try:
            async with asyncio.TaskGroup() as group:
                for topic, indexes in by_topic.items():
                    group.create_task(queue(topic, indexes), name=f"publish {topic}")
            if pending:
                left = deadline - asyncio.get_running_loop().time()
                await asyncio.wait(pending.values(), timeout=max(0.0, left))
        except BaseException:
            await self._discard(producer)
            raise
        is_stale = False
        for index in range(len(records)):
            if index not in pending:
                failures.setdefault(index, "the producer was closed")
        for index, future in pending.items():
            if not future.done():
                failures[index] = "no acknowledgement in time"
                is_stale = True
            elif future.cancelled():
                failures[index] = "the producer was closed"
            elif (error := future.exception()) is not None:
                failures[index] = str(error) or type(error).__name__
                # After an error of its own, an idempotent producer refuses everything; a new one
                # has new sequences.
                is_stale = is_stale or not isinstance(error, MessageSizeTooLargeError)
        if is_stale:
            await self._discard(producer)
        if failures:
            self._count("publish_failed")
        return failures

    async def _ready(self) -> AIOKafkaProducer:
        """Return a connected producer. Raises EventLogUnavailable within `call_seconds`."""
        async with self._switching:
            if self._producer is not None:
                return self._producer
            settings = self._settings
            producer = AIOKafkaProducer(
                **client_options(settings),
                acks="all",
                enable_idempotence=True,
                linger_ms=0,  # a rollback waits for nothing
                max_request_size=settings.max_record_bytes,
            )
            try:
                async with asyncio.timeout(settings.call_seconds):
                    await producer.start()
            except BaseException as error:
                await self._close(producer)
                if not must_pass(error):
                    self._count("publish_failed")
                    why = (
                        "no answer in time"
                        if isinstance(error, TimeoutError)
                        else str(error) or type(error).__name__
                    )
                    raise EventLogUnavailable(
                        f"connecting to {settings.bootstrap_servers}: {why}"
                    ) from error
                raise
            self._producer = producer
            return producer

    async def _discard(self, producer: AIOKafkaProducer) -> None:
        """Let a producer go without letting it send what it still holds."""
        if self._producer is producer:
            self._producer = None
            self._count("producer_discarded")
            for task in tasks_of(producer):
                task.cancel()
            await self._close(producer)

    async def _close(self, producer: AIOKafkaProducer | None) -> None:
        if producer is not None:
            await stop_in_time(
                "producer",
                producer.stop(),
                producer.client,
                lambda: tasks_of(producer),
                self._settings.stop_seconds,
            )


def trimmed(value: bytes, limit: int) -> bytes | None:
    """Return a structured CloudEvent with members of its data left out until it has at most `limit` bytes.

    The largest go first. The extension attributes `trimmedmembers`, `trimmedbytes` and
    `trimmedsha256` name what is missing and identify the original. None when it is no CloudEvent,
    or does not fit even so.
    """
    try:
        event = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
        return None
    left: dict[str, Any] = dict(event["data"])
    gone: list[str] = []
    sizes = {name: len(json.dumps(member)) for name, member in left.items()}
    for name in sorted(sizes, key=lambda one: -sizes[one]):
        del left[name]
        gone.append(name)
        smaller = {
            **event,
            "data": left,
            "trimmedmembers": ",".join(gone),
            "trimmedbytes": len(value),
            "trimmedsha256": hashlib.sha256(value).hexdigest(),
        }
        encoded = json.dumps(smaller, separators=(",", ":"), ensure_ascii=False).encode()
        if len(encoded) <= limit:
            return encoded
    return None


# --- around aiokafka
# --------------------------------------------------------------------------------------------------


async def stop_in_time(
    what: str,
    stopping: Coroutine[Any, Any, None],
    client: Any,
    leftovers: Callable[[], Iterable[asyncio.Task[Any]]],
    seconds: float,
) -> None:
    """Stop a client of aiokafka within `seconds`, or cut its connections and cancel its tasks.

    Its own `stop` waits for requests that a silent broker never answers, and cancelling it leaves
    its tasks running.
    """
    grace = min(_STOP_GRACE_SECONDS, seconds / 6)
    task = asyncio.ensure_future(stopping)
    try:
        await asyncio.wait({task}, timeout=seconds - 3 * grace)
    finally:
        if not task.done():
            log.warning("kafka_stop_timed_out", client=what, seconds=seconds)
            ending = {task, asyncio.ensure_future(client.close())}
            await asyncio.wait(ending, timeout=grace)
            ending.update(leftovers())
            for one in ending:
                one.cancel()
            await asyncio.wait(ending, timeout=grace)
            # What was still at it may have connected anew; these close at once, as nothing is under
            # way on them.
            closing = asyncio.ensure_future(client.close())
            await asyncio.wait({closing}, timeout=grace)
            closing.cancel()
    for one in {task, *leftovers()}:
        if one.done() and not one.cancelled() and one.exception() is not None:
            log.info("kafka_stop_failed", client=what, reason=str(one.exception()))


def tasks_of(client: AIOKafkaConsumer | AIOKafkaProducer) -> list[asyncio.Task[Any]]:
    """Return the background tasks of a consumer or producer, which aiokafka keeps to itself."""
    found: list[Any] = []
    for owner, names in (
        (getattr(client, "_coordinator", None), _COORDINATOR_TASKS),
        (getattr(client, "_fetcher", None), ("_fetch_task",)),
        (getattr(client, "_sender", None), ("_sender_task",)),
    ):
        found += [getattr(owner, name, None) for name in names]
    found += getattr(getattr(client, "_fetcher", None), "_pending_tasks", ())
    return [task for task in found if isinstance(task, asyncio.Task)]


def named_partition(error: KafkaError) -> KafkaPartition | None:
    """Return the partition that an error of reading is about, None when it names none."""
    named = _NAMED_PARTITION.search(str(error))
    return None if named is None else KafkaPartition(named[1], int(named[2]))


def must_pass(error: BaseException) -> bool:
    """Whether this is not the client's trouble: we are cancelled, or the process ends.

    aiokafka also lets out the CancelledError of a task of its own that was ended.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return not isinstance(error, Exception)


def dead_part(consumer: AIOKafkaConsumer) -> str | None:
    """Return which task of a started consumer has ended, None when all run.

    Without it the consumer would wait for ever.
    """
    for name, task in (
        (
            "the fetching of records",
            getattr(getattr(consumer, "_fetcher", None), "_fetch_task", None),
        ),
        ("the following of the cluster", getattr(consumer._client, "_sync_task", None)),
    ):
        if isinstance(task, asyncio.Task) and task.done():
            return name
    return None


def _retry_seconds(times: int) -> float:
    return min(_CORRUPT_RETRY_SECONDS * 2.0 ** (times - 1), _CORRUPT_LONGEST_RETRY_SECONDS)


def _is_refusal(error: KafkaError) -> bool:
    """Whether the brokers said no for a reason that a new connection would meet again."""
    return "Authorization" in type(error).__name__ or "Authentication" in type(error).__name__


def _position(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """Return where the consumer reads on.

    Unlike its last record that is behind ends of transactions.
    """
    with suppress(Exception):  # no longer assigned, or not known yet
        state = consumer._subscription.subscription.assignment.state_value(
            KafkaPartition(*partition)
        )
        return int(state.position) if state.has_valid_position else None
    return None


def _seek(consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int) -> None:
    with suppress(Exception):  # no longer assigned: nothing to put back
        consumer.seek(KafkaPartition(*partition), offset)


def _pause(consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
    with suppress(Exception):  # no longer assigned
        consumer.pause(KafkaPartition(*partition))


def _resume(consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
    with suppress(Exception):  # no longer assigned
        consumer.resume(KafkaPartition(*partition))


def _shown(partitions: Iterable[TopicPartition]) -> list[str]:
    return [f"{topic}/{number}" for topic, number in sorted(partitions)]
