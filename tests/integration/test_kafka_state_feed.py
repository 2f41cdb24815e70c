"""The state topic on a real Kafka, read by a replica that starts and stays."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.core.rollout import Rollout
from controller.settings import KafkaSettings
from tests.brokers import LocalKafka, create_topics_at
from tests.builders import make_rollout
from tests.conftest import CreateTopics
from tests.integration.test_kafka_faults import batch_of, produce, sealed

pytestmark = pytest.mark.real_kafka


def decode(value: bytes) -> Rollout:
    """Return the document a test wrote: `<flag> <revision>`."""
    flag_key, revision = value.decode().split()
    return replace(make_rollout(), flag_key=flag_key, revision=int(revision))


class Replica:
    """Reads the feed in the background and keeps what it was given."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.overtaken: list[str] = []
        self.feed = KafkaStateFeed(
            settings, decode, overtaken=self.overtaken.append, retry_seconds=0.2
        )
        self.given: list[tuple[str, int]] = []
        self.task = asyncio.create_task(self.follow())

    async def follow(self) -> None:
        """Keep what comes."""
        async for rollout in self.feed.documents():
            self.given.append((rollout.flag_key, rollout.revision))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to have been given."""
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.05)


@pytest.fixture
async def follow() -> AsyncIterator[Callable[[KafkaSettings], Replica]]:
    """`follow(settings)` gives a replica that is stopped after the test."""
    replicas: list[Replica] = []

    def make(settings: KafkaSettings) -> Replica:
        replicas.append(Replica(settings))
        return replicas[-1]

    yield make
    for replica in replicas:
        replica.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await replica.task
        await replica.feed.stop()


def settings_for(bootstrap: str, prefix: str) -> KafkaSettings:
    """Return settings for a state topic of this test alone."""
    return KafkaSettings(
        bootstrap_servers=bootstrap, topic_prefix=prefix, call_seconds=2.0, stop_seconds=0.5
    )


async def write(
    bootstrap: str, settings: KafkaSettings, records: Sequence[tuple[str, bytes | None]]
) -> None:
    """Write (key, value) in order."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    try:
        await producer.start()
        for key, value in records:
            await producer.send_and_wait(settings.topic("state"), value, key.encode())
    finally:
        await producer.stop()


async def test_a_replica_catches_up_and_follows(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    follow: Callable[[KafkaSettings], Replica],
) -> None:
    """Everything written before the start has been given when it has caught up.

    What comes later is given as it comes.
    """
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("state"), configs={"cleanup.policy": "compact"})
    await write(
        kafka, settings, [(f"flag-{number}", b"flag-%d 3" % number) for number in range(100)]
    )
    replica = follow(settings)
    async with asyncio.timeout(60):
        await replica.feed.caught_up()
    assert sorted(replica.given) == sorted((f"flag-{number}", 3) for number in range(100))
    await write(kafka, settings, [("flag-7", b"flag-7 4")])
    await replica.until(lambda: ("flag-7", 4) in replica.given)
    await replica.until(lambda: (replica.feed.silent_seconds or 99) < 1)


async def test_an_empty_topic_is_caught_up_with(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    follow: Callable[[KafkaSettings], Replica],
) -> None:
    """The first start of all, with nothing in the topic, waits for nothing."""
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("state"))
    replica = follow(settings)
    async with asyncio.timeout(60):
        await replica.feed.caught_up()
    assert replica.given == []


async def test_only_newer_documents_of_the_right_flag_are_given(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    follow: Callable[[KafkaSettings], Replica],
) -> None:
    """Older, repeated, foreign, deleted and corrupt records are passed over.

    They stop their own flag, until a good one.
    """
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("state"), partitions=1)
    await write(
        kafka,
        settings,
        [
            ("a", b"a 5"), ("a", b"a 4"), ("a", b"a 5"), ("a", b"a 6"),
            ("b", b"b 1"), ("b", None),
            ("c", b"\xff\xff"), ("d", b"a 99"), ("e", b"corrupt"), ("e", b"e 1"),
        ],
    )  # fmt: skip
    replica = follow(settings)
    async with asyncio.timeout(60):
        await replica.feed.caught_up()
    assert replica.given == [("a", 5), ("a", 6), ("b", 1), ("e", 1)]
    assert set(replica.feed.corrupt) == {"b", "c", "d"}
    await write(kafka, settings, [("c", b"c 1")])
    await replica.until(lambda: ("c", 1) in replica.given)
    assert set(replica.feed.corrupt) == {"b", "d"}


