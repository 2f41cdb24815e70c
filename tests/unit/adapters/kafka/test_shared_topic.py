"""One topic read as two logs.

Each has its own position, and loses and repeats nothing whatever the other does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from controller.adapters.kafka.shared_topic import SharedTopic, streams, topic_of
from controller.adapters.memory import ManualClock, MemoryBroker, MemoryEventLog
from controller.ports import Record, TopicPartition
from tests.builders import T0

FIRST, SECOND = ("spans", 0), ("spans#outcomes", 0)


def offsets(fetched: Mapping[TopicPartition, Sequence[Record]]) -> dict[TopicPartition, list[int]]:
    """Return the offsets of what was fetched."""
    return {stream: [record.offset for record in records] for stream, records in fetched.items()}


async def make_log(records: int) -> tuple[SharedTopic, MemoryEventLog, MemoryBroker]:
    """Return a log over one partition with so many records, joined and not sought."""
    broker = MemoryBroker(ManualClock(T0), {"spans": 1})
    for _ in range(records):
        broker.append("spans", b"x")
    below = MemoryEventLog(broker, "counting", ["spans"])
    log = SharedTopic(below)
    await below.start()
    return log, below, broker


def test_streams_are_told_apart_only_when_the_topic_is_one() -> None:
    """Two topics keep their names.

    One topic's second stream is named so that no topic can be called the same.
    """
    assert streams(("logs", "spans")) == ("logs", "spans")
    assert streams(("spans", "spans")) == ("spans", "spans#outcomes")
    assert [topic_of(stream) for stream in streams(("spans", "spans"))] == ["spans", "spans"]


async def test_both_streams_get_every_record() -> None:
    """A partition is assigned as two, and each is given everything from where it was sought."""
    log, _, _ = await make_log(5)
    assert log.assignment == {FIRST, SECOND}
    assert await log.fetch(10, 0) == {}  # sought by nobody
    log.seek(FIRST, 3)
    log.seek(SECOND, 1)
    assert offsets(await log.fetch(10, 0)) == {FIRST: [3, 4], SECOND: [1, 2, 3, 4]}
    assert await log.bounds(SECOND) == (0, 5)
    assert log.end_offset(SECOND) == 5


async def test_a_stream_that_goes_back_repeats_nothing_to_the_other() -> None:
    """When one has to count again, the log is read again from there.

    And the other sees only what is new to it.
    """
    log, _, broker = await make_log(4)
    log.seek(FIRST, 0)
    log.seek(SECOND, 0)
    await log.fetch(10, 0)
    broker.append("spans", b"x")
    log.seek(SECOND, 2)
    assert offsets(await log.fetch(10, 0)) == {FIRST: [4], SECOND: [2, 3, 4]}


async def test_a_paused_stream_misses_nothing() -> None:
    """What came while one was paused is given to it when it is resumed.

    And not to the other again.
    """
    log, below, broker = await make_log(2)
    log.seek(FIRST, 0)
    log.seek(SECOND, 0)
    log.pause([FIRST])
    assert offsets(await log.fetch(10, 0)) == {SECOND: [0, 1]}
    log.pause([SECOND])
    assert await below.fetch(10, 0) == {}  # with both paused Kafka is not read
    broker.append("spans", b"x")
    log.resume([FIRST])
    assert offsets(await log.fetch(10, 0)) == {FIRST: [0, 1, 2]}
    log.resume([SECOND])
    assert offsets(await log.fetch(10, 0)) == {SECOND: [2]}


async def test_offsets_without_a_record_are_passed_by_each_stream_that_reads() -> None:
    """Behind the end of a transaction both positions are the log's, a paused one's when resumed."""
    log, below, broker = await make_log(2)
    log.seek(FIRST, 0)
    log.seek(SECOND, 0)
    log.pause([SECOND])
    broker.skip(("spans", 0))
    await log.fetch(10, 0)
    assert [below.position(("spans", 0)), log.position(FIRST), log.position(SECOND)] == [3, 3, 0]
    log.resume([SECOND])
    assert log.position(SECOND) == 0
    await log.fetch(10, 0)
    assert [log.position(FIRST), log.position(SECOND)] == [3, 3]
    assert log.position(("spans", 9)) is None


async def test_the_lower_position_is_committed() -> None:
    """Lag tools see the stream that is behind."""
    log, _, broker = await make_log(5)
    await log.commit({FIRST: 4, SECOND: 2})
    assert broker.committed("counting") == {("spans", 0): 2}
    assert await log.committed(SECOND) == 2


async def test_both_streams_are_handed_over() -> None:
    """Who counts is told of both before the partition is taken.

    And neither is read from an old position afterwards.
    """
    log, below, _ = await make_log(3)
    told: list[frozenset[TopicPartition]] = []

    async def revoked(partitions: frozenset[TopicPartition]) -> None:
        told.append(partitions)

    log.on_revoked(revoked)
    log.seek(FIRST, 0)
    await below.reassign(frozenset())
    assert told == [{FIRST, SECOND}]
    assert log.assignment == frozenset()
    await below.reassign(frozenset({("spans", 0)}))
    assert await log.fetch(10, 0) == {}


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_pauses_and_seeks(seed: int) -> None:
    """Through random fetches, pauses and seeks each stream's records follow without a gap."""
    chance = random.Random(seed)
    log, _, broker = await make_log(5)
    expected = {FIRST: 0, SECOND: 0}
    for stream in expected:
        log.seek(stream, 0)
    for _ in range(60):
        stream = chance.choice([FIRST, SECOND])
        match chance.choice(["fetch", "fetch", "pause", "resume", "seek", "append"]):
            case "fetch":
                for each, found in offsets(await log.fetch(chance.randint(1, 4), 0)).items():
                    assert found == list(range(expected[each], expected[each] + len(found)))
                    expected[each] += len(found)
            case "pause":
                log.pause([stream])
            case "resume":
                log.resume([stream])
            case "seek":
                expected[stream] = chance.randint(0, expected[stream])
                log.seek(stream, expected[stream])
            case _:
                broker.append("spans", b"x")
    log.resume([FIRST, SECOND])
    while found_last := offsets(await log.fetch(100, 0)):
        for each, found in found_last.items():
            assert found == list(range(expected[each], expected[each] + len(found)))
            expected[each] += len(found)
    assert set(expected.values()) == {broker.bounds(("spans", 0))[1]}
