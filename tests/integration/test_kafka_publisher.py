"""Writing to a real Kafka: acknowledged or said not to be, in time, and in order."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest

from controller.adapters.kafka.publisher import KafkaPublisher
from controller.adapters.kafka.topics import partition_of
from controller.errors import EventLogUnavailable
from controller.ports import OutboxEntry
from controller.settings import KafkaSettings
from tests.brokers import LocalKafka, create_topics_at
from tests.conftest import CreateTopics
from tests.whole_topics import read_topic

pytestmark = pytest.mark.real_kafka

MakePublisher = Callable[[KafkaSettings], KafkaPublisher]

#: Where a broker answers: on a busy machine a new connection takes more than a second.
CALL_SECONDS = 5.0


def settings_for(bootstrap: str, prefix: str, **changes: object) -> KafkaSettings:
    """Return settings for topics of this test alone."""
    return KafkaSettings.model_validate(
        {"bootstrap_servers": bootstrap, "topic_prefix": prefix, **changes}
    )


@pytest.fixture
async def make_publisher() -> AsyncIterator[MakePublisher]:
    """`make_publisher(settings)` gives one that is stopped after the test."""
    made: list[KafkaPublisher] = []

    def make(settings: KafkaSettings) -> KafkaPublisher:
        made.append(KafkaPublisher(settings))
        return made[-1]

    yield make
    await asyncio.gather(*(publisher.stop() for publisher in made))


def entry(
    number: int, topic: str = "decisions", key: str = "new-checkout", value: bytes | None = None
) -> OutboxEntry:
    """Return the outbox's entry of one effect."""
    return OutboxEntry(
        f"outbox:{number}", f"{key}/{number}/0", topic, key, value or f"{topic} {number}".encode()
    )


async def read_all(bootstrap: str, topic: str) -> list[tuple[int, bytes | None, bytes | None]]:
    """Return (partition, key, value) of everything in a topic."""
    records = await read_topic(bootstrap, topic)
    return [(record.partition, record.key, record.value) for record in records]


async def until_published(publisher: KafkaPublisher, entries: list[OutboxEntry]) -> None:
    """Return once they are acknowledged, as the outbox would try: again and again."""
    async with asyncio.timeout(60):
        while True:
            with suppress(EventLogUnavailable):
                return await publisher.publish(entries)
            await asyncio.sleep(0.1)


async def test_a_batch_is_written_in_order_to_its_topics(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_publisher: MakePublisher
) -> None:
    """Each flag's entries keep their order per topic, in the partition of the flag's key."""
    settings = settings_for(kafka, topic_prefix)
    await create_topics(*(settings.topic(topic) for topic in ("decisions", "alerts")))
    publisher = make_publisher(settings)
    entries = [entry(number, topic) for number in range(50) for topic in ("decisions", "alerts")]
    await publisher.publish(entries)
    await publisher.publish([])
    for topic in ("decisions", "alerts"):
        expected = [
            (partition_of("new-checkout", 4), b"new-checkout", f"{topic} {number}".encode())
            for number in range(50)
        ]
        assert await read_all(kafka, settings.topic(topic)) == expected


async def test_a_missing_topic_fails_in_time_and_holds_up_no_other(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_publisher: MakePublisher
) -> None:
    """What has a topic is written once, over any number of repeats.

    The rest is named, and written when its topic is there.
    """
    settings = settings_for(kafka, topic_prefix, call_seconds=CALL_SECONDS)
    await create_topics(settings.topic("decisions"))
    publisher = make_publisher(settings)
    batch = [entry(1, "alerts"), entry(1), entry(2, "alerts", "f"), entry(3)]
    batch = [
        OutboxEntry(one.field, f"{one.effect_id}/{one.topic}", one.topic, one.key, one.value)
        for one in batch
    ]
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(
            EventLogUnavailable, match=f"2 of 4 not published: {settings.topic('alerts')}"
        ):
            await publisher.publish(batch)
        assert time.monotonic() - started < 4 * CALL_SECONDS
    assert [value for _, _, value in await read_all(kafka, settings.topic("decisions"))] == [
        b"decisions 1",
        b"decisions 3",
    ]
    await create_topics(settings.topic("alerts"))
    await until_published(publisher, batch)
    assert len(await read_all(kafka, settings.topic("alerts"))) == 2
    assert len(await read_all(kafka, settings.topic("decisions"))) == 2


