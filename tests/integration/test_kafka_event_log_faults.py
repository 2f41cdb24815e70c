"""What a member of a group does with lost, aborted, broken and foreign records."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition as KafkaPartition

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.clock import SystemClock
from controller.errors import BrokenInvariant, EventLogUnavailable
from controller.ports import TopicPartition
from controller.running.watchdog import ConsumerWatchdog
from controller.settings import WatchdogSettings
from tests.brokers import LocalKafka, create_topics_at
from tests.conftest import CreateTopics
from tests.integration.event_logs import MakeLog, fetch, produce, read, settings_for, until

pytestmark = pytest.mark.real_kafka


async def test_rebuilding_goes_on_from_what_is_sought(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """A rebuilt consumer has its partitions again, after the save and before it seeks."""
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic("evaluations")
    await create_topics(topic, partitions=1)
    await produce(kafka, topic, [b"a", b"b"])
    member = make_log(settings)
    saved: list[frozenset[TopicPartition]] = []

    async def save(partitions: frozenset[TopicPartition]) -> None:
        saved.append(partitions)

    member.on_revoked(save)
    await member.start()
    member.seek((topic, 0), 0)
    assert await read(member, 2) == [b"a", b"b"]
    await asyncio.gather(member.rebuild(), member.fetch(10, 0.1))
    assert saved == [frozenset({(topic, 0)})]
    await until(lambda: len(member.assignment) == 1, member)
    member.seek((topic, 0), 1)
    assert await read(member, 1) == [b"b"]


async def test_an_offset_eaten_by_retention_is_handed_back_to_its_owner(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """When the sought offset no longer exists, no record is given.

    The partition is revoked and assigned once more.
    """
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic("evaluations")
    partition = (topic, 0)
    await create_topics(topic, partitions=1)
    await produce(kafka, topic, [str(number).encode() for number in range(10)])
    await delete_records(kafka, topic, 6)
    member = make_log(settings)
    revoked: list[frozenset[TopicPartition]] = []

    async def save(partitions: frozenset[TopicPartition]) -> None:
        revoked.append(partitions)

    member.on_revoked(save)
    await member.start()
    member.seek(partition, 3)
    async with asyncio.timeout(60):
        while not revoked:
            assert await member.fetch(500, 0.2) == {}
    assert partition not in member.assignment
    await member.fetch(1, 0.0)
    assert partition in member.assignment
    assert await member.bounds(partition) == (6, 10)
    member.seek(partition, 6)
    assert await read(member, 4) == [b"6", b"7", b"8", b"9"]


async def delete_records(bootstrap: str, topic: str, before: int) -> None:
    """Delete all records before an offset, as retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        await admin.delete_records(
            {KafkaPartition(topic, 0): RecordsToDelete(before_offset=before)}
        )
    finally:
        await admin.close()


