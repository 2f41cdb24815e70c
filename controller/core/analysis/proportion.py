"""Shares of events: treatment against control, and treatment against a fixed limit.

A comparison asks in which arm the next event falls, given how many observations each arm had in the
same batch. So a base rate that drifts from batch to batch does not matter. Nothing here knows
restarts (`change_point.py`) or plans.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from controller.core.analysis.change_point import Floats, log_sum_exp

#: The log rate ratios of the alternatives, 1.05 to 20, and their weights. Sufficient evidence tells
#: a log ratio to about a third of itself, so grid and weights are even in its logarithm. The usual
#: sizes of harm, 1.2 to 8, have ten times the weight.
LOG_RATIOS: Floats = np.exp(np.linspace(math.log(0.05), math.log(3.0), 32))
RATIO_WEIGHTS: Floats = np.where((LOG_RATIOS > 0.17) & (LOG_RATIOS < 2.1), 1.0, 0.1)
RATIO_WEIGHTS /= RATIO_WEIGHTS.sum()

#: Weights of log odds ratios below a limit. They are even, because a release is usually far below
#: its limits. Above it the sizes of harm are those of `RATIO_WEIGHTS`.
_BELOW_LOG_WEIGHTS: Floats = np.full(len(LOG_RATIOS), -math.log(len(LOG_RATIOS)))
_ABOVE_LOG_WEIGHTS: Floats = np.log(RATIO_WEIGHTS)

#: Log ratios, 0.09 to 11, whose likelihood is kept for estimate and interval.
CURVE: Floats = np.linspace(-2.4, 2.4, 97)
_CURVE_RATIOS: Floats = np.exp(CURVE)
_CURVE_STEP = float(CURVE[1] - CURVE[0])

SAFE_POINTS = 8
SAFE_LOG_WEIGHTS: Floats = np.full(SAFE_POINTS, -math.log(SAFE_POINTS))


class Counts(NamedTuple):
    """One batch, or any sum of them: observations (n) and events (k) of treatment and control."""

    n_t: int
    k_t: int
    n_c: int
    k_c: int

    def swapped(self) -> Counts:
        """Return the same with the arms exchanged: treatment's fall becomes control's rise."""
        return Counts(self.n_c, self.k_c, self.n_t, self.k_t)


NOTHING = Counts(0, 0, 0, 0)


class Increments(NamedTuple):
    """One batch's increments: per alternative of harm, of safety, and per point of `CURVE`."""

    harm: Floats
    safe: Floats
    curve: Floats


class Alternatives(NamedTuple):
    """The alternatives of a test: one entry per alternative."""

    log_effects: Floats
    log_weights: Floats


@lru_cache(maxsize=64)
def harm_alternatives(log_null: float) -> Alternatives:
    """Return the rate ratios above the tolerated one, with weights that add up to 1.

    Alternatives at or below the null are left out: they would win when treatment is *better*. The
    reference vectors with a margin leave their weight unused; giving it to the others multiplies
    the e-value by a constant above 1.
    """
    above = log_null + 1e-12 < LOG_RATIOS
    if not above.any():
        raise ValueError(
            f"a tolerated ratio of {math.exp(log_null):.3g} leaves nothing to find; the "
            f"largest is 20"
        )
    weights = RATIO_WEIGHTS[above]
    return Alternatives(LOG_RATIOS[above], np.log(weights / weights.sum()))


@lru_cache(maxsize=64)
def safe_alternatives(log_null: float) -> Alternatives:
    """Return ratios below `log_null` > 0, down to its mirror image: a release that is not worse."""
    steps = np.arange(1, SAFE_POINTS + 1)
    return Alternatives(log_null * (1 - 2 * steps / SAFE_POINTS), SAFE_LOG_WEIGHTS)


def ratio_increment(log_ratios: Floats, log_null: float, batch: Counts) -> Floats:
    """Return one batch's log e-value per alternative rate ratio.

    The null is that the ratio is at most exp(log_null). With alternatives *below* the null it tests
    the reverse, that the ratio is at least exp(log_null). Exact for any rates, also when they
    differ from batch to batch: given the numbers of observations the expectation of its exp is at
    most 1, because 1 + x <= exp(x) and the exponents cancel at the null's edge.

    Source: Poisson form of the multinomial mixture in M. Lindon, A. Malek, NeurIPS 2022 (arXiv
    2011.03567), conditioned on observed instead of designed shares.
    """
    n_t, k_t, n_c, k_c = batch
    null = math.exp(log_null)
    scale = np.log((n_t * np.exp(log_ratios) + n_c) / (n_t * null + n_c))
    result: Floats = k_t * (log_ratios - log_null) - (k_t + k_c) * scale
    return result