async def test_the_same_id_with_other_content_is_written(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_publisher: MakePublisher
) -> None:
    """An effect that was acknowledged within a failed batch is not written twice.

    One that took its id over is.
    """
    settings = settings_for(kafka, topic_prefix, call_seconds=CALL_SECONDS)
    await create_topics(settings.topic("decisions"))
    publisher = make_publisher(settings)
    missing = OutboxEntry("outbox:9", "f/9/0", "alerts", "f", b"no topic")
    for _ in range(2):
        with pytest.raises(EventLogUnavailable):
            await publisher.publish([entry(1, value=b"first"), missing])
    await publisher.publish([entry(1, value=b"second")])
    # Acknowledged above: the batch it failed with is settled by this.
    await publisher.publish([entry(1, value=b"first")])
    values = [value for _, _, value in await read_all(kafka, settings.topic("decisions"))]
    assert values == [b"first", b"second"]


async def test_the_brokers_clock_is_noted(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_publisher: MakePublisher
) -> None:
    """Records with the broker's own time say how far our clock is from it; others say nothing."""
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("state"))
    await create_topics(
        settings.topic("decisions"), configs={"message.timestamp.type": "LogAppendTime"}
    )
    publisher = make_publisher(settings)
    await publisher.publish([entry(1, "state")])
    assert publisher.clock_reading is None
    for number in range(3):
        await publisher.publish([entry(number)])
    reading = publisher.clock_reading
    assert reading is not None
    age = time.monotonic() - (reading.asked_at + reading.answered_at) / 2
    error = abs((datetime.now(UTC) - reading.at).total_seconds() - age)
    assert error < 0.5 + (reading.answered_at - reading.asked_at) / 2


async def test_a_silent_broker_costs_the_deadline_and_nothing_arrives_late(
    own_kafka: LocalKafka, topic_prefix: str, make_publisher: MakePublisher
) -> None:
    """A batch to a broker that never answers fails at the deadline.

    What was given up is not written behind newer records.
    """
    settings = settings_for(own_kafka.bootstrap, topic_prefix, call_seconds=1.0, stop_seconds=0.5)
    topic = settings.topic("decisions")
    await create_topics_at(own_kafka.bootstrap, topic, partitions=1)
    publisher = make_publisher(settings)
    await until_published(publisher, [entry(1)])
    own_kafka.pause()
    for number in (2, 3):
        started = time.monotonic()
        with pytest.raises(EventLogUnavailable):
            await publisher.publish([entry(number)])
        assert time.monotonic() - started < 20  # the deadline is 1 s
    started = time.monotonic()
    await publisher.stop()
    assert time.monotonic() - started < 20  # the deadline is 0.5 s
    own_kafka.resume()
    await until_published(publisher, [entry(4)])
    await asyncio.sleep(1.0)
    values = [value for _, _, value in await read_all(own_kafka.bootstrap, topic)]
    # The request that was under way when the broker froze is in its socket: it may be carried out,
    # once, before what follows.
    assert values in (
        [b"decisions 1", b"decisions 4"],
        [b"decisions 1", b"decisions 2", b"decisions 4"],
    )


@pytest.mark.rare
async def test_a_broker_restart_is_survived(
    own_kafka: LocalKafka, topic_prefix: str, make_publisher: MakePublisher
) -> None:
    """After a crash and restart the same publisher writes again.

    Every acknowledged record is there, none twice.
    """
    settings = settings_for(own_kafka.bootstrap, topic_prefix, call_seconds=CALL_SECONDS)
    topic = settings.topic("decisions")
    await create_topics_at(own_kafka.bootstrap, topic, partitions=1)
    publisher = make_publisher(settings)
    await publisher.publish([entry(1)])
    own_kafka.kill9()
    with pytest.raises(EventLogUnavailable):
        await publisher.publish([entry(2)])
    await asyncio.to_thread(own_kafka.start)
    await until_published(publisher, [entry(2), entry(3)])
    values = [value for _, _, value in await read_all(own_kafka.bootstrap, topic)]
    assert values == [b"decisions 1", b"decisions 2", b"decisions 3"]


