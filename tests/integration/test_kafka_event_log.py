"""One member of a consumer group on a real Kafka: what it owns, where it reads, and how it ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition as KafkaPartition

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.clock import SystemClock
from controller.errors import BrokenInvariant, EventLogUnavailable
from controller.ports import EventLog, Record, TopicPartition
from controller.running.watchdog import ConsumerWatchdog
from controller.settings import KafkaSettings, WatchdogSettings
from tests.brokers import LocalKafka, create_topics_at
from tests.conftest import CreateTopics

pytestmark = pytest.mark.real_kafka

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


@pytest.fixture
async def make_log() -> AsyncIterator[MakeLog]:
    """`make_log(settings)` gives a member that is stopped after the test."""
    made: list[KafkaEventLog] = []

    def make(settings: KafkaSettings, topics: Sequence[str] | None = None) -> KafkaEventLog:
        member = KafkaEventLog(
            settings,
            topics or [settings.topic("evaluations")],
            settings.events_group,
            bare_records=True,
        )
        made.append(member)
        return member

    yield make
    await asyncio.gather(*(member.stop() for member in made))


async def produce(
    bootstrap: str, topic: str, values: Sequence[bytes], partition: int | None = 0
) -> None:
    """Write values to one partition, or with None anywhere."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, acks="all")
    await producer.start()
    try:
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
            await asyncio.gather(*(fetch(one) for one in members if one.assignment))
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
    await admin.start()
    try:
        await admin.delete_records(
            {KafkaPartition(topic, 0): RecordsToDelete(before_offset=before)}
        )
    finally:
        await admin.close()


async def test_a_topic_made_anew_is_handed_back_to_its_owner(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, make_log: MakeLog
) -> None:
    """When the topic was deleted and made anew under us, its owner is asked to look again.

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
    await admin.start()
    try:
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
    await producer.start()
    try:
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
    await producer.start()
    watching = asyncio.create_task(watchdog.run())
    seen: list[bytes | None] = []
    try:
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
    await producer.start()
    try:
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
