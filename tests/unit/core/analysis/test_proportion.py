"""Rate comparisons and limits.

Exactness by enumeration, reference vectors, and the shape of intervals.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy

from controller.core.analysis.change_point import Floats, log_sum_exp
from controller.core.analysis.proportion import (
    CURVE,
    Counts,
    comparison_increments,
    curve_increment,
    excess_increment,
    harm_alternatives,
    limit_increment,
    limit_log_e_value,
    rate_interval,
    rates_above,
    rates_below,
    ratio_estimate,
    ratio_increment,
    safe_alternatives,
    safe_growth,
    trials_until,
)
from tests.streams import reference_prior

BATCHES = (Counts(1000, 12, 9000, 45), Counts(1000, 9, 9000, 50), Counts(500, 7, 4500, 20))


def expectation(
    n_t: int, n_c: int, p_t: float, p_c: float, log_null: float, log_ratios: Floats
) -> Floats:
    """Return the exact expectation of exp(increment) per alternative, over one batch."""
    total = np.zeros(len(log_ratios))
    for k_t, k_c in itertools.product(range(n_t + 1), range(n_c + 1)):
        probability = scipy.stats.binom.pmf(k_t, n_t, p_t) * scipy.stats.binom.pmf(k_c, n_c, p_c)
        total += probability * np.exp(
            ratio_increment(log_ratios, log_null, Counts(n_t, k_t, n_c, k_c))
        )
    return total


def test_one_alternative_matches_the_reference_vector() -> None:
    """A rate ratio of 2 after 12 of 1000 against 45 of 9000 has log e-value 2.885086."""
    increment = ratio_increment(np.array([math.log(2)]), 0.0, BATCHES[0])
    assert increment[0] == pytest.approx(2.885086, abs=1e-6)


@pytest.mark.parametrize(
    ("margin", "vectors"),
    [(0.0, (2.108039, 2.478426, 4.581948)), (0.1, (1.521532, 1.622880, 3.334842))],
)
def test_mixture_matches_the_reference_vectors(margin: float, vectors: tuple[float, ...]) -> None:
    """The mixture over alternatives above the margin has the published values."""
    log_null = math.log1p(margin)
    log_ratios, log_weights = reference_prior()
    log_ratios, log_weights = log_ratios[log_ratios > log_null], log_weights[log_ratios > log_null]
    evidence = np.zeros(len(log_ratios))
    for batch, vector in zip(BATCHES, vectors, strict=True):
        evidence = evidence + ratio_increment(log_ratios, log_null, batch)
        assert log_sum_exp(log_weights + evidence) == pytest.approx(vector, abs=1e-6)


@pytest.mark.parametrize("difference", [0.01, 0.2])
@pytest.mark.parametrize("expected", [0.02, 0.4])
@pytest.mark.parametrize("p_c", [0.02, 0.2, 0.45])
def test_a_margin_in_points_is_exact_whatever_was_expected(
    difference: float, expected: float, p_c: float
) -> None:
    """Neither question's e-value expects to gain at the null's edge or within.

    Also when control's rate was misjudged.
    """
    n_t, n_c = 3, 5

    def expectation_of(alternatives: Floats, p_t: float) -> Floats:
        total = np.zeros(len(alternatives))
        for k_t, k_c in itertools.product(range(n_t + 1), range(n_c + 1)):
            probability = scipy.stats.binom.pmf(k_t, n_t, p_t) * scipy.stats.binom.pmf(
                k_c, n_c, p_c
            )
            batch = Counts(n_t, k_t, n_c, k_c)
            total += probability * np.exp(
                excess_increment(alternatives, expected, difference, batch)
            )
        return total

    for better in (0.0, 0.5):
        tolerated = (p_c + difference) * (1 - better)
        assert expectation_of(rates_above(expected, difference), tolerated).max() <= 1 + 1e-9
        too_bad = min(1.0, (p_c + difference) * (1 + better))
        assert expectation_of(rates_below(expected, difference), too_bad).max() <= 1 + 1e-9


@pytest.mark.parametrize("margin", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("n_t", "n_c"), [(1, 1), (3, 5), (6, 2)])
@pytest.mark.parametrize("p_c", [0.02, 0.2, 0.45])
def test_no_alternative_expects_to_gain_where_treatment_is_not_worse(
    margin: float, n_t: int, n_c: int, p_c: float
) -> None:
    """The expected e-value is at most 1 for every treatment rate up to the margin."""
    log_null = math.log1p(margin)
    log_ratios = harm_alternatives(log_null).log_effects
    for part in (0.0, 0.3, 1.0):
        p_t = min(p_c * (1 + margin) * part, 1.0)
        assert expectation(n_t, n_c, p_t, p_c, log_null, log_ratios).max() <= 1 + 1e-12


@pytest.mark.parametrize("margin", [0.25, 1.0])
@pytest.mark.parametrize(("n_t", "n_c"), [(1, 1), (3, 5), (6, 2)])
def test_certificate_never_expects_to_gain_where_treatment_is_at_the_margin_or_worse(
    margin: float, n_t: int, n_c: int
) -> None:
    """The gate's expected e-value is at most 1 for every rate from the margin upwards."""
    log_null = math.log1p(margin)
    log_ratios = safe_alternatives(log_null).log_effects
    for p_c, factor in itertools.product((0.02, 0.2, 0.45), (1.0, 1.5, 2.0)):
        p_t = min(p_c * (1 + margin) * factor, 1.0)
        assert expectation(n_t, n_c, p_t, p_c, log_null, log_ratios).max() <= 1 + 1e-12


