"""Our own topics, read by an operator's tool: a topic to its end, its newest records, new records.

Belongs here: reading without a group, so that it changes nothing for the daemon. Does not belong
here: what a record means; the daemon's own readers (`event_log.py`, `state_feed.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaConnectionError

from controller.adapters.kafka.client import client_options, disconnect, reason_of
from controller.adapters.kafka.connection_pace import pace_connections
from controller.adapters.kafka.consumer_records import UNREADABLE, name_faults
from controller.adapters.kafka.fetch_guard import FetchGuard
from controller.adapters.kafka.refusals import newest_refusal
from controller.adapters.kafka.time_merge import Placed, TimeMerge
from controller.adapters.kafka.topics import partition_of
from controller.errors import EventLogUnavailable
from controller.settings import KafkaSettings
from schemas.envelope import MAX_AHEAD_MS

# Records that a backward search for a key reads first, and at most at once. The window doubles in
# between.
_WINDOW = 200
_LARGEST_WINDOW = 20_000
_FOLLOW_MS = 250
#: Records of one partition that may wait for those of others when several are merged.
_READ_AHEAD = 20_000
_ASK_EVERY_SECONDS = 3.0

Offsets = Mapping[KafkaPartition, int]


class KafkaReader:
    """A consumer without a group, for a set of topics by logical name; an async context manager.

    Every call raises EventLogUnavailable when Kafka does not answer in time or a topic is missing.
    """

    def __init__(
        self, settings: KafkaSettings, topics: Sequence[str], optional: Sequence[str] = ()
    ) -> None:
        """`optional` topics are read where they are there for this user: see `has`."""
        self._settings = settings
        self._topics = {logical: settings.topic(logical) for logical in (*topics, *optional)}
        self._optional = optional
        self._consumer: Any = None
        self._guard: FetchGuard | None = None
        # Topic to partition numbers, as at the start. The client refreshes, and so knows, only the
        # topics that it is reading.
        self._numbers: dict[str, set[int]] = {}

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=round(settings.fetch_max_wait_seconds * 1000),
        )
        pace_connections(self._consumer._client)
        self._guard = FetchGuard(self._consumer)
        try:
            async with asyncio.timeout(settings.start_seconds):
                await self._consumer.start()
                name_faults(self._consumer)
                # All topics are listed and none is requested by name: some brokers create a topic
                # that is requested.
                present = await self._consumer.topics()
                for name in set(self._topics.values()) & set(present):
                    self._numbers[name] = await self._consumer._client._wait_on_metadata(name)
        except Exception as error:
            await self._close()
            raise self._unavailable("connecting", error) from error
        except BaseException:
            await self._close()
            raise
        for logical in self._optional:
            if self._topics[logical] not in present:
                del self._topics[logical]
        missing = sorted(set(self._topics.values()) - set(present))
        if missing:
            await self._close()
            security = settings.security
            rights = "; where they are there, grant this user the rights of ops/security.md"
            raise EventLogUnavailable(
                f"Kafka at {settings.bootstrap_servers} has no topic {', '.join(missing)}: "
                f"start rolloutd against it, "
                "which makes them, or fix the address or the topic prefix"
                f"{rights if security.uses_sasl or security.certificate_file else ''}"
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        await disconnect(consumer.stop(), consumer._client, self._settings.stop_seconds)

    def has(self, topic: str) -> bool:
        """Return whether a topic can be read, by its logical name."""
        return topic in self._topics

    @property
    def has_grown(self) -> bool:
        """Whether a topic that is read has got partitions since, as far as the client knows.

        It hears of it within `metadata_max_age_ms`.
        """
        known = self._consumer._client.cluster.partitions_for_topic
        return any(
            not numbers.issuperset(known(name) or ()) for name, numbers in self._numbers.items()
        )

    # --- offsets ---

    def partition(self, topic: str, key: str) -> KafkaPartition:
        """Return the partition of a key's records.

        Records from before the topic got more partitions may be in another one.
        """
        return KafkaPartition(self._topics[topic], partition_of(key, len(self._partitions(topic))))

    async def ends(self, *topics: str) -> dict[KafkaPartition, int]:
        """Return the offset behind the last record, of every partition, in the topics' order."""
        partitions = [partition for topic in topics for partition in self._partitions(topic)]
        found: Offsets = await self._ask(
            self._consumer.end_offsets(partitions), "asking for the end of a topic"
        )
        return {partition: found[partition] for partition in partitions}

    async def begins(self, *topics: str) -> dict[KafkaPartition, int]:
        """Return the offset of the first record, of every partition, in the topics' order."""
        return await self._starts([one for topic in topics for one in self._partitions(topic)])

    async def offsets_at(self, at: datetime, *topics: str) -> dict[KafkaPartition, int]:
        """Return every partition's first offset with a timestamp not before `at`, else its end.

        Some brokers, such as that of the demo, do not look times up and say that there is no such
        record. That is believed only where the last record is older.
        """
        ends = await self.ends(*topics)
        times = dict.fromkeys(ends, round(at.timestamp() * 1000))
        offsets: Mapping[KafkaPartition, Any] = await self._ask(
            self._consumer.offsets_for_times(times), "asking for the offsets of a time"
        )
        found = {
            partition: end if offsets.get(partition) is None else offsets[partition].offset
            for partition, end in ends.items()
        }
        starts = await self._starts(list(ends))
        lows = {one: starts[one] for one, end in ends.items() if found[one] == end > starts[one]}
        at_ms = times[next(iter(times))] if times else 0
        last = {one: ends[one] - 1 for one in lows}
        newest = [one async for one in self._between(last, {one: ends[one] for one in lows})]
        for record in newest:
            if record.timestamp >= at_ms:
                one = KafkaPartition(record.topic, record.partition)
                found[one] = await self._first_at(one, at_ms, lows[one], record.offset)
        return found

    async def first_times(self, starts: Offsets, ends: Offsets) -> dict[KafkaPartition, int]:
        """Return the timestamp of the first record from `starts` on, in ms, of each partition.

        A partition that has no record before `ends` is not among them, and neither is one whose
        first record is not there any more.
        """
        firsts = {one: min(starts[one] + 1, ends[one]) for one in starts}
        records = [record async for record in self._between(starts, firsts)]
        return {KafkaPartition(one.topic, one.partition): one.timestamp for one in records}

    async def _first_at(self, partition: KafkaPartition, at_ms: int, low: int, high: int) -> int:
        """Return the first offset from `low` on whose record is not older, at most `high`.

        The timestamps of a partition are taken as rising.
        """
        while low < high:
            middle = (low + high) // 2
            is_older = True  # also a hole, where there is no record
            async for record in self._between({partition: middle}, {partition: middle + 1}):
                is_older = record.timestamp < at_ms
            low, high = (middle + 1, high) if is_older else (low, middle)
        return low

    async def _starts(self, partitions: Sequence[KafkaPartition]) -> dict[KafkaPartition, int]:
        return await self._ask(
            self._consumer.beginning_offsets(partitions), "asking for the beginning of a topic"
        )

    async def _ask(self, answer: Any, doing: str) -> dict[KafkaPartition, int]:
        try:
            async with asyncio.timeout(self._settings.call_seconds):
                offsets: dict[KafkaPartition, int] = await answer
        except Exception as error:
            raise self._unavailable(doing, error) from error
        return offsets

    def _partitions(self, topic: str) -> list[KafkaPartition]:
        name = self._topics[topic]
        numbers = self._consumer.partitions_for_topic(name) or self._numbers[name]
        return [KafkaPartition(name, number) for number in sorted(numbers)]

    def _unavailable(self, doing: str, error: BaseException) -> EventLogUnavailable:
        no_broker = isinstance(error, KafkaConnectionError)
        why = newest_refusal() or "no broker answers" if no_broker else reason_of(error)
        return EventLogUnavailable(f"Kafka at {self._settings.bootstrap_servers}: {doing}: {why}")

    # --- reading ---

    async def read_to(self, ends: Offsets) -> AsyncIterator[ConsumerRecord]:
        """Yield every record of these partitions before `ends`, in order within each."""
        async for record in self._between(await self._starts(list(ends)), ends):
            yield record

    async def in_time_order(self, starts: Offsets, ends: Offsets) -> AsyncIterator[ConsumerRecord]:
        """Yield the records from `starts` to before `ends`, merged by their timestamps."""
        async for _, record in self.placed_in_time(starts, ends):
            yield record

    async def placed_in_time(self, starts: Offsets, ends: Offsets) -> AsyncIterator[Placed]:
        """Yield the records of `in_time_order`, each with the time at which it came.

        Of records of the same millisecond the one whose partition comes first in `ends` is first.
        See `TimeMerge`. How much is read ahead of the others is bounded per partition.
        """
        consumer, loop = self._consumer, asyncio.get_running_loop()
        partitions = [partition for partition in ends if starts[partition] < ends[partition]]
        # Of those that are not read to their end.
        positions = {partition: starts[partition] for partition in partitions}
        self._assign(positions)
        merge = TimeMerge(partitions, int(time.time() * 1000) + MAX_AHEAD_MS)
        paused: set[KafkaPartition] = set()
        deadline = loop.time() + self._settings.call_seconds
        while True:
            placed = merge.next()
            if placed is not None:
                yield placed
                deadline = loop.time() + self._settings.call_seconds
                continue
            if merge.is_over:
                return
            for partition in [one for one in paused if merge.waiting(one) < _READ_AHEAD // 2]:
                paused.discard(partition)
                consumer.resume(partition)
            try:
                batches = await consumer.getmany(timeout_ms=_FOLLOW_MS)
            except Exception as error:
                self._read_carefully(positions, error)
                continue
            for partition, records in batches.items():
                merge.add(partition, [one for one in records if one.offset < ends[partition]])
            if await self._update_positions(positions, ends):
                deadline = loop.time() + self._settings.call_seconds
            for partition in partitions:
                if partition not in positions:
                    merge.end(partition)
                    paused.discard(partition)
                elif partition not in paused and merge.waiting(partition) >= _READ_AHEAD:
                    consumer.pause(partition)
                    paused.add(partition)
            if positions and loop.time() > deadline:
                raise self._unavailable("reading", TimeoutError())

    async def _update_positions(self, positions: dict[KafkaPartition, int], ends: Offsets) -> bool:
        """Update `positions`; pause and remove those at their end. Return whether any moved.

        The consumer's position counts, not the last record's offset: compaction leaves holes.
        """
        has_moved = False
        for partition, previous in list(positions.items()):
            position = await self._consumer.position(partition)
            if position != previous:
                has_moved = True
                positions[partition] = position
            if position >= ends[partition]:
                self._consumer.pause(partition)
                del positions[partition]
        return has_moved

    async def newest(self, topic: str, count: int, key: str | None = None) -> list[ConsumerRecord]:
        """Return the last `count` records, of one `key` or all, oldest first by timestamp.

        None of an optional topic that is not there.
        """
        if not self.has(topic):
            return []
        partitions = self._partitions(topic) if key is None else [self.partition(topic, key)]
        all_ends, starts = await self.ends(topic), await self._starts(partitions)
        record_key = None if key is None else key.encode()
        newest: dict[KafkaPartition, list[ConsumerRecord]] = {
            partition: [] for partition in partitions
        }
        highs = {partition: all_ends[partition] for partition in partitions}
        window = max(_WINDOW, count)
        while True:
            open_highs = {
                partition: high
                for partition, high in highs.items()
                if high > starts[partition] and len(newest[partition]) < count
            }
            if not open_highs:
                break
            lows = {
                partition: max(starts[partition], high - window)
                for partition, high in open_highs.items()
            }
            older: dict[KafkaPartition, list[ConsumerRecord]] = {
                partition: [] for partition in lows
            }
            async for record in self._between(lows, open_highs):
                if record_key is None or record.key == record_key:
                    older[KafkaPartition(record.topic, record.partition)].append(record)
            for partition, records in older.items():
                newest[partition] = records + newest[partition]
            highs.update(lows)
            window = min(2 * window, _LARGEST_WINDOW)
        merged = [record for records in newest.values() for record in records[-count:]]
        return sorted(
            merged, key=lambda record: (record.timestamp, record.partition, record.offset)
        )[-count:]

    async def follow(
        self, start: Offsets
    ) -> AsyncIterator[ConsumerRecord | EventLogUnavailable | None]:
        """Yield records from `start` on, forever.

        After about three seconds without a record Kafka is asked. None means that it answered;
        EventLogUnavailable, yielded and not raised, that it did not. Once it is back, reading goes
        on where it was.
        """
        consumer, loop = self._consumer, asyncio.get_running_loop()
        self._assign(start)
        positions = dict(start)
        requested_at = loop.time()
        while True:
            try:
                batches = await consumer.getmany(timeout_ms=_FOLLOW_MS)
                if not batches and loop.time() - requested_at >= _ASK_EVERY_SECONDS:
                    # No record comes both when nothing is new and when the brokers are away. Only
                    # a request shows which.
                    requested_at = loop.time()
                    await self._ask(consumer.end_offsets(list(start)[:1]), "waiting for news")
                    yield None
            except EventLogUnavailable as trouble:
                yield trouble
                continue
            except Exception as error:
                try:
                    self._read_carefully(positions, error)
                except EventLogUnavailable as trouble:
                    yield trouble
                    await asyncio.sleep(_FOLLOW_MS / 1000)
                continue
            for partition, records in batches.items():
                for record in records:
                    yield record
                    positions[partition] = record.offset + 1

    async def _between(self, starts: Offsets, ends: Offsets) -> AsyncIterator[ConsumerRecord]:
        consumer, loop = self._consumer, asyncio.get_running_loop()
        positions = {
            partition: starts[partition]
            for partition in ends
            if starts[partition] < ends[partition]
        }
        self._assign(positions)
        deadline = loop.time() + self._settings.call_seconds
        while positions:
            try:
                batches = await consumer.getmany(timeout_ms=_FOLLOW_MS)
            except Exception as error:
                self._read_carefully(positions, error)
                continue
            for partition, records in batches.items():
                for record in records:
                    if partition in positions and record.offset < ends[partition]:
                        yield record
            if await self._update_positions(positions, ends):
                deadline = loop.time() + self._settings.call_seconds
            if positions and loop.time() > deadline:
                raise self._unavailable("reading", TimeoutError())

    def _read_carefully(self, positions: Offsets, error: Exception) -> None:
        """Go back, and check every record before it is read from now on.

        Raises EventLogUnavailable when that is no help.
        """
        if self._guard is None or self._guard.is_careful or not isinstance(error, UNREADABLE):
            raise self._unavailable("reading", error) from error
        self._guard.read_everything_carefully()
        for partition, offset in positions.items():
            self._consumer.seek(partition, offset)

    def _assign(self, starts: Offsets) -> None:
        self._consumer.assign(list(starts))
        for partition, offset in starts.items():
            self._consumer.seek(partition, offset)
