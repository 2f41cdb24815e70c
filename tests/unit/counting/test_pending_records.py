"""The queue of fetched records gives what a list would, without copying runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.counting.pending_records import PendingRecords


def run(begin: int, count: int) -> list[Any]:
    """Return records with rising offsets."""
    return [SimpleNamespace(offset=begin + number) for number in range(count)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 7)), max_size=30))
def test_the_queue_is_a_list_by_runs(steps: list[tuple[int, int]]) -> None:
    """Whatever is added, and however much of the head is dropped."""
    pending, plain, following = PendingRecords(), list[Any](), 0
    for added, most in steps:
        records = run(following, added)
        following += added
        pending.add(records)
        plain += records
        assert list(pending) == plain
        assert len(pending) == len(plain)
        if plain:
            assert (pending.first, pending.last) == (plain[0], plain[-1])
            head = pending.head(most)
            assert 1 <= len(head) <= most
            assert list(head) == plain[: len(head)]
            folded = len(head) - most % 2
            pending.drop(folded)
            del plain[:folded]
    assert bool(pending) == bool(plain)


def test_nothing_has_no_first() -> None:
    """Callers look at the length first."""
    with pytest.raises(IndexError):
        _ = PendingRecords().first
