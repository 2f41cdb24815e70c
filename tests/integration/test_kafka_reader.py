"""Reading our topics from outside, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord

from controller.adapters.kafka.record_batches import REFUSED_SIZE
from controller.adapters.kafka.topic_reader import KafkaReader
from controller.errors import EventLogUnavailable
from controller.settings import KafkaSettings
from tests.conftest import CreateTopics
from tests.integration.test_kafka_faults import batch_of, produce, sealed

pytestmark = pytest.mark.real_kafka


@pytest.fixture
async def settings(kafka: str, topic_prefix: str, create_topics: CreateTopics) -> KafkaSettings:
    """Settings of a daemon whose decisions topic exists."""
    made = KafkaSettings(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    await create_topics(made.topic("decisions"))
    return made


@pytest.fixture
async def producer(kafka: str) -> AsyncIterator[AIOKafkaProducer]:
    """A plain producer."""
    made = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=20)
    await made.start()
    yield made
    await made.stop()


async def write(
    producer: AIOKafkaProducer, settings: KafkaSettings, *records: tuple[str, int]
) -> None:
    """Write numbers by key."""
    topic = settings.topic("decisions")
    sent = [
        await producer.send(topic, b"%d" % number, key.encode(), timestamp_ms=1_000 + number)
        for key, number in records
    ]
    await asyncio.gather(*sent)


def numbers(records: list[ConsumerRecord]) -> list[int]:
    """Return what was written."""
    return [int(record.value) for record in records]


async def test_the_newest_of_a_key_are_found_behind_many_others(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """A flag that was quiet for long has its newest records far back.

    The search goes there, and no further than asked.
    """
    await write(producer, settings, *(("quiet", number) for number in range(5)))
    await write(producer, settings, *(("loud", number) for number in range(5, 3000)))
    async with KafkaReader(settings, ["decisions"]) as reader:
        assert numbers(await reader.newest("decisions", 3, "quiet")) == [2, 3, 4]
        assert numbers(await reader.newest("decisions", 100, "quiet")) == [0, 1, 2, 3, 4]
        assert numbers(await reader.newest("decisions", 2, "loud")) == [2998, 2999]
        assert await reader.newest("decisions", 2, "nobody") == []


async def test_the_newest_of_all_are_merged_by_their_time(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """Over partitions the newest by timestamp are given, oldest first."""
    await write(producer, settings, *((f"key-{number % 17}", number) for number in range(100)))
    async with KafkaReader(settings, ["decisions"]) as reader:
        assert numbers(await reader.newest("decisions", 10)) == list(range(90, 100))


async def test_reading_ends_where_it_was_asked_to_and_following_goes_on_there(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """What comes after the end is not read.

    Following from the end misses nothing and repeats nothing.
    """
    await write(producer, settings, *((f"key-{number}", number) for number in range(50)))
    async with KafkaReader(settings, ["decisions"]) as reader:
        ends = await reader.ends("decisions")
        await write(producer, settings, *((f"key-{number}", number) for number in range(50, 60)))
        read = [record async for record in reader.read_to(ends)]
        assert sorted(numbers(read)) == list(range(50))
        seen: list[ConsumerRecord] = []
        async with asyncio.timeout(60):
            async for record in reader.follow(ends):
                if isinstance(record, ConsumerRecord):
                    seen.append(record)
                if len(seen) == 10:
                    break
        assert sorted(numbers(seen)) == list(range(50, 60))


async def test_a_topic_is_still_known_after_another_one_was_read_for_long(
    settings: KafkaSettings, producer: AIOKafkaProducer, create_topics: CreateTopics
) -> None:
    """A refresh of the metadata while one topic is read makes the client forget the others."""
    await create_topics(settings.topic("state"))
    await write(producer, settings, *(("flag", number) for number in range(5)))
    await producer.send_and_wait(settings.topic("state"), b"{}", b"flag")
    async with KafkaReader(settings, ["state", "decisions"]) as reader:
        place = reader.partition("decisions", "flag")
        async for _ in reader.read_to(await reader.ends("state")):
            await reader._consumer._client.force_metadata_update()
        assert reader._consumer.partitions_for_topic(settings.topic("decisions")) is None
        assert reader.partition("decisions", "flag") == place
        assert sum((await reader.ends("decisions")).values()) == 5
        await reader._consumer._client.force_metadata_update()
        assert numbers(await reader.newest("decisions", 3, "flag")) == [2, 3, 4]


async def test_an_empty_topic_has_nothing_newest(settings: KafkaSettings) -> None:
    """Nothing to read ends at once."""
    async with KafkaReader(settings, ["decisions"]) as reader:
        assert await reader.newest("decisions", 5) == []
        assert [record async for record in reader.read_to(await reader.ends("decisions"))] == []


async def test_missing_topics_are_named(settings: KafkaSettings) -> None:
    """A topic that is not there is told by its full name, and is not made by asking."""
    for _ in range(2):
        with pytest.raises(
            EventLogUnavailable, match=f"has no topic {settings.topic('alerts')}: start rolloutd"
        ):
            async with KafkaReader(settings, ["decisions", "alerts"]):
                pass


async def test_a_record_that_aiokafka_cannot_read_hides_no_other(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """A header's name that is no text.

    The record is shown as one that is too large, and those around it as they are.
    """
    topic = settings.topic("decisions")
    await producer.send_and_wait(topic, b"before", partition=0)
    odd = sealed(batch_of([b"odd"], header="name").replace(b"name", b"n\xffme"))
    await produce(settings.bootstrap_servers, topic, odd)
    await producer.send_and_wait(topic, b"after", partition=0)
    async with KafkaReader(settings, ["decisions"]) as reader:
        values = [record.value async for record in reader.read_to(await reader.ends("decisions"))]
        assert [len(value) for value in values] == [6, REFUSED_SIZE, 5]
        newest = await reader.newest("decisions", 3)
        assert [len(record.value) for record in newest] == [6, REFUSED_SIZE, 5]
    async with KafkaReader(settings, ["decisions"]) as reader:
        seen = []
        async for record in reader.follow(dict.fromkeys(await reader.ends("decisions"), 0)):
            if isinstance(record, ConsumerRecord):
                seen.append(len(record.value))
            if len(seen) == 3:
                break
        assert seen == [6, REFUSED_SIZE, 5]
