"""Evidence to judgement.

Is it healthy enough to judge, is treatment worse, is it shown not worse, and why.

Pure: what is remembered between two looks goes in and comes out as `SequentialTests`. What a verdict
leads to, together with advice and people, is decided in `machine.py`. Formulas are in `analysis/`,
budgets and vetoes in `analysis/questions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from controller.core.analysis import drift, sample_ratio
from controller.core.analysis.change_point import as_e_value
from controller.core.analysis.latency import Spread
from controller.core.analysis.proportion import rate_interval
from controller.core.analysis.sequential_tests import (
    SequentialTests,
    VisitHarm,
    decode_tests,
    encode_tests,
)
from controller.core.evidence import ArmTotals, Evidence, PartitionProgress, VisitTotals
from controller.core.judging.batches import take_evidence
from controller.core.judging.judgement import Gap, Harm, Judgement, MetricReport
from controller.core.judging.questions import alpha_shares
from controller.core.judging.reports import harm_e_value, report
from controller.core.plan import Plan, Stage
from controller.core.rollout import Rollout, Visit
from controller.core.serving import decided_share, share_before
from schemas.terms import Arm, HealthGap

__all__ = [
    "REPORT_WITHIN",
    "HarmSignal",
    "SequentialTests",
    "decode_tests",
    "encode_tests",
    "judge",
    "look_for_harm",
]

#: A partition whose owner has not written for longer than this may have nobody counting it; owners
#: write every 100 ms under traffic and as a heartbeat without.
REPORT_WITHIN = timedelta(seconds=10)
_LOSSES_SHOWN = 8  # partitions named in a gap's detail
#: Probability that one health question raises a false gap over a whole rollout. It holds, it does
#: not roll back.
ALPHA_HEALTH = 0.001
#: Below this part of what control gives reason to expect, treatment's events count as missing.
MISSING_BELOW = 0.5
#: Up to this share of a stage's contexts may have seen both arms.
SWITCHED_ABOVE = 0.01
#: Up to this share of an arm's outcomes may have come before: brokers that fail over and producers
#: that start anew send a few twice. Verdicts stand on contexts and hardly move; rates and latencies
#: as people see them do, and so does who trusts them.
REPEATED_ABOVE = 0.05


def judge(
    rollout: Rollout, evidence: Evidence, tests: SequentialTests, at: datetime
) -> tuple[Judgement, SequentialTests]:
    """Return what one look at all the evidence says of the present visit.

    And the tests' state after it.

    `at` is UTC now and never earlier than at the previous look. Looking twice at the same evidence
    changes no verdict. Harm is judged whatever the gaps are and below `min_sample` too: the tests
    are exact at the smallest counts, and a breach must not wait. Raises ValueError for a rollout
    that has not entered a stage.
    """
    if not rollout.visits:
        raise ValueError(
            f"rollout {rollout.rollout_id} of {rollout.flag_key} has not entered a stage yet"
        )
    index = len(rollout.visits) - 1
    visit, totals = rollout.visits[index], evidence.visits.get(index, VisitTotals())
    plan = rollout.plan
    stage = plan.stages[visit.stage]

    latencies = {arm: Spread(totals.arm(arm)) for arm in Arm}
    tests, behind = take_evidence(rollout, evidence, latencies, tests, at)
    heard, heard_at = _listen(tests, totals, visit, at)
    tests = replace(
        tests, heard=heard, heard_at=heard_at, harm=_count_harm(rollout, evidence, tests.harm)
    )
    exposures = {Arm.TREATMENT: totals.treatment.exposures, Arm.CONTROL: totals.control.exposures}
    exposed = sum(exposures.values())
    srm_e_value = as_e_value(sample_ratio.log_e_value(tests.srm))

    if plan.blind:
        gaps = _drift(evidence)
        metrics: tuple[MetricReport, ...] = ()
    else:
        gaps = (
            *_too_little(stage, visit, totals),
            *_stale(plan, evidence, tests, visit, behind, at),
            *_split_off(rollout, totals, srm_e_value),
            *_in_both(totals),
            *_repeated(totals),
            *_drift(evidence),
            *_tainted(visit, evidence.partitions, at),
        )
        metrics = tuple(
            report(
                guardrail,
                number,
                tests,
                totals,
                latencies,
                percent=visit.percent,
                elapsed_seconds=(at - visit.counts_from).total_seconds(),
                alpha_share=share,
                alpha=plan.alpha,
                beta=plan.beta,
            )
            for number, (guardrail, share) in enumerate(
                zip(plan.guardrails, alpha_shares(plan.guardrails), strict=True)
            )
            if guardrail.is_watched_at(visit.percent)
        )
    judgement = Judgement(
        at=at,
        visit=index,
        gaps=gaps,
        metrics=metrics,
        harm=Harm(
            exposed_contexts=sum(harm.exposed_contexts for harm in tests.harm.values()),
            failed_requests=sum(harm.failed_requests for harm in tests.harm.values()),
            excess_failed_requests=sum(harm.excess_failed_requests for harm in tests.harm.values()),
        ),
        exposures=exposures,
        srm_e_value=srm_e_value,
        observed_share=exposures[Arm.TREATMENT] / exposed if exposed else None,
        offsets={
            partition.topic_partition: partition.next_offset for partition in evidence.partitions
        },
        batches=tests.batches,
    )
    return judgement, tests


class HarmSignal(NamedTuple):
    """How near one guardrail is to a breach."""

    metric: str
    e_value: float  # of harm
    threshold: float

    @property
    def is_possible(self) -> bool:
        """True when `judge` may find a breach: it has vetoes, so it need not."""
        return self.e_value >= self.threshold


def look_for_harm(
    rollout: Rollout, evidence: Evidence, tests: SequentialTests, at: datetime
) -> tuple[tuple[HarmSignal, ...], SequentialTests]:
    """Return how near each watched guardrail is to a breach, and the tests' state.

    A part of what `judge` does, for its price.

    `judge` with that state and the same evidence says the rest, and changes no test.
    """
    visit = rollout.visits[-1]
    totals = evidence.visits.get(len(rollout.visits) - 1, VisitTotals())
    tests, _ = take_evidence(
        rollout, evidence, {arm: Spread(totals.arm(arm)) for arm in Arm}, tests, at
    )
    plan = rollout.plan
    seen = tuple(
        HarmSignal(
            guardrail.metric, harm_e_value(guardrail, number, tests), 1 / (plan.alpha * share)
        )
        for number, (guardrail, share) in enumerate(
            zip(plan.guardrails, alpha_shares(plan.guardrails), strict=True)
        )
        if guardrail.is_watched_at(visit.percent)
    )
    return seen, tests


# --- health


def _arms_needed(visit: Visit, totals: VisitTotals) -> list[tuple[Arm, ArmTotals]]:
    """Return the arms that must have evidence: at 100 % nobody is left in control."""
    arms = [Arm.TREATMENT, Arm.CONTROL] if visit.percent < 100 else [Arm.TREATMENT]
    return [(arm, totals.arm(arm)) for arm in arms]


def _too_little(stage: Stage, visit: Visit, totals: VisitTotals) -> tuple[Gap, ...]:
    """Return at most one gap per arm, the most basic one: no exposure.

    Exposures but no outcome; fewer than `min_sample`.
    """
    gaps = []
    for arm, counted in _arms_needed(visit, totals):
        if counted.exposures == 0:
            gaps.append(Gap(HealthGap.NO_TRAFFIC, f"no context was exposed to {arm} in this stage"))
        elif counted.outcomes == 0:
            gaps.append(
                Gap(
                    HealthGap.NO_OUTCOMES,
                    f"{counted.exposures:,} contexts saw {arm}, none reported an outcome",
                )
            )
        elif (
            arm is Arm.TREATMENT
            and visit.percent < 100
            and (unheard := _unheard(totals)) is not None
        ):
            gaps.append(Gap(HealthGap.NO_OUTCOMES, unheard))
        elif counted.exposures < stage.min_sample:
            missing = stage.min_sample - counted.exposures
            detail = (
                f"{arm} has {counted.exposures:,} of {stage.min_sample:,} contexts, "
                f"{missing:,} are missing"
            )
            gaps.append(Gap(HealthGap.BELOW_MIN_SAMPLE, detail))
    return tuple(gaps)


def _unheard(totals: VisitTotals) -> str | None:
    """Return what is said when treatment surely reports less than half of control's outcomes per context, else None.

    Requests that die before they can report are missing from every rate. Outcomes of one context do
    not come independently: where control has several each, so many count as one.
    """
    treatment, control = totals.treatment, totals.control
    if not control.exposures or not control.outcomes:
        return None
    each = control.outcomes / control.exposures
    expected = int(treatment.exposures * min(each, 1.0))
    heard = min(int(treatment.outcomes / max(each, 1.0)), expected)
    if (
        heard >= MISSING_BELOW * expected
        or rate_interval(heard, expected, ALPHA_HEALTH)[1] >= MISSING_BELOW
    ):
        return None
    return (
        f"{treatment.outcomes:,} outcomes of {treatment.exposures:,} contexts in treatment, "
        f"{control.outcomes:,} of {control.exposures:,} in control: treatment's are missing"
    )


def _in_both(totals: VisitTotals) -> tuple[Gap, ...]:
    """Return the gap of contexts that saw both arms.

    Surely more than now and then a client's stale cache explains.
    """
    exposed = totals.treatment.exposures + totals.control.exposures
    switched = min(totals.treatment.switched + totals.control.switched, exposed)
    if (
        switched <= SWITCHED_ABOVE * exposed
        or rate_interval(switched, exposed, ALPHA_HEALTH)[0] <= SWITCHED_ABOVE
    ):
        return ()
    detail = (
        f"{switched:,} of {exposed:,} contexts saw both arms in this stage: is the targeting "
        f"key the same everywhere?"
    )
    return (Gap(HealthGap.MULTIPLE_EXPOSURE, detail),)


def _repeated(totals: VisitTotals) -> tuple[Gap, ...]:
    """Return a gap per arm of whose outcomes surely more than a few had come before.

    Outcomes of one context do not come independently, and one sender may repeat all of its own:
    where contexts have several each, so many count as one.
    """
    gaps = []
    for arm in Arm:
        counted = totals.arm(arm)
        each = max(counted.outcomes / max(counted.exposures, 1), 1.0)
        checked = int(counted.checked / each)
        repeated = min(int(counted.repeated / each), checked)
        if (
            repeated <= REPEATED_ABOVE * checked
            or rate_interval(repeated, checked, ALPHA_HEALTH)[0] <= REPEATED_ABOVE
        ):
            continue
        detail = (
            f"{100 * counted.repeated / counted.checked:.3g} % of {arm}'s outcomes had "
            f"come before, byte for byte "
            f"({counted.repeated:,} of {counted.checked:,} that were looked at): is a "
            f"topic replayed, or does a producer send "
            "again what has arrived? enable.idempotence=true ends that, and an id of its "
            "own tells each event from every other"
        )
        gaps.append(Gap(HealthGap.REPEATED_OUTCOMES, detail))
    return tuple(gaps)


def _stale(
    plan: Plan,
    evidence: Evidence,
    tests: SequentialTests,
    visit: Visit,
    behind: str | None,
    at: datetime,
) -> tuple[Gap, ...]:
    """Return everything that makes the evidence older or less complete than it looks.

    Exactly `fresh_within` old is still fresh. Lag is judged by time: a partition with records to
    read whose freshest counted event is too old.
    """
    details = []
    if len(evidence.partitions) < evidence.expected_partitions:
        details.append(
            f"{len(evidence.partitions)} of {evidence.expected_partitions} event partitions report"
        )
    for partition in evidence.partitions:
        silence = at - partition.reported_at
        if silence > REPORT_WITHIN:
            details.append(
                f"{partition.topic_partition} was last reported {silence.total_seconds():.0f} s ago"
            )
        elif -silence > REPORT_WITHIN:
            ahead = f"{-silence.total_seconds():.0f} s ahead"
            details.append(f"{partition.topic_partition} reports from a clock {ahead}")
        lag = partition.end_offset - partition.next_offset
        if lag > 0 and (partition.freshest is None or at - partition.freshest > plan.fresh_within):
            details.append(f"{partition.topic_partition} lags {lag:,} records behind")
    for topic, freshest in _freshest_by_topic(evidence.partitions).items():
        if freshest is None:
            details.append(f"no event was counted from {topic} yet")
        elif at - freshest > plan.fresh_within:
            details.append(
                f"the freshest event of {topic} is {(at - freshest).total_seconds():.0f} s old"
            )
        elif freshest - at > plan.fresh_within:
            # It says nothing of how old the others are.
            ahead = f"{(freshest - at).total_seconds():.0f} s ahead"
            details.append(f"the freshest event of {topic} is {ahead} of this clock")
    if not evidence.partitions and not evidence.expected_partitions:
        details.append("no event partition is known")
    heard_at = tests.heard_at or visit.counts_from
    if at - heard_at > plan.fresh_within:
        details.append(
            f"nothing was counted for this stage for {(at - heard_at).total_seconds():.0f} s"
        )
    if behind is not None:
        details.append(behind)
    unreadable = sorted({name for totals in evidence.visits.values() for name in totals.unreadable})
    if unreadable:
        details.append(f"stored totals cannot be read in {', '.join(unreadable[:_LOSSES_SHOWN])}")
    return (Gap(HealthGap.STALE, "; ".join(details)),) if details else ()


def _freshest_by_topic(partitions: tuple[PartitionProgress, ...]) -> Mapping[str, datetime | None]:
    """Return the greatest event time counted per topic.

    Outcomes can stop while evaluations go on.
    """
    freshest: dict[str, datetime | None] = {}
    for partition in partitions:
        topic = partition.topic_partition.rpartition("/")[0]
        known = freshest.get(topic)
        seen = partition.freshest
        freshest[topic] = seen if known is None else known if seen is None else max(known, seen)
    return freshest


def _listen(
    tests: SequentialTests, totals: VisitTotals, visit: Visit, at: datetime
) -> tuple[int, datetime]:
    """Return how many events the present visit has, and since when it has stood still."""
    heard = sum(totals.arm(arm).evaluations + totals.arm(arm).outcomes for arm in Arm)
    if tests.heard_at is None:
        return heard, at if heard else max(visit.counts_from, visit.entered_at)
    return (heard, at) if heard > tests.heard else (tests.heard, tests.heard_at)


def _split_off(rollout: Rollout, totals: VisitTotals, srm_e_value: float) -> tuple[Gap, ...]:
    """Return the gap of an observed share that is not the decided one.

    Apps go by an earlier decision, else a mismatch.

    Treatment is missing when it is surely below half of its decided share.
    """
    visit, observed = rollout.visits[-1], totals.treatment.exposures
    exposed = observed + totals.control.exposures
    is_mismatch = srm_e_value >= 1 / sample_ratio.ALPHA_SRM
    said = f"{100 * observed / max(exposed, 1):.3g} % of {exposed:,} contexts saw treatment"
    decided = decided_share(rollout.plan, visit)
    if (before := _still_before(rollout, totals, is_mismatch=is_mismatch)) is not None:
        asked = "everybody" if decided is None else f"{100 * decided:g} %"
        detail = (
            f"{said}, {asked} was decided: the share is that of the stay before, "
            f"{100 * before:g} %, as if nothing had changed"
        )
        return (Gap(HealthGap.ACTUATION_DRIFT, detail, is_observed=True),)
    if decided is None:
        if (
            not exposed
            or rate_interval(totals.control.exposures, exposed, drift.ALPHA_DRIFT)[0]
            <= drift.STRAGGLERS
        ):
            return ()
        detail = (
            f"{said}, everybody was to: somebody else changes the flag, or some apps do not "
            f"follow it"
        )
        return (Gap(HealthGap.ACTUATION_DRIFT, detail, is_observed=True),)
    if not is_mismatch:
        return ()
    detail = (
        f"{said}, {100 * decided:g} % were decided (e-value {srm_e_value:.3g}, threshold "
        f"{1 / sample_ratio.ALPHA_SRM:,.0f})"
    )
    # A few contexts of a new stage may be few by chance, while the mismatch was found in an earlier
    # one.
    most = rate_interval(observed, exposed, ALPHA_HEALTH)[1] if exposed else 1.0
    return (Gap(HealthGap.SRM, detail, treatment_missing=most < MISSING_BELOW * decided),)


def _still_before(rollout: Rollout, totals: VisitTotals, *, is_mismatch: bool) -> float | None:
    """Return the share of the stay before when it is what is surely observed in place of the decided one, else None.

    That there is a mismatch at all may be known from the sample ratio already; then it is enough
    that the share before is the likelier one. A treatment that reported in the stay before is not
    too broken to report in this one.
    """
    before = share_before(rollout.plan, rollout.visits)
    treatment, control = totals.treatment.exposures, totals.control.exposures
    if before is None or treatment + control == 0:
        return None
    decided = decided_share(rollout.plan, rollout.visits[-1]) or 1.0
    log_e_value = drift.log_e_value(before, decided, treatment, control)
    if log_e_value < math.log(drift.threshold(len(rollout.visits))) and not (
        is_mismatch and log_e_value > 0
    ):
        return None
    low, high = rate_interval(treatment, treatment + control, ALPHA_HEALTH)
    return before if low <= before <= high else None


def _drift(evidence: Evidence) -> tuple[Gap, ...]:
    return (
        ()
        if evidence.actuation_drift is None
        else (Gap(HealthGap.ACTUATION_DRIFT, evidence.actuation_drift),)
    )


def _tainted(
    visit: Visit, partitions: tuple[PartitionProgress, ...], at: datetime
) -> tuple[Gap, ...]:
    """Return the gap of lost records: any that may have fallen into the visit.

    A stage entered after the records that were lost counts whole, whenever the loss was found.
    """
    end = at if visit.left_at is None else visit.left_at
    lost = []
    for partition in partitions:
        touching = [str(loss) for loss in partition.losses if loss.touches(visit.entered_at, end)]
        if touching:
            lost.append(f"{partition.topic_partition} from {', '.join(touching[-3:])}")
    if not lost:
        return ()
    shown = "; ".join(lost[:_LOSSES_SHOWN])
    more = f"; and in {len(lost) - _LOSSES_SHOWN} more" if len(lost) > _LOSSES_SHOWN else ""
    return (Gap(HealthGap.TAINTED, f"records are lost in {shown}{more}"),)


# --- what it cost


def _count_harm(
    rollout: Rollout, evidence: Evidence, known: Mapping[int, VisitHarm]
) -> Mapping[int, VisitHarm]:
    """Return the harm of each visit, as far as its totals have ever said.

    Excess is treatment's failed requests above control's rate in the same visit; without a control
    (100 %) nothing is known.
    """
    harm = dict(known)
    for index, totals in evidence.visits.items():
        if index >= len(rollout.visits):
            continue
        treatment, control = totals.treatment, totals.control
        excess = 0.0
        if control.outcomes:
            excess = max(
                0.0, treatment.errors - treatment.outcomes * control.errors / control.outcomes
            )
        before = harm.get(index, VisitHarm())
        is_complete = (
            treatment.exposures >= before.exposed_contexts
            and treatment.errors >= before.failed_requests
        )
        harm[index] = VisitHarm(
            exposed_contexts=max(before.exposed_contexts, treatment.exposures),
            failed_requests=max(before.failed_requests, treatment.errors),
            excess_failed_requests=excess if is_complete else before.excess_failed_requests,
        )
    return harm