def comparison_increments(log_null: float, log_gate: float, batch: Counts) -> Increments:
    """Return `ratio_increment` of harm above `log_null` and safety below `log_gate`, and the curve.

    The curve is `curve_increment`. The three are one formula with three nulls, the curve's being
    ratio 1: in one pass over all points they cost a third.
    """
    log_factors, ratios, nulls, first_safe, first_of_curve = _all_points(log_null, log_gate)
    n_t, k_t, n_c, k_c = batch
    increment: Floats = k_t * log_factors - (k_t + k_c) * np.log(
        (n_t * ratios + n_c) / (n_t * nulls + n_c)
    )
    return Increments(
        increment[:first_safe], increment[first_safe:first_of_curve], increment[first_of_curve:]
    )


@lru_cache(maxsize=256)
def _all_points(log_null: float, log_gate: float) -> tuple[Floats, Floats, Floats, int, int]:
    """Return log(ratio / null), ratio and null of every point, and where the last two parts begin.

    The points are the alternatives of harm, then of safety, then the curve.
    """
    parts = (
        (harm_alternatives(log_null).log_effects, log_null),
        (safe_alternatives(log_gate).log_effects, log_gate),
        (CURVE, 0.0),
    )
    log_ratios = np.concatenate([points for points, _ in parts])
    log_nulls = np.concatenate([np.full(len(points), null) for points, null in parts])
    first_safe = len(parts[0][0])
    return (
        log_ratios - log_nulls,
        np.exp(log_ratios),
        np.exp(log_nulls),
        first_safe,
        first_safe + SAFE_POINTS,
    )


def excess_increment(
    expected_t: Floats, expected_c: float, difference: float, batch: Counts
) -> Floats:
    """Return one batch's log e-value per alternative, for a margin that is a difference of rates.

    The null is "treatment's rate is at most control's + `difference`".

    `expected_t` are the alternatives, rates of treatment, and `expected_c` control's rate as
    expected from its past, in (0, 1); all above `expected_c + difference` for this null. With all
    of them below it tests the reverse, "at least". How wrong the expectations are costs power
    alone.

    The null's point nearest to an alternative, (m + difference, m), solves n_t (expected_t / (m +
    difference) - 1) + n_c (expected_c / m - 1) = 0. There the exponents of E[exp] <= exp(n_t (p_t -
    m - d)(e_t / (m + d) - 1) + ...) add up to n_t (e_t / (m + d) - 1)(p_t - p_c - d), which is at
    most 0 for every pair of rates in the null. Source: reverse information projection, P. Grunwald,
    R. de Heide, W. Koolen, J. R. Statist. Soc. B 86 (2024); Poisson form.
    """
    n_t, k_t, n_c, k_c = batch
    total = n_t + n_c
    half = (total * difference - n_t * expected_t - n_c * expected_c) / (2 * total)
    nearest_c = np.sqrt(half**2 + n_c * expected_c * difference / total) - half
    nearest_t = nearest_c + difference
    result: Floats = (
        k_t * np.log(expected_t / nearest_t)
        + k_c * np.log(expected_c / nearest_c)
        - n_t * (expected_t - nearest_t)
        - n_c * (expected_c - nearest_c)
    )
    return result


def rates_above(expected_c: float, difference: float) -> Floats:
    """Return the alternatives of harm for a margin in points, one per ratio to the tolerated."""
    result: Floats = (expected_c + difference) * np.exp(LOG_RATIOS)
    return result


def rates_below(expected_c: float, difference: float) -> Floats:
    """Return the alternatives of a gate for a margin in points.

    They go from just below the margin down to its mirror image, or near 0.
    """
    steps = np.arange(1, SAFE_POINTS + 1)
    result: Floats = np.maximum(
        expected_c + difference * (1 - 2 * steps / SAFE_POINTS), expected_c / 20
    )
    return result


