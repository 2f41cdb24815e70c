"""Producers choose how their records are compressed.

What they choose must not stop the counting.
"""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka import Producer

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.counting.folding.native import batch_reader
from controller.settings import KafkaSettings
from tests.conftest import CreateTopics


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_is_read(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, codec: str
) -> None:
    """Records of every codec Kafka knows arrive as they were sent."""
    topic = f"{topic_prefix}{codec}"
    await create_topics(topic, partitions=1)
    producer = Producer({"bootstrap.servers": kafka, "compression.type": codec, "linger.ms": 50})
    value = b"value " * 100
    for _ in range(50):
        producer.produce(topic, value)
    assert await asyncio.to_thread(producer.flush, 10) == 0
    settings = KafkaSettings.model_validate({"bootstrap_servers": kafka})
    log = KafkaEventLog(
        settings, [topic], f"{topic_prefix}readers", bare_records=True, read_batches=batch_reader()
    )
    await log.start()
    try:
        values: list[bytes | None] = []
        async with asyncio.timeout(60):
            while len(values) < 50:
                fetched = await log.fetch(500, 0.2)
                values += [record.value for records in fetched.values() for record in records]
    finally:
        await log.stop()
    assert values == [value] * 50
