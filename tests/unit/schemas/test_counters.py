"""The table of counters, and what is made of it."""

from __future__ import annotations

import inspect

import msgspec
import pytest

from controller.core.analysis import sequential_tests
from controller.core.analysis.sequential_tests import SequentialTests, decode_tests, encode_tests
from controller.core.evidence import ArmTotals, VisitTotals
from controller.counting.folding.arm_counters import ArmCounter
from schemas.counters import COUNTERS, TESTED_COUNTERS, Shape, merged_values, values_of
from schemas.terms import Arm
from schemas.totals import ArmCounts
from tests.records import distinct_counts


def test_the_stored_form_has_the_table_s_fields() -> None:
    """`ArmCounts` has the counters of the table, in its order, with its defaults."""
    assert ArmCounts.__struct_fields__ == tuple(counter.name for counter in COUNTERS)
    assert values_of(ArmCounts()) == values_of(ArmTotals())
    for field, counter in zip(msgspec.structs.fields(ArmCounts), COUNTERS, strict=True):
        assert (field.default == 0) is (counter.shape is Shape.NUMBER)


def test_the_core_s_totals_take_the_table_s_values() -> None:
    """`ArmTotals` takes the values of the table in its order."""
    assert tuple(inspect.signature(ArmTotals).parameters) == tuple(c.name for c in COUNTERS)


def test_a_counter_gives_back_what_it_was_given() -> None:
    """`ArmCounter` continues every counter of the table from where it stood."""
    counts = ArmCounts(**distinct_counts())
    assert ArmCounter("flag", Arm.TREATMENT, "field", counts).take() == counts


def test_two_arms_add_up_counter_by_counter() -> None:
    """Numbers are added, mappings are added key by key."""
    one = ArmTotals(**distinct_counts())
    both = one + ArmTotals()
    assert both == one
    doubled = dict(zip((c.name for c in COUNTERS), merged_values((one, one)), strict=True))
    for counter in COUNTERS:
        value = getattr(one, counter.name)
        twice = (
            2 * value
            if counter.shape is Shape.NUMBER
            else {key: 2 * count for key, count in value.items()}
        )
        assert doubled[counter.name] == twice


def test_the_tests_state_keeps_the_counters_that_the_tests_use() -> None:
    """What is stored beside a rollout has the tested counters, and nothing else."""
    arm = ArmTotals(**distinct_counts())
    tests = SequentialTests(used={0: VisitTotals(treatment=arm)})
    decoded = decode_tests(encode_tests(tests)).used[0].treatment
    tested = {counter.name: getattr(arm, counter.name) for counter in TESTED_COUNTERS}
    assert decoded == ArmTotals(**tested)


def test_the_tests_state_of_an_older_release_lacks_the_newest_counter() -> None:
    """A release that adds a counter goes on with the rollouts that run: none of it was used yet."""
    packed = sequential_tests._pack_arm(ArmTotals(**distinct_counts()))
    newest = TESTED_COUNTERS[-1].name
    expected = {c.name: getattr(sequential_tests._unpack_arm(packed), c.name) for c in COUNTERS}
    expected[newest] = getattr(ArmTotals(), newest)
    assert sequential_tests._unpack_arm(packed[:-1]) == ArmTotals(**expected)


def test_the_tests_state_of_a_newer_release_is_refused() -> None:
    """A counter that this release does not know cannot be remembered as used."""
    packed = sequential_tests._pack_arm(ArmTotals())
    with pytest.raises(ValueError, match="counters"):
        sequential_tests._unpack_arm([*packed, 1])