def curve_increment(batch: Counts) -> Floats:
    """Return one batch's log likelihood of the rate ratio on `CURVE`, relative to ratio 1.

    The sum over batches is exact.
    """
    n_t, k_t, n_c, k_c = batch
    result: Floats = k_t * CURVE - (k_t + k_c) * np.log((n_t * _CURVE_RATIOS + n_c) / (n_t + n_c))
    return result


def _one_sided_weights() -> tuple[Floats, Floats]:
    """Return, per null on `CURVE`, the weights of the ratios above it and of those below it."""
    offsets = CURVE[None, :] - CURVE[:, None]
    raw = 1 / (1 + (offsets / 0.7) ** 2)
    tiny = 1e-9
    above, below = np.where(offsets > tiny, raw, 0.0), np.where(offsets < -tiny, raw, 0.0)
    above /= np.maximum(above.sum(axis=1, keepdims=True), tiny)
    below /= np.maximum(below.sum(axis=1, keepdims=True), tiny)
    return above, below


_ONE_SIDED: Floats = np.concatenate(_one_sided_weights())


class RatioEstimate(NamedTuple):
    """A rate ratio with its interval.

    An end is None where the data do not bound it within 0.09 to 11.
    """

    estimate: float
    low: float | None
    high: float | None


def ratio_estimate(curve: Floats, alpha: float) -> RatioEstimate | None:
    """Return the likeliest rate ratio and a confidence sequence at 1 - alpha.

    None while the curve is flat (no events). The sequence has every null that neither one-sided
    mixture rejects at alpha / 2, so it is valid after every batch.
    """
    peak, last = int(curve.argmax()), len(CURVE) - 1
    if curve[peak] - curve[curve.argmin()] < 1e-12:
        return None
    likelihood = np.exp(curve - curve[peak])
    mixtures = _ONE_SIDED @ likelihood
    kept = np.maximum(mixtures[: last + 1], mixtures[last + 1 :]) < 2 / alpha * likelihood
    low, high = int(kept.argmax()), last - int(kept[::-1].argmax())
    place = float(CURVE[peak])
    if 0 < peak < last:  # a parabola through the top three finds the peak between the grid's points
        left, top, right = curve[peak - 1 : peak + 2].tolist()
        bend = left - 2 * top + right
        if bend < 0:
            place += 0.5 * (left - right) / bend * _CURVE_STEP
    # One step out on either side, for what lies between the points.
    return RatioEstimate(
        estimate=math.exp(place),
        low=None if low == 0 else float(_CURVE_RATIOS[low - 1]),
        high=None if high == last else float(_CURVE_RATIOS[high + 1]),
    )


@lru_cache(maxsize=64)
def limit_alternatives(limit: float, is_above: bool) -> tuple[Floats, Floats, Alternatives]:
    """Return log(p / limit), log((1 - p) / (1 - limit)) and the odds ratios.

    Each is per alternative share p on one side of `limit`.
    """
    effects = LOG_RATIOS if is_above else -LOG_RATIOS
    odds = limit / (1 - limit) * np.exp(effects)
    shares = odds / (1 + odds)
    return (
        np.log(shares / limit),
        np.log((1 - shares) / (1 - limit)),
        Alternatives(effects, _ABOVE_LOG_WEIGHTS if is_above else _BELOW_LOG_WEIGHTS),
    )


def limit_increment(limit: float, trials: int, events: int, *, is_above: bool) -> Floats:
    """Return the log e-value per alternative against "the share is beyond `limit`", 0 < limit < 1.

    `is_above` bets on shares above the limit (harm), else below (safe). A plain likelihood ratio,
    hence exact for shares that drift as long as they stay on the null's side; additive, so totals
    do as well as batches.
    """
    event, no_event, _ = limit_alternatives(limit, is_above)
    result: Floats = events * event + (trials - events) * no_event
    return result


def limit_log_e_value(limit: float, trials: int, events: int, *, is_above: bool) -> float:
    """Return the mixture's log e-value for totals, without restarts."""
    alternatives = limit_alternatives(limit, is_above)[2]
    return log_sum_exp(
        alternatives.log_weights + limit_increment(limit, trials, events, is_above=is_above)
    )


