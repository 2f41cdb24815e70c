"""The event log against hanging brokers, changing topics, and records that break readers."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime

import cramjam
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition as KafkaPartition

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.record_batches import MOST_UNPACKED, REFUSED_SIZE
from controller.clock import SystemClock
from controller.counting.folding.native import batch_reader
from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from controller.ports import Record, TopicPartition
from controller.running.watchdog import ConsumerWatchdog
from controller.settings import KafkaSettings, WatchdogSettings
from tests.brokers import LocalKafka, create_topics_at
from tests.conftest import CreateTopics

pytestmark = pytest.mark.real_kafka


class Member:
    """A member of the counting group, read as ingest reads it, and what came."""

    def __init__(
        self, bootstrap: str, prefix: str, topics: Sequence[str], **changes: object
    ) -> None:
        self.settings = KafkaSettings.model_validate(
            {
                "bootstrap_servers": bootstrap,
                "session_timeout_seconds": 6.0,
                "heartbeat_interval_seconds": 0.5,
                "request_timeout_seconds": 8.0,
                **changes,
            }
        )
        self.faults = Faults(lambda: datetime.now(UTC))
        self.log = KafkaEventLog(
            self.settings,
            list(topics),
            f"{prefix}readers",
            faults=self.faults,
            bare_records=True,
            read_batches=batch_reader(),
        )
        self.log.on_revoked(self._note_revoked)
        self.revoked: list[frozenset[TopicPartition]] = []
        self.values: list[bytes | None] = []
        self.troubles: list[str] = []

    async def _note_revoked(self, partitions: frozenset[TopicPartition]) -> None:
        self.revoked.append(partitions)

    async def step(self, seconds: float = 0.1) -> Mapping[TopicPartition, Sequence[Record]]:
        """Fetch once; trouble is noted. Anything else that is raised fails the test."""
        try:
            fetched = await self.log.fetch(500, seconds)
        except EventLogUnavailable as trouble:
            self.troubles.append(str(trouble))
            await asyncio.sleep(0.2)
            return {}
        for records in fetched.values():
            self.values += [record.value for record in records]
        return fetched

    async def until(self, holds: Callable[[], bool], seconds: float = 120.0) -> None:
        """Fetch until it holds."""
        async with asyncio.timeout(seconds):
            while not holds():
                await self.step()


@pytest.fixture
async def members() -> AsyncIterator[list[Member]]:
    """Members put in here are stopped after the test."""
    made: list[Member] = []
    yield made
    await asyncio.gather(*(member.log.stop() for member in made))


def batch_of(values: Sequence[bytes], codec: int = 0, *, header: str = "h") -> bytes:
    """Return a record batch as a producer sends it."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 30)
    now = round(time.time() * 1000)
    for number, value in enumerate(values):
        builder.append(number, timestamp=now, key=None, value=value, headers=[(header, b"x")])
    return bytes(builder.build())


def sealed(batch: bytes) -> bytes:
    """Return a batch with the length and the checksum that its bytes have."""
    whole = bytearray(batch)
    whole[8:12] = (len(whole) - 12).to_bytes(4, "big")
    whole[17:21] = calc_crc32c(bytes(whole[21:])).to_bytes(4, "big")
    return bytes(whole)


# : What a broker answers for a topic that was just made: it does not know it yet, or does not lead
# it.
_NOT_YET = (3, 5, 6)


