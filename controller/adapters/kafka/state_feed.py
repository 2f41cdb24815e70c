"""The compacted state topic, followed by every replica: what was decided, by whomever.

Belongs here: reading it from its beginning, telling which document of a flag is the newest, and
noticing when an older one was written over it. Does not belong here: consumer groups and publishing
(`kafka.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from controller.adapters.kafka.client import (
    background_tasks,
    client_options,
    must_propagate,
    partition_in,
    stop_in_time,
)
from controller.adapters.kafka.consumer_calls import ended_task
from controller.adapters.kafka.consumer_records import UNREADABLE, Guard, name_faults
from controller.core.rollout import Rollout
from controller.settings import KafkaSettings

log = structlog.get_logger(__name__)

_CORRUPT_KEPT = 1_000  # keys of records that are of no use: whoever may write there makes them up
_KEY_KEPT = 500  # characters; no flag's key is longer


class KafkaStateFeed:
    """The compacted state topic, followed from its first record.

    `controller.ports.StateFeed`, with stop.

    Per flag only documents with a higher revision than any before are given; and the newest once
    more, when it came back after the topic had lost it. What cannot be used (not a document,
    another flag's key, deleted) stops that flag only: `corrupt` names it until a good document
    arrives.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        decode: Callable[[bytes], Rollout],
        *,
        overtaken: Callable[[str], None] = lambda flag_key: None,
        retry_seconds: float = 1.0,
    ) -> None:
        """Read with `decode`, which raises any Exception for what is no document.

        `retry_seconds` between connections.

        `overtaken` is told, once a second, of a flag whose last record in the topic is older than
        one before it: somebody late wrote it, and compaction would keep only that. Also of one that
        the topic no longer has: it was made anew.
        """
        self._settings = settings
        self._topic = settings.topic("state")
        self._decode = decode
        self._overtaken = overtaken
        self._retry_seconds = retry_seconds
        self._revisions: dict[str, int] = {}  # by flag, the newest seen
        self._last: dict[str, int] = {}  # by flag, that of the last record
        self._lost: set[str] = set()  # flags whose newest document the topic does not end with
        self._corrupt: dict[str, str] = {}
        self._caught_up = asyncio.Event()
        self._last_heard: float | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._is_stale = False

    @property
    def corrupt(self) -> Mapping[str, str]:
        """Record keys whose newest record cannot be used, with the reason."""
        return dict(self._corrupt)

    @property
    def silent_seconds(self) -> float | None:
        """Seconds since the brokers last said that nothing is newer than what was given.

        None before the first time.
        """
        return (
            None
            if self._last_heard is None
            else asyncio.get_running_loop().time() - self._last_heard
        )

    async def caught_up(self) -> None:
        await self._caught_up.wait()

    async def documents(self) -> AsyncGenerator[Rollout, None]:
        while True:
            try:
                async for rollout in self._follow():
                    yield rollout
            except BaseException as error:
                if must_propagate(error):
                    raise
                # Of whatever type, it is the client's trouble: reading what a document holds raises
                # nothing. Revisions are kept, so that reading from the beginning again repeats
                # nothing.
                log.warning(
                    "state_feed_lost",
                    topic=self._topic,
                    error_type=type(error).__name__,
                    reason=str(error),
                )
            finally:
                await self.stop()
            await asyncio.sleep(self._retry_seconds)

    def read_again(self) -> None:
        """Read the topic from its beginning once more.

        It was made anew, and may have grown past where we read.
        """
        self._is_stale = True

    async def stop(self) -> None:
        """Disconnect within `stop_seconds`; `documents` does it too when its reader goes."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_in_time(
                "state_feed",
                consumer.stop(),
                consumer._client,
                lambda: background_tasks(consumer),
                self._settings.stop_seconds,
            )

    async def _follow(self) -> AsyncIterator[Rollout]:
        """Yield until the connection is lost, which raises."""
        settings = self._settings
        consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=None,
            auto_offset_reset="earliest",
            # We write without transactions: one that a stranger leaves open must not keep what was
            # decided from us.
            isolation_level="read_uncommitted",
            fetch_max_wait_ms=round(settings.fetch_max_wait_seconds * 1000),
        )
        self._consumer = consumer
        self._is_stale = False
        guard = Guard(consumer)
        stumbled: dict[KafkaPartition, int] = {}
        at_once = 500
        async with asyncio.timeout(settings.start_seconds):
            await consumer.start()
            name_faults(consumer)
            partitions = [
                KafkaPartition(self._topic, number) for number in await self._partitions(consumer)
            ]
        consumer.assign(partitions)
        # Read from its beginning: what it does not have any more is not there.
        self._last.clear()
        self._corrupt.clear()
        loop = asyncio.get_running_loop()
        checked = loop.time() - self._retry_seconds
        goal: Mapping[KafkaPartition, int] | None = None
        awaited: tuple[float, Mapping[KafkaPartition, int]] | None = (
            None  # when ends were asked for, and they
        )
        while self._consumer is consumer:
            if loop.time() - checked >= self._retry_seconds:
                asked = loop.time()
                # getmany returns nothing both when nothing is new and when the broker is away: only
                # asking tells.
                async with asyncio.timeout(settings.call_seconds):
                    ends = await consumer.end_offsets(partitions)
                    numbers = await self._partitions(consumer)
                if len(numbers) != len(partitions):
                    raise KafkaError(
                        f"{self._topic} has {len(numbers)} partitions now: reading it anew"
                    )
                await self._check_positions(consumer, ends)
                checked = loop.time()
                goal = goal or ends
                awaited = awaited or (asked, ends)
            dead = "the topic that was read" if self._is_stale else ended_task(consumer)
            if dead is not None:
                raise KafkaError(f"{dead} has ended")
            try:
                batches = await consumer.getmany(timeout_ms=100, max_records=at_once)
            except UNREADABLE as error:
                at_once = 1  # the call that raises forgets what it has read
                await self._pass_unreadable(consumer, guard, stumbled, error)
                continue
            for records in batches.values():
                for rollout in self._newer(records):
                    yield rollout
            if awaited is not None and await self._has_reached(consumer, awaited[1]):
                # All that there was when we asked has been read: in a busy topic there is always
                # more by now.
                self._last_heard, awaited = awaited[0], None
                self._tell_overtaken()
            if (
                goal is not None
                and not self._caught_up.is_set()
                and await self._has_reached(consumer, goal)
            ):
                self._caught_up.set()
                log.info(
                    "state_caught_up",
                    topic=self._topic,
                    flags=len(self._revisions),
                    corrupt=len(self._corrupt),
                )

    async def _pass_unreadable(
        self,
        consumer: AIOKafkaConsumer,
        guard: Guard,
        stumbled: dict[KafkaPartition, int],
        error: KafkaError,
    ) -> None:
        """Read the same again, every record with care; what cannot be read even so is passed by.

        Its flag keeps the document that it has, and gets the next one. Standing still would stop
        every flag.
        """
        partition = partition_in(error)
        if partition is None:
            raise error
        async with asyncio.timeout(self._settings.call_seconds):
            position: int = await consumer.position(partition)
        if stumbled.get(partition) == position and guard.is_read_carefully(partition):
            following = guard.following(partition, position) or position + 1
            log.error(
                "state_unreadable",
                partition=partition.partition,
                offset=position,
                reason=str(error),
            )
            consumer.seek(partition, max(following, position + 1))
            return
        stumbled[partition] = position
        guard.read_everything_carefully()
        consumer.seek(partition, position)

    async def _check_positions(
        self, consumer: AIOKafkaConsumer, ends: Mapping[KafkaPartition, int]
    ) -> None:
        """Raise KafkaError when a partition ends before what was read of it.

        The topic was made anew, or truncated.
        """
        for partition, end in ends.items():
            position = await consumer.position(partition)
            if position > end:
                raise KafkaError(
                    f"{self._topic} ends at {end}, and was read up to {position}: reading it anew"
                )

    def _newer(self, records: Sequence[ConsumerRecord]) -> Iterator[Rollout]:
        """Yield the documents that are newer than what their flags have.

        While catching up, of several only the newest.
        """
        chosen = records if self._caught_up.is_set() else _not_outdone(records)
        yield from filter(None, map(self._read, chosen))
        if len(chosen) < len(records) and any(
            _key_of(record) in self._corrupt for record in chosen
        ):
            # What seemed to outdo others cannot be used: the best there is may be among those.
            yield from filter(None, map(self._read, records))

    def _tell_overtaken(self) -> None:
        for flag_key, revision in self._revisions.items():
            last = self._last.get(flag_key)
            if last == revision or (last is None and flag_key in self._corrupt):
                continue
            self._lost.add(flag_key)
            log.warning("state_overtaken", flag_key=flag_key, revision=revision, last=last)
            self._overtaken(flag_key)

    async def _partitions(self, consumer: AIOKafkaConsumer) -> list[int]:
        """Return the topic's partition numbers. Raises KafkaError when it is missing."""
        numbers = consumer.partitions_for_topic(self._topic)
        if not numbers:
            numbers = await consumer._client._wait_on_metadata(self._topic)
        return sorted(numbers)

    async def _has_reached(
        self, consumer: AIOKafkaConsumer, goal: Mapping[KafkaPartition, int]
    ) -> bool:
        """Whether every partition was read up to `goal`.

        Positions, not records: the last record may be compacted away.
        """
        async with asyncio.timeout(self._settings.call_seconds):
            for partition, end in goal.items():
                if await consumer.position(partition) < end:
                    return False
        return True

    def _read(self, record: ConsumerRecord) -> Rollout | None:
        """Return the document if it is newer than what its flag has.

        None, with the reason noted, if it is no use.
        """
        key = _key_of(record)
        try:
            if record.value is None:
                raise ValueError("deleted; what was decided last stays in force")  # noqa: TRY301
            rollout = self._decode(record.value)
            if rollout.flag_key != key:
                raise ValueError(f"the document is of flag {rollout.flag_key!r}")  # noqa: TRY301
        except Exception as error:
            is_kept = len(key) <= _KEY_KEPT and (
                key in self._revisions or len(self._corrupt) < _CORRUPT_KEPT
            )
            if key in self._corrupt or is_kept:
                self._corrupt[key] = str(error)
            log.warning(
                "state_refused",
                flag_key=key,
                partition=record.partition,
                offset=record.offset,
                reason=str(error)[:500],
            )
            return None
        self._last[key] = rollout.revision
        known = self._revisions.get(key, -1)
        if rollout.revision == known and key in self._lost:
            self._lost.discard(key)
            return rollout
        if rollout.revision <= known:
            return (
                None  # an older copy written late by a zombie, or one we had before a reconnection
            )
        self._revisions[key] = rollout.revision
        self._lost.discard(key)
        self._corrupt.pop(key, None)
        return rollout


def _key_of(record: ConsumerRecord) -> str:
    return (record.key or b"").decode(errors="replace")


def _not_outdone(records: Sequence[ConsumerRecord]) -> Sequence[ConsumerRecord]:
    """Leave out what a later record of the same flag outdoes by its revision.

    Of a long history little is read whole.

    Compaction leaves the newest segment as it is, up to a week of it. A document takes over a
    millisecond to read, its revision four microseconds.
    """
    newest: dict[bytes | None, int] = {}
    kept: list[ConsumerRecord] = []
    for record in reversed(records):
        revision = _revision_in(record.value)
        if revision is None or revision >= newest.get(record.key, 0):
            kept.append(record)
            newest[record.key] = max(revision or 0, newest.get(record.key, 0))
    kept.reverse()
    return kept


class _Document(msgspec.Struct):
    revision: int


class _Event(msgspec.Struct):
    data: _Document


_event = msgspec.json.Decoder(_Event).decode


def _revision_in(value: bytes | None) -> int | None:
    """Return the revision of a document, None where there seems to be none.

    Reading it will say why.
    """
    try:
        return _event(value or b"").data.revision
    except ValueError:
        return None
