"""Records handed out as aiokafka read them are the records it would have wrapped."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import FetchError, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.kafka.consumer_records import leave_bare

NAMES = ("offset", "timestamp", "key", "value")
PARTITION = TopicPartition("rollout.flag.evaluations", 3)


class Position:
    """How far a partition was read, as the fetcher keeps it."""

    paused = False
    position = 0

    def consumed_to(self, offset: int) -> None:
        """Note that everything before `offset` was handed out."""
        self.position = offset


def batch(
    *,
    base: int,
    producer_id: int = -1,
    is_transactional: bool = False,
    left: Sequence[int] = (0, 1),
) -> bytes:
    """Return a record batch, as a broker stores it, from offset `base`.

    Two records, or those that compaction has `left`.
    """
    builder = DefaultRecordBatchBuilder(2, 0, is_transactional, producer_id, 0, 0, 1 << 16)
    for number in left:
        if number % 2 == 0:
            headers = [("content-type", b"x"), ("none", None)]
            builder.append(
                number,
                timestamp=1_000 + base,
                key=b"k",
                value=b"v%d" % (base + number),
                headers=headers,
            )
        else:
            builder.append(number, timestamp=2_000 + base, key=None, value=None, headers=[])
    return base.to_bytes(8, "big") + bytes(builder.build())[8:]


def fetched(
    content: bytes, *, bare: bool, aborted: list[tuple[int, int]] | None = None, at: int = 0
) -> FetchResult:
    """Return one fetch of a partition from offset `at`; with `bare`, as `leave_bare` leaves it."""
    position = Position()
    position.position = at
    records = PartitionRecords(PARTITION, MemoryRecords(content), aborted, at, None, None, True, 1)
    result = FetchResult(
        PARTITION,
        assignment=SimpleNamespace(active=True, state_value=lambda partition: position),
        partition_records=records,
        backoff=0,
    )
    if bare:
        bare_fetcher()._records[PARTITION] = result
    return result


def bare_fetcher(**fetched_before: Any) -> Any:
    """Return what `leave_bare` made of a fetcher that holds some results."""
    fetcher = SimpleNamespace(_records=OrderedDict(fetched_before))
    leave_bare(SimpleNamespace(_fetcher=fetcher))
    return fetcher


def test_bare_records_are_the_wrapped_ones_without_topic_and_partition() -> None:
    """Everything counting reads of a record is there.

    And each call goes on where the last one ended.
    """
    content = batch(base=0) + batch(base=2)
    wrapped, bare = (fetched(content, bare=each) for each in (False, True))
    for count in (3, 3):
        plain, quick = wrapped.getall(count), bare.getall(count)
        assert [type(record) for record in plain] == [ConsumerRecord] * len(plain)
        assert not any(isinstance(record, ConsumerRecord) for record in quick)
        for name in NAMES:
            assert [getattr(record, name) for record in quick] == [
                getattr(record, name) for record in plain
            ]
        assert [tuple(record.headers) for record in quick] == [record.headers for record in plain]


def test_aborted_transactions_stay_out_of_bare_records() -> None:
    """Which records come is decided before one is made."""
    content = batch(base=0, producer_id=7, is_transactional=True) + batch(base=2)
    assert [record.offset for record in fetched(content, bare=True, aborted=[(7, 0)]).getall()] == [
        2,
        3,
    ]


def test_a_broken_checksum_is_found_in_bare_records() -> None:
    """A bit that flipped is refused, not counted."""
    content = bytearray(batch(base=0))
    content[-2] ^= 1
    with pytest.raises(CorruptRecordException):
        fetched(bytes(content), bare=True).getall()


batches = st.lists(st.sets(st.integers(0, 6), min_size=1).map(sorted), min_size=1, max_size=4)


@given(
    batches,
    st.integers(0, 30),
    st.sampled_from([-1, 7]),
    st.lists(st.none() | st.integers(1, 9), max_size=12),
)
def test_each_call_hands_out_what_the_wrapped_ones_would_have_been(
    left: list[list[int]], at: int, producer_id: int, counts: list[int | None]
) -> None:
    """Wherever the fetch begins, whatever compaction left and however many are asked for.

    Same records, same position after.
    """
    content = b"".join(
        batch(
            base=10 * index, left=numbers, producer_id=producer_id, is_transactional=producer_id > 0
        )
        for index, numbers in enumerate(left)
    )
    aborted = (
        [(7, 10)] if producer_id > 0 else None
    )  # of four transactions the second and what follows without its end
    wrapped, bare = (fetched(content, bare=each, aborted=aborted, at=at) for each in (False, True))
    for count in counts:
        plain, quick = wrapped.getall(count), bare.getall(count)
        assert [record.offset for record in quick] == [record.offset for record in plain]
        assert (
            bare._assignment.state_value(PARTITION).position
            == wrapped._assignment.state_value(PARTITION).position
        )
        assert bare.has_more() == wrapped.has_more()
        if not bare.has_more():
            return  # the fetcher forgets it then


def test_a_fetch_that_was_read_from_before_goes_on_one_by_one() -> None:
    """What was there before the records were left bare is wrapped as far as it was read.

    The next call goes on behind it.
    """
    result = fetched(batch(base=0) + batch(base=2), bare=False)
    assert [record.offset for record in result.getall(1)] == [0]
    bare_fetcher(begun=result)
    assert [record.offset for record in result.getall(2)] == [1, 2]
    assert [record.offset for record in result.getall(2)] == [3]


async def test_whatever_the_fetcher_holds_is_left_alone_unless_it_is_known() -> None:
    """Errors, used-up results, and a consumer that has not begun do no harm.

    The real one has what is looked for.
    """
    used_up = fetched(b"", bare=False)
    used_up.getall()
    error = FetchError(error=ValueError(), backoff=0)
    assert bare_fetcher(used_up=used_up)._records == {"used_up": used_up}
    bare_fetcher()._records[PARTITION] = error
    leave_bare(SimpleNamespace(_fetcher=None))
    consumer = AIOKafkaConsumer(bootstrap_servers="localhost:1")
    leave_bare(consumer)  # it has no fetcher yet
    await asyncio.wait_for(consumer.stop(), 60)
