"""The order of tests in a parallel run: it decides how long the run takes.

A worker gets a contiguous part of the list, and idle workers take from the end of others' parts.
Slow tests mostly wait, fast ones mostly compute. So each part gets its share of the slow tests, the
slowest kinds first, with fast tests between them: the cores are busy from begin to end, and what is
left at the end is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

#: The part of a worker's list within which its slow tests stand; after it there are only fast ones.
SLOW_PART = 0.7


def in_parallel_order(fast: Sequence[T], slow: Sequence[Sequence[T]], workers: int) -> list[T]:
    """Return all tests so that equal contiguous parts, one per worker, take about equal time.

    Args:
        fast: Tests of milliseconds.
        slow: Groups of slow tests, the slowest first; a group stays together in one part.
        workers: How many parts there will be, at least 1.
    """
    ordered: list[T] = []
    for number in range(workers):
        waiting = [test for group in slow[number::workers] for test in group]
        ordered += _spread(waiting, fast[number::workers])
    return ordered


def _spread(slow: Sequence[T], fast: Sequence[T]) -> list[T]:
    """Return `slow` at even distances over the first part of the list, `fast` between and after."""
    between = int(len(fast) * SLOW_PART) / len(slow) if slow else 0.0
    mixed: list[T] = []
    taken = 0
    for number, test in enumerate(slow, start=1):
        mixed.append(test)
        upto = int(number * between)
        mixed += fast[taken:upto]
        taken = upto
    return [*mixed, *fast[taken:]]
