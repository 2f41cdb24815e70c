"""Restarting e-processes: evidence whose change may begin at any batch.

Late harm is found nearly as fast as early harm. An e-process is kept per alternative. At every
batch a part of the prior mass starts. The mass that has not started counts as it is (unspent prior
mass), so the expected total never grows under the null.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: How the prior mass of a change is divided. Most is for "broken from the start", the usual case. A
#: part is for coarse slots of time: with few events a cheap bet matters more than an exact moment.
#: A part is for every moment: with many events it is the reverse.
START_MASS = 0.88
COARSE_MASS = 0.06
FINE_MASS = 0.06
COARSE_SLOTS = 1000
#: The part of the last two that is spent evenly over the planned time. The rest is for a rollout
#: that takes longer.
WITHIN_PLAN = 0.8
#: e-values are reported up to e^690, short of the largest double.
LARGEST_LOG = 690.0


def released_mass(elapsed_seconds: float, horizon_seconds: float) -> float:
    """Return how much of the prior mass has started by now, in [0.88, 1).

    It depends on time alone, so it is predictable. The density of a change is even over the planned
    time and falls like the square of time afterwards, so it is never used up. Because mass starts
    by time and not by batch, a flag with few events pays for few restarts.
    """
    elapsed = max(0.0, elapsed_seconds)
    slot = max(1.0, horizon_seconds / COARSE_SLOTS)
    coarse = _changed_by(math.floor(elapsed / slot) * slot, horizon_seconds)
    return START_MASS + COARSE_MASS * coarse + FINE_MASS * _changed_by(elapsed, horizon_seconds)


def _changed_by(elapsed_seconds: float, horizon_seconds: float) -> float:
    """Return the prior probability, in [0, 1), that a change after the start has come by now."""
    if elapsed_seconds <= horizon_seconds:
        return WITHIN_PLAN * elapsed_seconds / horizon_seconds
    return 1 - (1 - WITHIN_PLAN) * horizon_seconds / elapsed_seconds


def add_batch(log_evidence: Floats, new_mass: float, increment: Floats) -> Floats:
    """Return each alternative's log evidence after a batch.

    `new_mass` starts before the batch, then exp(increment) multiplies all evidence. `log_evidence`
    and `increment` are per alternative; the former is -inf before the first batch.
    """
    started = np.logaddexp(log_evidence, math.log(new_mass)) if new_mass > 0 else log_evidence
    result: Floats = started + increment
    return result


def log_e_value(log_evidence: Floats, log_weights: Floats, released: float) -> float:
    """Return the log of the mixture's e-value.

    `released` is the mass that has started so far. The rest counts as it is.
    """
    total = log_sum_exp(log_weights + log_evidence)
    unspent = 1.0 - released
    if unspent <= 0:
        return total
    low, high = sorted((total, math.log(unspent)))
    return high + math.log1p(math.exp(low - high))


def mean_log_effect(log_evidence: Floats, log_weights: Floats, log_effects: Floats) -> float:
    """Return the mean log effect under the evidence: the size of harm behind the e-value.

    It holds for late harm too. The ratio over the whole visit would dilute a late regression with
    the healthy time before it.
    """
    weight = log_weights + log_evidence
    top = float(weight.max())
    if top == -math.inf:
        return 0.0
    share = np.exp(weight - top)
    return float(share @ log_effects / share.sum())


def log_sum_exp(values: Floats) -> float:
    """Return log(sum(exp(values))) without overflow; -inf for nothing but -inf."""
    return float(np.logaddexp.reduce(values))


def as_e_value(log_value: float) -> float:
    """Return exp(log_value), capped below overflow."""
    return math.exp(min(log_value, LARGEST_LOG))
