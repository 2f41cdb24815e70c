"""What Kafka's own operators do on an ordinary day, under a release that fails.

It is rolled back, or people are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete

from schemas.terms import CommandVerb
from tests.brokers import LocalKafka
from tests.chaos.failing_release import FailingRelease
from tests.chaos.recount import end_offsets
from tests.live import Client, DaemonProcess, make_command

pytestmark = pytest.mark.real_kafka

EVENT_TOPICS = ("flag.evaluations", "request.outcomes")
ALL_TOPICS = (
    *EVENT_TOPICS,
    "rollout.commands",
    "rollout.results",
    "rollout.decisions",
    "rollout.alerts",
    "rollout.state",
    "rollout.quarantine",
)


@asynccontextmanager
async def releasing(
    bootstrap: str, redis_url: str, prefix: str, directory: Path
) -> AsyncIterator[FailingRelease]:
    """Give a healthy release at 50 %, with a daemon of its own."""
    async with (
        DaemonProcess(bootstrap, redis_url, directory, prefix=prefix) as daemon,
        Client(bootstrap, prefix) as client,
        FailingRelease(client, daemon) as release,
    ):
        yield release


@asynccontextmanager
async def administrator(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Give a connected admin client."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def add_partitions(bootstrap: str, counts: dict[str, int]) -> None:
    """Give topics as many partitions."""
    async with administrator(bootstrap) as admin:
        await admin.create_partitions(
            {name: NewPartitions(total_count=count) for name, count in counts.items()}
        )


async def recreate_topics(bootstrap: str, *names: str, partitions: int = 4) -> None:
    """Delete topics and make them again under the same name."""
    async with administrator(bootstrap) as admin:
        await admin.delete_topics(list(names))
        for _ in range(600):
            await asyncio.sleep(0.1)
            answer = await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
            if all(code in (0, 36) for _, code, *_ in answer.topic_errors):  # 36: it is there
                listed = await admin.list_topics()
                if set(names) <= set(listed):
                    return
    raise AssertionError(f"{names} could not be made again")


async def test_partitions_are_added_to_every_topic(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Failures that all lie in new partitions are judged, and a roll back reaches its flag."""
    async with releasing(kafka, redis_url, topic_prefix, tmp_path) as release:
        await add_partitions(kafka, {topic_prefix + name: 6 for name in ALL_TOPICS})
        await asyncio.sleep(1)
        await release.client.producer.client.force_metadata_update()
        await release.fail_in([4, 5])
        # Consumers hear of new partitions within 10 s, and rebalance.
        await release.is_noticed(within_seconds=30.0)
        await release.daemon.until(
            release.flag_key, lambda one: one["phase"]["name"] == "rolled_back"
        )
        answer = await release.client.command(CommandVerb.ROLL_BACK, release.flag_key)
        assert answer.status == "accepted"
        commands = await release.client.records("rollout.commands")
        assert len(commands) <= 4, "a command that is forwarded is forwarded once"


