"""Sample ratio: whether the observed share of treatment is the decided one.

The test is a two-sided multinomial e-process on the distinct contexts of one visit. Contexts keep
their place in the split over all stages: those that are in treatment too often by chance are so in
the next stage too. So evidence of several visits is not independent, and is never multiplied.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from controller.core.analysis.change_point import Floats, log_sum_exp

#: Log of the factor by which treatment's odds may be wrong, normal with sd 0.15. The smallest step
#: is 2.5 %, so that the unevenness of hashing itself is not reported at a billion contexts.
LOG_FACTORS: Floats = np.linspace(-0.4, 0.4, 33)
_FACTORS: Floats = np.exp(LOG_FACTORS)
_WEIGHTS: Floats = np.exp(-0.5 * (LOG_FACTORS / 0.15) ** 2)
LOG_WEIGHTS: Floats = np.log(_WEIGHTS / _WEIGHTS.sum())

#: Probability of a false alarm over a whole rollout. Not part of the plan's alpha: an SRM holds, it
#: does not roll back.
ALPHA_SRM = 0.001


def no_evidence() -> Floats:
    """Return the state before the first exposure of a visit."""
    return np.zeros(len(LOG_FACTORS))


def threshold(visit: int) -> float:
    """Return what an e-value must reach in visit number `visit`, 1 for the first.

    Alpha over all visits is `ALPHA_SRM`, however they depend on each other: the sum of 1 / (n (n +
    1)) is 1.
    """
    return visit * (visit + 1) / ALPHA_SRM


def is_mismatch(state: Floats, visit: int) -> bool:
    """Return whether the share in visit number `visit`, 1 for the first, is surely wrong."""
    return log_e_value(state) >= math.log(threshold(visit))


def add_exposures(state: Floats, decided_share: float, treatment: int, control: int) -> Floats:
    """Return the state after more distinct contexts.

    `decided_share` in (0, 1) was in force for them. Increments of one share add up, so the size of
    batches does not matter. Source: M. Lindon, A. Malek, NeurIPS 2022 (arXiv 2011.03567).
    """
    result: Floats = (
        state + treatment * LOG_FACTORS - (treatment + control) * _log_means(decided_share)
    )
    return result


@lru_cache(maxsize=64)
def _log_means(decided_share: float) -> Floats:
    """Return, per factor, the log of the sum of both arms' probabilities under it."""
    result: Floats = np.log1p(decided_share * (_FACTORS - 1))
    return result


def log_e_value(state: Floats) -> float:
    """Return the log e-value against the decided shares."""
    return log_sum_exp(LOG_WEIGHTS + state)
