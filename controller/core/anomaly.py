"""Finds what is unusual in the evidence of all rollouts together, and no single test is about.

That is control that changes, and metrics that tend towards harm in several flags at once.

It is for people only: nothing here lowers, holds or raises anything. Regressions of treatment
against control are found by the tests in `analysis/` and are not repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.core.analysis.proportion import rate_interval
from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.metrics import kind_to_show
from controller.core.metrics.kind import ArmSummary
from schemas.terms import Arm, Verdict

#: Error probability per comparison. A hundred flags with five metrics, compared every 15 min for a
#: year, are 17 million comparisons: 17 false reports a year.
ALPHA = 1e-6
#: A change by less than this factor is ignored as noise, however certain it is.
FACTOR = 2.0
#: Fewer new observations than this are not compared.
MIN_TRIALS = 200
#: A metric tends towards harm when its e-value reaches this share of its alarm threshold.
SUSPECT_SHARE = 0.1
#: Metrics that tend towards harm in fewer flags than this are not reported.
MIN_FLAGS = 2


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One unusual fact about one flag."""

    flag_key: str
    metric: str
    what: str  # one sentence with the numbers


def find_anomalies(
    previous: Mapping[str, Judgement], present: Mapping[str, Judgement]
) -> tuple[Anomaly, ...]:
    """Return what is unusual in the present judgements of all rollouts, by flag key.

    Changes are found by comparison with the previous judgements. A flag that has none is not
    compared.
    """
    return (*_control_changes(previous, present), *_common_suspects(present))


def _control_changes(
    previous: Mapping[str, Judgement], present: Mapping[str, Judgement]
) -> list[Anomaly]:
    """Compare what control has reported since the previous judgement with what it reported before.

    Control is served what it always was, so a change there has another cause than the flag.
    """
    anomalies = []
    for flag_key, judgement in present.items():
        earlier = previous.get(flag_key)
        if earlier is None or earlier.visit != judgement.visit:
            continue
        reports = {report.metric: report for report in earlier.metrics}
        for metric in judgement.metrics:
            old_report = reports.get(metric.metric)
            old = None if old_report is None else old_report.arms.get(Arm.CONTROL)
            new = metric.arms.get(Arm.CONTROL)
            if not kind_to_show(metric.metric).is_share or old is None or new is None:
                continue  # of a quantile only the whole visit is kept, and not what is new
            change = _change(old, new)
            if change is not None:
                what = f"{metric.metric} of control {change}, and nobody touched control"
                anomalies.append(Anomaly(flag_key, metric.metric, what))
    return anomalies


def _change(old: ArmSummary, new: ArmSummary) -> str | None:
    """Return in words how a rate has changed, None when it has not."""
    trials, events = new.trials - old.trials, new.events - old.events
    if trials < MIN_TRIALS or old.trials < MIN_TRIALS or not 0 <= events <= trials:
        return None
    old_rate, new_rate = old.events / old.trials, events / trials
    if old_rate < FACTOR * new_rate and new_rate < FACTOR * old_rate:
        return None  # checked before the intervals, which cost a thousand times as much
    low, high = rate_interval(old.events, old.trials, ALPHA)
    new_low, new_high = rate_interval(events, trials, ALPHA)
    has_risen, has_fallen = new_low > high, new_high < low
    if not (has_risen or has_fallen):
        return None
    return (
        f"{'rose' if has_risen else 'fell'} from {100 * old_rate:.3g} % to {100 * new_rate:.3g} % "
        f"since the last check"
    )


def _common_suspects(present: Mapping[str, Judgement]) -> list[Anomaly]:
    """Find metrics that tend towards harm in several flags.

    One cause behind all of them is more likely than several.
    """
    suspects: dict[str, list[tuple[str, MetricReport]]] = {}
    for flag_key, judgement in present.items():
        for metric in judgement.metrics:
            is_suspect = metric.e_value >= SUSPECT_SHARE * metric.threshold
            if is_suspect and metric.harm is not Verdict.FAIL:
                suspects.setdefault(metric.metric, []).append((flag_key, metric))
    return [
        Anomaly(
            flag_key,
            name,
            f"{name} leans towards harm in {len(flags)} flags at once: "
            f"{', '.join(sorted(key for key, _ in flags)[:8])}; "
            f"here the evidence is {metric.e_value:.3g}, alarm at {metric.threshold:.3g}",
        )
        for name, flags in suspects.items()
        if len(flags) >= MIN_FLAGS
        for flag_key, metric in flags
    ]