def trials_until(
    log_evidence: Floats, log_weights: Floats, growth: Floats, log_threshold: float
) -> int | None:
    """Return how many more trials bring all alternatives together over the threshold.

    `growth` is per trial. None when no alternative grows. It is an estimate that assumes the
    present rates, up to 2 % too high.
    """
    grows = growth > 1e-12
    if not grows.any():
        return None
    missing = (log_threshold - log_weights[grows] - log_evidence[grows]) / growth[grows]
    # One alternative alone gets there at the latest. The log of a sum of exponentials is convex in
    # the number of trials, so there is one crossing below.
    too_few, enough = 0, max(1, math.ceil(float(missing.min())))
    while enough - too_few > max(1, enough // 50):
        between = (too_few + enough) // 2
        if log_sum_exp(log_weights + log_evidence + growth * between) >= log_threshold:
            enough = between
        else:
            too_few = between
    return enough


def safe_growth(log_null: float, share: float, rate: float) -> Floats:
    """Return the expected log e-value per *treatment* observation of each safe alternative.

    Both arms have the rate `rate`. `share` is treatment's part of the observations, 0 < share < 1.
    """
    log_ratios = safe_alternatives(log_null).log_effects
    scale = np.log(
        (share * np.exp(log_ratios) + 1 - share) / (share * math.exp(log_null) + 1 - share)
    )
    result: Floats = rate * ((log_ratios - log_null) - scale / share)
    return result


def excess_growth(difference: float, share: float, rate: float) -> Floats:
    """Return the expected increment per treatment observation, for a margin in points.

    Both arms have the rate `rate`.
    """
    # Expected counts: they are no whole numbers.
    batch = Counts(share, share * rate, 1 - share, (1 - share) * rate)  # type: ignore[arg-type]
    result: Floats = (
        excess_increment(rates_below(rate, difference), rate, difference, batch) / share
    )
    return result


def limit_growth(limit: float, rate: float, *, is_above: bool) -> Floats:
    """Return the expected log e-value per observation of each alternative at the share `rate`."""
    event, no_event, _ = limit_alternatives(limit, is_above)
    result: Floats = rate * event + (1 - rate) * no_event
    return result


def rate_interval(events: int, trials: int, alpha: float) -> tuple[float, float]:
    """Return a confidence sequence of the mean rate over all trials so far, ends in [0, 1].

    `trials` is at least 1. It holds at every check, also when the rate drifts: exp(l K - mu (e^l -
    1)) is a supermartingale for the summed rates mu, and a gamma(1, 1) mixture over e^l has the
    closed form used here. Somewhat wide above rates of 30 %, where a Poisson count is wider than a
    binomial one.

    Source: S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, Ann. Statist. 49 (2021) 1055-1080,
    gamma-exponential mixtures.
    """
    if not 0 <= events <= trials or trials < 1:
        raise ValueError(
            f"0 <= events <= trials and trials >= 1 are asked for, got {events} of {trials}"
        )
    # It rejects mu where u - 1 - log(u) is above `distance`, with 1 + mu in units of 1 + events:
    # one end on each side of u = 1.
    unit = 1 + events
    distance = (1 - math.lgamma(unit) - math.log(alpha)) / unit + math.log(unit) - 1
    distance = max(distance, 1e-15)  # beyond 10^14 events nothing but rounding is left of it
    low, high = unit * _left_root(distance) - 1, unit * _right_root(distance) - 1
    return min(max(low, 0.0) / trials, 1.0), min(high / trials, 1.0)


def _left_root(distance: float) -> float:
    """Return u in (0, 1) with u - 1 - log(u) = `distance` > 0."""
    s = math.sqrt(2 * distance)
    return _newton(1 - s + s * s / 3 - s**3 / 36 if s < 1.5 else math.exp(-1 - distance), distance)


def _right_root(distance: float) -> float:
    """Return u > 1 with u - 1 - log(u) = `distance` > 0."""
    s = math.sqrt(2 * distance)
    return _newton(1 + s + s * s / 3 if s < 3 else 1 + distance + math.log1p(distance), distance)


def _newton(u: float, distance: float) -> float:
    """Return the root of u - 1 - log(u) = `distance`, on the first guess's side of 1.

    The function is convex.
    """
    for _ in range(50):
        step = (u - 1 - math.log(u) - distance) * u / (u - 1)
        u -= step
        if abs(step) <= 1e-9 * u:
            break
    return u
