"""Reading on a real Kafka what people are to be told."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from controller.adapters.kafka.news_log import KafkaNewsLog
from tests.conftest import CreateTopics
from tests.integration.test_kafka_topics import settings_for
from tests.patience import SLACK


@pytest.mark.real_kafka
async def test_news_in_partitions_that_were_added_is_told_soon(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, producer: AIOKafkaProducer
) -> None:
    """Also of a quiet topic: half of the flags may have their alerts there from then on."""
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic("alerts")
    await create_topics(topic, partitions=1)
    cursor: dict[str, int] = {}
    found: list[bytes] = []

    async def follow() -> None:
        async with aclosing(KafkaNewsLog(settings, ["alerts"]).follow(cursor)) as batches:
            async for batch in batches:
                cursor.update((one.place, one.offset + 1) for one in batch)
                found.extend(one.value for one in batch if one.value)

    following = asyncio.create_task(follow())
    try:
        async with asyncio.timeout(60 * SLACK):
            while not cursor:
                await asyncio.sleep(0.05)
            admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
            try:
                await admin.start()
                await admin.create_partitions({topic: NewPartitions(total_count=2)})
            finally:
                await admin.close()
            await producer.client.force_metadata_update()
            await producer.send_and_wait(topic, b"rolled back", partition=1)
            while not found:
                assert not following.done()
                await asyncio.sleep(0.1)
        assert found == [b"rolled back"]
        assert cursor == {f"{topic}/0": 0, f"{topic}/1": 1}
    finally:
        following.cancel()
        await asyncio.wait([following])
