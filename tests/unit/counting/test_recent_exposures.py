"""Recent exposures: what is remembered, for how long, and what a save carries of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from hypothesis import given
from hypothesis import strategies as st

from controller.counting.folding.difference import Difference
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.folding.partition_fold import PartitionFold
from controller.counting.folding.recent_exposures import RecentExposures
from controller.counting.layout.stored_exposures import StoredExposures


class Stored(dict[str, bytes]):
    """A hash that takes what a save writes."""

    def __init__(self) -> None:
        """Begin with nothing stored."""
        super().__init__()
        self.layout = StoredExposures()

    def save(self, recent: RecentExposures) -> int:
        """Write what changed and return how many bytes that was."""
        fields, garbage = self.layout.write(Difference((), frozenset(), (), b"", *recent.drain()))
        self.update(fields)
        for name in garbage:
            self.pop(name, None)
        return sum(map(len, fields.values()))

    def reload(self) -> tuple[RecentExposures, int]:
        """Return what a new owner has, and a number above those of all sets in it."""
        fold = PartitionFold(
            FlagsToCount(),
            counts_exposures=True,
            exact_limit=1,
            window_ms=30_000,
            bundle_of=lambda flag_key, name: None,
        )
        above = StoredExposures().restore(self, fold)
        assert fold._recent is not None
        return fold._recent, above


FLAG_OF = {0: "a", 1: "a", 2: "b", 3: "c"}  # set number -> flag; flag "a" has two counters


def record(recent: RecentExposures, number: int, digest: int, exposed: int) -> bool:
    """Record an exposure in a slice of time as the fold does; return whether the slice matters."""
    exposures = recent.slice_at(number)
    if exposures is not None:
        exposures.record(FLAG_OF[exposed], exposed, digest)
    return exposures is not None


def last_of_each_flag(recent: RecentExposures, digest: int, time_ms: int) -> dict[str, int]:
    """Return the set each flag's last exposure fell into, as a join asks for it."""
    while not recent.catch_up(2):
        pass
    found: dict[str, int] = {}
    for number in recent.last(digest, time_ms):
        found.setdefault(FLAG_OF[number], number)
    return found


def test_recent_exposures_keep_the_last_of_each_flag() -> None:
    """Within a slice of time the newest exposure of each flag is known, flags apart.

    And each is stored when it changes.
    """
    recent = RecentExposures(30_000)
    for exposed, expected in (
        (0, {"a": 0}),
        (2, {"a": 0, "b": 2}),
        (1, {"a": 1, "b": 2}),
        (0, {"a": 0, "b": 2}),
    ):
        assert record(recent, 0, 5, exposed)
        assert record(recent, 0, 5, exposed)
        assert last_of_each_flag(recent, 5, 9_999) == expected
    assert last_of_each_flag(recent, 6, 9_999) == {}
    exposures = recent.slice_at(0)
    assert exposures is not None
    assert exposures.added == 4


def test_recent_exposures_end_with_the_window() -> None:
    """An exposure is found through the window and at most a third longer.

    What is too old is deleted from the store.
    """
    recent, stored = RecentExposures(30_000), Stored()
    for number in range(8):
        assert record(recent, number, number, 1)
        stored.save(recent)
    assert recent.catch_up(99)
    assert recent.last(4, 74_999) == [1]
    assert recent.last(4, 79_999) == [1]
    assert recent.last(3, 79_999) == []
    assert recent.slice_at(1) is None
    assert sorted(stored) == [f"recent/{number}/0" for number in range(3, 8)]


def test_recent_exposures_are_indexed_by_the_slice() -> None:
    """However many there are when the first join comes, a call indexes a bounded number of them."""
    recent, stored = RecentExposures(30_000), Stored()
    for digest in range(2_000):
        record(recent, digest % 2, digest, digest % 4)
        if digest % 700 == 0:
            stored.save(recent)
    calls = 1
    while not recent.catch_up(300):
        calls += 1
    assert 2_000 / (300 + 256) < calls <= 2_000 / 256
    assert all(recent.last(digest, 19_999) == [digest % 4] for digest in range(2_000))
    stored.save(recent)
    # What moves into chunks is not indexed again.
    slices = [recent.slice_at(number) for number in (0, 1)]
    assert [exposures.index(1) for exposures in slices if exposures] == [0, 0]


recorded = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.integers(0, 5),
        st.sampled_from(sorted(FLAG_OF)),
        st.sampled_from(["", "save", "ask"]),
    ),
    max_size=60,
)


@given(recorded, st.integers(1, 400))
def test_recent_exposures_are_the_last_ones_noted(
    recorded: list[tuple[int, int, int, str]], repeated: int
) -> None:
    """Whenever it is saved, asked or loaded again.

    Of each flag the last exposure in the newest slice of time is known.
    """
    recent, stored = RecentExposures(30_000), Stored()
    expected: dict[tuple[int, int], dict[str, int]] = {}
    for slice_number, digest, exposed, then in recorded:
        if not record(recent, slice_number, digest, exposed):
            continue
        expected.setdefault((slice_number, digest), {})[FLAG_OF[exposed]] = exposed
        for other in range(
            repeated if then == "save" else 0
        ):  # enough for several chunks, now and then
            record(recent, slice_number, 1_000 + other, 3)
        if then == "save":
            stored.save(recent)
        elif then == "ask":
            last_of_each_flag(recent, digest, 99_999)
    stored.save(recent)
    again, above = stored.reload()
    assert above == max(numbers_stored(stored), default=-1) + 1
    oldest = (
        max((slice_number for slice_number, _ in expected), default=0)
        - RecentExposures.PER_WINDOW
        - 1
    )
    for digest in range(6):
        for newest in range(10):
            wanted: dict[str, int] = {}
            for slice_number in range(newest, max(oldest, newest - 3) - 1, -1):
                wanted = {**expected.get((slice_number, digest), {}), **wanted}
            for each in (recent, again):
                assert last_of_each_flag(each, digest, newest * 10_000) == wanted


def numbers_stored(stored: Mapping[str, bytes]) -> Iterator[int]:
    """Yield the set numbers of all recent exposures that are stored."""
    for value in stored.values():
        for number, _ in struct.iter_unpack("<IQ", value):
            yield number
