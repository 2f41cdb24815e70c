"""Who is in: sticky, fair, and the same as every flagd evaluator of the generation."""

from __future__ import annotations

import math

import cbor2
import mmh3
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controller.codec.flagd import WEIGHT_TOTAL, weight_of
from controller.web.bucketing import Generation, bucketer

generations = st.sampled_from(Generation)
flag_keys = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
targeting_keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
percents = st.integers(0, WEIGHT_TOTAL).map(lambda hundredths: hundredths / 100)


# Computed with openfeature-flagd-core 1 (v2) and 2.0.0 (v3): (bucket in v2, bucket in v3).
VECTORS = {
    "user-1": (4549, 4965),
    "user-2": (2297, 648),
    "user-3": (7712, 375),
    "user-42": (5575, 1720),
}


@pytest.mark.parametrize("targeting_key", VECTORS)
def test_buckets_are_those_of_flagd(targeting_key: str) -> None:
    """Each generation puts a known context into the bucket that flagd puts it into."""
    v2, v3 = VECTORS[targeting_key]
    assert bucketer("new-checkout", Generation.V2)(targeting_key) == v2
    assert bucketer("new-checkout", Generation.V3)(targeting_key) == v3


def test_the_generations_disagree_about_users_as_flagd_does() -> None:
    """At 25 % generation 2 lets one of the four known contexts in, generation 3 three.

    A fleet must have one of them.
    """
    let_in = {
        generation: {
            key for key in VECTORS if bucketer("new-checkout", generation)(key) < weight_of(25)
        }
        for generation in Generation
    }
    assert let_in == {Generation.V2: {"user-2"}, Generation.V3: {"user-2", "user-3", "user-42"}}


@given(flag_keys, targeting_keys)
def test_v2_hashes_the_keys_one_after_the_other(flag_key: str, targeting_key: str) -> None:
    """Generation 2 is MurmurHash3 of flag key and targeting key, scaled without division."""
    digest = mmh3.hash(flag_key + targeting_key, signed=False)
    assert bucketer(flag_key, Generation.V2)(targeting_key) == digest * WEIGHT_TOTAL >> 32


@given(flag_keys, targeting_keys | st.integers(0, 2**17).map(lambda length: "x" * length))
@example("new-checkout", "x" * 23).via("the longest with a head of one byte")
@example("new-checkout", "x" * 24).via("the shortest with two")
@example("new-checkout", "x" * 0xFF)
@example("new-checkout", "x" * 0x100)
@example("new-checkout", "x" * 0xFFFF)
@example("new-checkout", "x" * 0x1_0000)
def test_v3_hashes_canonical_cbor(flag_key: str, targeting_key: str) -> None:
    """Generation 3 is MurmurHash3 of the pair as a CBOR library encodes it, for any key."""
    digest = mmh3.hash(cbor2.dumps([flag_key, targeting_key], canonical=True), signed=False)
    assert bucketer(flag_key, Generation.V3)(targeting_key) == digest * WEIGHT_TOTAL >> 32


@given(generations, flag_keys, targeting_keys, percents, percents)
def test_raising_moves_nobody_out(
    generation: Generation, flag_key: str, targeting_key: str, one: float, other: float
) -> None:
    """Whoever is in treatment at a percentage is in at every higher one.

    So what lowering removes came in last.
    """
    lower, higher = sorted((one, other))
    bucket = bucketer(flag_key, generation)(targeting_key)
    assert not (bucket < weight_of(lower) and bucket >= weight_of(higher))


@given(generations, flag_keys, targeting_keys)
def test_the_ends_are_exact(generation: Generation, flag_key: str, targeting_key: str) -> None:
    """At 0 % nobody is in, at 100 % everybody."""
    bucket = bucketer(flag_key, generation)(targeting_key)
    assert weight_of(0) <= bucket < weight_of(100)


@given(st.integers(0, WEIGHT_TOTAL))
def test_each_hundredth_of_a_percent_is_one_bucket(hundredths: int) -> None:
    """A percentage in steps of 0.01 becomes a whole weight, however its fraction rounds."""
    assert weight_of(hundredths / 100) == hundredths


@pytest.mark.parametrize("percent", [-0.01, 100.01, math.nan, math.inf])
def test_a_percentage_outside_the_range_is_refused(percent: float) -> None:
    """What is no percentage never becomes a weight."""
    with pytest.raises(ValueError, match="percentage"):
        weight_of(percent)


@pytest.mark.parametrize("generation", Generation)
@pytest.mark.parametrize("percent", [0.5, 1, 10, 25, 50, 99])
def test_the_share_is_the_decided_one(generation: Generation, percent: float) -> None:
    """Of 40,000 contexts the decided share is in treatment, within 4 standard deviations."""
    bucket = bucketer("new-checkout", generation)
    contexts = 40_000
    treated = sum(bucket(f"context-{number}") < weight_of(percent) for number in range(contexts))
    share = percent / 100
    assert abs(treated - contexts * share) < 4 * math.sqrt(contexts * share * (1 - share))


@pytest.mark.parametrize("generation", Generation)
def test_flags_choose_independently(generation: Generation) -> None:
    """Being in one flag's treatment says nothing about another's.

    Half of the half, within 4 standard deviations.
    """
    one, other = bucketer("one-flag", generation), bucketer("other-flag", generation)
    contexts, half = 20_000, weight_of(50)
    both = sum(one(key) < half and other(key) < half for key in map(str, range(contexts)))
    assert abs(both - contexts / 4) < 4 * math.sqrt(contexts * 3 / 16)