def test_weights_of_alternatives_add_up_to_one() -> None:
    """Whatever is tolerated, the bets on harm spend exactly what there is."""
    for margin in (0.0, 0.1, 1.0, 5.0):
        assert np.exp(harm_alternatives(math.log1p(margin)).log_weights).sum() == pytest.approx(1.0)


def test_margin_beyond_every_alternative_is_refused() -> None:
    """A margin that tolerates more than the largest alternative is an error.

    Not a test that can never fire.
    """
    with pytest.raises(ValueError, match="leaves nothing to find"):
        harm_alternatives(math.log(30))


@pytest.mark.parametrize("is_above", [True, False])
@pytest.mark.parametrize("limit", [0.01, 0.2, 0.6])
def test_limit_is_exact_on_its_edge_and_beyond(limit: float, is_above: bool) -> None:
    """The expected e-value against a limit is at most 1 for every share on the null's side."""
    shares = (
        [limit * part for part in (0.0, 0.5, 1.0)] if is_above else [limit, (1 + limit) / 2, 1.0]
    )
    for share in shares:
        for trials in (1, 7):
            total = sum(
                scipy.stats.binom.pmf(events, trials, share)
                * np.exp(limit_increment(limit, trials, events, is_above=is_above))
                for events in range(trials + 1)
            )
            assert np.max(total) <= 1 + 1e-12


def test_limit_is_shown_kept_after_a_few_hundred_contexts_without_an_error() -> None:
    """1 % is excluded at 5 % by 400 contexts without an error, and not by 250."""
    assert (
        limit_log_e_value(0.01, 250, 0, is_above=False)
        < math.log(20)
        <= limit_log_e_value(0.01, 500, 0, is_above=False)
    )


def test_curve_finds_the_ratio() -> None:
    """With plenty of events the estimate is the quotient of the rates.

    And the interval holds it.
    """
    estimate = ratio_estimate(curve_increment(Counts(10_000, 400, 90_000, 1800)), alpha=0.01)
    assert estimate is not None
    assert estimate.estimate == pytest.approx(2.0, rel=0.01)
    assert estimate.low is not None
    assert estimate.high is not None
    assert 1.5 < estimate.low < 2.0 < estimate.high < 2.6


def test_curve_without_events_estimates_nothing() -> None:
    """No event in either arm says nothing about a ratio."""
    assert ratio_estimate(curve_increment(Counts(100, 0, 900, 0)), alpha=0.01) is None


