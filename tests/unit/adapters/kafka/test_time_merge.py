"""Records of several partitions in the order of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.kafka.time_merge import TimeMerge

LEFT, RIGHT = TopicPartition("events", 0), TopicPartition("events", 1)


class Timed(NamedTuple):
    """What the merge reads of a record."""

    timestamp: int
    name: str


def given_out(merge: TimeMerge) -> list[str]:
    """Return the names of all records that the merge gives now."""
    names = []
    while (record := merge.next()) is not None:
        names.append(record.name)
    return names


def test_a_record_waits_for_the_other_partition() -> None:
    """Nothing is given while a partition's next record is not known."""
    merge = TimeMerge([LEFT, RIGHT])
    merge.add(LEFT, [Timed(1, "a"), Timed(5, "b")])
    assert given_out(merge) == []
    merge.add(RIGHT, [Timed(3, "c")])
    assert given_out(merge) == ["a", "c"]
    assert not merge.is_over
    merge.end(RIGHT)
    assert given_out(merge) == ["b"]
    merge.end(LEFT)
    assert given_out(merge) == []
    assert merge.is_over


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_each_partition_keeps_its_order(left: Sequence[int], right: Sequence[int]) -> None:
    """All records are given, each partition's in its own order, sorted where both are."""
    merge = TimeMerge([LEFT, RIGHT])
    for partition, times in ((LEFT, left), (RIGHT, right)):
        prefix = "l" if partition == LEFT else "r"
        merge.add(partition, [Timed(at, f"{prefix}{index}") for index, at in enumerate(times)])
        merge.end(partition)
    names = given_out(merge)
    assert [name for name in names if name[0] == "l"] == [f"l{i}" for i in range(len(left))]
    assert [name for name in names if name[0] == "r"] == [f"r{i}" for i in range(len(right))]
    if sorted(left) == list(left) and sorted(right) == list(right):
        times = [(left if name[0] == "l" else right)[int(name[1:])] for name in names]
        assert times == sorted(times)
    assert merge.is_over
