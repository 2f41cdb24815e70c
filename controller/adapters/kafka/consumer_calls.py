"""Single calls to a consumer of aiokafka, made safe where aiokafka's own are not.

Belongs here: functions of a consumer without state of their own. Does not belong here: what is done
with the answers (`event_log.py`), and what bounds a request in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError

from controller.ports import TopicPartition

Batches = Mapping[KafkaPartition, Sequence[ConsumerRecord]]


async def read(consumer: AIOKafkaConsumer, max_records: int, timeout_seconds: float) -> Batches:
    """Return what has arrived, waiting at most about `timeout_seconds`.

    Raises whatever aiokafka raises, and KafkaError when a background task has ended silently.
    """
    ended = ended_task(consumer)
    if ended is not None:
        raise KafkaError(f"{ended} has ended")
    try:
        batches: Batches = {}
        if not consumer._subscription.reassignment_in_progress:
            # It waits for nothing here, so it needs no timer.
            batches = await consumer.getmany(max_records=max_records)
        if not batches:
            # While the group rebalances, getmany ignores its timeout. To cancel it loses no
            # records.
            async with asyncio.timeout(timeout_seconds + 0.05):
                batches = await consumer.getmany(
                    timeout_ms=round(timeout_seconds * 1000), max_records=max_records
                )
    except (TimeoutError, ConsumerStoppedError):
        return {}
    return batches


async def read_singly(
    consumer: Any, partition: KafkaPartition, max_records: int, seconds: float
) -> tuple[list[ConsumerRecord], Exception | None]:
    """Return a partition's next records and the error that ended the reading, None for none.

    Records are read one by one, because the call that raises forgets what it has read.
    """
    records: list[ConsumerRecord] = []
    try:
        async with asyncio.timeout(seconds):
            while len(records) < max_records:
                one = await consumer.getmany(partition, timeout_ms=1_000, max_records=1)
                if partition not in one:
                    break
                records += one[partition]
    except Exception as error:
        return records, error
    return records, None


async def first_offsets(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]
) -> Mapping[TopicPartition, int]:
    """Return each partition's first offset, asked of the brokers."""
    offsets = await consumer.beginning_offsets([KafkaPartition(*one) for one in partitions])
    return {one: int(offsets[KafkaPartition(*one)]) for one in partitions}


async def end_offsets(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]
) -> Mapping[TopicPartition, int]:
    """Return the offset behind each partition's last record, asked of the brokers."""
    offsets = await consumer.end_offsets([KafkaPartition(*one) for one in partitions])
    return {one: int(offsets[KafkaPartition(*one)]) for one in partitions}


def ended_task(consumer: AIOKafkaConsumer) -> str | None:
    """Return which background task of a started consumer has ended, None when all run.

    Without that task the consumer would wait forever.
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


# --- one partition of a consumer; nothing happens when it is no longer assigned ---


def position_of(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """Return the offset that the consumer reads next, None when it is not known.

    It lies behind the ends of transactions that follow the last record.
    """
    with suppress(Exception):  # no longer assigned, or not known yet
        state = consumer._subscription.subscription.assignment.state_value(
            KafkaPartition(*partition)
        )
        return int(state.position) if state.has_valid_position else None
    return None


def seek(consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int) -> None:
    """Let the consumer read on from `offset`."""
    with suppress(Exception):
        consumer.seek(KafkaPartition(*partition), offset)


def pause(consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
    """Let the consumer fetch nothing from a partition until it is resumed."""
    with suppress(Exception):
        consumer.pause(KafkaPartition(*partition))


def resume(consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
    """Let the consumer fetch from a partition again."""
    with suppress(Exception):
        consumer.resume(KafkaPartition(*partition))
