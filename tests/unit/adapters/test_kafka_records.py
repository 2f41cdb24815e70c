"""Records handed out as aiokafka read them are the records it would have wrapped."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import FetchError, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from controller.adapters.kafka_records import leave_bare

NAMES = ("offset", "timestamp", "key", "value")
PARTITION = TopicPartition("rollout.flag.evaluations", 3)


class Position:
    """How far a partition was read, as the fetcher keeps it."""

    paused = False
    position = 0

    def consumed_to(self, offset: int) -> None:
        """Note that everything before `offset` was handed out."""
        self.position = offset


def batch(*, base: int, producer_id: int = -1, is_transactional: bool = False) -> bytes:
    """Return a record batch of two records, as a broker stores it, from offset `base`."""
    builder = DefaultRecordBatchBuilder(2, 0, is_transactional, producer_id, 0, 0, 1 << 16)
    builder.append(0, timestamp=1_000 + base, key=b"k", value=b"v%d" % base, headers=[("content-type", b"x"), ("none", None)])
    builder.append(1, timestamp=2_000 + base, key=None, value=None, headers=[])
    return base.to_bytes(8, "big") + bytes(builder.build())[8:]


def fetched(content: bytes, *, bare: bool, aborted: list[tuple[int, int]] | None = None) -> FetchResult:
    """Return one fetch of a partition; with `bare`, as `leave_bare` leaves it."""
    position = Position()
    records = PartitionRecords(PARTITION, MemoryRecords(content), aborted, 0, None, None, True, 1)
    result = FetchResult(
        PARTITION,
        assignment=SimpleNamespace(active=True, state_value=lambda partition: position),
        partition_records=records,
        backoff=0,
    )
    if bare:
        leave_bare(SimpleNamespace(_fetcher=SimpleNamespace(_records={PARTITION: result})))
    return result


def test_bare_records_are_the_wrapped_ones_without_topic_and_partition() -> None:
    """Everything counting reads of a record is there, and each call goes on where the last one ended."""
    content = batch(base=0) + batch(base=2)
    wrapped, bare = (fetched(content, bare=each) for each in (False, True))
    for count in (3, 3):
        plain, quick = wrapped.getall(count), bare.getall(count)
        assert [type(record) for record in plain] == [ConsumerRecord] * len(plain)
        assert not any(isinstance(record, ConsumerRecord) for record in quick)
        for name in NAMES:
            assert [getattr(record, name) for record in quick] == [getattr(record, name) for record in plain]
        assert [tuple(record.headers) for record in quick] == [record.headers for record in plain]


def test_aborted_transactions_stay_out_of_bare_records() -> None:
    """Which records come is decided before one is made."""
    content = batch(base=0, producer_id=7, is_transactional=True) + batch(base=2)
    assert [record.offset for record in fetched(content, bare=True, aborted=[(7, 0)]).getall()] == [2, 3]


def test_a_broken_checksum_is_found_in_bare_records() -> None:
    """A bit that flipped is refused, not counted."""
    content = bytearray(batch(base=0))
    content[-2] ^= 1
    with pytest.raises(CorruptRecordException):
        fetched(bytes(content), bare=True).getall()


async def test_whatever_the_fetcher_holds_is_left_alone_unless_it_is_known() -> None:
    """Errors, used-up results, and a consumer that has not begun do no harm; the real one has what is looked for."""
    used_up = fetched(b"", bare=False)
    used_up.getall()
    error = FetchError(error=ValueError(), backoff=0)
    leave_bare(SimpleNamespace(_fetcher=SimpleNamespace(_records={PARTITION: used_up, TopicPartition("t", 0): error})))
    leave_bare(SimpleNamespace(_fetcher=None))
    consumer = AIOKafkaConsumer(bootstrap_servers="localhost:1")
    leave_bare(consumer)
    await asyncio.wait_for(consumer.stop(), 5)
