"""Movement in the evidence that no single test is about.

Control that changes, metrics that lean in several flags at once.

For people only: nothing here lowers, holds or raises anything. Regressions of treatment against
control are found by the tests in `analysis/`; they are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.core.analysis.proportion import rate_interval
from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.metrics import kind_to_show
from controller.core.metrics.kind import ArmSummary
from schemas.terms import Arm, Verdict

# : Per comparison. A hundred flags of five metrics looked at every 15 min for a year are 17
# million: 17 false findings a year.
ALPHA = 1e-6
#: A change below this factor is weather, however sure it is.
FACTOR = 2.0
#: Fewer new observations are not compared.
MIN_TRIALS = 200
#: A metric leans when its evidence of harm reaches this share of its alarm.
LEANING_SHARE = 0.1
MIN_FLAGS = 2


@dataclass(frozen=True, slots=True)
class Movement:
    """One thing that people should know of one flag."""

    flag_key: str
    metric: str
    what: str  # one sentence with the numbers


def unusual(before: Mapping[str, Judgement], now: Mapping[str, Judgement]) -> tuple[Movement, ...]:
    """Return what moved between two looks at all rollouts under way.

    By flag, what is new in `now` has no movement yet.
    """
    return (*_control_moved(before, now), *_leaning_together(now))


def _control_moved(before: Mapping[str, Judgement], now: Mapping[str, Judgement]) -> list[Movement]:
    """Compare what came since the last look with what stood then.

    Control is served what it always was.
    """
    found = []
    for flag_key, judgement in now.items():
        earlier = before.get(flag_key)
        if earlier is None or earlier.visit != judgement.visit:
            continue
        known = {metric.metric: metric for metric in earlier.metrics}
        for metric in judgement.metrics:
            old = known[metric.metric].arms.get(Arm.CONTROL) if metric.metric in known else None
            new = metric.arms.get(Arm.CONTROL)
            if not kind_to_show(metric.metric).is_share or old is None or new is None:
                continue  # of a quantile only the whole visit is kept, and not what is new
            what = _compare(old, new)
            if what is not None:
                found.append(
                    Movement(
                        flag_key,
                        metric.metric,
                        f"{metric.metric} of control {what}, and nobody touched control",
                    )
                )
    return found


def _compare(old: ArmSummary, new: ArmSummary) -> str | None:
    trials, events = new.trials - old.trials, new.events - old.events
    if trials < MIN_TRIALS or old.trials < MIN_TRIALS or not 0 <= events <= trials:
        return None
    was, is_now = old.events / old.trials, events / trials
    if was < FACTOR * is_now and is_now < FACTOR * was:
        return None  # before the intervals, which cost a thousand times as much
    low, high = rate_interval(old.events, old.trials, ALPHA)
    new_low, new_high = rate_interval(events, trials, ALPHA)
    has_risen, has_fallen = new_low > high, new_high < low
    if not (has_risen or has_fallen):
        return None
    return (
        f"{'rose' if has_risen else 'fell'} from {100 * was:.3g} % to {100 * is_now:.3g} % "
        f"since the last look"
    )


def _leaning_together(now: Mapping[str, Judgement]) -> list[Movement]:
    """Find metrics that lean towards harm in several flags.

    One cause behind all of them is likelier than many.
    """
    leaning: dict[str, list[tuple[str, MetricReport]]] = {}
    for flag_key, judgement in now.items():
        for metric in judgement.metrics:
            if (
                metric.harm is not Verdict.FAIL
                and metric.e_value >= LEANING_SHARE * metric.threshold
            ):
                leaning.setdefault(metric.metric, []).append((flag_key, metric))
    return [
        Movement(
            flag_key,
            name,
            f"{name} leans towards harm in {len(flags)} flags at once: "
            f"{', '.join(sorted(key for key, _ in flags)[:8])}; "
            f"here the evidence is {metric.e_value:.3g}, alarm at {metric.threshold:.3g}",
        )
        for name, flags in leaning.items()
        if len(flags) >= MIN_FLAGS
        for flag_key, metric in flags
    ]
