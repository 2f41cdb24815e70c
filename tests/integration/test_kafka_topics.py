"""The topics of a real cluster.

Made when missing, checked when there, and keyed as everybody else keys them.
"""

import asyncio
import time
from typing import cast

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidTimestampError

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.publisher import KafkaPublisher
from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.adapters.kafka.topics import cluster_id, ensure_topics, partition_of
from controller.errors import ConfigInvalid, EventLogUnavailable
from controller.health import Faults, Scope
from controller.running import topics
from controller.settings import KafkaSettings, TopicNames
from tests.brokers import LocalKafka, MockKafka
from tests.builders import T0
from tests.conftest import CreateTopics, require_local_kafka


def settings_for(bootstrap: str, prefix: str, **changes: object) -> KafkaSettings:
    """Return settings for topics of this test alone."""
    return KafkaSettings.model_validate(
        {"bootstrap_servers": bootstrap, "topic_prefix": prefix, "partitions": 4, **changes}
    )


async def policies(bootstrap: str, *topics: str) -> dict[str, str]:
    """Return each topic's cleanup policy."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        answers = await admin.describe_configs(
            [
                ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": ""})
                for topic in topics
            ]
        )
    finally:
        await admin.close()
    return {resource[3]: resource[4][0][1] for answer in answers for resource in answer.resources}


async def until_listed(bootstrap: str, *topics: str) -> None:
    """Wait until the broker knows of topics that were just made."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        async with asyncio.timeout(60):
            while not set(topics) <= set(await admin.list_topics()):
                await asyncio.sleep(0.05)
    finally:
        await admin.close()


@pytest.mark.real_kafka
async def test_missing_topics_are_made_as_they_must_be(kafka: str, topic_prefix: str) -> None:
    """All eight topics are made with the set partitions.

    State is compacted, the others are not. Twice changes nothing.
    """
    settings = settings_for(kafka, topic_prefix)
    for _ in range(2):
        assert await ensure_topics(settings) == dict.fromkeys(TopicNames.model_fields, 4)
    names = [settings.topic(logical) for logical in TopicNames.model_fields]
    expected = {name: "compact" if name.endswith("rollout.state") else "delete" for name in names}
    assert await policies(kafka, *names) == expected


@pytest.mark.rare
@pytest.mark.parametrize("is_limit_set", [False, True])
async def test_records_from_the_future_are_refused_unless_the_broker_says_otherwise(
    topic_prefix: str, is_limit_set: bool
) -> None:
    """Event and command topics take nothing an hour ahead.

    A limit that somebody set for the whole broker is left.
    """
    require_local_kafka()
    limit = {} if is_limit_set else {"log.message.timestamp.after.max.ms": ""}
    with LocalKafka(settings=limit) as broker:
        settings = settings_for(broker.bootstrap, topic_prefix)
        await ensure_topics(settings)
        producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
        refused = []
        try:
            await producer.start()
            for logical in ("evaluations", "commands", "state", "results"):
                now = round(time.time() * 1000)
                await producer.send_and_wait(
                    settings.topic(logical), b"{}", b"k", timestamp_ms=now + 240_000
                )
                try:
                    await producer.send_and_wait(
                        settings.topic(logical), b"{}", b"k", timestamp_ms=now + 1_800_000
                    )
                except InvalidTimestampError:
                    refused.append(logical)
        finally:
            await producer.stop()
    assert refused == ([] if is_limit_set else ["evaluations", "commands"])


@pytest.mark.real_kafka
async def test_replicas_that_start_together_make_the_topics_once(
    kafka: str, topic_prefix: str
) -> None:
    """Three replicas that find nothing all end up with the same topics."""
    settings = settings_for(kafka, topic_prefix)
    counts = await asyncio.gather(*(ensure_topics(settings) for _ in range(3)))
    assert counts == [dict.fromkeys(TopicNames.model_fields, 4)] * 3


@pytest.mark.real_kafka
async def test_a_missing_event_topic_gets_the_partitions_of_the_other(
    kafka: str, topic_prefix: str, create_topics: CreateTopics
) -> None:
    """When only one event topic is there, its twin is made to match, whatever the settings say."""
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("outcomes"), partitions=6)
    await until_listed(kafka, settings.topic("outcomes"))
    counts = await ensure_topics(settings)
    assert (counts["evaluations"], counts["outcomes"], counts["commands"]) == (6, 6, 4)


@pytest.mark.real_kafka
async def test_unequal_event_topics_are_refused_with_the_fix(
    kafka: str, topic_prefix: str, create_topics: CreateTopics
) -> None:
    """Event topics of 2 and 3 partitions are refused, naming the command that fixes it.

    And nothing else is made.
    """
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic("evaluations"), partitions=2)
    await create_topics(settings.topic("outcomes"), partitions=3)
    await until_listed(kafka, *settings.event_topics)
    fix = f"kafka-topics --alter --topic {settings.topic('evaluations')} --partitions 3"
    with pytest.raises(ConfigInvalid, match=fix):
        await ensure_topics(settings)
    with pytest.raises(EventLogUnavailable, match="missing"):
        await ensure_topics(settings_for(kafka, topic_prefix + "other.", create_topics=False))


