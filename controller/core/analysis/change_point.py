"""Restarting e-processes: evidence whose change may begin at any batch.

An e-process is a fortune that bets against "no harm". Each alternative (a size of harm) has bets of
its own. A bet that runs since the start of the rollout has lost nearly everything by the time that
late harm begins, so new bets begin on the way. All bets together cost 1, and what has not been bet
yet counts as it is. So the expected fortune never grows while there is no harm: alpha holds over
all batches, however many bets begin and whenever they do.

Bets begin at four occasions:

- with the rollout: most releases that break, break at once;
- with each later visit: a wider audience is the next most likely moment;
- with time, a little at every batch, for harm that comes in a single batch;
- on suspicion. The recent evidence of each alternative is its log evidence since it was last 0,
  below which it never falls. When the highest has come to a level, a bet begins, divided over the
  alternatives as their recent evidence is. That evidence is not counted: a bet gains from later
  batches alone.

A bet that begins with time is as small as the rollout is long. Bets on suspicion are spent where
there is suspicion: far below a limit there is hardly any, so that after weeks the next bet is still
a large one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Switches = NDArray[np.bool_]

#: How all bets are divided over the four occasions; together 1.
START_MASS = 0.72
VISIT_MASS = 0.04
TIME_MASS = 0.02
SUSPICION_MASS = 0.22
#: What begins with time falls like t^-1.25, so it is never used up and needs no planned end.
_TIME_SCALE_SECONDS = 5.0
_TIME_POWER = 0.25
#: Recent evidence at which a bet begins, each level's part of the mass, and the part of a level
#: below which it is armed again. A low level loses little evidence and is often reached by chance.
#: The n-th bet of a level has 1 / (n (n + 1)) of the level's mass: where chance has used up one
#: level, the next is still full.
LEVELS: Floats = np.array([1.5, 3.0, 5.0, 8.0])
LEVEL_MASSES: Floats = SUSPICION_MASS * np.array([0.4, 0.3, 0.2, 0.1])
ARMED_BELOW = 0.5
#: Less recent evidence than this is none: what began it is over.
_SLIGHT = 0.25
#: e-values are reported up to e^690, short of the largest double.
LARGEST_LOG = 690.0


def scheduled_mass(visit: int, elapsed_seconds: float) -> float:
    """Return how much of all bets has begun by schedule, in [0.72, 0.78).

    `visit` counts from 0, `elapsed_seconds` from the begin of the rollout. It depends on nothing
    that was observed since the last batch, so it is predictable.
    """
    elapsed = max(0.0, elapsed_seconds)
    unspent: float = (_TIME_SCALE_SECONDS / (elapsed + _TIME_SCALE_SECONDS)) ** _TIME_POWER
    return START_MASS + VISIT_MASS * visit / (visit + 1) + TIME_MASS * (1 - unspent)


@dataclass(frozen=True, slots=True, eq=False)
class Bets:
    """One test's bets on harm. Arrays may have leading axes, for many tests side by side."""

    evidence: Floats  # per alternative: log of what the bets are worth, -inf before the first
    recent: Floats  # per alternative: log evidence since it was last 0, at least 0
    scheduled: float  # mass that has begun by schedule
    begun: Integers  # per level: how many bets suspicion has begun
    is_armed: Switches  # per level: the recent evidence was low after the level's last bet

    @classmethod
    def fresh(cls, *shape: int) -> Bets:
        """Return the bets before the first batch; the last axis of `shape` is alternatives."""
        levels = (*shape[:-1], len(LEVELS))
        return cls(
            evidence=np.full(shape, -np.inf),
            recent=np.zeros(shape),
            scheduled=0.0,
            begun=np.zeros(levels, np.int64),
            is_armed=np.ones(levels, np.bool_),
        )

    @property
    def is_suspicious(self) -> bool:
        """Whether the recent evidence has come to a level, of any test."""
        return bool(self.recent.max() >= LEVELS[0])

    @property
    def has_recent_evidence(self) -> bool:
        """Whether there is any recent evidence to speak of, of any test."""
        return bool(self.recent.max() >= _SLIGHT)

    def after(self, increment: Floats, log_weights: Floats, scheduled: float) -> Bets:
        """Return the bets after a batch.

        `increment` is the batch's log e-value per alternative, `scheduled` what `scheduled_mass`
        gives for it. What has begun by schedule bets on this batch already, what suspicion begins
        bets from the next one on.
        """
        new = scheduled - self.scheduled
        evidence = np.logaddexp(self.evidence, math.log(new)) if new > 0 else self.evidence
        evidence = evidence + increment
        recent = np.maximum(self.recent + increment, 0.0)
        highest = recent.max(axis=-1, keepdims=True)
        reached = self.is_armed & (highest >= LEVELS)
        begun = self.begun
        if reached.any():
            begun = begun + reached
            with np.errstate(divide="ignore"):  # tests that have not reached a level
                parts = reached * LEVEL_MASSES / np.maximum(begun * (begun + 1.0), 1.0)
                mass = np.log(parts.sum(axis=-1, keepdims=True))
            share = recent - np.logaddexp.reduce(recent + log_weights, axis=-1, keepdims=True)
            evidence = np.logaddexp(evidence, mass + share)
        is_armed = (self.is_armed & ~reached) | (highest < ARMED_BELOW * LEVELS)
        return Bets(evidence, recent, max(scheduled, self.scheduled), begun, is_armed)

    def log_e_values(self, log_weights: Floats) -> Floats:
        """Return the log of what all bets and the rest are worth. Array: the leading axes."""
        started = np.logaddexp.reduce(self.evidence + log_weights, axis=-1)
        by_suspicion = (LEVEL_MASSES * self.begun / (self.begun + 1.0)).sum(axis=-1)
        result: Floats = np.logaddexp(started, np.log(1.0 - self.scheduled - by_suspicion))
        return result

    def log_e_value(self, log_weights: Floats) -> float:
        """Return `log_e_values` of a single test."""
        return float(self.log_e_values(log_weights))


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