async def test_a_topic_made_anew_is_handed_back_to_its_owner(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """When the topic was deleted and created again under us, its owner is asked to look again.

    And finds its fence outside.
    """
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic("evaluations")
    partition = (topic, 0)
    await create_topics(topic, partitions=1)
    await produce(kafka, topic, [b"old"] * 10)
    member = make_log(settings)
    await member.start()
    revoked = asyncio.Event()

    async def save(_: frozenset[TopicPartition]) -> None:
        revoked.set()

    member.on_revoked(save)
    member.seek(partition, 0)
    await read(member, 10)
    await delete_topic(kafka, topic)
    async with asyncio.timeout(60):
        while not await was_created(create_topics, topic):
            await asyncio.sleep(0.2)
    await produce(kafka, topic, [b"new"] * 3)
    async with asyncio.timeout(60):
        while not revoked.is_set():
            assert await fetch(member) == {}, "nothing of the new topic is taken for the old one's"
    await until(lambda: partition in member.assignment, member)
    assert await member.bounds(partition) == (0, 3), "the fence of 10 lies outside"


async def delete_topic(bootstrap: str, topic: str) -> None:
    """Delete a topic with all its records."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        await admin.delete_topics([topic])
    finally:
        await admin.close()


async def was_created(create_topics: CreateTopics, topic: str) -> bool:
    """Make the topic; False while its deletion is under way."""
    try:
        await create_topics(topic, partitions=1)
    except AssertionError:
        return False
    return True


async def test_aborted_records_are_not_read(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """Records of an aborted transaction never happened.

    The holes that transactions leave revoke nothing.
    """
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic("evaluations")
    await create_topics(topic, partitions=1)
    member = make_log(settings)
    await member.start()
    member.seek((topic, 0), 0)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{topic_prefix}tx")
    try:
        await producer.start()
        for number in range(3):
            async with producer.transaction():
                await producer.send(topic, b"kept%d" % number, partition=0)
            assert await read(member, 1) == [b"kept%d" % number]
        await producer.begin_transaction()
        await (await producer.send(topic, b"aborted", partition=0))
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send(topic, b"last", partition=0)
    finally:
        await producer.stop()
    assert await read(member, 1) == [b"last"]
    assert await member.fetch(10, 0.3) == {}
    assert member.assignment == {(topic, 0)}


@pytest.mark.parametrize("topic", ["evaluations", "commands"])
@pytest.mark.parametrize("is_committed", [True, False], ids=["committed", "aborted"])
async def test_the_end_of_a_transaction_is_no_record_that_waits(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    make_log: MakeLog,
    topic: str,
    is_committed: bool,
) -> None:
    """In silence behind a transaction the position is the end.

    And the watchdog rebuilds nothing.
    """
    settings = settings_for(kafka, topic_prefix)
    name = settings.topic(topic)
    await create_topics(name, partitions=2)
    member = make_log(settings, [name])
    await member.start()
    for number in (0, 1):
        member.seek((name, number), 0)
    rebuilds: list[float] = []

    async def rebuild() -> None:
        rebuilds.append(time.monotonic())

    watchdog = ConsumerWatchdog(
        "events",
        WatchdogSettings(check_interval_seconds=0.2, stuck_after_seconds=2.0),
        SystemClock(),
        progress=member.progress,
        seconds_since_fetch=member.seconds_since_fetch,
        rebuild=rebuild,
        give_up=lambda why: None,
    )
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{topic_prefix}tx")
    watching = asyncio.create_task(watchdog.run())
    seen: list[bytes | None] = []
    try:
        await producer.start()
        await producer.begin_transaction()
        for number in (0, 1):
            await (await producer.send(name, b"%d" % number, partition=number))
        # While it is open, the log ends before it.
        await watch_for(member, seen, 3.0)
        await (producer.commit_transaction() if is_committed else producer.abort_transaction())
        await watch_for(member, seen, 6.0)
    finally:
        watching.cancel()
        await producer.stop()
    assert sorted(filter(None, seen)) == ([b"0", b"1"] if is_committed else [])
    assert rebuilds == []
    assert await member.progress() == {(name, 0): (2, 2), (name, 1): (2, 2)}
    assert [member.position((name, number)) for number in (0, 1)] == [2, 2]
    assert member.assignment == {(name, 0), (name, 1)}
    await produce(kafka, name, [b"next"])
    assert await read(member, 1) == [b"next"]


async def watch_for(member: KafkaEventLog, seen: list[bytes | None], seconds: float) -> None:
    """Fetch for so long, and note what came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for records in (await fetch(member)).values():
            seen.extend(record.value for record in records)


@pytest.mark.parametrize("fault", [EventLogUnavailable("no answer in time"), RuntimeError("ours")])
async def test_a_look_up_that_fails_loses_no_record(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    make_log: MakeLog,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    """What came with records behind a hole is given again when the hole could not be looked at."""
    settings = settings_for(kafka, topic_prefix)
    name = settings.topic("evaluations")
    await create_topics(name, partitions=2)
    member = make_log(settings)
    await member.start()
    for number in (0, 1):
        member.seek((name, number), 0)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{topic_prefix}tx")
    try:
        await producer.start()
        await producer.begin_transaction()
        await (await producer.send(name, b"aborted", partition=0))
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send(name, b"behind", partition=0)
    finally:
        await producer.stop()
    await produce(kafka, name, [b"a", b"b", b"c"], partition=1)
    ask = member._ask
    failed: list[str] = []

    async def fail_once(doing: str, do: Callable[..., Awaitable[object]]) -> object:
        if not failed:
            failed.append(doing)
            raise fault
        return await ask(doing, do)

    monkeypatch.setattr(member, "_ask", fail_once)
    values: list[bytes | None] = []
    async with asyncio.timeout(60):
        while len(values) < 4:
            try:
                fetched = await member.fetch(500, 0.3)
            except (EventLogUnavailable, RuntimeError):
                continue
            for records in fetched.values():
                values.extend(record.value for record in records)
    assert failed
    assert sorted(filter(None, values)) == [b"a", b"b", b"behind", b"c"]


async def test_a_paused_partition_is_heard_of(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """Brokers that answer are not silent about a partition that is not fetched for now."""
    settings = settings_for(kafka, topic_prefix)
    name = settings.topic("commands")
    await create_topics(name, partitions=2)
    member = make_log(settings, [name])
    await member.start()
    for number in (0, 1):
        member.seek((name, number), 0)
    await until(lambda: member.heard_at((name, 0)) is not None, member)
    member.pause([(name, 0)])
    paused_at = asyncio.get_running_loop().time()
    assert await member.progress() == {(name, 1): (0, 0)}
    heard_at = member.heard_at((name, 0))
    assert heard_at is not None
    assert heard_at >= paused_at


async def test_a_broken_checksum_stops_its_partition_only(
    own_kafka: LocalKafka, topic_prefix: str, make_log: MakeLog
) -> None:
    """A damaged record stops its own partition at its offset and can be skipped."""
    settings = settings_for(own_kafka.bootstrap, topic_prefix)
    topic = settings.topic("evaluations")
    await create_topics_at(own_kafka.bootstrap, topic, partitions=2)
    for value in (b"first", b"DAMAGED", b"third"):
        await produce(own_kafka.bootstrap, topic, [value], partition=0)
    own_kafka.terminate()
    segments = [
        one for one in own_kafka.directory.rglob("*.log") if one.parent.name == f"{topic}-0"
    ]
    content = segments[0].read_bytes()
    assert b"DAMAGED" in content
    segments[0].write_bytes(content.replace(b"DAMAGED", b"damaged"))
    await asyncio.to_thread(own_kafka.start)
    member = make_log(settings)
    await member.start()
    member.seek((topic, 0), 0)
    member.seek((topic, 1), 0)
    seen: list[bytes | None] = []
    async with asyncio.timeout(60):
        while not member.corrupt or seen != [b"first"]:
            for records in (await fetch(member)).values():
                seen.extend(record.value for record in records)
    assert member.corrupt == {(topic, 0): 1}
    await produce(own_kafka.bootstrap, topic, [b"elsewhere"], partition=1)
    assert await read(member, 1) == [b"elsewhere"]
    member.seek((topic, 0), 2)
    assert await read(member, 1) == [b"third"]
    assert member.corrupt == {}


async def test_a_second_process_with_the_same_member_id_is_named(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """Of two members with one static id, one is told why it must end.

    They do not take turns for ever.
    """
    settings = settings_for(kafka, topic_prefix, static_member_id="pod-0")
    await create_topics(settings.topic("evaluations"), partitions=1)
    older, newer = make_log(settings), make_log(settings)
    await older.start()
    await newer.start()

    async def duel() -> None:
        async with asyncio.timeout(60):
            while True:
                await asyncio.gather(fetch(older), fetch(newer))

    with pytest.raises(BrokenInvariant, match="static_member_id"):
        await duel()


async def test_not_started_is_said(kafka: str, topic_prefix: str, make_log: MakeLog) -> None:
    """A member that was not started, or was stopped, owns nothing and says so."""
    member = make_log(settings_for(kafka, topic_prefix))
    calls: list[Awaitable[object]] = [
        member.fetch(1, 0.1),
        member.bounds(("t", 0)),
        member.committed(("t", 0)),
    ]
    for call in calls:
        with pytest.raises(EventLogUnavailable):
            await call
    await member.commit({("t", 0): 1})
    member.seek(("t", 0), 0)
    assert member.end_offset(("t", 0)) is None
    assert member.assignment == frozenset()
