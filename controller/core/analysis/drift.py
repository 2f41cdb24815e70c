"""Actuation drift: whether apps still follow the previous decision.

The observed exposures of a visit are compared with the share that was decided for it.
"""

from __future__ import annotations

import math

#: Probability of a false alarm over a whole rollout, however often it is checked. An alarm holds,
#: it does not roll back.
ALPHA_DRIFT = 0.001
#: At 100 % this share may still be in control before it counts as drift: some clients are offline
#: while the rest follows.
STRAGGLERS = 0.01


def log_e_value(before: float, decided: float, treatment: int, control: int) -> float:
    """Return the log e-value for "treatment's share is still `before`" against `decided`.

    Both are shares of treatment, `before` in [0, 1] and `decided` in (0, 1]. The counts are
    distinct contexts since the visit began. It is the likelihood ratio of two given shares, so it
    is valid at any time. A decided share of 1 stands for all shares of at least 1 - `STRAGGLERS`,
    of which that one is hardest to exceed.
    """
    decided = min(decided, 1 - STRAGGLERS)
    if before >= decided == 1 - STRAGGLERS:
        return 0.0
    return _scaled_log(treatment, before / decided) + _scaled_log(
        control, (1 - before) / (1 - decided)
    )


def threshold(visit: int) -> float:
    """Return what an e-value must reach in visit number `visit`, 1 for the first.

    Alpha over all visits is `ALPHA_DRIFT`.
    """
    return visit * (visit + 1) / ALPHA_DRIFT


def _scaled_log(count: int, ratio: float) -> float:
    """Return count * log(ratio), 0 for no count."""
    if count == 0:
        return 0.0
    return count * math.log(ratio) if ratio > 0 else -math.inf
