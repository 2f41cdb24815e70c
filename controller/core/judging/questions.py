"""The questions of a guardrail, in numbers: tolerated ratios, limits as shares, and parts of alpha.

Budget. The plan's alpha is the probability of a false roll back over the whole rollout: all checks,
all stages, all guardrails. It is split over guardrails by the fixed weights of their kinds
(weighted Bonferroni), shared among the kinds that the plan has. A guardrail's two questions (limit,
comparison) average their e-values, which costs no alpha. Nothing is split over checks or stages:
one e-process runs through the rollout. Only a step back starts it again, with an alpha of its own.
Signals have a budget of their own of the same size, because a false one holds and does not roll
back; observed metrics likewise.

Each gate spends its own beta: it passes a release whose harm in this stage is at the gate's margin
or above with probability at most beta. All guardrails must pass, so beta needs no splitting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

from controller.core.metrics.kind import ShownKind
from controller.core.plan import Guardrail
from schemas.terms import MetricRole

#: (percent, margin): how much worse than control a release may still be when a gate passes it.
#: Early gates ask little: few contexts are at stake, and few are there to give evidence. Between
#: the points the margin falls along a straight line in log percent.
GATE_MARGINS = ((1.0, 1.0), (10.0, 0.5), (50.0, 0.25))

#: The part of a gate's evidence that is spent on showing that the rate is negligible. It costs the
#: ratio's evidence 0.1 of the 3.0 that are needed at beta 5 %.
NEGLIGIBLE_WEIGHT = 0.1

# Vetoes stop a roll back that would be statistically right and operationally silly. They never
# trigger one.
#: Bad events in treatment: two contexts roll nothing back, however improbable they are.
MIN_HARMED = 3
#: The size of harm that the evidence shows: with enough traffic +1 % is certain, and no reason.
MIN_HARM_RATIO = 1.10


def alpha_shares(guardrails: Sequence[Guardrail]) -> tuple[float, ...]:
    """Return each guardrail's part of its role's alpha; the parts of one role add up to 1."""
    return _shares(
        tuple((one.role, one.kind.names.pattern, one.kind.alpha_weight) for one in guardrails)
    )


@lru_cache(maxsize=256)
def _shares(questions: tuple[tuple[MetricRole, str, float], ...]) -> tuple[float, ...]:
    """Return the parts of alpha, by role, kind and the kind's weight."""
    shares = []
    for question in questions:
        role, _, weight = question
        weights = {kind: other for other_role, kind, other in questions if other_role is role}
        shares.append(weight / sum(weights.values()) / questions.count(question))
    return tuple(shares)


def log_tolerated(guardrail: Guardrail) -> float:
    """Return the log of the rate ratio up to which treatment is not worse.

    The ratio is harm over no harm. 0 for a margin in points.
    """
    return 0.0 if guardrail.in_points else guardrail.kind.log_tolerated(guardrail.margin or 0.0)


def gate_margin(guardrail: Guardrail, percent: float) -> float:
    """Return the harm that a gate at `percent` must have excluded.

    It is the plan's, else the ladder's, and at least `margin`. It is relative, or a difference of
    shares for a margin in points.
    """
    if guardrail.gate_margin is not None:
        return guardrail.gate_margin
    if guardrail.in_points:
        return (guardrail.margin or 0.0) * max(1.0, _ladder(percent) / GATE_MARGINS[-1][1])
    return max(_ladder(percent), math.expm1(log_tolerated(guardrail)))


def gate_bound(kind: ShownKind, margin: float, *, in_points: bool) -> str:
    """Return how much worse than control a gate with this margin lets treatment be, in words."""
    if in_points:
        return f"control {'-' if margin < 0 else '+'} {100 * abs(margin):.3g} pp"
    # A fall is measured as control's rate over treatment's.
    ratio = 1 / (1 + margin) if kind.is_better_when_higher else 1 + margin
    return f"{ratio:.3g} times control"


def worst_left(
    guardrail: Guardrail, ratio_high: float | None, difference_high: Callable[[], float | None]
) -> str | None:
    """Return the worst that treatment may still be, in the unit of the margin; None: unbounded.

    It is the end of the interval that a report has for this unit, so that the same number stands
    everywhere. Of latencies nothing is said: their ratio is one of counts above a place. The
    difference is asked for only where it is said, because it costs both arms' intervals.
    """
    if not guardrail.kind.is_share:
        return None
    ratio_worst = None if ratio_high is None else ratio_high - 1
    worst = difference_high() if guardrail.in_points else ratio_worst
    if worst is None:
        return None
    return gate_bound(guardrail.kind, worst, in_points=guardrail.in_points)


def gate_margin_origin(guardrail: Guardrail, percent: float) -> str:
    """Return in words why the gate of a stage at `percent` has the margin that it has."""
    margin = gate_margin(guardrail, percent)
    if guardrail.gate_margin is not None:
        return "the plan's gate_margin"
    if guardrail.in_points:
        widened = margin / (guardrail.margin or margin)
        if widened <= 1:
            return "the plan's own margin"
        return (
            f"{widened:.3g} times the plan's {100 * (guardrail.margin or 0):.3g} pp, because the "
            f"stage serves {percent:g} %; from 50 % on it is the plan's own"
        )
    if margin > _ladder(percent):
        return "the plan's own margin"
    steps = (gate_bound(guardrail.kind, at, in_points=False) for _, at in GATE_MARGINS)
    first, second, last = steps
    return (
        f"it follows from the stage's {percent:g} %: {first} up to 1 %, {second} at 10 %, {last} "
        "from 50 % on"
    )


def log_tolerated_at_gate(guardrail: Guardrail, percent: float) -> float:
    """Return the log of the rate ratio that a gate at `percent` must have excluded."""
    return math.log1p(gate_margin(guardrail, percent))


def _ladder(percent: float) -> float:
    """Return the margin of `GATE_MARGINS` at a percentage."""
    if percent <= GATE_MARGINS[0][0]:
        return GATE_MARGINS[0][1]
    for (left, at_left), (right, at_right) in pairwise(GATE_MARGINS):
        if percent <= right:
            way = math.log(percent / left) / math.log(right / left)
            return at_left + way * (at_right - at_left)
    return GATE_MARGINS[-1][1]


def limit_share(guardrail: Guardrail) -> float:
    """Return the share of events at which the limit lies, kept inside (0, 1).

    For a latency quantile it is 1 - q. Raises ValueError for a guardrail without a limit.
    """
    if guardrail.limit is None:
        raise ValueError(f"{guardrail.metric} has no limit")
    return min(max(guardrail.kind.limit_share(guardrail.limit), 1e-9), 1 - 1e-9)
