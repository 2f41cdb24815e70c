"""Latency questions reduced to shares: how many values lie above a bucket's upper edge.

A quantile is above a limit exactly when more than 1 - q of the values are; treatment's tail is worse exactly when more of it
than of control's lies above a place that was fixed beforehand. Edges of buckets lose nothing: each value is on one side.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaln

from controller.core.evidence import GAMMA, Histogram, bucket_value

#: Control's past must hold this many values above the quantile before a place is chosen from it.
MIN_ABOVE = 2
_MIN_PAST = 20


def count_above(histogram: Histogram, bucket: int) -> int:
    """Return how many values lie in buckets strictly above `bucket`."""
    return sum([count for index, count in histogram.items() if index > bucket])  # a list: twice as fast as a generator


def quantile_bucket(past: Histogram, q: float) -> int | None:
    """Return the smallest bucket with at most (1 - q) of `past` above it; None while `past` is too small to say."""
    total = sum(past.values())
    if total < _MIN_PAST or total * (1 - q) < MIN_ABOVE - 1e-9:
        return None
    allowed = total * (1 - q) + 1e-9
    above = 0
    place: int | None = None
    for bucket in sorted(past, reverse=True):
        if above > allowed:
            break
        place = bucket
        above += past[bucket]
    return place


def margin_buckets(margin: float) -> int:
    """Return how many buckets up a latency moves when it grows by `margin`: 5 for 10 %."""
    return round(math.log1p(margin) / math.log(GAMMA))


def quantile_interval(histogram: Histogram, q: float, alpha: float) -> tuple[float | None, float | None]:
    """Return a confidence sequence (low, high) of the q-quantile in ms; an end is None where the data do not bound it.

    Keeps every place that a beta-binomial mixture around 1 - q does not reject as the quantile.
    Source: S. Howard, A. Ramdas, Bernoulli 28 (2022) 1704-1728, section 3 (fixed quantile, beta-binomial mixture).
    """
    if not histogram:
        return None, None
    buckets = sorted(histogram)
    counts = np.array([histogram[bucket] for bucket in buckets], dtype=np.float64)
    total = float(counts.sum())
    tail = 1 - q
    # Mass of a prior observation count that is tightest near 20 values above the quantile, which is when a gate looks.
    strength = 20.0 / tail
    a, b = max(strength * tail, 0.5), max(strength * q, 0.5)
    # Above the quantile lie at most `tail` of the values, at or above it at least that many: one count for each end.
    above = total - np.cumsum(counts)
    at_or_above = above + counts

    def log_e(events: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        fitted = betaln(a + events, b + total - events) - betaln(a, b)
        result: np.ndarray[tuple[int], np.dtype[np.float64]] = fitted - events * math.log(tail) - (total - events) * math.log(q)
        return result

    threshold = math.log(1 / alpha)
    too_low = (above > total * tail) & (log_e(above) >= threshold)
    too_high = (at_or_above < total * tail) & (log_e(at_or_above) >= threshold)
    low_at = int(np.flatnonzero(too_low)[-1]) + 1 if too_low.any() else None
    high_at = int(np.flatnonzero(too_high)[0]) - 1 if too_high.any() else None
    return (
        None if low_at is None else bucket_value(buckets[min(low_at, len(buckets) - 1)]),
        None if high_at is None else bucket_value(buckets[max(high_at, 0)]),
    )
