"""Records of several partitions in the order of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
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
    while (placed := merge.next()) is not None:
        names.append(placed.record.name)
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


MINUTE = 60_000
NOW = 30 * 24 * 60 * MINUTE


def placed_in(merge: TimeMerge, left: Sequence[Timed], right: Sequence[Timed]) -> dict[str, int]:
    """Return when each record came, in the order in which the merge gives them."""
    for partition, records in ((LEFT, left), (RIGHT, right)):
        merge.add(partition, records)
        merge.end(partition)
    found = {}
    while (placed := merge.next()) is not None:
        found[placed.record.name] = placed.at_ms
    return found


@pytest.mark.parametrize("ahead_ms", [10**12, 24 * 60 * MINUTE, 10 * MINUTE])
@pytest.mark.parametrize("place", [0, 7, 19])
def test_a_timestamp_from_the_future_moves_nothing_behind_it(ahead_ms: int, place: int) -> None:
    """Whether it is still in the future or was when it was written; also at either end."""
    began = NOW - (MINUTE if ahead_ms == 10 * MINUTE and place == 19 else 48 * 60 * MINUTE)
    left = [Timed(began + 1000 * each, f"l{each}") for each in range(20)]
    right = [Timed(began + 1000 * each + 500, f"r{each}") for each in range(20)]
    wrong = Timed(began + 1000 * place + ahead_ms, "wrong")
    found = placed_in(TimeMerge([LEFT, RIGHT], NOW), [*left[:place], wrong, *left[place:]], right)
    expected = {one.name: one.timestamp for one in (*left, *right)}
    assert {name: at for name, at in found.items() if name != "wrong"} == expected
    names = [name for name in found if name != "wrong"]
    assert names == sorted(names, key=lambda name: expected[name])
    assert began <= found["wrong"] <= began + 20_000


def test_a_tenth_of_wrong_clocks_is_not_believed() -> None:
    """One app of several has a wrong clock, and does not confirm itself."""
    records = [
        Timed(1000 * each + (24 * 60 * MINUTE if each % 10 == 3 else 0), f"l{each}")
        for each in range(100)
    ]
    found = placed_in(TimeMerge([LEFT, RIGHT], NOW), records, [])
    assert all(at <= 100_000 for at in found.values())


def test_time_that_goes_on_after_a_silence_is_believed() -> None:
    """A night without traffic is no wrong clock, also where the records are few."""
    hours = [Timed(60 * MINUTE * each, f"l{each}") for each in range(1, 5)]
    found = placed_in(TimeMerge([LEFT, RIGHT], NOW), hours, [])
    assert list(found.values()) == [one.timestamp for one in hours]


def test_a_leap_waits_for_its_witnesses() -> None:
    """However the records are fetched, the order is the same."""
    merge = TimeMerge([LEFT], NOW)
    merge.add(LEFT, [Timed(60 * MINUTE, "a")])
    assert merge.next() is None
    assert not merge.is_over
    merge.add(LEFT, [Timed(0, f"b{each}") for each in range(10)])
    assert given_out(merge)[0] == "a"
    merge.end(LEFT)
    assert merge.next() is None
    assert merge.is_over
