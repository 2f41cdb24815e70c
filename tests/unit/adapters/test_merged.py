from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.merged import Merger, digest_of, merge_arms, progress_of, to_core
from controller.core.evidence import ArmTotals
from controller.errors import BrokenInvariant
from schemas.totals import ArmCounts, PartitionCounts, encode_arm, encode_progress

small = st.integers(0, 3)
arms = st.builds(
    ArmCounts,
    *[small] * 7,
    st.dictionaries(st.sampled_from("ab"), small),
    st.dictionaries(small, small.map(lambda n: n + 1)),
    st.dictionaries(small, small.map(lambda n: n + 1)),
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
    """A merger that has seen earlier bytes answers like one that has seen none, also when it remembers one visit only."""
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


def test_totals_that_cannot_be_read_name_their_flag() -> None:
    """A damaged field is a broken invariant, with flag and visit in the message."""
    with pytest.raises(BrokenInvariant, match="new-checkout, visit 2"):
        Merger().merge(("new-checkout", "r", 2), (b"{", None))


def test_progress_that_cannot_be_read_names_its_partition() -> None:
    """A damaged hash is a broken invariant, with the partition in the message."""
    fields = {**encode_progress(PartitionCounts()), "format": b"1", "next": b"x"}
    with pytest.raises(BrokenInvariant, match="e/0/1"):
        progress_of("e/0/1", fields)


arguments = st.tuples(st.none() | small, small, st.dictionaries(names, names.map(str.encode), max_size=3))


@given(arguments, arguments)
def test_digests_tell_saves_apart(
    one: tuple[int | None, int, dict[str, bytes]], two: tuple[int | None, int, dict[str, bytes]]
) -> None:
    """Two saves have one digest exactly when fence, target and fields in their order are the same."""
    is_same = one[:2] == two[:2] and list(one[2].items()) == list(two[2].items())
    assert (digest_of(*one) == digest_of(*two)) == is_same