def test_curve_does_not_bound_what_it_has_not_seen() -> None:
    """Events in one arm only leave the far side open."""
    estimate = ratio_estimate(curve_increment(Counts(1000, 0, 1000, 30)), alpha=0.01)
    assert estimate is not None
    assert estimate.low is None
    assert estimate.high is not None
    assert estimate.high < 1


def test_curve_is_additive() -> None:
    """Two batches of one share have the curve of their sum."""
    one, two = Counts(100, 3, 900, 11), Counts(200, 1, 1800, 20)
    both = Counts(300, 4, 2700, 31)
    assert np.allclose(curve_increment(one) + curve_increment(two), curve_increment(both))
    assert len(curve_increment(one)) == len(CURVE)


@pytest.mark.parametrize(
    "batch", [Counts(10, 0, 90, 0), Counts(50, 3, 450, 11), Counts(9, 9, 1, 0)]
)
def test_a_comparison_in_one_pass_is_its_three_parts(batch: Counts) -> None:
    """Harm, safety and the curve of a batch are what each formula gives alone."""
    log_null, log_gate = math.log1p(0.1), math.log1p(0.5)
    added = comparison_increments(log_null, log_gate, batch)
    assert np.allclose(
        added.harm,
        ratio_increment(harm_alternatives(log_null).log_effects, log_null, batch),
        rtol=1e-13,
    )
    assert np.allclose(
        added.safe,
        ratio_increment(safe_alternatives(log_gate).log_effects, log_gate, batch),
        rtol=1e-13,
    )
    assert np.allclose(added.curve, curve_increment(batch), rtol=1e-13)


@pytest.mark.parametrize(
    ("events", "trials"),
    [
        (0, 1),
        (0, 1000),
        (1, 10),
        (10, 10),
        (3, 1000),
        (50, 1000),
        (10_000, 1_000_000),
        (10**7, 10**9),
    ],
)
def test_rate_interval_holds_the_estimate_and_shrinks(events: int, trials: int) -> None:
    """The interval contains the estimate, lies in [0, 1], and is narrower at 5 % than at 1 %."""
    low, high = rate_interval(events, trials, 0.01)
    narrow_low, narrow_high = rate_interval(events, trials, 0.05)
    assert 0 <= low <= events / trials <= high <= 1
    assert low <= narrow_low
    assert narrow_high <= high
    if events >= 10_000:
        assert high / low < 1.2


def test_rate_interval_ends_are_where_the_mixture_rejects() -> None:
    """At each end the mixture's e-value is 1 / alpha, found independently by quadrature."""
    events, trials, alpha = 12, 5000, 0.01
    grid = np.linspace(1e-9, 60, 400_001)
    for mu in (end * trials for end in rate_interval(events, trials, alpha)):
        integrand = grid**events * np.exp(-mu * (grid - 1)) * np.exp(-grid)
        assert np.trapezoid(integrand, grid) == pytest.approx(1 / alpha, rel=1e-4)


def test_rate_interval_refuses_impossible_counts() -> None:
    """More events than trials, or no trial, is the caller's mistake."""
    for events, trials in ((2, 1), (-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="are asked for"):
            rate_interval(events, trials, 0.01)


def test_missing_sample_is_what_it_takes() -> None:
    """The predicted number of equal contexts brings the certificate to its threshold."""
    log_null = math.log1p(0.5)
    weights = safe_alternatives(log_null).log_weights
    nothing = np.zeros(len(weights))
    missing = trials_until(nothing, weights, safe_growth(log_null, 0.1, 0.01), math.log(20))
    assert missing is not None
    batch = Counts(missing, round(missing * 0.01), 9 * missing, round(9 * missing * 0.01))
    reached = log_sum_exp(
        weights + ratio_increment(safe_alternatives(log_null).log_effects, log_null, batch)
    )
    assert math.log(20) - 0.1 <= reached <= math.log(20) + 0.1


def test_nothing_grows_without_events() -> None:
    """With no event in sight there is no forecast."""
    assert trials_until(np.zeros(8), np.zeros(8), np.zeros(8), 3.0) is None
