"""The lift of conversions: by how much more or less often treatment converts than control.

Pure. What the newest judgement says is only put the way in which people ask for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.metrics import kind_to_show
from controller.ports import Lift
from schemas.terms import Arm


def lifts_of(judgement: Judgement) -> tuple[Lift, ...]:
    """Return the lift of each conversion that the plan compares or bounds, in its order."""
    lifts = (_lift(metric, judgement) for metric in judgement.metrics)
    return tuple(one for one in lifts if one is not None)


def _lift(metric: MetricReport, judgement: Judgement) -> Lift | None:
    conversion = kind_to_show(metric.metric).conversion
    if conversion is None:
        return None
    if metric.ratio is not None:
        # Measured is the fall: control's rate divided by treatment's.
        ends = _more(1.0, metric.ratio_high), _more(1.0, metric.ratio_low)
        return Lift(conversion, _more(1.0, metric.ratio), *ends, judgement.at)
    treatment, control = metric.arms.get(Arm.TREATMENT), metric.arms.get(Arm.CONTROL)
    if treatment is None or control is None:
        return None
    # A limit alone compares nothing. Both arms' own intervals hold at once.
    estimate = _more(treatment.estimate, control.estimate)
    ends = _more(treatment.low, control.high), _more(treatment.high, control.low)
    return None if estimate is None else Lift(conversion, estimate, *ends, judgement.at)


def _more(rate: float | None, other: float | None) -> float | None:
    """Return how much more a rate is than another, as a share of that; None: not bounded."""
    return None if rate is None or not other else rate / other - 1


def lift_words(lift: Lift) -> str:
    """Return a lift with its interval, as in `purchase +4.2 % (-1.0 % to +9.8 %)`."""
    return f"{lift.conversion} {_percent(lift.estimate)} {_interval(lift)}".rstrip()


def lifts_words(lifts: Iterable[Lift]) -> str:
    """Return all lifts of a flag, a dash for none."""
    return "; ".join(map(lift_words, lifts)) or "–"


def _interval(lift: Lift) -> str:
    if lift.low is None and lift.high is None:
        return ""
    if lift.low is None:
        return f"(at most {_percent(lift.high)})"
    if lift.high is None:
        return f"(at least {_percent(lift.low)})"
    return f"({_percent(lift.low)} to {_percent(lift.high)})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.3g} %"
