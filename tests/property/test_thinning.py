"""A course of any length is a bounded number of points, spread evenly over all of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.thinning import Thinning

pytestmark = pytest.mark.property

gaps = st.lists(st.integers(0, 5_000), min_size=1, max_size=200)


def offered(start: int, waits: list[int]) -> list[int]:
    """Return the seconds at which there is something to keep."""
    seconds = [start]
    for wait in waits:
        seconds.append(seconds[-1] + wait)
    return seconds


@given(start=st.integers(0, 2_000_000_000), waits=gaps, most=st.integers(2, 20))
def test_what_is_kept_is_what_was_offered_and_bounded(
    start: int, waits: list[int], most: int
) -> None:
    """In order, each once; the first and the newest line of the grid are always there."""
    thinning, stored = Thinning(most), set()
    for second in offered(start, waits):
        if thinning.takes(second):
            stored.add(second)
            stored -= set(thinning.add(second))
        assert sorted(stored) == list(thinning.kept)
        assert len(stored) <= most
        assert min(stored) == start
        assert max(stored) // thinning.step == second // thinning.step


@given(start=st.integers(0, 2_000_000_000), waits=gaps, most=st.integers(2, 20))
def test_a_writer_that_takes_over_stays_within_the_bound(
    start: int, waits: list[int], most: int
) -> None:
    """It knows the points alone, and goes on from them."""
    stored: set[int] = set()
    for second in offered(start, waits):
        thinning = Thinning(most, stored)
        if thinning.takes(second):
            stored.add(second)
            stored -= set(thinning.add(second))
        assert len(stored) <= most


def test_a_long_course_is_spread_evenly() -> None:
    """A day of one point a second: no part of it is missing, and none is crowded."""
    thinning = Thinning(300)
    for second in range(1_000_000, 1_000_000 + 86_400):
        if thinning.takes(second):
            thinning.add(second)
    kept = thinning.kept
    distances = {later - earlier for earlier, later in pairwise(kept[1:-1])}
    assert 150 <= len(kept) <= 300
    assert distances <= {thinning.step // 2, thinning.step}