async def test_what_is_too_large_is_trimmed_and_says_so(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_publisher: MakePublisher
) -> None:
    """A decision too large for Kafka is written without its largest parts, named.

    A state document is refused, not cut.
    """
    settings = settings_for(kafka, topic_prefix, max_record_bytes=524_288)
    await create_topics(settings.topic("decisions"), settings.topic("state"))
    publisher = make_publisher(settings)
    event = {
        "id": "f/1/0",
        "data": {
            "kind": "advance",
            "reason": "all passed",
            "metrics": "m" * 600_000,
            "arms": "a" * 90,
        },
    }
    value = json.dumps(event).encode()
    with pytest.raises(EventLogUnavailable, match="f/2/0 is larger than 524288 bytes"):
        await publisher.publish(
            [entry(1, key="f", value=value), entry(2, "state", "f", value), entry(3, "state", "f")]
        )
    [(_, _, written)] = await read_all(kafka, settings.topic("decisions"))
    assert written is not None
    smaller = json.loads(written)
    assert smaller["data"] == {"kind": "advance", "reason": "all passed", "arms": "a" * 90}
    assert smaller["trimmedmembers"] == "metrics"
    assert smaller["trimmedbytes"] == len(value)
    assert [value for _, _, value in await read_all(kafka, settings.topic("state"))] == [b"state 3"]


async def test_raw_records_and_tombstones(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_publisher: MakePublisher
) -> None:
    """Quarantined bytes arrive as they are, with a key or without."""
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("quarantine"))
    publisher = make_publisher(settings)
    await publisher.publish_many([("quarantine", b"\xff\x00", b"\x00\x01")])
    await publisher.publish_many([("quarantine", None, b"no key"), ("quarantine", b"k", None)])
    found = sorted(
        (key or b"", value or b"")
        for _, key, value in await read_all(kafka, settings.topic("quarantine"))
    )
    assert found == [(b"", b"no key"), (b"k", b""), (b"\xff\x00", b"\x00\x01")]


async def test_publishers_at_once(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_publisher: MakePublisher
) -> None:
    """Twenty flags publish at once through one publisher, from its very first use."""
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("decisions"))
    publisher = make_publisher(settings)
    await asyncio.gather(
        *(publisher.publish([entry(number, key=f"flag-{number}")]) for number in range(20))
    )
    assert len(await read_all(kafka, settings.topic("decisions"))) == 20


async def test_records_published_together_share_requests(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    make_publisher: MakePublisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Large records, as of the quarantine in a flood, share requests and keep their order."""
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("quarantine"))
    publisher = make_publisher(settings)
    await publisher.publish([entry(0, "quarantine")])
    requests: list[ProduceRequest] = []
    send = AIOKafkaClient.send

    async def noted(client: AIOKafkaClient, node: int, request: Any, **options: Any) -> Any:
        if isinstance(request, ProduceRequest):
            requests.append(request)
        return await send(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", noted)
    values = [bytes([number]) * 100_000 for number in range(8)]
    await publisher.publish(
        [entry(number, "quarantine", value=value) for number, value in enumerate(values)]
    )
    assert len(requests) == 2
    found = [value for _, _, value in await read_all(kafka, settings.topic("quarantine"))]
    assert found == [b"quarantine 0", *values]


async def test_a_topic_that_takes_only_small_batches_gets_its_records_at_the_next_try(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_publisher: MakePublisher
) -> None:
    """A topic's `max.message.bytes` bounds a batch, so records that fit go in one each."""
    settings = settings_for(kafka, topic_prefix)
    configs = {"max.message.bytes": "100000"}
    await create_topics(settings.topic("decisions"), partitions=1, configs=configs)
    publisher = make_publisher(settings)
    await publisher.publish([entry(0)])
    together = [entry(number, value=bytes([number]) * 40_000) for number in range(1, 9)]
    with pytest.raises(EventLogUnavailable, match="MessageSizeTooLarge"):
        await publisher.publish(together)
    await publisher.publish(together)
    await publisher.publish([entry(9)])
    found = [value for _, _, value in await read_all(kafka, settings.topic("decisions"))]
    assert found == [b"decisions 0", *(one.value for one in together), b"decisions 9"]
