"""What a guardrail asks, in numbers.

Tolerated ratios, limits as shares, and each guardrail's part of the alpha budget.

Budget. The plan's alpha is the probability of a false roll back over the whole rollout: all looks,
all stages, all guardrails. It is split over guardrails by fixed weights (weighted Bonferroni),
errors 0.65, latency 0.25, conversions 0.1, shared out among the kinds the plan has; a guardrail's
two questions (limit, comparison) average their e-values, which costs no alpha. Nothing is split
over looks or stages: one e-process runs through the rollout, and only a step back begins anew, with
an alpha of its own. Signals have a budget of the same size of their own, since a false one holds
and does not roll back; observed metrics likewise.

Each gate spends its own beta: it passes a release whose harm in this stage is at the gate's margin
or above with probability at most beta. All guardrails must pass, so beta needs no splitting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from controller.core.evidence import bucket_of
from controller.core.plan import Guardrail
from schemas.terms import MetricRole

_KIND_WEIGHTS = {"error_rate": 0.65, "latency": 0.25, "conversion": 0.1}

#: (percent, margin): how much worse than control a release may still be when a gate passes it.
#: Early gates ask little, because few contexts are at stake and few are there to ask; between the
#: points the margin falls along a straight line in log percent.
GATE_MARGINS = ((1.0, 1.0), (10.0, 0.5), (50.0, 0.25))

#: Below this rate treatment's errors are negligible whatever control's are; without it a service
#: without errors could never be shown to be as good. Far below any limit people write; showing it
#: takes some 60,000 contexts without an error.
NEGLIGIBLE_ERROR_RATE = 1e-4
#: The part of the gate's evidence that stands on it; costs the ratio's evidence 0.1 of the 3.0 that
#: are needed at beta 5 %.
NEGLIGIBLE_WEIGHT = 0.1

#: Vetoes: they stop a roll back that would be statistically right and operationally silly; they
#: never trigger one.
MIN_HARMED = 3  # bad events in treatment: not for two contexts, however improbable
MIN_HARM_RATIO = (
    1.10  # the size the evidence speaks of: with enough traffic +1 % is certain, and no reason
)


def alpha_shares(guardrails: Sequence[Guardrail]) -> tuple[float, ...]:
    """Return each guardrail's part of its role's alpha; the parts of one role add up to 1."""
    return _shares(tuple((guardrail.role, _kind(guardrail)) for guardrail in guardrails))


@lru_cache(maxsize=256)
def _shares(asked: tuple[tuple[MetricRole, str], ...]) -> tuple[float, ...]:
    """Return the parts of alpha, by role and kind."""
    shares = []
    for role, kind in asked:
        kinds = {other for other_role, other in asked if other_role is role}
        shares.append(
            _KIND_WEIGHTS[kind]
            / sum(_KIND_WEIGHTS[other] for other in kinds)
            / asked.count((role, kind))
        )
    return tuple(shares)


def _kind(guardrail: Guardrail) -> str:
    if guardrail.quantile is not None:
        return "latency"
    return "conversion" if guardrail.is_better_when_higher else "error_rate"


def log_tolerated(guardrail: Guardrail) -> float:
    """Return the log of the rate ratio (harm over no harm) up to which treatment is not worse; 0 for a margin in points.

    For latency the margin is one of milliseconds and moves the place; then no ratio of shares above
    1 is tolerated.
    """
    margin = guardrail.margin or 0.0
    if guardrail.quantile is not None or guardrail.in_points:
        return 0.0
    return -math.log1p(-margin) if guardrail.is_better_when_higher else math.log1p(margin)


def gate_margin(guardrail: Guardrail, percent: float) -> float:
    """Return the harm a gate at `percent` must have excluded.

    The plan's, else by the ladder and at least `margin`.

    Relative, or a difference of shares for a margin in points.
    """
    if guardrail.gate_margin is not None:
        return guardrail.gate_margin
    if guardrail.in_points:
        return (guardrail.margin or 0.0) * max(1.0, _ladder(percent) / GATE_MARGINS[-1][1])
    tolerated = 0.0 if guardrail.quantile is not None else math.expm1(log_tolerated(guardrail))
    return max(_ladder(percent), tolerated)


def log_tolerated_at_gate(guardrail: Guardrail, percent: float) -> float:
    """Return the log of the rate ratio that a gate at `percent` must have excluded."""
    return math.log1p(gate_margin(guardrail, percent))


def _ladder(percent: float) -> float:
    if percent <= GATE_MARGINS[0][0]:
        return GATE_MARGINS[0][1]
    for (left, at_left), (right, at_right) in pairwise(GATE_MARGINS):
        if percent <= right:
            way = math.log(percent / left) / math.log(right / left)
            return at_left + way * (at_right - at_left)
    return GATE_MARGINS[-1][1]


def limit_share(guardrail: Guardrail) -> float:
    """Return the share of bad events that the limit allows.

    1 - q for a latency quantile, kept inside (0, 1).
    """
    if guardrail.limit is None:
        raise ValueError(f"{guardrail.metric} has no limit")
    share = guardrail.limit if guardrail.quantile is None else round(1 - guardrail.quantile, 9)
    return min(max(share, 1e-9), 1 - 1e-9)


def limit_bucket(guardrail: Guardrail) -> int:
    """Return the latency bucket that holds the limit.

    Values in it count as within, so a limit is at most 2 % generous.
    """
    if guardrail.limit is None:
        raise ValueError(f"{guardrail.metric} has no limit")
    return bucket_of(guardrail.limit)