@pytest.mark.rare
async def test_a_roll_back_works_after_the_command_topic_has_grown(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Flags change their partition when commands get more of them.

    None is out of reach for that.
    """
    async with releasing(kafka, redis_url, topic_prefix, tmp_path) as release:
        await add_partitions(kafka, {topic_prefix + "rollout.commands": 7})
        await release.client.producer.client.force_metadata_update()
        answer = await release.client.command(
            CommandVerb.ROLL_BACK, release.flag_key, wait_seconds=120.0
        )
        assert answer.status == "accepted"
        document = await release.daemon.until(
            release.flag_key, lambda one: one["phase"]["name"] == "rolled_back"
        )
        assert document["percent"] == 0


@pytest.mark.parametrize(
    "topic",
    [
        pytest.param("request.outcomes", marks=pytest.mark.rare),
        "rollout.commands",
        pytest.param("flag.evaluations", marks=pytest.mark.rare),
        pytest.param("rollout.state", marks=pytest.mark.rare),
        pytest.param("rollout.quarantine", marks=pytest.mark.rare),
    ],
)
async def test_a_topic_is_deleted_and_made_again(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path, topic: str
) -> None:
    """The daemon goes on with the new topic.

    What the old one held and was not read is said to be lost.
    """
    async with releasing(kafka, redis_url, topic_prefix, tmp_path) as release:
        await recreate_topics(kafka, topic_prefix + topic)
        release.fail()
        await release.is_noticed(
            within_seconds=20.0
        )  # producers and consumers hear of it within 10 s


@pytest.mark.rare
async def test_a_topic_is_made_again_and_outgrows_the_old_fence(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Offsets of a new topic are not those of the old one, even where they seem to continue.

    All that fails lies below the old fences; what comes after them is well.
    """
    async with releasing(kafka, redis_url, topic_prefix, tmp_path) as release:
        release.traffic.is_reporting = False
        await asyncio.sleep(2)  # everything is counted and saved: the fences are the ends
        release.daemon.kill9()
        ends = await end_offsets(kafka, [topic_prefix + name for name in EVENT_TOPICS])
        least, most = min(ends.values()), max(ends.values())
        assert least >= 20, ends
        await recreate_topics(kafka, *(topic_prefix + name for name in EVENT_TOPICS))
        await release.client.producer.client.force_metadata_update()
        await release.fail_in([0, 1, 2, 3], requests=4 * least)
        await release.succeed_in([0, 1, 2, 3], requests=4 * (most - least + 25))
        await release.daemon.start()
        release.fail_again()
        # A killed member's session lasts 10 s.
        noticed = await release.is_noticed(within_seconds=25.0)
        assert noticed.how == "rolled_back"


@pytest.mark.rare
async def test_a_transaction_that_stays_open_is_no_silence(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Nobody can read what comes after it: that is alerted, and judged once it has ended."""
    async with releasing(kafka, redis_url, topic_prefix, tmp_path) as release:
        producer = AIOKafkaProducer(
            bootstrap_servers=kafka,
            transactional_id=f"{topic_prefix}open",
            transaction_timeout_ms=600_000,
        )
        try:
            await producer.start()
            await producer.begin_transaction()
            for number in range(4):
                topic = f"{topic_prefix}request.outcomes"
                await (await producer.send(topic, b"no event", partition=number))
            release.fail()
            noticed = await release.is_noticed(within_seconds=20.0)
            assert noticed.how == "alert"
            faults = (await release.readiness())["faults"]
            assert any("open transaction hides" in fault["reason"] for fault in faults), faults
            await producer.abort_transaction()
        finally:
            await producer.stop()
        document = await release.daemon.until(
            release.flag_key, lambda one: one["phase"]["name"] == "rolled_back"
        )
        assert document["percent"] == 0


async def test_records_are_deleted_below_the_reader(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Records that are deleted while the daemon runs cost nothing but themselves."""
    async with releasing(kafka, redis_url, topic_prefix, tmp_path) as release:
        await delete_all_records(
            kafka, [topic_prefix + name for name in (*EVENT_TOPICS, "rollout.commands")]
        )
        release.fail()
        await release.is_noticed()


@pytest.mark.rare
async def test_retention_passes_the_fence_while_the_daemon_is_away(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """What was deleted unread taints the stage, and guardrails watch what comes after it."""
    async with releasing(kafka, redis_url, topic_prefix, tmp_path) as release:
        release.daemon.kill9()
        await asyncio.sleep(2)
        await delete_all_records(kafka, [topic_prefix + name for name in EVENT_TOPICS])
        await release.daemon.start()
        release.fail()
        await release.is_noticed(within_seconds=20.0)  # a killed member's session lasts 10 s
        assert release.daemon.log_lines("records_lost")


async def delete_all_records(bootstrap: str, names: list[str]) -> None:
    """Delete every record there is now."""
    ends = await end_offsets(bootstrap, names)
    async with administrator(bootstrap) as admin:
        await admin.delete_records(
            {TopicPartition(*one): RecordsToDelete(before_offset=end) for one, end in ends.items()}
        )


@pytest.mark.rare
@pytest.mark.parametrize("ahead", [0, 1_000])
async def test_committed_offsets_are_moved(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path, ahead: int
) -> None:
    """Committed offsets moved back to the start.

    Or beyond the end, lose no command and repeat none.
    """
    async with releasing(kafka, redis_url, topic_prefix, tmp_path) as release:
        assert await release.daemon.stop() == 0
        topic = topic_prefix + "rollout.commands"
        groups = {
            f"{topic_prefix}rolloutd.commands": [topic],
            f"{topic_prefix}rolloutd": [topic_prefix + EVENT_TOPICS[0]],
        }
        for group, names in groups.items():
            await move_committed(kafka, group, names, ahead)
        await release.daemon.start()
        release.fail()
        noticed = await release.is_noticed(within_seconds=20.0)
        assert noticed.how in ("rolled_back", "alert")
        pause = make_command(CommandVerb.PAUSE, release.flag_key)
        await release.client.publish(pause)
        assert (await release.client.result(pause.id, 120.0)).status == "accepted"


async def move_committed(bootstrap: str, group: str, names: list[str], ahead: int) -> None:
    """Commit other offsets for a group without members: 0, or so many beyond the end."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False
    )
    try:
        await consumer.start()
        for name in names:
            await consumer._client._wait_on_metadata(name)
        partitions = [
            TopicPartition(name, number)
            for name in names
            for number in consumer.partitions_for_topic(name)
        ]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        offsets: dict[Any, int] = {one: ends[one] + ahead if ahead else 0 for one in partitions}
        await consumer.commit(offsets)
    finally:
        await consumer.stop()


@pytest.mark.rare
async def test_a_broker_freezes_for_a_minute(
    own_kafka: LocalKafka, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """While nothing can be read the log says so.

    Afterwards the same process reads on and rolls back.
    """
    async with releasing(own_kafka.bootstrap, redis_url, topic_prefix, tmp_path) as release:
        process = release.daemon.process
        release.fail()
        own_kafka.pause()
        try:
            noticed = await release.is_noticed(reads_kafka=False)
            body = await release.readiness()
            assert noticed.how == "rolled_back" or body["degraded"], body
            await asyncio.sleep(max(0.0, 60 - noticed.seconds))
            assert process is not None
            assert process.poll() is None, release.daemon.log_tail()
        finally:
            own_kafka.resume()
        await release.daemon.until(
            release.flag_key, lambda one: one["phase"]["name"] == "rolled_back", 120
        )
        assert release.daemon.process is process
