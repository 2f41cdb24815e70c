"""Do apps still go by the decision before this one? What is observed of a stay against the share decided for it."""

from __future__ import annotations

import math

#: Probability of a false alarm over a whole rollout, however often it is looked at. It holds, it
#: does not roll back.
ALPHA_DRIFT = 0.001
#: At 100 % so many may still be in control before it counts as drift: now and then a client is
#: offline while the rest follows.
STRAGGLERS = 0.01


def log_e_value(before: float, decided: float, treatment: int, control: int) -> float:
    """Return the log e-value, against `decided`, of `before` being treatment's share still.

    Both are shares of treatment, `before` in [0, 1] and `decided` in (0, 1]; the counts are
    distinct contexts since the stay began. The likelihood ratio of two given shares, so it may be
    looked at any time. Against 1 it is that of all shares of at least 1 - `STRAGGLERS`, of which
    that one is hardest to exceed.
    """
    decided = min(decided, 1 - STRAGGLERS)
    if before >= decided == 1 - STRAGGLERS:
        return 0.0
    return _scaled_log(treatment, before / decided) + _scaled_log(
        control, (1 - before) / (1 - decided)
    )


def threshold(stay: int) -> float:
    """Return what an e-value must reach in stay number `stay`, 1 for the first.

    Alpha over all stays is `ALPHA_DRIFT`.
    """
    return stay * (stay + 1) / ALPHA_DRIFT


def _scaled_log(count: int, ratio: float) -> float:
    """Return count * log(ratio), 0 for no count."""
    if count == 0:
        return 0.0
    return count * math.log(ratio) if ratio > 0 else -math.inf
