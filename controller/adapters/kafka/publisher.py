"""Our own topics, written to: `controller.ports.Publisher` on Kafka.

Belongs here: acknowledgement in time, no record twice, and what the brokers' clock says. Does not
belong here: how an event is trimmed (`trimming.py`), which topics exist (`topics.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any

import structlog
import xxhash
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from controller.adapters.kafka.client import (
    background_tasks,
    client_options,
    must_propagate,
    reason_of,
    stop_in_time,
)
from controller.adapters.kafka.connection_pace import pace_connections
from controller.adapters.kafka.topics import partition_of
from controller.adapters.kafka.trimming import trim
from controller.cancellation import task_group
from controller.codec.tombstones import tombstone_headers
from controller.errors import EventLogUnavailable
from controller.ports import ClockReading, OutboxEntry
from controller.settings import KafkaSettings
from schemas.envelope import HEADERS

log = structlog.get_logger(__name__)

#: (logical topic, key, value) of one record.
TopicRecord = tuple[str, bytes | None, bytes | None]
#: An effect's id and the SHA-256 of its content.
_Identity = tuple[str, bytes]

Headers = list[tuple[str, bytes]]

_HEADERS: Headers = list(HEADERS)  # all but tombstones is a structured CloudEvent
_NO_HEADERS: Mapping[int, Headers] = MappingProxyType({})
_MOST_ACKNOWLEDGED = 10_000  # identities that are remembered; the oldest are forgotten first
_HEADER_BYTES = 256  # of a record and its batch, beside key and value
# Of the newest acknowledgements the quickest one says best what the brokers' clock shows.
_READINGS_KEPT = 8
_READING_SECONDS = 600.0
_YEAR_2000_MS = 946_684_800_000
# Records that wait share a batch up to this: the least `kafka.max_record_bytes`, so that every
# topic should take it. By the client's default of 16 KiB each larger record is a request of its
# own, and a request costs 0.4 ms of CPU.
_BATCH_BYTES = 524_288
# The same once a broker has refused a batch for its size: a topic may take less, and then would get
# none of several records that it takes one by one.
_SMALL_BATCH_BYTES = 16_384


class KafkaPublisher:
    """Writes to our topics: `controller.ports.Publisher`, with start and stop.

    All in-sync replicas acknowledge each record, and the producer is idempotent. A batch that is
    not acknowledged within `call_seconds` is given up together with its producer, so that no part
    of it arrives later, behind newer records.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._switching = asyncio.Lock()
        self._batch_bytes = _BATCH_BYTES
        # Effects that were acknowledged in a batch of which others failed: they are not written
        # twice. An id alone may come again with other content, when Redis has fallen back.
        self._acknowledged: dict[_Identity, None] = {}
        self._clock_readings: deque[ClockReading] = deque(maxlen=_READINGS_KEPT)

    async def start(self) -> None:
        """Connect. Raises EventLogUnavailable, which may be ignored: `publish` connects, too."""
        await self._ready()

    async def stop(self) -> None:
        """Close within `stop_seconds`, whatever the brokers do."""
        async with self._switching:
            producer, self._producer = self._producer, None
            await self._close(producer)

    def partition_of(self, key: str, partitions: int) -> int:
        return partition_of(key, partitions)

    def most_bytes(self, key: str) -> int:
        """Return the size of the largest value that is written with this key."""
        return self._settings.max_record_bytes - len(key.encode()) - _HEADER_BYTES

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        identities = [(entry.effect_id, xxhash.xxh3_128_digest(entry.value)) for entry in entries]
        records: list[TopicRecord] = []
        headers: dict[int, Headers] = {}
        sent: list[tuple[OutboxEntry, _Identity]] = []
        too_large: list[str] = []
        for entry, identity in zip(entries, identities, strict=True):
            if identity in self._acknowledged:
                continue
            value = self._value_to_send(entry)
            if value is None:
                too_large.append(entry.effect_id)
            else:
                if (revision := entry.tombstone_of) is not None:
                    headers[len(records)] = tombstone_headers(revision)
                records.append((entry.topic, entry.key.encode(), value or None))
                sent.append((entry, identity))
        failures = await self._send(records, headers)
        if not failures and not too_large:
            for identity in identities:
                self._acknowledged.pop(identity, None)
            return
        self._remember(
            [identity for index, (_, identity) in enumerate(sent) if index not in failures]
        )
        failed = [(sent[index][0], why) for index, why in failures.items()]
        reasons = sorted({f"{self._settings.topic(entry.topic)}: {why}" for entry, why in failed})
        reasons += [
            f"{effect_id} is larger than {self._settings.max_record_bytes} bytes"
            for effect_id in too_large
        ]
        raise EventLogUnavailable(
            f"{len(failed) + len(too_large)} of {len(entries)} not published: {'; '.join(reasons)}"
        )

    def _remember(self, identities: Sequence[_Identity]) -> None:
        """Keep effects that were acknowledged, so that the next try does not write them again."""
        self._acknowledged.update(dict.fromkeys(identities))
        while len(self._acknowledged) > _MOST_ACKNOWLEDGED:
            del self._acknowledged[next(iter(self._acknowledged))]

    async def publish_many(self, records: Sequence[TopicRecord]) -> None:
        """Return once all records are acknowledged, in one batch. Raises EventLogUnavailable."""
        failures = await self._send(records)
        if failures:
            raise EventLogUnavailable(
                f"{len(failures)} of {len(records)} not published: "
                f"{'; '.join(sorted(set(failures.values())))}"
            )

    def _value_to_send(self, entry: OutboxEntry) -> bytes | None:
        """Return the value, trimmed when it is too large; None when it cannot be sent.

        The state topic is never trimmed, because the state is recovered from it.
        """
        limit = self.most_bytes(entry.key)
        if len(entry.value) <= limit:
            return entry.value
        value = None if entry.topic == "state" else trim(entry.value, limit)
        log.error(
            "record_too_large",
            topic=entry.topic,
            effect_id=entry.effect_id,
            bytes=len(entry.value),
            trimmed=value is not None,
        )
        return value

    # --- the brokers' clock ---

    @property
    def clock_reading(self) -> ClockReading | None:
        """The brokers' clock, from the quickest of the newest answers; None while not known.

        It is known from records whose topics have `message.timestamp.type=LogAppendTime`. A reading
        stays true while clocks only run. It is forgotten after ten minutes, because the brokers'
        clocks may have been set since.
        """
        oldest = time.monotonic() - _READING_SECONDS
        recent = [one for one in self._clock_readings if one.answered_at >= oldest]
        return min(recent, key=lambda one: one.answered_at - one.asked_at, default=None)

    def _read_clock(self, sent_at: float, acknowledgement: asyncio.Future[Any]) -> None:
        """Read the brokers' clock off one acknowledgement.

        Its timestamp lies between the sending and this moment.
        """
        if acknowledgement.cancelled() or acknowledgement.exception() is not None:
            return
        metadata = acknowledgement.result()
        # librdkafka's mock cluster gives everything the timestamp 0. No broker's clock shows a time
        # before 2000.
        if (
            getattr(metadata, "timestamp_type", None) == 1
            and (metadata.timestamp or 0) > _YEAR_2000_MS
        ):
            at = datetime.fromtimestamp(metadata.timestamp / 1000, UTC)
            self._clock_readings.append(ClockReading(at, sent_at, time.monotonic()))

    # --- sending ---

    async def _send(
        self, records: Sequence[TopicRecord], headers: Mapping[int, Headers] = _NO_HEADERS
    ) -> dict[int, str]:
        """Write records in order per topic, all topics at once; `headers` are those by index.

        Returns the reason by index for those that are not acknowledged in time.
        """
        if not records:
            return {}
        producer = await self._ready()
        deadline = asyncio.get_running_loop().time() + self._settings.call_seconds
        pending: dict[int, asyncio.Future[Any]] = {}
        failures: dict[int, str] = {}
        by_topic: dict[str, dict[int, TopicRecord]] = {}
        for index, record in enumerate(records):
            by_topic.setdefault(record[0], {})[index] = record
        try:
            async with task_group() as group:
                for topic, of_topic in by_topic.items():
                    queueing = self._queue(producer, of_topic, headers, deadline, pending, failures)
                    group.create_task(queueing, name=f"publish {topic}")
            if pending:
                left = deadline - asyncio.get_running_loop().time()
                await asyncio.wait(pending.values(), timeout=max(0.0, left))
        except BaseException:
            await self._discard(producer)
            raise
        for index in range(len(records)):
            if index not in pending:
                failures.setdefault(index, "the producer was closed")
        is_useless = _collect(pending, failures)
        if self._makes_smaller_batches(pending) or is_useless:
            await self._discard(producer)
        return failures

    def _makes_smaller_batches(self, pending: Mapping[int, asyncio.Future[Any]]) -> bool:
        """Let the next producer make smaller batches when one was too large; return whether so."""
        if self._batch_bytes == _SMALL_BATCH_BYTES or not any(map(_is_too_large, pending.values())):
            return False
        self._batch_bytes = _SMALL_BATCH_BYTES
        log.warning("batches_made_smaller", bytes=_SMALL_BATCH_BYTES)
        return True

    async def _queue(
        self,
        producer: AIOKafkaProducer,
        records: Mapping[int, TopicRecord],
        headers: Mapping[int, Headers],
        deadline: float,
        pending: dict[int, asyncio.Future[Any]],
        failures: dict[int, str],
    ) -> None:
        """Give one topic's records to the producer; a topic that is missing delays no other.

        What the producer took goes to `pending`, by index; the reason for the rest to `failures`.
        """
        try:
            async with asyncio.timeout_at(deadline):
                for index, (topic, key, value) in records.items():
                    sent_at = time.monotonic()
                    name = self._settings.topic(topic)
                    of_record = headers.get(index, _HEADERS)
                    pending[index] = await producer.send(name, value, key, headers=of_record)
                    pending[index].add_done_callback(partial(self._read_clock, sent_at))
        except TimeoutError:
            why = "the topic is missing, has no leader, or its queue is full"
        except Exception as error:
            why = reason_of(error)
        else:
            return
        failures.update({index: why for index in records if index not in pending})

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
                max_batch_size=self._batch_bytes,
                max_request_size=settings.max_record_bytes,
            )
            pace_connections(producer.client)
            try:
                async with asyncio.timeout(settings.call_seconds):
                    await producer.start()
            except BaseException as error:
                await self._close(producer)
                if must_propagate(error):
                    raise
                raise EventLogUnavailable(
                    f"connecting to {settings.bootstrap_servers}: {reason_of(error)}"
                ) from error
            self._producer = producer
            return producer

    async def _discard(self, producer: AIOKafkaProducer) -> None:
        """Close a producer before it sends what it still holds."""
        if self._producer is producer:
            self._producer = None
            for task in background_tasks(producer):
                task.cancel()
            await self._close(producer)

    async def _close(self, producer: AIOKafkaProducer | None) -> None:
        if producer is not None:
            await stop_in_time(
                "producer",
                producer.stop(),
                producer.client,
                lambda: background_tasks(producer),
                self._settings.stop_seconds,
            )


def _collect(pending: Mapping[int, asyncio.Future[Any]], failures: dict[int, str]) -> bool:
    """Add to `failures` what was not acknowledged; return whether the producer is of no more use.

    After an error of its own an idempotent producer refuses everything. A new one has new sequence
    numbers.
    """
    is_useless = False
    for index, future in pending.items():
        if not future.done():
            failures[index] = "no acknowledgement in time"
            is_useless = True
        elif future.cancelled():
            failures[index] = "the producer was closed"
        elif (error := future.exception()) is not None:
            failures[index] = reason_of(error)
            is_useless = is_useless or not isinstance(error, MessageSizeTooLargeError)
    return is_useless


def _is_too_large(acknowledgement: asyncio.Future[Any]) -> bool:
    """Return whether a broker refused a record for the size of its batch."""
    if not acknowledgement.done() or acknowledgement.cancelled():
        return False
    too_large = (MessageSizeTooLargeError, RecordListTooLargeError)
    return isinstance(acknowledgement.exception(), too_large)
