"""Restarting e-processes: evidence that may have begun at any batch, so that late trouble is found nearly as fast as early.

An e-process is kept per alternative; at every batch a part of the prior mass starts afresh. What has not started yet stays as
money in the pocket, so the total never expects to grow under the null.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Where the prior mass of a change goes: half to "broken from the start" (the usual case), a quarter to coarse slots (few
#: events: a cheap bet matters more than an exact moment), a quarter to every moment (many events: the reverse).
START_MASS = 0.5
COARSE_MASS = 0.25
FINE_MASS = 0.25
COARSE_SLOTS = 1000
#: e-values are reported up to e^690, short of the largest double.
LARGEST_LOG = 690.0


def released_mass(elapsed_seconds: float, horizon_seconds: float) -> float:
    """Return how much of the prior mass has started by now, in [0.5, 1): a function of time alone, so the bets are predictable.

    The density of a change falls like horizon / (t + horizon)^2: about uniform over the planned time, and never used up when a
    rollout takes longer than planned. Releasing by time, not by batch, makes a flag with few events pay for few restarts.
    """
    elapsed = max(0.0, elapsed_seconds)
    slot = max(1.0, horizon_seconds / COARSE_SLOTS)
    slot_began = math.floor(elapsed / slot) * slot
    fine = FINE_MASS * elapsed / (elapsed + horizon_seconds)
    coarse = COARSE_MASS * slot_began / (slot_began + horizon_seconds)
    return START_MASS + coarse + fine


def add_batch(log_evidence: Floats, new_mass: float, increment: Floats) -> Floats:
    """Return each alternative's log evidence after a batch: `new_mass` starts before it, then exp(increment) multiplies all.

    `log_evidence` and `increment` are per alternative; the former is -inf before the first batch.
    """
    started = np.logaddexp(log_evidence, math.log(new_mass)) if new_mass > 0 else log_evidence
    result: Floats = started + increment
    return result


def log_e_value(log_evidence: Floats, log_weights: Floats, released: float) -> float:
    """Return the log of the mixture's e-value; `released` is the mass started so far, the rest counts as it is."""
    total = log_sum_exp(log_weights + log_evidence)
    pocket = 1.0 - released
    return total if pocket <= 0 else float(np.logaddexp(total, math.log(pocket)))


def mean_log_effect(log_evidence: Floats, log_weights: Floats, log_effects: Floats) -> float:
    """Return the mean log effect under the evidence: what size of harm the e-value speaks of, also when it began late.

    The whole visit's ratio would dilute a late regression with the healthy time before it.
    """
    weight = log_weights + log_evidence
    top = float(weight.max())
    if top == -math.inf:
        return 0.0
    share = np.exp(weight - top)
    return float(share @ log_effects / share.sum())


def log_sum_exp(values: Floats) -> float:
    """Return log(sum(exp(values))) without overflow; -inf for nothing but -inf."""
    top = float(values.max())
    return top if top == -math.inf else top + math.log(float(np.exp(values - top).sum()))


def as_e_value(log_value: float) -> float:
    """Return exp(log_value), capped below overflow."""
    return math.exp(min(log_value, LARGEST_LOG))
