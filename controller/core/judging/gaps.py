"""Health gaps: reasons why the evidence cannot be judged, one function for each kind of gap.

Each check is named for what it detects. It returns the gaps it found, with the numbers in words.

Belongs here: detection. Does not belong here: the age of evidence (`staleness.py`), and what a gap
leads to, which the plan's policies and the state machine decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime

from controller.core.analysis import drift
from controller.core.analysis import sample_ratio as split
from controller.core.analysis.latency import Ordered
from controller.core.analysis.proportion import rate_interval
from controller.core.evidence import ArmTotals, Evidence, PartitionProgress, VisitTotals
from controller.core.judging.judgement import Gap
from controller.core.plan import Guardrail, Stage
from controller.core.rollout import Rollout
from controller.core.serving import decided_share, share_before
from controller.core.visits import Visit
from controller.text import plural
from schemas.terms import Arm, HealthGap

_NAMES_SHOWN = 3  # partitions named in a gap's detail
#: Probability that one health question raises a false gap over a whole rollout. A gap holds, it
#: does not roll back.
ALPHA_HEALTH = 0.001
#: If treatment reports fewer than this share of the outcomes expected from control, they count as
#: missing.
MISSING_BELOW = 0.5
#: Up to this share of a stage's contexts may have seen both arms.
SWITCHED_ABOVE = 0.01
#: Up to this share of an arm's outcomes may have been delivered before: brokers that fail over and
#: producers that restart send a few twice. Verdicts hardly change, because they use distinct
#: contexts; displayed rates and latencies do.
REPEATED_ABOVE = 0.05


def missing_data(
    stage: Stage,
    visit: Visit,
    totals: VisitTotals,
    uncounted: str | None = None,
    *,
    is_settling: bool = False,
) -> Iterator[Gap]:
    """Return at most one gap per arm, the most basic one; one of both where evidence is stale.

    In this order: no exposure, no outcomes or too few of them, fewer than `min_sample` contexts.
    At 100 % nobody is left in control, so only treatment must have data. While events are
    `uncounted`, what is missing may have happened all the same: then the evidence is stale. That
    does not explain that treatment alone has no outcomes. `is_settling`: no event counts yet.
    """
    since = visit.counting_since
    settling = f" yet: events count from {since:%H:%M:%S} UTC on" if is_settling else ""
    has_control = visit.percent < 100
    unseen: list[str] = []
    for arm in (Arm.TREATMENT, Arm.CONTROL) if has_control else (Arm.TREATMENT,):
        counted = totals.arm(arm)
        is_treatment = arm is Arm.TREATMENT and has_control
        if is_treatment and are_outcomes_missing(totals):
            yield Gap(HealthGap.NO_OUTCOMES, _missing_outcomes_words(totals))
        elif uncounted is not None and 0 in (counted.exposures, counted.outcomes):
            unseen.append(f"no {'context' if counted.exposures == 0 else 'outcome'} of {arm}")
        elif counted.exposures == 0:
            yield Gap(
                HealthGap.NO_TRAFFIC, f"no context was exposed to {arm} in this stage{settling}"
            )
        elif counted.outcomes == 0:
            yield Gap(
                HealthGap.NO_OUTCOMES,
                f"{plural(counted.exposures, 'context')} saw {arm}, none reported an outcome",
            )
        elif counted.exposures < stage.min_sample:
            missing = stage.min_sample - counted.exposures
            yield Gap(
                HealthGap.BELOW_MIN_SAMPLE,
                f"{arm} has {counted.exposures:,} of {plural(stage.min_sample, 'context')}, "
                f"{plural(missing, 'is', 'are')} missing",
            )
    if unseen:
        what = " and ".join(unseen)
        yield Gap(HealthGap.STALE, f"{uncounted}: {what} is counted in this stage so far")


def are_outcomes_missing(totals: VisitTotals) -> bool:
    """Return whether treatment surely reports less than half of control's outcomes per context.

    Requests that die before they can report are missing from every rate. Outcomes of one context
    are not independent: where control has several each, so many count as one.
    """
    treatment, control = totals.treatment, totals.control
    if not control.exposures or not control.outcomes:
        return False
    each = control.outcomes / control.exposures
    expected = int(treatment.exposures * min(each, 1.0))
    reported = min(int(treatment.outcomes / max(each, 1.0)), expected)
    if reported >= MISSING_BELOW * expected:
        return False
    return rate_interval(reported, expected, ALPHA_HEALTH)[1] < MISSING_BELOW


def _missing_outcomes_words(totals: VisitTotals) -> str:
    treatment, control = totals.treatment, totals.control
    return (
        f"{plural(treatment.outcomes, 'outcome')} of {plural(treatment.exposures, 'context')} in "
        f"treatment, "
        f"{control.outcomes:,} of {control.exposures:,} in control: treatment's are missing"
    )


def multiple_exposure(totals: VisitTotals) -> Iterator[Gap]:
    """Return the gap of contexts that saw both arms: surely more than stale caches explain."""
    exposed = totals.treatment.exposures + totals.control.exposures
    switched = min(totals.treatment.switched + totals.control.switched, exposed)
    if switched <= SWITCHED_ABOVE * exposed:
        return
    if rate_interval(switched, exposed, ALPHA_HEALTH)[0] > SWITCHED_ABOVE:
        yield Gap(
            HealthGap.MULTIPLE_EXPOSURE,
            f"{switched:,} of {exposed:,} contexts saw both arms in this stage: is the targeting "
            f"key the same everywhere?",
        )


def repeated_outcomes(totals: VisitTotals) -> Iterator[Gap]:
    """Return a gap for each arm of whose outcomes surely more than a few were delivered before.

    Outcomes of one context are not independent, and one sender may repeat all of its own: where
    contexts have several each, so many count as one.
    """
    for arm in Arm:
        counted = totals.arm(arm)
        if _has_repeated_outcomes(counted):
            yield Gap(
                HealthGap.REPEATED_OUTCOMES,
                f"{100 * counted.repeated / counted.checked:.3g} % of {arm}'s outcomes had "
                f"come before, byte for byte "
                f"({counted.repeated:,} of {counted.checked:,} that were checked): is a "
                f"topic replayed, or does a producer send "
                "again what has arrived? enable.idempotence=true ends that, and an id of its "
                "own distinguishes each event from every other",
            )


def implausible_latency(guardrails: Iterable[Guardrail], control: Ordered) -> Iterator[Gap]:
    """Return the gap of limits that control, too, is far beyond; at most one.

    Such a limit rolls nothing back, and no gate passes until it says something again. Comparisons
    with control go on: they do not depend on the unit.
    """
    for guardrail in guardrails:
        if guardrail.limit is None:
            continue
        doubt = guardrail.kind.limit_doubt(guardrail.limit, control)
        if doubt is not None:
            yield Gap(HealthGap.IMPLAUSIBLE_LATENCY, f"{guardrail.metric}: {doubt}")
            return


def _has_repeated_outcomes(counted: ArmTotals) -> bool:
    each = max(counted.outcomes / max(counted.exposures, 1), 1.0)
    checked = int(counted.checked / each)
    repeated = min(int(counted.repeated / each), checked)
    if repeated <= REPEATED_ABOVE * checked:
        return False
    return rate_interval(repeated, checked, ALPHA_HEALTH)[0] > REPEATED_ABOVE


# --- losses


def lost_records(
    visit: Visit, partitions: tuple[PartitionProgress, ...], at: datetime
) -> Iterator[Gap]:
    """Return the gap of lost records that may have belonged to the visit.

    A stage that was entered after the lost records counts as whole, whenever the loss was noticed.
    """
    end = at if visit.left_at is None else visit.left_at
    lost = []
    for partition in partitions:
        touching = [str(loss) for loss in partition.losses if loss.touches(visit.entered_at, end)]
        if touching:
            lost.append(f"{partition.topic_partition} from {', '.join(touching[-3:])}")
    if not lost:
        return
    shown = "; ".join(lost[:_NAMES_SHOWN])
    more = f"; and in {len(lost) - _NAMES_SHOWN} more" if len(lost) > _NAMES_SHOWN else ""
    yield Gap(HealthGap.TAINTED, f"records are lost in {shown}{more}")


# --- the split between the arms


def plane_drift(evidence: Evidence) -> Iterator[Gap]:
    """Return the gap of a flag plane that says itself that it serves another percentage."""
    if evidence.actuation_drift is not None:
        yield Gap(HealthGap.ACTUATION_DRIFT, evidence.actuation_drift)


def sample_ratio(rollout: Rollout, totals: VisitTotals, srm_e_value: float) -> Iterator[Gap]:
    """Return the gap of an observed share that is not the decided one.

    It is actuation drift when apps follow the previous decision, or when control is seen at 100 %;
    otherwise it is a sample ratio mismatch. Treatment is missing when its share is surely below
    half of the decided one.
    """
    visit, observed = rollout.visits[-1], totals.treatment.exposures
    exposed = observed + totals.control.exposures
    threshold = split.threshold(len(rollout.visits))
    is_mismatch = srm_e_value >= threshold
    words = f"{100 * observed / max(exposed, 1):.3g} % of {exposed:,} contexts saw treatment"
    decided = decided_share(rollout.plan, visit)
    if (previous := _previous_share(rollout, totals, is_mismatch=is_mismatch)) is not None:
        due = "everybody" if decided is None else f"{100 * decided:g} %"
        detail = (
            f"{words}, {due} was decided: the share is that of the previous visit, "
            f"{100 * previous:g} %, as if nothing had changed"
        )
        yield Gap(HealthGap.ACTUATION_DRIFT, detail, is_observed=True)
    elif decided is None:
        if exposed and _has_stragglers(totals.control.exposures, exposed):
            detail = (
                f"{words}, everybody was to: somebody else changes the flag, or some apps do not "
                f"follow it"
            )
            yield Gap(HealthGap.ACTUATION_DRIFT, detail, is_observed=True)
    elif is_mismatch:
        detail = (
            f"{words}, {100 * decided:g} % were decided (e-value {srm_e_value:.3g}, threshold "
            f"{threshold:,.0f})"
        )
        # A mismatch says nothing of its size.
        highest = rate_interval(observed, exposed, ALPHA_HEALTH)[1] if exposed else 1.0
        yield Gap(HealthGap.SRM, detail, treatment_missing=highest < MISSING_BELOW * decided)


def _has_stragglers(control: int, exposed: int) -> bool:
    """Return whether surely more contexts are in control than clients that are offline explain."""
    return rate_interval(control, exposed, drift.ALPHA_DRIFT)[0] > drift.STRAGGLERS


def _previous_share(rollout: Rollout, totals: VisitTotals, *, is_mismatch: bool) -> float | None:
    """Return the share of the previous visit when that one is surely observed, else None.

    The sample ratio may already have shown that there is a mismatch. Then it is enough that the
    previous share is the likelier one. A treatment that reported in the previous visit is not too
    broken to report in this one.
    """
    previous = share_before(rollout.plan, rollout.visits)
    treatment, control = totals.treatment.exposures, totals.control.exposures
    if previous is None or treatment + control == 0:
        return None
    decided = decided_share(rollout.plan, rollout.visits[-1]) or 1.0
    log_e_value = drift.log_e_value(previous, decided, treatment, control)
    is_certain = log_e_value >= math.log(drift.threshold(len(rollout.visits)))
    if not is_certain and not (is_mismatch and log_e_value > 0):
        return None
    low, high = rate_interval(treatment, treatment + control, ALPHA_HEALTH)
    return previous if low <= previous <= high else None