async def produce(bootstrap: str, topic: str, batch: bytes, partition: int = 0) -> None:
    """Send a batch as it is. What the broker refuses fails the test."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        await client._wait_on_metadata(topic)
        code = _NOT_YET[0]
        async with asyncio.timeout(60):
            while code in _NOT_YET:
                node = client.cluster.leader_for_partition(KafkaPartition(topic, partition))
                request = ProduceRequest(None, -1, 10_000, [(topic, [(partition, batch)])])
                code = (await client.send(node, request)).topics[0][1][0][1]
                if code in _NOT_YET:
                    await asyncio.sleep(0.2)
                    await client.force_metadata_update()
        assert code == 0
    finally:
        await client.close()


async def test_a_broker_that_hangs_for_long_ends_nothing(
    own_kafka: LocalKafka, topic_prefix: str, members: list[Member]
) -> None:
    """Frozen for longer than the watchdog waits.

    Every call says so at a bounded pace, and it comes back by itself.
    """
    topic = f"{topic_prefix}events"
    await create_topics_at(own_kafka.bootstrap, topic, partitions=2)
    member = Member(own_kafka.bootstrap, topic_prefix, [topic], call_seconds=1.0, start_seconds=4.0)
    members.append(member)
    await member.log.start()
    for number in range(2):
        member.log.seek((topic, number), 0)
    await produce(own_kafka.bootstrap, topic, batch_of([b"before"]))
    await member.until(lambda: member.values == [b"before"])
    heard = member.log.heard_at((topic, 0))
    assert heard is not None
    assert time.monotonic() - heard < 60
    gave_up: list[str] = []
    watchdog = ConsumerWatchdog(
        "events",
        WatchdogSettings(check_interval_seconds=0.3, stuck_after_seconds=3.0),
        SystemClock(),
        progress=member.log.progress,
        seconds_since_fetch=member.log.seconds_since_fetch,
        rebuild=member.log.rebuild,
        give_up=gave_up.append,
    )
    watching = asyncio.create_task(watchdog.run())

    async def pester() -> None:
        """Ask everything there is, the whole time."""
        while True:
            asking = (
                member.log.bounds((topic, 0)),
                member.log.ends([(topic, 0)]),
                member.log.committed((topic, 1)),
                member.log.commit({(topic, 0): 1}),
            )
            for answer in await asyncio.gather(*asking, return_exceptions=True):
                assert answer is None or isinstance(
                    answer, int | tuple | dict | EventLogUnavailable
                ), answer
            member.log.pause([(topic, 1)])
            member.log.resume([(topic, 1)])
            assert member.log.end_offset((topic, 0)) in (None, 1)
            await asyncio.sleep(0.1)

    pestering = asyncio.create_task(pester())
    own_kafka.pause()
    try:
        frozen_at = time.monotonic()
        while time.monotonic() - frozen_at < 27:
            await member.step()
            assert not pestering.done()
            assert not watching.done()
    finally:
        own_kafka.resume()
    assert 2 <= len(member.troubles) < 60
    assert member.log.rebuilds > 0
    await member.until(lambda: len(member.log.assignment) == 2)
    member.log.seek((topic, 0), 1)
    await produce(own_kafka.bootstrap, topic, batch_of([b"after"]))
    await member.until(lambda: member.values[-1:] == [b"after"])
    pestering.cancel()
    watching.cancel()
    assert gave_up == []


async def test_stopping_waits_for_no_start(
    own_kafka: LocalKafka, topic_prefix: str, members: list[Member]
) -> None:
    """While a consumer is being started and no broker answers, `stop` ends within its time."""
    topic = f"{topic_prefix}events"
    await create_topics_at(own_kafka.bootstrap, topic, partitions=1)
    member = Member(own_kafka.bootstrap, topic_prefix, [topic], stop_seconds=1.0)
    members.append(member)
    own_kafka.pause()
    reading = asyncio.create_task(member.log.start())
    try:
        await asyncio.sleep(0.5)
        assert not reading.done()
        began = time.monotonic()
        await member.log.stop()
        assert time.monotonic() - began < 15  # a start may take 20 s
        with pytest.raises(EventLogUnavailable):
            await reading
    finally:
        own_kafka.resume()


async def test_a_part_of_the_client_that_died_is_noticed(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, members: list[Member]
) -> None:
    """Where aiokafka would wait for ever, reading says so and comes back."""
    topic = f"{topic_prefix}events"
    await create_topics(topic, partitions=1)
    member = Member(kafka, topic_prefix, [topic])
    members.append(member)
    await member.log.start()
    for part in ("_fetcher", "_client"):
        consumer = member.log._member.consumer
        assert consumer is not None
        task = consumer._fetcher._fetch_task if part == "_fetcher" else consumer._client._sync_task
        task.cancel()
        await asyncio.wait([task])
        before = len(member.troubles)
        await member.until(lambda before=before: len(member.troubles) > before)  # type: ignore[misc]
        assert "has ended" in member.troubles[-1]
        rebuilt = member.log.rebuilds
        await member.until(lambda rebuilt=rebuilt: member.log.rebuilds > rebuilt)  # type: ignore[misc]
        await member.until(lambda: (topic, 0) in member.log.assignment)
    member.log.seek((topic, 0), 0)
    await produce(kafka, topic, batch_of([b"after"]))
    await member.until(lambda: member.values == [b"after"])


async def test_added_partitions_are_assigned(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, members: list[Member]
) -> None:
    """A topic that gets more partitions is read whole, without a restart."""
    topic = f"{topic_prefix}events"
    await create_topics(topic, partitions=1)
    member = Member(kafka, topic_prefix, [topic])
    members.append(member)
    await member.log.start()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_partitions({topic: NewPartitions(3)})
    await admin.close()
    await member.until(lambda: len(member.log.assignment) == 3)
    await produce(kafka, topic, batch_of([b"there"]), partition=2)
    await member.until(lambda: b"there" in member.values)


async def test_a_topic_made_anew_is_taken_away_and_given_back(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, members: list[Member]
) -> None:
    """Told that a topic is another one, its partitions are revoked at once and given back.

    Their owner loads them afresh.
    """
    topic = f"{topic_prefix}events"
    await create_topics(topic, partitions=2)
    member = Member(kafka, topic_prefix, [topic])
    members.append(member)
    await member.log.start()
    both = frozenset({(topic, 0), (topic, 1)})
    assert member.log.assignment == both
    member.log.topic_remade("another.topic")
    await member.step()
    assert member.log.assignment == both
    member.log.topic_remade(topic)
    await member.step()
    assert member.revoked == [both]
    assert member.log.assignment == frozenset()
    assert member.log.heard_at((topic, 0)) is None
    await member.step()
    assert member.log.assignment == both


async def test_a_truncated_topic_and_moved_commits_are_told_by_the_ends(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, members: list[Member]
) -> None:
    """What the group committed says nothing about what the log has: `bounds` and `ends` do."""
    topic = f"{topic_prefix}events"
    await create_topics(topic, partitions=1)
    for _ in range(5):
        await produce(kafka, topic, batch_of([b"x"]))
    member = Member(kafka, topic_prefix, [topic])
    members.append(member)
    await member.log.start()
    member.log.seek((topic, 0), 0)
    await member.until(lambda: len(member.values) == 5)
    await member.log.commit({(topic, 0): 900})
    assert await member.log.committed((topic, 0)) == 900
    assert await member.log.ends([(topic, 0)]) == {(topic, 0): 5}
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_records({KafkaPartition(topic, 0): RecordsToDelete(before_offset=4)})
    await admin.close()
    assert await member.log.bounds((topic, 0)) == (4, 5)
    member.log.seek((topic, 0), 1)
    await member.until(lambda: bool(member.revoked))
    await member.until(lambda: (topic, 0) in member.log.assignment)


BOMBS = {
    "gzip": (1, 9),
    "snappy": (2, 0),
    "lz4": (3, 0),
    "zstd": (4, 0),
}


def bomb(codec: str, size: int) -> bytes:
    """Return a batch of one record of `size` zeros that brokers take.

    Of snappy as large as they allow.
    """
    import zlib

    number = BOMBS[codec][0]
    plain = batch_of([bytes(size)])
    records = plain[61:]
    if codec == "gzip":
        packer = zlib.compressobj(6, wbits=31)
        packed = packer.compress(records) + packer.flush()
    elif codec == "snappy":
        packed = bytes(cramjam.snappy.compress_raw(records))
    elif codec == "lz4":
        from aiokafka.codec import lz4_encode

        packed = lz4_encode(records)
    else:
        packed = bytes(cramjam.zstd.compress(records))
    return sealed(plain[:21] + struct.pack(">h", number) + plain[23:61] + packed)


@pytest.mark.parametrize("codec", list(BOMBS))
async def test_a_bomb_holds_nothing_up(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, members: list[Member], codec: str
) -> None:
    """A bomb between honest records is one record to refuse, and the loop goes on."""
    topic = f"{topic_prefix}events"
    await create_topics(topic, partitions=1, configs={"max.message.bytes": "8000000"})
    await produce(kafka, topic, batch_of([b"before"]))
    await produce(kafka, topic, bomb(codec, MOST_UNPACKED + 1_000_000))
    await produce(kafka, topic, bomb(codec, MOST_UNPACKED - 1_000_000))
    await produce(kafka, topic, batch_of([b"after"]))
    member = Member(kafka, topic_prefix, [topic])
    members.append(member)
    await member.log.start()
    member.log.seek((topic, 0), 0)
    worst, last = 0.0, time.monotonic()

    async def measure() -> None:
        nonlocal worst, last
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            worst, last = max(worst, now - last), now

    measuring = asyncio.create_task(measure())
    await member.until(lambda: b"after" in member.values)
    measuring.cancel()
    assert [len(value or b"") for value in member.values] == [6, REFUSED_SIZE, REFUSED_SIZE, 5]
    assert worst < 0.25
    assert member.troubles == []


async def test_a_header_name_that_is_no_text_is_one_record_to_refuse(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, members: list[Member]
) -> None:
    """Brokers take any bytes as a header's name.

    aiokafka cannot read such a record, and reading goes on behind it.
    """
    topic = f"{topic_prefix}events"
    await create_topics(topic, partitions=1)
    odd = batch_of([b"one", b"two"], header="name").replace(b"name", b"n\xffme", 1)
    await produce(kafka, topic, batch_of([b"before"]))
    await produce(kafka, topic, sealed(odd))
    await produce(kafka, topic, batch_of([b"after"]))
    member = Member(kafka, topic_prefix, [topic])
    members.append(member)
    await member.log.start()
    member.log.seek((topic, 0), 0)
    await member.until(lambda: b"after" in member.values, seconds=20)
    assert [len(value or b"") for value in member.values] == [6, REFUSED_SIZE, 3, 5]
    assert member.values[2] == b"two"


async def test_a_record_broken_on_disk_is_reported_and_can_be_skipped(
    own_kafka: LocalKafka, topic_prefix: str, members: list[Member]
) -> None:
    """A broken batch stops its partition.

    At the second try it is a fault with a fix, and `skip` leads past the batch.
    """
    topic = f"{topic_prefix}events"
    await create_topics_at(own_kafka.bootstrap, topic, partitions=2)
    for values in ([b"first"], [b"DAMAGED", b"with it"], [b"behind"]):
        await produce(own_kafka.bootstrap, topic, batch_of(values))
    own_kafka.terminate()
    segments = [
        one for one in own_kafka.directory.rglob("*.log") if one.parent.name == f"{topic}-0"
    ]
    content = segments[0].read_bytes()
    segments[0].write_bytes(content.replace(b"DAMAGED", b"damaged"))
    await asyncio.to_thread(own_kafka.start)
    member = Member(own_kafka.bootstrap, topic_prefix, [topic])
    members.append(member)
    await member.log.start()
    member.log.seek((topic, 0), 0)
    member.log.seek((topic, 1), 0)
    place = f"{topic}/0"
    await member.until(lambda: member.faults.of(Scope.PARTITION, place) is not None)
    assert member.values == [b"first"]
    assert member.log.corrupt == {(topic, 0): 1}
    fault = member.faults.of(Scope.PARTITION, place)
    assert fault is not None
    assert "offset 1" in fault.why
    assert "before offset 3" in fault.fix
    await produce(own_kafka.bootstrap, topic, batch_of([b"elsewhere"]), partition=1)
    await member.until(lambda: b"elsewhere" in member.values)
    member.log.seek((topic, 0), 3)
    await member.until(lambda: b"behind" in member.values)
    assert member.faults.current == ()
    assert member.log.corrupt == {}
