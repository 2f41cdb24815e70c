"""Restarts: reference vectors, the mass that is spent, and what they are for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.core.analysis.change_point import (
    START_MASS,
    add_batch,
    as_e_value,
    log_e_value,
    mean_log_effect,
    released_mass,
)
from controller.core.analysis.proportion import Counts, harm_alternatives, ratio_increment
from tests.streams import reference_prior

BATCHES = (Counts(1000, 12, 9000, 45), Counts(1000, 9, 9000, 50), Counts(500, 7, 4500, 20))


def test_restarts_match_the_reference_vectors() -> None:
    """With half the mass at the first of three batches log E is 1.529538, 1.875363, 3.956923."""
    log_ratios, log_weights = reference_prior()
    evidence, released = np.full(len(log_ratios), -np.inf), 0.0
    for batch, mass, vector in zip(
        BATCHES, (0.5, 0.25, 0.25), (1.529538, 1.875363, 3.956923), strict=True
    ):
        evidence = add_batch(evidence, mass, ratio_increment(log_ratios, 0.0, batch))
        released += mass
        assert log_e_value(evidence, log_weights, released) == pytest.approx(vector, abs=1e-6)


def test_mass_is_released_by_time_and_never_used_up() -> None:
    """The released mass starts at its share, never falls and stays below 1.

    Also long after the planned end.
    """
    masses = [
        released_mass(seconds, 3600.0) for seconds in (-5, 0, 0.5, 10, 1800, 3600, 36_000, 1e9)
    ]
    assert masses[0] == masses[1] == START_MASS
    assert masses == sorted(masses)
    assert masses[-1] < 1


def test_before_any_evidence_the_e_value_is_one() -> None:
    """Nothing seen is worth exactly what was put in."""
    alternatives = harm_alternatives(0.0)
    evidence = np.full(len(alternatives.log_effects), -np.inf)
    assert log_e_value(evidence, alternatives.log_weights, 0.0) == 0.0
    assert mean_log_effect(evidence, alternatives.log_weights, alternatives.log_effects) == 0.0


def test_late_trouble_is_found_soon_after_long_health() -> None:
    """After 200 healthy batches a doubling needs at most three times the usual batches."""
    alternatives = harm_alternatives(0.0)
    healthy, bad = Counts(1000, 10, 9000, 90), Counts(1000, 20, 9000, 90)

    def batches_to_find(healthy_batches: int) -> int:
        evidence, released = np.full(len(alternatives.log_effects), -np.inf), 0.0
        for number in range(1000):
            batch = healthy if number < healthy_batches else bad
            now = released_mass(number, 400.0)
            evidence = add_batch(
                evidence, now - released, ratio_increment(alternatives.log_effects, 0.0, batch)
            )
            released = now
            if log_e_value(evidence, alternatives.log_weights, released) >= math.log(100):
                return number + 1 - healthy_batches
        raise AssertionError("never found")

    assert batches_to_find(200) <= 3 * batches_to_find(0)


def test_size_of_late_harm_is_not_diluted() -> None:
    """The effect the evidence speaks of is the present one, not the average since the start."""
    alternatives = harm_alternatives(0.0)
    evidence, released = np.full(len(alternatives.log_effects), -np.inf), 0.0
    for number in range(500):
        batch = Counts(1000, 10, 9000, 90) if number < 450 else Counts(1000, 30, 9000, 90)
        now = released_mass(number, 500.0)
        evidence = add_batch(
            evidence, now - released, ratio_increment(alternatives.log_effects, 0.0, batch)
        )
        released = now
    effect = math.exp(mean_log_effect(evidence, alternatives.log_weights, alternatives.log_effects))
    assert effect == pytest.approx(3.0, rel=0.2)


def test_overwhelming_evidence_stays_a_number() -> None:
    """An e-value is capped before it becomes infinite."""
    assert math.isfinite(as_e_value(1e9))
