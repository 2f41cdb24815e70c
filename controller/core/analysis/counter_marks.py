"""Increments of cumulative counters between two looks, and what is remembered for the next one.

Each process has a counter of its own, which begins at 0 when the process starts. As in Prometheus'
`increase()`, the first value of a series is only where counting begins, and a value below the last
one is a reset: the process has counted all of it since. The counters of one process are reset
together, so a fall of one of them is a reset of both.

Pure, and without a clock. Does not belong here: what the increments are tested for
(`core/judging/counters.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from controller.core.analysis.proportion import NOTHING, Counts
from schemas.terms import Arm

#: Beyond it a counter, which is a float64, no longer counts single events. Sums of such values
#: stay far below infinity, which is no number of events.
LARGEST: Final = 2.0**53
#: By part (two of bad, good, total): by series, its value.
Parts = Mapping[str, Mapping[str, float]]
#: By series, the values of its two parts, in the order of `_names`.
Marks = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class CounterMarks:
    """What is remembered of one metric's counters in the present visit."""

    at: float = 0.0  # when the last answer that was used was due, in seconds since 1970
    series: Mapping[Arm, Marks] = field(default_factory=dict)  # their values at that time
    counts: Counts = NOTHING  # the visit's events and bad ones, by increments
    tested: Counts = NOTHING  # of them in closed batches
    closed_at: float = 0.0  # when the last batch was closed, or the first look
    rose_at: Mapping[Arm, float] = field(default_factory=dict)  # when events were last counted
    looks: int = 0
    resets: int = 0
    fault: str = ""  # why the last look's increments could not be used; empty: they could


class Increment(NamedTuple):
    """What one arm's counters have risen by."""

    events: int
    bad: int
    resets: int
    marks: Marks
    fault: str = ""


def increment(before: Marks, now: Parts) -> Increment:
    """Return what the counters of one arm have risen by since `before`.

    A series that is new is where counting begins. One that is gone is forgotten: it may be another
    process when it is there again. A part that a known series does not have (yet) is 0, because
    many programs show a counter only once it has risen.
    """
    first, second = _names(now)
    whole, part = now[first], now[second]
    largest = max((*whole.values(), *part.values()), default=0.0)
    if largest > LARGEST:
        fault = (
            f"counters are up to {largest:.3g}: beyond {LARGEST:.3g} they count no single events"
        )
        return Increment(0, 0, 0, _values(now), fault)
    has_total = "total" in (first, second)
    if has_total and (alone := part.keys() - whole.keys()):
        fault = (
            f"{len(alone)} series of `{second}` have no series of `total` with the same labels: "
            "group both alike, as in sum by (instance) (...)"
        )
        return Increment(0, 0, 0, _values(now), fault)
    rise_first = rise_second = 0.0
    resets, marks = 0, {}
    for labels in sorted(whole.keys() | part.keys()):
        old = before.get(labels)
        value = whole.get(labels), part.get(labels)
        if old is None:
            marks[labels] = (value[0] or 0.0, value[1] or 0.0)
            continue
        new = tuple(last if one is None else one for one, last in zip(value, old, strict=True))
        if new[0] < old[0] or new[1] < old[1]:
            resets += 1
            old, new = (0.0, 0.0), (value[0] or 0.0, value[1] or 0.0)
        rise_first += new[0] - old[0]
        rise_second += new[1] - old[1]
        marks[labels] = (new[0], new[1])
    events, bad = _counted((first, second), round(rise_first), round(rise_second))
    if not 0 <= bad <= events:
        fault = f"{bad:,} bad of {events:,} events since the last look: does `total` count all?"
        return Increment(0, 0, resets, marks, fault)
    return Increment(events, bad, resets, marks)


def _names(parts: Parts) -> tuple[str, str]:
    """Return the two parts, the one that every series has first."""
    for pair in (("total", "bad"), ("total", "good"), ("good", "bad")):
        if parts.keys() == set(pair):
            return pair
    raise ValueError(f"counters are two of bad, good and total, not {sorted(parts)}")


def _values(now: Parts) -> Marks:
    first, second = _names(now)
    labels = now[first].keys() | now[second].keys()
    return {one: (now[first].get(one, 0.0), now[second].get(one, 0.0)) for one in labels}


def _counted(names: tuple[str, str], first: int, second: int) -> tuple[int, int]:
    """Return events and bad ones from the rise of both parts."""
    match names:
        case ("total", "bad"):
            return first, second
        case ("total", "good"):
            return first, first - second
        case _:
            return first + second, second


# --- stored form


def pack_marks(marks: CounterMarks) -> list[Any]:
    """Return the marks as JSON's values."""
    return [
        marks.at,
        {arm.value: dict(series) for arm, series in marks.series.items()},
        list(marks.counts),
        list(marks.tested),
        marks.closed_at,
        {arm.value: at for arm, at in marks.rose_at.items()},
        marks.looks,
        marks.resets,
        marks.fault,
    ]


def unpack_marks(packed: list[Any]) -> CounterMarks:
    """Return what `pack_marks` packed. Raises KeyError, TypeError or ValueError."""
    at, series, counts, tested, closed_at, rose_at, looks, resets, fault = packed
    return CounterMarks(
        at,
        {
            Arm(arm): {labels: (pair[0], pair[1]) for labels, pair in of_arm.items()}
            for arm, of_arm in series.items()
        },
        Counts(*counts),
        Counts(*tested),
        closed_at,
        {Arm(arm): rose for arm, rose in rose_at.items()},
        looks,
        resets,
        fault,
    )
