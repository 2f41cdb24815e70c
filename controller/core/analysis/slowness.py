"""Slowness: whether treatment is slower, anywhere in the distribution of latency.

The test bets on treatment's tail, given control's past. It is a mixture over shapes of a
regression: everything somewhat slower, a heavier tail, a slow path for a part of the requests. Each
shape makes every higher latency likelier in proportion. So it is an exact bet against "treatment is
not slower than control at any latency", for any distribution and any drift.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from controller.core.analysis.change_point import Floats
from controller.core.analysis.latency import Ordered
from schemas.terms import Arm

#: Levels of control's past that separate classes of latency. They are closer together where
#: regressions begin, because nothing is learned between two levels.
_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.875, 0.9375, 0.97, 0.985, 0.9925, 0.996, 0.998, 0.999, 0.9995)
#: With fewer past values of control there are no levels.
MIN_PAST = 10

_ODDS = (1.15, 1.3, 1.6, 2.2, 4.0)  # of being above, at every level
_HAZARDS = (0.04, 0.08, 0.16, 0.32, 0.64, 1.3)  # tail s becomes s^(1 / (1 + k)): stretched
_STEPS = tuple(
    (level, odds)
    for level in (0.9375, 0.97, 0.985, 0.9925, 0.996, 0.998, 0.999)
    for odds in (1.6, 3.0, 8.0)
)
_WEIGHTS = np.array([2.0] * (len(_ODDS) + len(_HAZARDS)) + [1.0] * len(_STEPS))

SHAPES = len(_WEIGHTS)
SHAPE_LOG_WEIGHTS: Floats = np.log(_WEIGHTS / _WEIGHTS.sum())

_ODDS_COLUMN = np.array(_ODDS)[:, None]
_POWERS_COLUMN = 1 / (1 + np.array(_HAZARDS))[:, None]
_STEP_LEVELS = np.array([level for level, _ in _STEPS])
_STEP_ODDS = np.array([odds for _, odds in _STEPS])


def slowness_increment(
    before: Mapping[Arm, Ordered], now: Mapping[Arm, Ordered], margin_buckets: int
) -> Floats | None:
    """Return one batch's log e-value per shape against "treatment is not slower".

    None while control's past is too short. `before` and `now` are both arms' latencies before and
    after the batch. `margin_buckets` is how much slower treatment may be: control's latencies count
    as that many buckets higher.

    Per shape, p is control's past between the levels and p' what the shape makes of it, p0 their
    mean weighted by the batch's sizes: the product of p'/p0 over treatment and of p/p0 over
    control. Since p'/p rises with latency, its expectation is at most 1 when treatment is
    stochastically not above control, whose own distribution need not be p. Source: two-sample
    e-variables of R. Turner, A. Ly, P. Grunwald (arXiv 2106.02693), with bets ordered by likelihood
    ratio.
    """
    past = before[Arm.CONTROL]
    n_t = now[Arm.TREATMENT].total - before[Arm.TREATMENT].total
    n_c = now[Arm.CONTROL].total - past.total
    if past.total < MIN_PAST or n_t <= 0 or n_c <= 0:
        return None
    edges, tails = _levels(past)
    above = edges + margin_buckets
    k_t = _between(now[Arm.TREATMENT], above) - _between(before[Arm.TREATMENT], above)
    k_c = _between(now[Arm.CONTROL], edges) - _between(past, edges)
    p_t = _shares(_shaped_tails(tails))
    p_c = _shares(tails[None, :])
    share = n_t / (n_t + n_c)
    log_pooled = np.log(share * p_t + (1 - share) * p_c)
    result: Floats = np.log(p_t) @ k_t + np.log(p_c) @ k_c - log_pooled @ (k_t + k_c)
    return result


def _levels(past: Ordered) -> tuple[NDArray[np.int64], Floats]:
    """Return the buckets whose upper edges separate latencies, and control's tails above them.

    The buckets rise.
    """
    levels = np.array(
        [level for level in _LEVELS if (1 - level) * past.total >= 1 - 1e-9] or _LEVELS[:1]
    )
    places = np.unique(past.up_to.searchsorted(levels * past.total - 1e-9))
    above = past.total - past.up_to[places]
    return past.buckets[places], (above + 0.5) / (past.total + 1)


def _between(values: Ordered, edges: NDArray[np.int64]) -> Floats:
    """Return how many of `values` lie up to the first edge, between edges, and above the last."""
    up_to = np.empty(len(edges) + 2)
    up_to[0], up_to[-1] = 0, values.total
    index = values.buckets.searchsorted(edges, side="right")
    up_to[1:-1] = values.up_to[index - 1] if len(values.up_to) else 0
    up_to[1:-1][index == 0] = 0
    counts: Floats = up_to[1:] - up_to[:-1]
    return counts


def _shares(tails: Floats) -> Floats:
    """Return the shares up to the first edge, between edges, and above the last.

    Array: (shapes, edges + 1).
    """
    shares = np.empty((len(tails), tails.shape[1] + 1))
    shares[:, 0] = 1 - tails[:, 0]
    shares[:, 1:-1] = tails[:, :-1] - tails[:, 1:]
    shares[:, -1] = tails[:, -1]
    return shares


def _shaped_tails(tails: Floats) -> Floats:
    """Return, per shape, treatment's tail above each edge. Array: (shapes, edges)."""
    odds = _ODDS_COLUMN * tails / (1 - tails + _ODDS_COLUMN * tails)
    hazards = tails**_POWERS_COLUMN
    # A step is at the edge whose tail is nearest above its level's. Where the past is short,
    # several steps share one edge.
    at = np.minimum(np.searchsorted(-tails, -(1 - _STEP_LEVELS) - 1e-12), len(tails) - 1)
    s = tails[at]
    t = _STEP_ODDS * s / (1 - s + _STEP_ODDS * s)
    is_above = np.arange(len(tails)) >= at[:, None]
    steps = np.where(
        is_above, tails * (t / s)[:, None], 1 - (1 - tails) * ((1 - t) / (1 - s))[:, None]
    )
    return np.concatenate((odds, hazards, steps))
