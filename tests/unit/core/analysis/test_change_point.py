"""Bets on harm: exactness, the mass that is spent, and what restarts are for."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from controller.core.analysis.change_point import (
    LEVELS,
    START_MASS,
    SUSPICION_MASS,
    Bets,
    Floats,
    as_e_value,
    mean_log_effect,
    scheduled_mass,
)
from controller.core.analysis.proportion import (
    Counts,
    harm_alternatives,
    limit_alternatives,
    limit_increment,
    ratio_increment,
)
from tests.streams import reference_prior

BATCHES = (Counts(1000, 12, 9000, 45), Counts(1000, 9, 9000, 50), Counts(500, 7, 4500, 20))
HEALTHY, BAD = Counts(1000, 10, 9000, 90), Counts(1000, 20, 9000, 90)


def weights_of_limit(limit: float) -> Floats:
    """Return the log weights of the alternatives above a limit."""
    return limit_alternatives(limit, is_above=True)[2].log_weights


def test_bets_by_schedule_match_the_reference_vectors() -> None:
    """With half the mass at the first of three batches log E is 1.529538, 1.875363, 3.956923."""
    log_ratios, log_weights = reference_prior()
    bets = Bets.fresh(len(log_ratios))
    never = np.zeros_like(bets.is_armed)  # no bets on suspicion: the vectors have none
    for batch, scheduled, vector in zip(
        BATCHES, (0.5, 0.75, 1 - 1e-12), (1.529538, 1.875363, 3.956923), strict=True
    ):
        increment = ratio_increment(log_ratios, 0.0, batch)
        bets = replace(bets, is_armed=never).after(increment, log_weights, scheduled)
        assert bets.log_e_value(log_weights) == pytest.approx(vector, abs=1e-6)


@pytest.mark.parametrize("limit", [0.05, 0.4])
def test_bets_are_worth_one_on_average_at_the_limit(limit: float) -> None:
    """Over all sequences of 12 observations at the limit the mean e-value is exactly 1.

    Suspicion begins bets in some of them, at several levels.
    """
    log_weights = weights_of_limit(limit)
    mean, most_begun = 0.0, 0
    for fails in itertools.product((0, 1), repeat=12):
        bets = Bets.fresh(len(log_weights))
        for number, fail in enumerate(fails):
            increment = limit_increment(limit, 1, fail, is_above=True)
            bets = bets.after(increment, log_weights, scheduled_mass(number // 8, number))
        probability = limit ** sum(fails) * (1 - limit) ** (12 - sum(fails))
        mean += probability * math.exp(bets.log_e_value(log_weights))
        most_begun = max(most_begun, int((bets.begun > 0).sum()))
    assert mean == pytest.approx(1.0, abs=1e-9)
    assert most_begun >= 2


def test_all_bets_together_never_cost_more_than_one() -> None:
    """Mass begins by schedule and on suspicion, and some of it is always left."""
    masses = [scheduled_mass(0, seconds) for seconds in (-5, 0, 0.5, 10, 1800, 36_000, 1e12)]
    assert masses[0] == masses[1] == START_MASS
    assert masses == sorted(masses)
    assert scheduled_mass(10**9, 1e18) + SUSPICION_MASS <= 1
    assert scheduled_mass(1, 0) > scheduled_mass(0, 0)


def test_many_tests_side_by_side_are_those_tests_alone() -> None:
    """Leading axes are separate tests."""
    log_weights = weights_of_limit(0.05)
    rng = np.random.default_rng(3)
    several = Bets.fresh(3, len(log_weights))
    alone = [Bets.fresh(len(log_weights)) for _ in range(3)]
    for number in range(60):
        increments = np.array(
            [limit_increment(0.05, 20, int(k), is_above=True) for k in rng.binomial(20, 0.1, 3)]
        )
        mass = scheduled_mass(0, number)
        several = several.after(increments, log_weights, mass)
        alone = [
            bets.after(each, log_weights, mass)
            for bets, each in zip(alone, increments, strict=True)
        ]
        expected = [bets.log_e_value(log_weights) for bets in alone]
        assert several.log_e_values(log_weights) == pytest.approx(expected)
    assert several.begun.sum() > 0


def test_a_level_is_armed_again_only_after_it_was_quiet() -> None:
    """A suspicion that lasts begins one bet per level, not one per batch."""
    log_weights = weights_of_limit(0.05)
    bets = Bets.fresh(len(log_weights))

    for times in (1, 2):
        for failing, batches in ((4, 30), (0, 300)):
            increment = limit_increment(0.05, 20, failing, is_above=True)
            for _ in range(batches):
                bets = bets.after(increment, log_weights, START_MASS)
            assert bets.is_suspicious == bets.has_recent_evidence == (failing > 0)
            assert bets.begun.tolist() == [times] * len(LEVELS)
        assert bets.is_armed.all()


def test_before_any_evidence_the_e_value_is_one() -> None:
    """Nothing seen is worth exactly what was put in."""
    alternatives = harm_alternatives(0.0)
    bets = Bets.fresh(len(alternatives.log_effects))
    assert bets.log_e_value(alternatives.log_weights) == 0.0
    effect = mean_log_effect(bets.evidence, alternatives.log_weights, alternatives.log_effects)
    assert effect == 0.0


def test_late_trouble_is_found_soon_after_long_health() -> None:
    """After 200 healthy batches a doubling needs at most twice the usual batches."""
    alternatives = harm_alternatives(0.0)

    def batches_to_find(healthy_batches: int) -> int:
        bets = Bets.fresh(len(alternatives.log_effects))
        for number in range(1000):
            batch = HEALTHY if number < healthy_batches else BAD
            increment = ratio_increment(alternatives.log_effects, 0.0, batch)
            bets = bets.after(increment, alternatives.log_weights, scheduled_mass(0, number))
            if bets.log_e_value(alternatives.log_weights) >= math.log(100):
                return number + 1 - healthy_batches
        raise AssertionError("never found")

    assert batches_to_find(200) <= 2 * batches_to_find(0)


@pytest.mark.parametrize("healthy_seconds", [60, 3_600, 86_400])
def test_a_clean_time_does_not_shield_a_broken_minute(healthy_seconds: int) -> None:
    """Far below a limit, the delay of late harm does not grow with the healthy time before it.

    57 requests a second fail at 1 %, the limit is 2 %, then they fail at 8 %: the bets of a test
    that spends them evenly in time are worth less the longer it was healthy.
    """
    log_weights = weights_of_limit(0.02)
    bets = Bets.fresh(len(log_weights))
    for minute in range(0, healthy_seconds, 10):
        increment = limit_increment(0.02, 570, 6, is_above=True)
        bets = bets.after(increment, log_weights, scheduled_mass(0, minute))
    for second in range(1, 60):
        failing = round(57 * 0.08 * second) - round(57 * 0.08 * (second - 1))
        increment = limit_increment(0.02, 57, failing, is_above=True)
        bets = bets.after(increment, log_weights, scheduled_mass(0, healthy_seconds + second))
        if bets.log_e_value(log_weights) >= math.log(100):
            break
    assert second <= 5  # an oracle with the time and size of the harm takes 1.6 s


def test_harm_in_a_single_batch_is_found_however_late() -> None:
    """A thousand failures after a day, then silence: something is always bet on the next batch."""
    log_weights = weights_of_limit(0.05)
    bets = Bets.fresh(len(log_weights))
    for number in range(0, 86_400, 60):
        increment = limit_increment(0.05, 600, 6, is_above=True)
        bets = bets.after(increment, log_weights, scheduled_mass(0, number))
    increment = limit_increment(0.05, 100, 50, is_above=True)
    bets = bets.after(increment, log_weights, scheduled_mass(0, 86_400))
    assert bets.log_e_value(log_weights) >= math.log(100)


def test_size_of_late_harm_is_not_diluted() -> None:
    """The effect the evidence speaks of is the present one, not the average since the start."""
    alternatives = harm_alternatives(0.0)
    bets = Bets.fresh(len(alternatives.log_effects))
    for number in range(500):
        batch = HEALTHY if number < 450 else Counts(1000, 30, 9000, 90)
        increment = ratio_increment(alternatives.log_effects, 0.0, batch)
        bets = bets.after(increment, alternatives.log_weights, scheduled_mass(0, number))
    effect = math.exp(
        mean_log_effect(bets.evidence, alternatives.log_weights, alternatives.log_effects)
    )
    assert effect == pytest.approx(3.0, rel=0.2)


def test_overwhelming_evidence_stays_a_number() -> None:
    """An e-value is capped before it becomes infinite."""
    assert math.isfinite(as_e_value(1e9))
