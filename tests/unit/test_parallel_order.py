"""The order of tests in a parallel run."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.parallel_order import in_parallel_order


def parts(tests: list[str], workers: int) -> list[list[str]]:
    """Return contiguous parts, as pytest-xdist gives them to its workers at first."""
    size = len(tests) // workers
    cuts = [*(number * size for number in range(workers)), len(tests)]
    return [tests[start:end] for start, end in pairwise(cuts)]


FAST = [f"fast{number}" for number in range(400)]
SLOW = [[f"slow{number}"] for number in range(40)]


@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_every_test_is_run_once(workers: int) -> None:
    """Whatever the number of workers."""
    ordered = in_parallel_order(FAST, SLOW, workers)
    assert sorted(ordered) == sorted([*FAST, *(test for group in SLOW for test in group)])


def test_each_worker_gets_its_share_of_slow_tests_and_ends_with_fast_ones() -> None:
    """A slow test at the end would keep one worker busy and the others idle."""
    for part in parts(in_parallel_order(FAST, SLOW, 4), 4):
        places = [place for place, test in enumerate(part) if test.startswith("slow")]
        assert len(places) == 10
        assert places[0] == 0, "the slowest begins at once"
        assert places[-1] < 0.8 * len(part)


def test_the_slowest_come_first() -> None:
    """The groups are given in that order, and every worker keeps it."""
    for part in parts(in_parallel_order(FAST, SLOW, 4), 4):
        slow = [int(test.removeprefix("slow")) for test in part if test.startswith("slow")]
        assert slow == sorted(slow)


def test_a_group_stays_with_one_worker() -> None:
    """Its tests share a server, which two workers would start twice."""
    groups = [["a1", "a2", "a3"], *SLOW]
    ordered = in_parallel_order(FAST, groups, 4)
    place = ordered.index("a1")
    assert [test for test in ordered[place:] if not test.startswith("fast")][:3] == [
        "a1",
        "a2",
        "a3",
    ]
    assert any({"a1", "a2", "a3"} <= set(part) for part in parts(ordered, 4))


def test_without_slow_tests_the_order_stays() -> None:
    """One worker runs the fast tests as they come."""
    assert in_parallel_order(FAST, [], 1) == FAST
