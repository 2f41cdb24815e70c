"""Increments of counters: resets, series that come and go, and parts that contradict each other."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.analysis.counter_marks import (
    CounterMarks,
    Increment,
    Marks,
    increment,
    pack_marks,
    unpack_marks,
)
from controller.core.analysis.proportion import Counts
from schemas.terms import Arm

Series = dict[str, float]


def rises(*looks: tuple[Series, Series], parts: tuple[str, str] = ("total", "bad")) -> Increment:
    """Return the last look's increment; each look has the series of both parts."""
    marks: Marks = {}
    found = Increment(0, 0, 0, {})
    for look in looks:
        found = increment(marks, dict(zip(parts, look, strict=True)))
        marks = found.marks
    return found


def counted(found: Increment) -> tuple[int, int, int]:
    """Return events, bad ones and resets of an increment without a fault."""
    assert not found.fault
    return found.events, found.bad, found.resets


def test_the_first_look_is_where_counting_begins() -> None:
    """What a process had counted before the stage says nothing about it."""
    assert counted(rises(({"a": 1e9}, {"a": 7}))) == (0, 0, 0)


def test_the_difference_of_two_looks_is_added_up_over_processes() -> None:
    """Each has counters of its own."""
    assert counted(rises(({"a": 100, "b": 50}, {"a": 1}), ({"a": 110, "b": 52}, {"a": 4}))) == (
        12,
        3,
        0,
    )


@pytest.mark.parametrize("value", [2.0**53 + 2, 1e18, 1.7e308])
def test_a_counter_too_large_to_count_single_events_is_a_fault(value: float) -> None:
    """The sum of two would be infinite, which is no number of events."""
    found = rises(({"a": 0, "b": 0}, {"a": 0}), ({"a": value, "b": value}, {"a": value}))
    assert "no single events" in found.fault
    assert (found.events, found.bad) == (0, 0)
    assert not rises(({"a": value}, {"a": 1}), ({"a": 5}, {"a": 1})).fault


def test_a_fall_is_a_restart_and_what_stands_there_was_counted_since() -> None:
    """As in Prometheus' increase(). The other process is not touched by it."""
    found = rises(({"a": 100, "b": 50}, {"a": 9}), ({"a": 20, "b": 60}, {"a": 2}))
    assert counted(found) == (30, 2, 1)


def test_counters_of_one_process_are_reset_together() -> None:
    """Bad events that rose past their old value since the restart are all new."""
    assert counted(rises(({"a": 100}, {"a": 5}), ({"a": 30}, {"a": 8}))) == (30, 8, 1)
    # And the other way round: only the part has fallen.
    assert counted(rises(({"a": 100}, {"a": 9}), ({"a": 150}, {"a": 8}))) == (150, 8, 1)


def test_a_restart_without_a_bad_event_leaves_no_old_ones_behind() -> None:
    """The next bad event is the first one."""
    assert counted(rises(({"a": 100}, {"a": 9}), ({"a": 10}, {}), ({"a": 15}, {"a": 1}))) == (
        5,
        1,
        0,
    )


def test_a_bad_counter_that_appears_was_zero() -> None:
    """Many programs show a counter only once it has risen."""
    assert counted(rises(({"a": 100}, {}), ({"a": 120}, {"a": 3}))) == (20, 3, 0)


def test_a_bad_counter_that_is_gone_for_a_look_is_not_counted_again() -> None:
    """Its process is there, so it keeps its value."""
    assert counted(rises(({"a": 100}, {"a": 7}), ({"a": 110}, {}), ({"a": 120}, {"a": 8}))) == (
        10,
        1,
        0,
    )


def test_a_process_that_is_gone_is_forgotten_and_another_begins() -> None:
    """Nobody knows whether a process that comes back is the same."""
    assert counted(rises(({"a": 100}, {}), ({"b": 70}, {}), ({"a": 900, "b": 75}, {}))) == (5, 0, 0)


