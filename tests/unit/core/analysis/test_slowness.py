"""Slower anywhere: exactness of every shape, what the margin does.

And what is needed before the first bet.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.analysis.change_point import log_sum_exp
from controller.core.analysis.latency import Ordered, ordered
from controller.core.analysis.slowness import (
    MIN_PAST,
    SHAPE_LOG_WEIGHTS,
    SHAPES,
    slowness_increment,
)
from schemas.terms import Arm


def pair(treatment: dict[int, int], control: dict[int, int]) -> dict[Arm, Ordered]:
    """Return both arms' histograms, made ready."""
    return {Arm.TREATMENT: ordered(treatment), Arm.CONTROL: ordered(control)}


def together(*histograms: dict[int, int]) -> dict[int, int]:
    """Return the sum of histograms."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def increment(
    past: dict[int, int], treatment: dict[int, int], control: dict[int, int], margin: int = 0
) -> np.ndarray:
    """Return the increment of a batch after control's `past`."""
    result = slowness_increment(pair({}, past), pair(treatment, together(past, control)), margin)
    assert result is not None
    return result


PAST = {10: 40, 20: 30, 30: 20, 40: 9, 50: 1}


def counts_of(draws: tuple[int, ...]) -> dict[int, int]:
    """Return a histogram of single draws."""
    return together(*({bucket: 1} for bucket in draws))


@pytest.mark.parametrize(
    "shares", [(0.4, 0.3, 0.2, 0.1), (0.7, 0.1, 0.1, 0.1), (0.05, 0.05, 0.1, 0.8)]
)
@pytest.mark.parametrize("better", [0.0, 0.3])
def test_no_shape_expects_to_gain_where_treatment_is_not_slower(
    shares: tuple[float, ...], better: float
) -> None:
    """Over every batch of 2 and 2 the expected e-value is at most 1, for any control."""
    places = (10, 25, 40, 60)
    faster = np.array(shares) * (1 - better)
    faster[0] += better
    expectation = np.zeros(SHAPES)
    for draws in itertools.product(range(4), repeat=4):
        probability = math.prod([*(faster[i] for i in draws[:2]), *(shares[i] for i in draws[2:])])
        treatment = counts_of(tuple(places[i] for i in draws[:2]))
        control = counts_of(tuple(places[i] for i in draws[2:]))
        expectation += probability * np.exp(increment(PAST, treatment, control))
    assert expectation.max() <= 1 + 1e-9


@given(
    st.dictionaries(st.integers(-100, 400), st.integers(1, 10_000), min_size=1, max_size=40).filter(
        lambda past: sum(past.values()) >= MIN_PAST
    )
)
def test_every_shape_makes_higher_latencies_likelier_in_proportion(past: dict[int, int]) -> None:
    """A further, higher treatment value never lowers any shape's evidence."""
    edges = sorted(past)
    before = np.full(SHAPES, -np.inf)
    for bucket in [edges[0] - 1, *edges, edges[-1] + 1]:
        now = increment(past, {bucket: 1}, {edges[0]: 1})
        assert (now >= before - 1e-9).all()
        before = now


def test_a_margin_moves_control_up() -> None:
    """Treatment exactly five buckets slower gives evidence without a margin.

    And none with one of five buckets.
    """
    shifted = {bucket + 5: 10 * count for bucket, count in PAST.items()}
    control = {bucket: 10 * count for bucket, count in PAST.items()}

    def log_e(margin: int) -> float:
        return log_sum_exp(SHAPE_LOG_WEIGHTS + increment(PAST, shifted, control, margin))

    assert log_e(0) > math.log(100)
    assert log_e(5) < 0


def test_without_a_past_of_control_nothing_is_betted() -> None:
    """Nine values of control, or a batch that lacks an arm, give no increment."""
    assert slowness_increment(pair({}, {10: 9}), pair({10: 5}, {10: 20}), 0) is None
    assert slowness_increment(pair({}, {10: 90}), pair({}, {10: 100}), 0) is None
    assert slowness_increment(pair({}, {10: 90}), pair({10: 5}, {10: 90}), 0) is None