@pytest.mark.real_kafka
@pytest.mark.parametrize(
    ("logical", "policy", "fix"),
    [
        ("state", "delete", "compact"),
        ("state", "compact,delete", "compact"),
        ("outcomes", "compact", "delete"),
    ],
)
async def test_a_cleanup_that_loses_records_is_refused(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, logical: str, policy: str, fix: str
) -> None:
    """A state topic that forgets.

    And an event topic that keeps one event per user, are refused with the fix.
    """
    settings = settings_for(kafka, topic_prefix)
    await create_topics(settings.topic(logical), configs={"cleanup.policy": policy})
    await until_listed(kafka, settings.topic(logical))
    with pytest.raises(ConfigInvalid, match=f"{settings.topic(logical)} .*cleanup.policy={fix}"):
        await ensure_topics(settings)


class Feed:
    """Counts how often the state topic is to be read from its beginning."""

    def __init__(self) -> None:
        self.times = 0

    def read_again(self) -> None:
        """Count it."""
        self.times += 1


@pytest.mark.real_kafka
async def test_a_cleanup_that_is_changed_while_running_is_a_fault(
    kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told before anything is deleted, and what is gone is looked for once it is right."""
    monkeypatch.setattr(topics, "POLICIES_SECONDS", 0.1)
    settings, faults, feed = settings_for(kafka, topic_prefix), Faults(lambda: T0), Feed()
    await ensure_topics(settings)
    running = topics.Topics(settings, faults, logs=(), feed=cast("KafkaStateFeed", feed))
    watching = asyncio.create_task(running.run())

    async def fault(words: str) -> None:
        async with asyncio.timeout(60):
            while words not in str(faults.of(Scope.DEPENDENCY, topics.POLICIES)):
                await asyncio.sleep(0.02)

    state = settings.topic("state")
    await set_policy(kafka, state, "delete")
    await fault(f"{state} has cleanup.policy=delete")
    assert feed.times == 0
    await set_policy(kafka, state, "compact")
    await fault("None")
    assert feed.times == 1
    watching.cancel()
    await asyncio.wait([watching])


async def set_policy(bootstrap: str, topic: str, policy: str) -> None:
    """Give a topic a cleanup policy."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": policy})]
        )
    finally:
        await admin.close()


@pytest.mark.real_kafka
async def test_the_same_key_goes_to_the_same_partition_everywhere(
    kafka: str, topic_prefix: str, create_topics: CreateTopics
) -> None:
    """`partition_of` is where a producer really puts a key.

    Also beyond ASCII and at every length modulo 4.
    """
    topic = f"{topic_prefix}keys"
    await create_topics(topic, partitions=7)
    keys = [
        "",
        "a",
        "ab",
        "abc",
        "abcd",
        "new-checkout",
        "дом",
        "火",
        *(f"flag-{number}" for number in range(200)),
    ]
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    try:
        await producer.start()
        futures = [await producer.send(topic, b"", key.encode()) for key in keys]
        landed = [metadata.partition for metadata in await asyncio.gather(*futures)]
    finally:
        await producer.stop()
    assert landed == [partition_of(key, 7) for key in keys]


def test_partitions_of_javas_own_vectors() -> None:
    """The hash is Java's: vectors of Apache Kafka's UtilsTest.testMurmur2."""
    vectors = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
               "a-little-bit-longer-string": -1486304829,
               "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
               "abc": 479470107}  # fmt: skip
    for key, java in vectors.items():
        assert partition_of(key, 2**31 - 1) == (java & 0x7FFFFFFF) % (2**31 - 1)


@pytest.mark.real_kafka
async def test_the_clusters_id(own_kafka: LocalKafka) -> None:
    """The cluster has an id that survives a restart; without a broker that is said in time."""
    settings = settings_for(own_kafka.bootstrap, "", start_seconds=5.0)
    before = await cluster_id(settings)
    assert before
    own_kafka.pause()
    with pytest.raises(EventLogUnavailable, match="no answer"):
        await ensure_topics(settings)
    own_kafka.resume()
    own_kafka.terminate()
    with pytest.raises(EventLogUnavailable):
        await cluster_id(settings)
    await asyncio.to_thread(own_kafka.start)
    assert await cluster_id(settings) == before


async def test_the_mock_without_topics_or_controller_will_do(topic_prefix: str) -> None:
    """On librdkafka's mock, which answers no admin calls, topics appear.

    And two groups read in one process.
    """
    mock = MockKafka()
    try:
        settings = settings_for(
            mock.bootstrap,
            topic_prefix,
            session_timeout_seconds=6.0,
            heartbeat_interval_seconds=1.0,
        )
        assert await ensure_topics(settings) == dict.fromkeys(TopicNames.model_fields, 4)
        assert await cluster_id(settings)
        events = KafkaEventLog(settings, settings.event_topics, settings.events_group)
        commands = KafkaEventLog(settings, [settings.topic("commands")], settings.commands_group)
        publisher = KafkaPublisher(settings)
        await asyncio.gather(events.start(), commands.start())
        await publisher.publish_many(
            [(topic, b"key", b"value") for topic in ("evaluations", "outcomes", "commands")]
        )
        assert (len(events.assignment), len(commands.assignment)) == (8, 4)
        seen: list[str] = []
        async with asyncio.timeout(60):
            while len(seen) < 3:
                for log in (events, commands):
                    seen += [topic for topic, _ in await log.fetch(100, 0.1)]
        assert sorted(seen) == sorted(
            settings.topic(logical) for logical in ("evaluations", "outcomes", "commands")
        )
        assert {number for _, number in await events.progress()} == {partition_of("key", 4)}
        await asyncio.gather(events.stop(), commands.stop(), publisher.stop())
    finally:
        mock.stop()