@pytest.mark.parametrize(
    ("parts", "before", "now", "expected"),
    [
        (("total", "good"), ({"a": 100}, {"a": 90}), ({"a": 150}, {"a": 135}), (50, 5, 0)),
        (("good", "bad"), ({"a": 90}, {}), ({"a": 135}, {"a": 5}), (50, 5, 0)),
        (("good", "bad"), ({"a": 90}, {"a": 3}), ({}, {"a": 5}), (2, 2, 0)),
        (("good", "bad"), ({"a": 90}, {"a": 9}), ({"a": 4}, {"a": 1}), (5, 1, 1)),
    ],
)
def test_each_pair_of_counters_says_the_same(
    parts: tuple[str, str],
    before: tuple[Series, Series],
    now: tuple[Series, Series],
    expected: tuple[int, int, int],
) -> None:
    """Bad and total, good and total, good and bad."""
    assert counted(rises(before, now, parts=parts)) == expected


def test_parts_with_different_labels_are_a_fault_and_no_event() -> None:
    """Which process they are of is not known, so neither is a restart."""
    found = rises(({"a": 1}, {}), ({"a": 2}, {"a,code=500": 1}))
    assert (found.events, found.bad) == (0, 0)
    assert "1 series of `bad` have no series of `total`" in found.fault


def test_more_bad_events_than_events_are_a_fault_and_no_event() -> None:
    """Two counters of different things."""
    found = rises(({"a": 1}, {"a": 1}), ({"a": 2}, {"a": 4}))
    assert (found.events, found.bad) == (0, 0)
    assert found.fault == "3 bad of 1 events since the last look: does `total` count all?"
    fewer = rises(({"a": 9}, {"a": 1}), ({"a": 10}, {"a": 5}), parts=("total", "good"))
    assert fewer.fault == "-3 bad of 1 events since the last look: does `total` count all?"


@dataclass
class Process:
    """A process with two counters, and what it has counted since it was first looked at."""

    total: int = 0
    bad: int = 0
    true: list[int] = field(default_factory=lambda: [0, 0])

    def work(self, good: int, bad: int) -> None:
        self.total += good + bad
        self.bad += bad
        self.true = [self.true[0] + good + bad, self.true[1] + bad]


STEP = st.tuples(
    st.integers(0, 2), st.integers(0, 50), st.integers(0, 9), st.booleans(), st.booleans()
)


@given(st.lists(STEP, max_size=40))
def test_a_look_after_each_step_loses_nothing_and_counts_nothing_twice(
    steps: list[tuple[int, int, int, bool, bool]],
) -> None:
    """Also with restarts, as long as a restart is followed by a smaller value."""
    processes = {str(number): Process(total=5, bad=1) for number in range(3)}
    marks: Marks = {}
    events = bad = 0
    for number, good, failed, restarts, is_missed in steps:
        process = processes[str(number)]
        if restarts and good + failed < process.total:
            seen = marks.get(str(number), (process.total, process.bad))
            if good + failed >= seen[0]:
                continue  # nobody could see this restart
            lost = process.total - int(seen[0]), process.bad - int(seen[1])
            process.true = [process.true[0] - lost[0], process.true[1] - lost[1]]
            process.total = process.bad = 0
        process.work(good, failed)
        if is_missed and not restarts:
            continue
        found = increment(
            marks,
            {
                "total": {name: one.total for name, one in processes.items()},
                "bad": {name: one.bad for name, one in processes.items() if one.bad},
            },
        )
        assert not found.fault
        if not marks:  # counting begins
            for one in processes.values():
                one.true = [0, 0]
        events, bad, marks = events + found.events, bad + found.bad, found.marks
        assert (events, bad) == (
            sum(one.true[0] for one in processes.values()),
            sum(one.true[1] for one in processes.values()),
        )


def test_marks_survive_their_stored_form() -> None:
    """A replica that takes the flag over goes on where the other was."""
    marks = CounterMarks(
        12.5,
        {Arm.TREATMENT: {"a": (3.0, 1.0)}, Arm.CONTROL: {"b": (9.0, 0.0)}},
        Counts(4, 3, 2, 1),
        Counts(2, 1, 1, 0),
        10.0,
        {Arm.TREATMENT: 12.5, Arm.CONTROL: 11.0},
        7,
        1,
        "no",
    )
    assert unpack_marks(json.loads(json.dumps(pack_marks(marks)))) == marks