@pytest.mark.rare
async def test_a_broker_restart_is_survived(
    own_kafka: LocalKafka, topic_prefix: str, follow: Callable[[KafkaSettings], Replica]
) -> None:
    """While the broker is away the feed says how long it has heard nothing.

    Afterwards it goes on and repeats nothing.
    """
    settings = settings_for(own_kafka.bootstrap, topic_prefix)
    await create_topics_at(
        own_kafka.bootstrap, settings.topic("state"), configs={"cleanup.policy": "compact"}
    )
    await write(own_kafka.bootstrap, settings, [("a", b"a 1")])
    replica = follow(settings)
    await replica.until(lambda: replica.given == [("a", 1)])
    await replica.until(lambda: replica.feed.silent_seconds is not None)
    own_kafka.kill9()
    await replica.until(lambda: (replica.feed.silent_seconds or 0) > 2)
    await asyncio.to_thread(own_kafka.start)
    await write(own_kafka.bootstrap, settings, [("a", b"a 2")])
    await replica.until(lambda: replica.given == [("a", 1), ("a", 2)])
    await replica.until(lambda: (replica.feed.silent_seconds or 99) < 1)


async def test_it_waits_for_a_topic_that_is_missing(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    follow: Callable[[KafkaSettings], Replica],
) -> None:
    """A topic that is made after the start is found and read.

    Until then nothing counts as caught up.
    """
    settings = settings_for(kafka, topic_prefix)
    replica = follow(settings)
    await asyncio.sleep(1.0)
    assert replica.feed.silent_seconds is None
    await create_topics(settings.topic("state"), partitions=1)
    await write(kafka, settings, [("a", b"a 1")])
    await replica.until(lambda: replica.given == [("a", 1)])
    async with asyncio.timeout(60):
        await replica.feed.caught_up()


async def test_compaction_leaves_holes_that_are_no_gap(
    own_kafka: LocalKafka, topic_prefix: str, follow: Callable[[KafkaSettings], Replica]
) -> None:
    """After the broker has compacted the topic, a new replica still catches up.

    And has each flag's newest document.
    """
    settings = settings_for(own_kafka.bootstrap, topic_prefix)
    configs = {
        "cleanup.policy": "compact", "segment.bytes": "1048576", "segment.ms": "200",
        "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "200",
        "min.compaction.lag.ms": "0",
    }  # fmt: skip
    await create_topics_at(
        own_kafka.bootstrap, settings.topic("state"), partitions=1, configs=configs
    )
    async with asyncio.timeout(60):
        revision = 0
        while True:
            await write(
                own_kafka.bootstrap,
                settings,
                [("a", b"a %d" % one) for one in range(revision + 1, revision + 21)]
                + [("b", b"b %d" % (revision + 20))],
            )
            revision += 20
            replica = follow(settings)
            await replica.feed.caught_up()
            assert max(one for flag, one in replica.given if flag == "a") == revision
            assert max(one for flag, one in replica.given if flag == "b") == revision
            if len(replica.given) < revision:
                break
            await asyncio.sleep(1.0)


async def test_an_older_document_written_last_is_reported(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    follow: Callable[[KafkaSettings], Replica],
) -> None:
    """What somebody fenced writes late would be all that compaction keeps.

    The flag is named until it is said again.
    """
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("state"))
    await write(
        kafka,
        settings,
        [
            ("flag-1", b"flag-1 3"),
            ("flag-1", b"flag-1 4"),
            ("flag-1", b"flag-1 3"),
            ("flag-2", b"flag-2 1"),
        ],
    )
    replica = follow(settings)
    await replica.until(lambda: "flag-1" in replica.overtaken)
    await write(kafka, settings, [("flag-1", b"flag-1 4")])
    await replica.until(lambda: replica.given.count(("flag-1", 4)) == 2)
    replica.overtaken.clear()
    await replica.until(lambda: (replica.feed.silent_seconds or 99) < 0.2)
    assert replica.overtaken == []
    assert replica.given.count(("flag-1", 4)) == 2, "it stands there again"


