"""One member of a consumer group on a real Kafka: what it owns, where it reads, and how it ends."""

import asyncio
import time
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from controller.adapters.kafka.fetch_guard import FetchGuard
from controller.adapters.kafka.group_member import FETCH_MAX_BYTES
from controller.errors import EventLogUnavailable
from controller.ports import EventLog, TopicPartition
from tests.brokers import LocalKafka, create_topics_at
from tests.conftest import CreateTopics
from tests.integration.event_logs import MakeLog, fetch, produce, read, settings_for, until

pytestmark = pytest.mark.real_kafka


async def test_reads_in_order_from_where_it_is_told(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """A partition is read in order, and again from any offset that is sought.

    What the group committed does not matter.
    """
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic("evaluations")
    await create_topics(topic, partitions=1)
    values = [str(number).encode() for number in range(1200)]
    await produce(kafka, topic, values)
    member: EventLog
    member = event_log = make_log(settings)
    await event_log.start()
    partition = (topic, 0)
    assert event_log.assignment == {partition}
    assert await read(event_log, 1200) == values
    assert event_log.end_offset(partition) == 1200
    assert await member.bounds(partition) == (0, 1200)
    await member.commit({partition: 1200})
    assert await member.committed(partition) == 1200
    member.seek(partition, 1195)
    assert await read(event_log, 5) == values[1195:]
    assert await event_log.progress() == {partition: (1200, 1200)}
    record = None
    member.seek(partition, 7)
    while record is None:
        record = next((records[0] for records in (await member.fetch(3, 0.5)).values()), None)
    assert (record.offset, record.key, record.value, tuple(record.headers)) == (7, None, b"7", ())
    assert not isinstance(
        record, ConsumerRecord
    )  # one that came while `fetch` waited is left bare, too


async def test_at_most_as_many_records_as_asked(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """A fetch over several partitions returns no more than it was asked for, and the rest later."""
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic("evaluations")
    await create_topics(topic, partitions=4)
    await produce(kafka, topic, [b"x"] * 400, partition=None)
    member = make_log(settings)
    await member.start()
    total = 0
    async with asyncio.timeout(60):
        while total < 400:
            count = sum(len(records) for records in (await member.fetch(30, 0.2)).values())
            assert count <= 30
            total += count
    assert total == 400


async def test_an_answer_is_bounded_whatever_the_partitions(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    make_log: MakeLog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of an answer is read in one turn of the event loop: 24 MB are there, 8 are taken."""
    settings = settings_for(kafka, topic_prefix)
    topic, partitions = settings.topic("evaluations"), 24
    await create_topics(topic, partitions=partitions)
    values = [b"x" * 50_000] * 20
    for partition in range(partitions):
        await produce(kafka, topic, values, partition)
    answered: list[int] = []
    make_safe = FetchGuard._safe_topics

    async def noted(guard: FetchGuard, request: Any, topics: Any) -> Any:
        safe = await make_safe(guard, request, topics)
        answered.append(sum(len(each[-1]) for _, parts in safe for each in parts))
        return safe

    monkeypatch.setattr(FetchGuard, "_safe_topics", noted)
    member = make_log(settings)
    await member.start()
    assert len(await read(member, len(values) * partitions)) == len(values) * partitions
    assert 4_000_000 < max(answered) <= FETCH_MAX_BYTES + 1_048_576


async def test_pause_and_resume(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """Nothing is fetched from a paused partition, and it goes on where it was."""
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic("evaluations")
    await create_topics(topic, partitions=2)
    member = make_log(settings)
    await member.start()
    member.seek((topic, 0), 0)
    member.pause([(topic, 0)])
    await produce(kafka, topic, [b"zero"], partition=0)
    await produce(kafka, topic, [b"one"], partition=1)
    assert await read(member, 1) == [b"one"]
    assert await member.fetch(10, 0.5) == {}
    assert (topic, 0) not in await member.progress()
    member.resume([(topic, 0)])
    assert await read(member, 1) == [b"zero"]


@pytest.mark.parametrize("count", [2, 3])
async def test_members_share_and_hand_over(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog, count: int
) -> None:
    """With 2 and 3 members each partition has one owner, the two event topics alike.

    And each is asked to save first.
    """
    settings = settings_for(kafka, topic_prefix)
    topics = settings.event_topics
    await create_topics(*topics, partitions=6)
    members = [make_log(settings, topics) for _ in range(count)]
    handed_over: list[frozenset[TopicPartition]] = []

    async def save(partitions: frozenset[TopicPartition]) -> None:
        assert partitions <= members[0].assignment, "still ours while we save"
        await asyncio.sleep(0.1)
        handed_over.append(partitions)

    members[0].on_revoked(save)
    await members[0].start()
    assert len(members[0].assignment) == 12
    for member in members[1:]:
        joining = asyncio.create_task(member.start())
        while not joining.done():
            # The pause lets others run while nobody has an assignment to fetch from.
            fetches = [fetch(one) for one in members if one.assignment]
            await asyncio.gather(asyncio.sleep(0.01), *fetches)
        await joining
    await until(lambda: all(len(member.assignment) == 12 // count for member in members), *members)
    owned = [partition for member in members for partition in member.assignment]
    assert sorted(owned) == sorted((topic, number) for topic in topics for number in range(6))
    for member in members:
        numbers = [
            {number for topic, number in member.assignment if topic == one} for one in topics
        ]
        assert numbers[0] == numbers[1], "a context's evaluations and outcomes meet"
    assert handed_over[0] == frozenset((topic, number) for topic in topics for number in range(6))
    await members[-1].stop()
    assert members[-1].assignment == frozenset()
    rest = members[:-1]
    await until(lambda: sum(len(member.assignment) for member in rest) == 12, *rest)


async def test_a_save_that_hangs_or_fails_delays_the_group_for_a_bounded_time(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """A member whose last save hangs loses its partitions after `revoke_seconds`.

    One whose save raises, at once.
    """
    settings = settings_for(kafka, topic_prefix, revoke_seconds=0.5)
    await create_topics(settings.topic("evaluations"), partitions=2)
    first, second, third = make_log(settings), make_log(settings), make_log(settings)

    async def hang(_: frozenset[TopicPartition]) -> None:
        await asyncio.sleep(3600)

    async def fail(_: frozenset[TopicPartition]) -> None:
        raise RuntimeError("the store is gone")

    first.on_revoked(hang)
    second.on_revoked(fail)
    await first.start()
    started = time.monotonic()
    await second.start()
    assert time.monotonic() - started < 60  # the save would take an hour
    await until(lambda: len(first.assignment) == len(second.assignment) == 1, first, second)
    await third.start()
    await until(
        lambda: len(first.assignment | second.assignment | third.assignment) == 2,
        first,
        second,
        third,
    )


async def test_a_broker_restart_is_survived(
    own_kafka: LocalKafka, topic_prefix: str, make_log: MakeLog
) -> None:
    """After a restart of the only broker reading goes on by itself.

    With nothing lost or repeated.
    """
    settings = settings_for(own_kafka.bootstrap, topic_prefix)
    topic = settings.topic("evaluations")
    await create_topics_at(own_kafka.bootstrap, topic, partitions=2)
    member = make_log(settings)
    await member.start()
    for number in range(2):
        member.seek((topic, number), 0)
    await produce(own_kafka.bootstrap, topic, [b"before"])
    assert await read(member, 1) == [b"before"]
    own_kafka.kill9()
    for _ in range(10):
        assert await fetch(member) == {}
    await asyncio.to_thread(own_kafka.start)
    await produce(own_kafka.bootstrap, topic, [b"after"])
    assert await read(member, 1, seconds=60) == [b"after"]
    await until(lambda: len(member.assignment) == 2, member)


async def test_a_silent_broker_holds_up_no_call(
    own_kafka: LocalKafka, topic_prefix: str, make_log: MakeLog
) -> None:
    """Against a broker that accepts and never answers, every call ends at its deadline.

    And stop within its own.
    """
    settings = settings_for(own_kafka.bootstrap, topic_prefix, call_seconds=1.0, stop_seconds=1.0)
    topic = settings.topic("evaluations")
    await create_topics_at(own_kafka.bootstrap, topic, partitions=1)
    member = make_log(settings)
    await member.start()
    member.seek((topic, 0), 0)
    own_kafka.pause()
    try:
        started = time.monotonic()
        assert await member.fetch(10, 0.2) == {}
        assert time.monotonic() - started < 20  # without a deadline it would hang
        started = time.monotonic()
        with pytest.raises(EventLogUnavailable, match="no answer in time"):
            await member.bounds((topic, 0))
        with pytest.raises(EventLogUnavailable):
            await member.committed((topic, 0))
        with pytest.raises(EventLogUnavailable):
            await member.progress()
        await member.commit({(topic, 0): 0})
        assert time.monotonic() - started < 40
        before = set(asyncio.all_tasks())

        async def hang(_: frozenset[TopicPartition]) -> None:
            await asyncio.sleep(3600)

        member.on_revoked(hang)
        started = time.monotonic()
        await member.stop()
        assert time.monotonic() - started < 20
        assert not {task for task in asyncio.all_tasks() - before if not task.done()}
    finally:
        own_kafka.resume()


async def test_starting_without_a_broker_fails_in_time_and_works_later(
    own_kafka: LocalKafka, topic_prefix: str, make_log: MakeLog
) -> None:
    """A start without a broker says so; once the broker is there, the same member starts."""
    settings = settings_for(own_kafka.bootstrap, topic_prefix, start_seconds=12.0)
    topic = settings.topic("evaluations")
    await create_topics_at(own_kafka.bootstrap, topic, partitions=1)
    member = make_log(settings)
    own_kafka.terminate()
    with pytest.raises(EventLogUnavailable, match="joining the group"):
        await member.start()
    await asyncio.to_thread(own_kafka.start)
    await until(lambda: len(member.assignment) == 1, member)
