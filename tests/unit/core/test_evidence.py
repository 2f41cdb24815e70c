"""Totals and histograms.

Merging is adding, and a bucket's value is within 1 % of what fell into it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.evidence import (
    GAMMA,
    HIGHEST_BUCKET,
    LOWEST_BUCKET,
    ArmTotals,
    VisitTotals,
    bucket_of,
    bucket_value,
    quantile,
)
from schemas.counters import add_by_key
from schemas.terms import Arm


@given(latency_ms=st.floats(min_value=0.0011, max_value=9e7))
def test_bucket_stands_for_its_values_within_one_percent(latency_ms: float) -> None:
    """The value of a latency's bucket is at most 1 % off."""
    assert bucket_value(bucket_of(latency_ms)) == pytest.approx(latency_ms, rel=0.01)


@given(latency_ms=st.floats(min_value=0.0011, max_value=9e7))
def test_latency_lies_between_its_buckets_edges(latency_ms: float) -> None:
    """Bucket i holds values in (gamma^(i-1), gamma^i], up to rounding of the logarithm."""
    bucket = bucket_of(latency_ms)
    assert GAMMA ** (bucket - 1) * (1 - 1e-9) <= latency_ms <= GAMMA**bucket * (1 + 1e-9)


def test_extreme_latencies_are_clamped() -> None:
    """Nothing and eternity fall into the outermost buckets.

    So no value grows the histogram without bound.
    """
    assert bucket_of(0.0) == LOWEST_BUCKET
    assert bucket_of(1e300) == HIGHEST_BUCKET


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_quantile_is_within_one_percent_of_the_exact_one(q: float) -> None:
    """A quantile of the histogram is at most 1 % off the sorted values'."""
    values = np.random.default_rng(2).lognormal(4, 1, 20_000)
    histogram: dict[int, int] = {}
    for value in values:
        bucket = bucket_of(float(value))
        histogram[bucket] = histogram.get(bucket, 0) + 1
    exact = float(np.sort(values)[math.ceil(q * len(values)) - 1])
    assert quantile(histogram, q) == pytest.approx(exact, rel=0.01)


def test_empty_histogram_has_no_quantile() -> None:
    """Nothing measured is None, not zero."""
    assert quantile({}, 0.5) is None


histograms = st.dictionaries(st.integers(-300, 900), st.integers(1, 10**9), max_size=8)


@given(parts=st.lists(histograms, max_size=5))
def test_merging_histograms_keeps_every_count(parts: list[dict[int, int]]) -> None:
    """The merged histogram holds as many values as its parts, bucket by bucket."""
    merged = add_by_key(parts)
    for bucket in {bucket for part in parts for bucket in part}:
        assert merged[bucket] == sum(part.get(bucket, 0) for part in parts)
    assert sum(merged.values()) == sum(sum(part.values()) for part in parts)


numbers = st.integers(0, 10**9)
totals = st.builds(
    ArmTotals,
    evaluations=numbers,
    exposures=numbers,
    switched=numbers,
    outcomes=numbers,
    errors=numbers,
    at_risk=numbers,
    first_errors=numbers,
    converted=st.dictionaries(st.sampled_from(["bought", "signed-up"]), numbers),
    latency=histograms,
    checked=numbers,
    repeated=numbers,
)


@given(one=totals, two=totals, three=totals)
def test_totals_add_up_in_any_order(one: ArmTotals, two: ArmTotals, three: ArmTotals) -> None:
    """Partitions may be merged in any order and grouping, and nothing counted is a neutral part."""
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)
    assert one + ArmTotals() == one


def test_arm_is_found_by_name() -> None:
    """Each arm's name leads to its totals."""
    visit = VisitTotals(treatment=ArmTotals(errors=1), control=ArmTotals(errors=2))
    assert [visit.arm(arm).errors for arm in (Arm.TREATMENT, Arm.CONTROL)] == [1, 2]
