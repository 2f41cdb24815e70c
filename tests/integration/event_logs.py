"""Members of a group on a real Kafka, and what tests write and delete there."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from aiokafka import AIOKafkaProducer

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.errors import EventLogUnavailable
from controller.ports import Record, TopicPartition
from controller.settings import KafkaSettings

MakeLog = Callable[..., KafkaEventLog]


def settings_for(bootstrap: str, prefix: str, **changes: object) -> KafkaSettings:
    """Return settings for a quick session timeout."""
    return KafkaSettings.model_validate(
        {
            "bootstrap_servers": bootstrap,
            "topic_prefix": prefix,
            "session_timeout_seconds": 6.0,
            "heartbeat_interval_seconds": 0.5,
            "request_timeout_seconds": 8.0,
            **changes,
        }
    )


async def produce(
    bootstrap: str, topic: str, values: Sequence[bytes], partition: int | None = 0
) -> None:
    """Write values to one partition, or with None anywhere."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, acks="all")
    try:
        await producer.start()
        await asyncio.gather(
            *[await producer.send(topic, value, partition=partition) for value in values]
        )
    finally:
        await producer.stop()


async def read(member: KafkaEventLog, count: int, seconds: float = 120.0) -> list[bytes | None]:
    """Return at least `count` values, in the order they came."""
    values: list[bytes | None] = []
    async with asyncio.timeout(seconds):
        while len(values) < count:
            for records in (await fetch(member)).values():
                values.extend(record.value for record in records)
    return values


async def fetch(member: KafkaEventLog) -> Mapping[TopicPartition, Sequence[Record]]:
    """Fetch as ingest does: trouble that may pass is waited out."""
    try:
        return await member.fetch(500, 0.1)
    except EventLogUnavailable:
        await asyncio.sleep(0.1)
        return {}


async def until(
    condition: Callable[[], bool], *members: KafkaEventLog, seconds: float = 120.0
) -> None:
    """Let the members fetch until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.gather(*(fetch(member) for member in members))