async def test_a_topic_that_grows_or_is_made_anew_is_read_whole(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    follow: Callable[[KafkaSettings], Replica],
) -> None:
    """New partitions are followed.

    A new topic of the same name is read from its beginning, also when nobody tells.
    """
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic("state")
    await create_topics(topic, partitions=1)
    await write(kafka, settings, [("a", b"a 1"), ("b", b"b 1"), ("c", b"c 1")])
    replica = follow(settings)
    await replica.until(lambda: len(replica.given) == 3)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_partitions({topic: NewPartitions(6)})
    # A key of the partition that is new: of the eight one is.
    await write(kafka, settings, [(f"k{number}", b"k%d 1" % number) for number in range(20)])
    await replica.until(lambda: len(replica.given) == 23)
    await admin.delete_topics([topic])
    async with asyncio.timeout(60):
        while topic in await admin.list_topics():
            await asyncio.sleep(0.1)
    await create_topics(topic, partitions=6)
    await admin.close()
    await write(kafka, settings, [("c", b"c 2")])
    await replica.until(lambda: ("c", 2) in replica.given)
    # As the topology says, when the new topic has grown past where the old one was read.
    replica.feed.read_again()
    await write(kafka, settings, [("c", b"c 3")])
    await replica.until(lambda: ("c", 3) in replica.given)
    # What only the old topic had is to be published again, by whoever has it.
    await replica.until(lambda: {"a", "b"} <= set(replica.overtaken))
    await write(kafka, settings, [("a", b"a 1")])
    await replica.until(lambda: replica.given.count(("a", 1)) == 2)


async def test_a_record_that_cannot_be_read_stops_no_other_flag(
    own_kafka: LocalKafka, topic_prefix: str, follow: Callable[[KafkaSettings], Replica]
) -> None:
    """Broken on the disk, or with a header that is no text.

    It is passed by, and the feed catches up.
    """
    settings = settings_for(own_kafka.bootstrap, topic_prefix)
    topic = settings.topic("state")
    await create_topics_at(own_kafka.bootstrap, topic, partitions=1)
    await write(own_kafka.bootstrap, settings, [("a", b"a 1"), ("b", b"b 77777"), ("c", b"c 1")])
    odd = batch_of([b"odd 1"], header="name").replace(b"name", b"n\xffme")
    await produce(own_kafka.bootstrap, topic, sealed(odd))
    await write(own_kafka.bootstrap, settings, [("d", b"d 1")])
    own_kafka.terminate()
    segment = next(
        one for one in own_kafka.directory.rglob("*.log") if one.parent.name == f"{topic}-0"
    )
    segment.write_bytes(segment.read_bytes().replace(b"b 77777", b"b 77778"))
    await asyncio.to_thread(own_kafka.start)
    replica = follow(settings)
    await replica.until(lambda: ("d", 1) in replica.given)
    assert replica.given == [("a", 1), ("c", 1), ("d", 1)]
    async with asyncio.timeout(60):
        await replica.feed.caught_up()


async def test_a_silent_broker_is_waited_for(
    own_kafka: LocalKafka, topic_prefix: str, follow: Callable[[KafkaSettings], Replica]
) -> None:
    """After brokers were frozen for ten seconds the feed goes on by itself."""
    settings = settings_for(own_kafka.bootstrap, topic_prefix)
    await create_topics_at(own_kafka.bootstrap, settings.topic("state"), partitions=2)
    replica = follow(settings)
    await write(own_kafka.bootstrap, settings, [("a", b"a 1")])
    await replica.until(lambda: replica.given == [("a", 1)])
    own_kafka.pause()
    await asyncio.sleep(10.0)
    assert not replica.task.done()
    own_kafka.resume()
    await write(own_kafka.bootstrap, settings, [("a", b"a 2")])
    await replica.until(lambda: replica.given == [("a", 1), ("a", 2)])
