from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.codec.merging import Merger, digest_of, merge_arms, progress_of, to_core
from controller.core.evidence import ArmTotals
from controller.errors import BrokenInvariant
from schemas.totals import FORMAT, ArmCounts, PartitionCounts, encode_arm, encode_progress

small = st.integers(0, 3)
arms = st.builds(
    ArmCounts,
    *[small] * 7,
    st.dictionaries(st.sampled_from("ab"), small),
    st.dictionaries(small, small.map(lambda n: n + 1)),
    *[small] * 2,
)
names = st.text("ab:0", max_size=3)


@given(st.lists(arms, max_size=5))
def test_merging_is_adding(parts: list[ArmCounts]) -> None:
    """One pass over the partitions gives what adding arm by arm gives."""
    expected = ArmTotals()
    for part in parts:
        expected += to_core(part)
    assert merge_arms(parts) == expected


@given(st.lists(st.lists(st.none() | arms, min_size=4, max_size=4), min_size=1, max_size=6))
def test_remembering_changes_no_answer(reads: list[list[ArmCounts | None]]) -> None:
    """A merger that has seen earlier bytes answers like one that has seen none.

    Also when it remembers one visit only.
    """
    remembering, forgetful = Merger(), Merger(capacity=1)
    for turn, read in enumerate(reads):
        raw = tuple(None if arm is None else encode_arm(arm) for arm in read)
        fresh = Merger().merge(("f", "r", 0), raw)
        assert remembering.merge(("f", "r", 0), raw) == fresh
        assert forgetful.merge(("f", "r", turn % 2), raw) == fresh


def test_what_did_not_change_is_not_decoded_again() -> None:
    """The same bytes give the very same totals."""
    merger = Merger()
    raw = (encode_arm(ArmCounts(exposures=1)), None)
    assert merger.merge(("f", "r", 0), raw) is merger.merge(("f", "r", 0), tuple(raw))


def test_a_damaged_arm_costs_its_partition_alone() -> None:
    """An arm that cannot be read leaves out both arms of its partition, and says which it was."""
    merger = Merger()
    arm = encode_arm(ArmCounts(exposures=3))
    for _ in range(2):  # also from memory
        totals = merger.merge(("f", "r", 2), (arm, b"{", arm, arm))
        assert (totals.treatment.exposures, totals.control.exposures) == (3, 3)
        assert totals.unreadable == ("0",)
    assert merger.merge(("f", "r", 2), (arm, b"{", arm, None)).unreadable == ("0",)
    healed = merger.merge(("f", "r", 2), (arm, arm, arm, arm))
    assert (healed.treatment.exposures, healed.unreadable) == (6, ())


@pytest.mark.parametrize("at", [253_402_300_799_999, 253_402_300_800_000, 10**15, 10**18])
def test_a_moment_beyond_the_calendar_is_its_end(at: int) -> None:
    """No stored time can raise, not even one after the year 9999."""
    counts = PartitionCounts(freshest_ms=at, reported_at_ms=at, losses=[(at, None)])
    fields = {**encode_progress(counts), "format": b"2", "next": b"0"}
    progress = progress_of("e/0/1", fields)
    assert progress is not None
    assert progress.freshest is not None
    assert progress.freshest.year == progress.reported_at.year == 9999


@pytest.mark.parametrize(
    "damage",
    [
        {"next": b"-1"},
        {"next": b"9" * 5000},
        {"freshest": b"soon"},
        {"counted": b"9" * 30},
        {"losses": b"[[5,1]]"},
        {"losses": b"{"},
        {"losses": b"[[-1,1]]"},
        {"topic_id": b"\xff"},
        {"rebased": b"x"},
        {"format": b"%d" % (FORMAT + 1)},
        {"format": b""},
    ],
    ids=str,
)
def test_any_damage_of_the_progress_is_a_broken_invariant(damage: dict[str, bytes]) -> None:
    """Whatever stands in a head, reading it raises one exception, which is contained."""
    fields = {**encode_progress(PartitionCounts()), "format": b"2", "next": b"0"}
    with pytest.raises(BrokenInvariant, match="e/0/1"):
        progress_of("e/0/1", fields | damage)


def test_progress_that_cannot_be_read_names_its_partition() -> None:
    """A damaged hash is a broken invariant, with the partition in the message."""
    fields = {**encode_progress(PartitionCounts()), "format": b"1", "next": b"x"}
    with pytest.raises(BrokenInvariant, match="e/0/1"):
        progress_of("e/0/1", fields)


arguments = st.tuples(
    st.none() | small, small, st.dictionaries(names, names.map(str.encode), max_size=3)
)


@given(arguments, arguments)
def test_digests_tell_saves_apart(
    one: tuple[int | None, int, dict[str, bytes]], two: tuple[int | None, int, dict[str, bytes]]
) -> None:
    """Two saves have one digest exactly when fence, target and fields are the same."""
    is_same = one[:2] == two[:2] and list(one[2].items()) == list(two[2].items())
    assert (digest_of(*one) == digest_of(*two)) == is_same
