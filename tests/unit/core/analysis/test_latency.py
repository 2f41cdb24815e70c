"""Latency reduced to shares: places, counts and intervals against sorted values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from controller.core.analysis.latency import (
    margin_buckets,
    ordered,
    quantile_bucket,
    quantile_interval,
)
from controller.core.evidence import bucket_of, bucket_value, quantile


def histogram_of(values: object) -> dict[int, int]:
    """Return the histogram of latencies in ms."""
    counts: dict[int, int] = {}
    for value in values:  # type: ignore[attr-defined]
        bucket = bucket_of(float(value))
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def test_value_in_the_limits_bucket_is_not_above() -> None:
    """Only buckets strictly above count, so a limit is never stricter than it says."""
    histogram = histogram_of([199, 200, 200, 250, 900])
    assert ordered(histogram).above(bucket_of(200)) == 2


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
def test_place_leaves_at_most_the_tail_above(q: float) -> None:
    """Above the chosen place lies at most 1 - q of the past.

    And one bucket lower it would be more.
    """
    histogram = histogram_of(np.random.default_rng(3).lognormal(4, 0.7, 5000))
    past = ordered(histogram)
    place = quantile_bucket(past, q)
    assert place is not None
    assert past.above(place) <= 5000 * (1 - q) + 1e-6
    below = max(bucket for bucket in histogram if bucket < place)
    assert past.above(below) > 5000 * (1 - q)


def test_small_past_gives_no_place() -> None:
    """199 values say too little about the slowest percent; 200 are enough."""
    assert quantile_bucket(ordered(histogram_of(range(1, 200))), 0.99) is None
    assert quantile_bucket(ordered(histogram_of(range(1, 201))), 0.99) is not None
    assert quantile_bucket(ordered({}), 0.5) is None


def test_margin_of_ten_percent_is_five_buckets() -> None:
    """Five buckets of 2 % are 10.4 %."""
    assert margin_buckets(0.1) == 5
    assert margin_buckets(0.0) == 0


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_quantile_interval_holds_the_truth(q: float) -> None:
    """In 100 samples looked at five times each.

    The 99 % interval misses the true quantile at most a few times.
    """
    rng = np.random.default_rng(11)
    truth = float(np.quantile(rng.lognormal(4, 0.7, 2_000_000), q))
    misses = 0
    for _ in range(100):
        values = rng.lognormal(4, 0.7, 3000)
        for size in (200, 600, 1200, 2000, 3000):
            low, high = quantile_interval(ordered(histogram_of(values[:size])), q, 0.01)
            if (low is not None and low > truth * 1.02) or (
                high is not None and high < truth / 1.02
            ):
                misses += 1
                break
    assert misses <= 4  # expected 1 at most; 5 or more have probability 0.004


def kept_places(
    histogram: dict[int, int], q: float, alpha: float
) -> tuple[float | None, float | None]:
    """Return what `quantile_interval` should.

    Each bucket asked for itself, with distributions from scipy.
    """
    total, buckets = sum(histogram.values()), sorted(histogram)

    def is_kept(above: int) -> bool:
        mixture = scipy.stats.betabinom.logpmf(above, total, 20.0, 20.0 * q / (1 - q))
        return bool(mixture - scipy.stats.binom.logpmf(above, total, 1 - q) < np.log(1 / alpha))

    up_to = np.cumsum([histogram[bucket] for bucket in buckets])
    above = [total - int(count) for count in up_to]
    at_or_above = [total, *above[:-1]]
    low = next(
        bucket
        for bucket, count in zip(buckets, above, strict=True)
        if is_kept(count) or count <= total * (1 - q)
    )
    high = next(
        bucket
        for bucket, count in zip(reversed(buckets), reversed(at_or_above), strict=True)
        if is_kept(count) or count >= total * (1 - q)
    )
    return None if is_kept(total) else bucket_value(low), None if is_kept(0) else bucket_value(high)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("size", [1, 30, 400, 3000, 100_000])
def test_quantile_interval_ends_where_the_mixture_rejects(q: float, size: int) -> None:
    """Both ends equal those of a search over every bucket, for any histogram."""
    rng = np.random.default_rng([7, size])
    for _ in range(10):
        shares = rng.dirichlet(np.full(int(rng.integers(1, 60)), 10 ** rng.uniform(-1, 1)))
        histogram = {
            bucket: int(count)
            for bucket, count in enumerate(rng.multinomial(size, shares))
            if count
        }
        assert quantile_interval(ordered(histogram), q, 0.01) == kept_places(histogram, q, 0.01)


def test_quantile_interval_narrows() -> None:
    """More values give a narrower interval, and none give none."""
    rng = np.random.default_rng(5)
    few = quantile_interval(ordered(histogram_of(rng.lognormal(4, 0.7, 2000))), 0.95, 0.01)
    many = quantile_interval(ordered(histogram_of(rng.lognormal(4, 0.7, 50_000))), 0.95, 0.01)
    assert quantile_interval(ordered({}), 0.95, 0.01) == (None, None)
    assert few[0] is not None
    assert few[1] is not None
    assert many[0] is not None
    assert many[1] is not None
    assert many[1] / many[0] < few[1] / few[0]


def test_quantile_interval_leaves_the_upper_end_open_while_nothing_bounds_it() -> None:
    """Thirty values do not bound the slowest percent."""
    assert quantile_interval(ordered(histogram_of(range(1, 31))), 0.99, 0.01)[1] is None


@pytest.mark.parametrize("q", [0.01, 0.5, 0.95, 0.99, 1.0])
def test_ordered_agrees_with_the_plain_histogram(q: float) -> None:
    """Counts above any bucket and quantiles are those of the sparse histogram."""
    histogram = histogram_of(np.random.default_rng(8).lognormal(4, 0.7, 777))
    values = ordered(histogram)
    assert values.quantile(q) == quantile(histogram, q)
    for bucket in (-1000, min(histogram) - 1, min(histogram), 200, 201, max(histogram), 10_000):
        assert values.above(bucket) == sum(
            count for index, count in histogram.items() if index > bucket
        )
    assert ordered({}).quantile(q) is None
    assert ordered({}).above(3) == 0
