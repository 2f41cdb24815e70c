"""Latency questions reduced to shares: how many values lie above a bucket's upper edge.

A quantile is above a limit exactly when more than 1 - q of the values are. Treatment's tail is
worse exactly when more of it than of control's lies above a place that was fixed before. Edges of
buckets lose nothing, because each value is on one side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence import GAMMA, Histogram, bucket_value

#: Control's past must hold this many values above the quantile before a place is chosen from it.
MIN_ABOVE = 2
_MIN_PAST = 20


class Ordered(NamedTuple):
    """A histogram prepared for many questions: `up_to[i]` values lie in `buckets[0..i]`."""

    buckets: NDArray[np.int64]
    up_to: NDArray[np.int64]
    total: int

    def above(self, bucket: int) -> int:
        """Return how many values lie in buckets strictly above `bucket`."""
        index = int(self.buckets.searchsorted(bucket, side="right"))
        return self.total - int(self.up_to[index - 1]) if index else self.total

    def quantile(self, q: float) -> float | None:
        """Return the q-quantile in ms, as `evidence.quantile` does; None when empty."""
        if self.total == 0:
            return None
        rank = max(1, math.ceil(q * self.total))
        return bucket_value(int(self.buckets[self.up_to.searchsorted(rank)]))


def ordered(histogram: Histogram) -> Ordered:
    """Return a prepared histogram; one pass serves all its quantiles and limits."""
    size = len(histogram)
    buckets = np.fromiter(histogram.keys(), np.int64, size)
    counts = np.fromiter(histogram.values(), np.int64, size)
    order = buckets.argsort()
    up_to = counts[order].cumsum()
    return Ordered(buckets[order], up_to, int(up_to[-1]) if size else 0)


def quantile_bucket(past: Ordered, q: float) -> int | None:
    """Return the smallest bucket with at most (1 - q) of `past` above it.

    None while `past` is too small.
    """
    allowed = past.total * (1 - q)
    if past.total < _MIN_PAST or allowed < MIN_ABOVE - 1e-9:
        return None
    return int(past.buckets[past.up_to.searchsorted(past.total - allowed - 1e-6)])


def margin_buckets(margin: float) -> int:
    """Return how many buckets up a latency moves when it grows by `margin`: 5 for 10 %."""
    return round(math.log1p(margin) / math.log(GAMMA))


def quantile_interval(values: Ordered, q: float, alpha: float) -> tuple[float | None, float | None]:
    """Return a confidence sequence (low, high) of the q-quantile in ms.

    An end is None where the data do not bound it. The interval has every place that a beta-binomial
    mixture around 1 - q does not reject as the quantile. Source: S. Howard, A. Ramdas, Bernoulli 28
    (2022) 1704-1728, section 3 (fixed quantile, beta-binomial mixture).
    """
    total, tail = values.total, 1 - q
    if total == 0:
        return None, None
    excess = _Excess(q, total, alpha)
    # Where a normal distribution in place of the binomial would have the ends of the interval.
    middle = total * tail
    spread = (middle + excess.a) * q * (0.5 * math.log1p(middle / excess.a) - math.log(alpha))
    width = math.sqrt(2 * spread)
    # A bucket is too low when significantly more than the tail lies above it, too high when less
    # lies at or above it. An end is open when even nothing below (above) the outermost bucket would
    # not be rejected as the quantile's place.
    low = high = None
    if excess(total) >= 0:
        most = excess.root(min(middle + width, total), width)
        place = values.up_to.searchsorted(total - most, side="right")
        low = bucket_value(int(values.buckets[place]))
    if excess(0) >= 0:
        fewest = excess.root(max(middle - width, 0.0), width)
        high = bucket_value(int(values.buckets[values.up_to.searchsorted(total - fewest)]))
    return low, high


class _Excess:
    """By how much a place with so many values above it is rejected as the q-quantile.

    Convex, smallest where (1 - q) * total values are above.
    """

    def __init__(self, q: float, total: int, alpha: float) -> None:
        """Prepare the mixture for `total` values."""
        tail = 1 - q
        # The prior's weight in observations; tightest near 20 values above the quantile, which is
        # about when a gate judges.
        self.a, self._b = 20.0, 20.0 * q / tail
        self._total = total
        self._log_odds = math.log(tail / q)
        self._constant = (
            math.lgamma(self.a + self._b)
            - math.lgamma(self.a)
            - math.lgamma(self._b)
            - math.lgamma(self.a + self._b + total)
            + math.log(alpha)
            - total * math.log(q)
        )

    def __call__(self, above: float) -> float:
        """Return the excess for `above` values above the place."""
        mixture = math.lgamma(self.a + above) + math.lgamma(self._b + self._total - above)
        return self._constant + mixture - above * self._log_odds

    def root(self, above: float, width: float) -> float:
        """Return where the excess is 0, by Newton's method, on `above`'s side of its minimum."""
        for _ in range(50):
            # lgamma'(x) is nearly log(x - 0.5)
            derivative = math.log((self.a + above - 0.5) / (self._b + self._total - above - 0.5))
            step = self(above) / (derivative - self._log_odds)
            above = min(max(above - step, 0.0), self._total)
            # The rest is about step^2 / width, and counts are whole numbers.
            if step * step <= 1e-6 * width:
                break
        return above
