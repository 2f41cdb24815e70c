"""One connection to the compacted state topic, read from its first record without a group.

Belongs here: positions, ends, and records that cannot be read. Does not belong here: what the
documents say, and connecting again (`state_feed.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from controller.adapters.kafka.client import (
    background_tasks,
    client_options,
    partition_in,
    stop_in_time,
)
from controller.adapters.kafka.connection_pace import pace_connections
from controller.adapters.kafka.consumer_calls import ended_task
from controller.adapters.kafka.consumer_records import UNREADABLE, name_faults
from controller.adapters.kafka.fetch_guard import FetchGuard
from controller.log_identity import why_other_log
from controller.settings import KafkaSettings
from controller.text import plural

log = structlog.get_logger(__name__)

_MAX_RECORDS = 500  # of one read
_READ_MS = 100  # that a read waits for records

_Ends = Mapping[KafkaPartition, int]


class StateConnection:
    """A consumer of the state topic. Its calls raise whatever aiokafka raises."""

    def __init__(self, settings: KafkaSettings, check_seconds: float) -> None:
        """Ask for the topic's ends every `check_seconds`."""
        self._settings = settings
        self._check_seconds = check_seconds
        self._topic = settings.topic("state")
        self._consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=None,
            auto_offset_reset="earliest",
            # We write without transactions. One that a stranger leaves open must not keep later
            # documents from us.
            isolation_level="read_uncommitted",
            fetch_max_wait_ms=round(settings.fetch_max_wait_seconds * 1000),
        )
        pace_connections(self._consumer._client)
        self._guard = FetchGuard(self._consumer)
        self._partitions: list[KafkaPartition] = []
        # Partition -> position at which a record could not be read.
        self._unreadable_at: dict[KafkaPartition, int] = {}
        self._max_records = _MAX_RECORDS
        self._checked_at: float | None = None  # on the loop's clock
        self._first_ends: _Ends | None = None
        # When ends were asked for that are not reached yet, and those ends.
        self._requested: tuple[float, _Ends] | None = None

    async def start(self) -> None:
        """Connect, and begin at the first record of every partition."""
        async with asyncio.timeout(self._settings.start_seconds):
            await self._consumer.start()
            name_faults(self._consumer)
            self._partitions = [
                KafkaPartition(self._topic, number) for number in await self._partition_numbers()
            ]
        self._consumer.assign(self._partitions)

    async def stop(self) -> None:
        """Disconnect within `stop_seconds`."""
        consumer = self._consumer
        await stop_in_time(
            "state_feed",
            consumer.stop(),
            consumer._client,
            lambda: background_tasks(consumer),
            self._settings.stop_seconds,
        )

    async def check(self) -> None:
        """Ask for the topic's ends when that is due.

        Raises KafkaError when the topic has other partitions now, is another one, or was cut, and
        when a background task has ended. `read` shows none of that: it returns nothing both when
        nothing is new and when the broker is away.
        """
        now = asyncio.get_running_loop().time()
        if self._checked_at is None or now - self._checked_at >= self._check_seconds:
            async with asyncio.timeout(self._settings.call_seconds):
                ends = await self._consumer.end_offsets(self._partitions)
                numbers = await self._partition_numbers()
            if len(numbers) != len(self._partitions):
                raise KafkaError(
                    f"{self._topic} has {plural(len(numbers), 'partition')} now: reading again"
                )
            for partition, end in ends.items():
                why = why_other_log(await self._consumer.position(partition), end)
                if why is not None:
                    raise KafkaError(f"{self._topic}/{partition.partition}: {why}: reading again")
            self._checked_at = asyncio.get_running_loop().time()
            self._first_ends = self._first_ends or ends
            self._requested = self._requested or (now, ends)
        ended = ended_task(self._consumer)
        if ended is not None:
            raise KafkaError(f"{ended} has ended")

    async def read(self) -> Iterable[Sequence[ConsumerRecord]]:
        """Return the next records, by partition."""
        try:
            batches = await self._consumer.getmany(
                timeout_ms=_READ_MS, max_records=self._max_records
            )
        except UNREADABLE as error:
            self._max_records = 1  # the call that raises forgets what it has read
            await self._pass_unreadable(error)
            return ()
        records: Iterable[Sequence[ConsumerRecord]] = batches.values()
        return records

    async def _pass_unreadable(self, error: KafkaError) -> None:
        """Read the same again and check every record; pass what cannot be read even so.

        Its flag keeps the document that it has, and gets the next one. To stand still would stop
        every flag.
        """
        partition = partition_in(error)
        if partition is None:
            raise error
        async with asyncio.timeout(self._settings.call_seconds):
            position: int = await self._consumer.position(partition)
        is_second_try = self._unreadable_at.get(partition) == position
        if is_second_try and self._guard.is_read_carefully(partition):
            following = self._guard.following(partition, position) or position + 1
            log.error(
                "state_unreadable",
                partition=partition.partition,
                offset=position,
                reason=str(error),
            )
            self._consumer.seek(partition, max(following, position + 1))
            return
        self._unreadable_at[partition] = position
        self._guard.read_everything_carefully()
        self._consumer.seek(partition, position)

    async def has_reached_first_ends(self) -> bool:
        """Return whether everything was read that the topic held at the first check."""
        return self._first_ends is not None and await self._has_reached(self._first_ends)

    async def confirmed_at(self) -> float | None:
        """Return when the brokers were asked for ends that have just been reached, else None.

        It is on the loop's clock. Ends from before are compared, because a busy topic always has
        more by now.
        """
        if self._requested is None or not await self._has_reached(self._requested[1]):
            return None
        requested_at, self._requested = self._requested[0], None
        return requested_at

    async def _has_reached(self, ends: _Ends) -> bool:
        """Return whether every partition was read up to its end.

        Positions are compared, not records: the last record may be compacted away.
        """
        async with asyncio.timeout(self._settings.call_seconds):
            for partition, end in ends.items():
                if await self._consumer.position(partition) < end:
                    return False
        return True

    async def _partition_numbers(self) -> list[int]:
        """Return the topic's partition numbers. Raises KafkaError when it is missing."""
        numbers = self._consumer.partitions_for_topic(self._topic)
        if not numbers:
            numbers = await self._consumer._client._wait_on_metadata(self._topic)
        return sorted(numbers)
