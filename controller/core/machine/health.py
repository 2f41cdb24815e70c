"""Health gaps as the machine sees them: which one acts, is told or is over, and in what words.

A gap acts by the plan's policy, and people are told of one that only waits, once it has lasted for
the plan's `health_grace`. Two kinds need no grace: a broken split, whose test is exact at any
moment, and too small a sample, which is no fault before the gate asks for it. Questions and texts
only: nothing here changes a rollout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from controller.core.judging.judgement import Gap, Judgement
from controller.core.machine.times import may_announce
from controller.core.rollout import AwaitingApproval, Paused, Rollout
from schemas.terms import GapPolicy, HealthGap, HoldReason

#: What a person can do about each gap.
ACTIONS: Final[Mapping[HealthGap, str]] = {
    HealthGap.NO_TRAFFIC: "check that the apps evaluate the flag in both arms, and that their "
    "evaluations reach Kafka: `rolloutctl events` shows what arrives, and what is ignored or "
    "refused, and why",
    HealthGap.NO_OUTCOMES: "check that the apps send outcomes: `rolloutctl events` shows what "
    "arrives, and what is refused and why; roll back if requests of treatment may fail before they "
    "report",
    HealthGap.BELOW_MIN_SAMPLE: "wait, or lower min_sample",
    HealthGap.STALE: "check the apps' producers, the consumer lag and `rolloutctl doctor`; until "
    "events arrive again, no guardrail can find harm",
    HealthGap.SRM: "find which arm crashes before it reports, loses its events or has variants "
    "that the plan does not (`rolloutctl events` shows what arrives, and what is ignored and why), "
    "or who else changes the flag",
    HealthGap.MULTIPLE_EXPOSURE: "use the same targeting key in all apps",
    HealthGap.REPEATED_OUTCOMES: "find who sends outcomes a second time: a replay into the live "
    "topic, or producers without enable.idempotence; "
    "the share falls as new outcomes come in, and `promote` does not wait for that",
    HealthGap.IMPLAUSIBLE_LATENCY: "let the apps send http.server.request.duration in seconds, or "
    "fix the limit in the plan; then start again, because what was counted stays in this stage",
    HealthGap.ACTUATION_DRIFT: "check that the planes serve the flag and that the apps follow "
    "them; if apps ask less often than once per settle, lengthen settle",
    HealthGap.TAINTED: "retry the stage, or promote with a reason: lost events do not come back; "
    "lengthen the retention of the event topics",
    HealthGap.METRIC_NO_DATA: "see in the monitoring system whether the query finds a series for "
    "each arm, and whether its target is scraped",
    HealthGap.METRIC_NOT_A_NUMBER: "fix the query: it divides by zero where nothing happens, or "
    "wait for traffic",
    HealthGap.METRIC_SEVERAL_SERIES: "fix the query in the plan with sum(), max() or a label, so "
    "that it gives one series, and apply it",
    HealthGap.METRIC_LATE: "see in the monitoring system whether the target is still scraped, and "
    "that the clocks agree",
    HealthGap.METRIC_REFUSED: "fix the query in the plan, or `checks.prometheus` in the settings; "
    "the answer is in the detail",
    HealthGap.METRIC_NO_ANSWER: "see that the monitoring system answers this replica; until then "
    "no gate passes, and guardrails on events go on",
    HealthGap.WEBHOOK_NO_ANSWER: "see that the gate webhook answers this replica within its "
    "timeout_seconds; until then the gate stays closed, and guardrails go on",
    HealthGap.WEBHOOK_HTTP_ERROR: "read the gate webhook's log: the answer is in the detail; until "
    "it answers with 2xx the gate stays closed",
    HealthGap.WEBHOOK_REDIRECT: "write the address that it points to into "
    "`gate_webhooks.endpoints` in the settings: redirects are not followed",
    HealthGap.WEBHOOK_TOO_LARGE: "let the gate webhook answer with `answer` and `reason` alone",
    HealthGap.WEBHOOK_WRONG_TYPE: "let the gate webhook answer with "
    "`Content-Type: application/json`; a proxy may answer in its place",
    HealthGap.WEBHOOK_MALFORMED: 'let the gate webhook answer {"answer": "pass"}, "hold" or "fail"',
    HealthGap.WEBHOOK_NOT_SET: "add the endpoint to `gate_webhooks.endpoints` in the settings, or "
    "apply a plan without it",
}


def is_alarming(gap: Gap) -> bool:
    """Return whether people are to hear of the gap: all but a sample that is still small."""
    return gap.kind is not HealthGap.BELOW_MIN_SAMPLE


# --- which gap acts ---


def lasts(rollout: Rollout, judgement: Judgement, gap: Gap) -> bool:
    """Return whether a gap of the present visit has lasted for the plan's `health_grace`."""
    return judgement.visit == rollout.visit_index and (
        judgement.seconds_of(gap.kind) >= rollout.plan.health_grace.total_seconds()
    )


def _acts(rollout: Rollout, judgement: Judgement, gap: Gap) -> bool:
    """Return whether a gap's policy is due."""
    if gap.kind is HealthGap.SRM:
        return True
    if not is_alarming(gap):
        return rollout.phase.is_at_gate
    return lasts(rollout, judgement, gap)


def stands(rollout: Rollout, judgement: Judgement) -> bool:
    """Return whether a gap stands against asking a person: it lasts, or time does not close it."""
    return bool(_to_tell(rollout, judgement)) or any(
        gap.kind is HealthGap.TAINTED or _acts(rollout, judgement, gap) for gap in judgement.gaps
    )


def urgent_gap(rollout: Rollout, judgement: Judgement) -> Gap | None:
    """Return the gap to act on at once, None without one.

    While paused a gap is urgent only if it lowers the percentage: nothing else moves then anyway.
    """
    if not rollout.phase.is_guarded or rollout.stage_index is None:
        return None
    if rollout.closed_since is not None:
        return None  # nothing is counted then, which is no gap
    policies = rollout.plan.gap_policies
    due = [gap for gap in judgement.gaps if _acts(rollout, judgement, gap)]
    lowering = [gap for gap in due if lowers(rollout, gap)]
    pausing = [gap for gap in due if policies[gap.kind] is GapPolicy.PAUSE]
    return next(iter((*lowering, *([] if isinstance(rollout.phase, Paused) else pausing))), None)


def lowers(rollout: Rollout, gap: Gap) -> bool:
    """Return whether the policy of a gap that is due leads to 0 %.

    A treatment that went missing rolls back under every policy but to wait: it may have crashed
    before it could report.
    """
    policy = rollout.plan.gap_policies[gap.kind]
    is_missing = gap.treatment_missing and policy is not GapPolicy.WAIT
    return policy is GapPolicy.ROLL_BACK or is_missing


# --- which gap is told ---


def _to_tell(rollout: Rollout, judgement: Judgement) -> tuple[Gap, ...]:
    """Return the gaps that people should know of by now.

    Those are the ones that last, and at once those that time does not close: exposures that do not
    follow the decision, outcomes that are sent twice, and durations that cannot be in seconds.
    """
    return tuple(
        gap
        for gap in judgement.gaps
        if gap.kind is HealthGap.REPEATED_OUTCOMES
        or (gap.kind is HealthGap.ACTUATION_DRIFT and gap.is_observed)
        or gap.kind is HealthGap.IMPLAUSIBLE_LATENCY
        or (is_alarming(gap) and lasts(rollout, judgement, gap))
    )


def news(rollout: Rollout, judgement: Judgement) -> tuple[Gap, ...]:
    """Return the gaps of the present visit that people should know of and were not told of."""
    if rollout.stage_index is None or judgement.visit != rollout.visit_index:
        return ()  # of an earlier visit, or no stage lasts: it has no evidence
    if isinstance(rollout.phase, AwaitingApproval):
        return ()  # a gap that lasts withdraws the request, and is told with that
    due = _to_tell(rollout, judgement)
    return tuple(gap for gap in due if gap.kind not in rollout.told_gaps)


def is_over(rollout: Rollout, judgement: Judgement) -> bool:
    """Return whether all gaps that people were told of have been gone for the plan's grace time.

    And for a minute since the last transition, so that nothing flaps whatever the grace time is.
    """
    return (
        bool(rollout.told_gaps)
        and judgement.visit == rollout.visit_index
        and may_announce(rollout, judgement.at)
        and not rollout.told_gaps & {*judgement.gap_times, *(gap.kind for gap in judgement.gaps)}
    )


def told_after(
    rollout: Rollout, hold: HoldReason | None, judgement: Judgement | None
) -> frozenset[HealthGap]:
    """Return the gaps that people were told of once this hold is announced with this judgement."""
    if hold is not HoldReason.HEALTH:
        return frozenset()
    gaps = () if judgement is None else judgement.gaps
    return rollout.told_gaps | {gap.kind for gap in gaps if is_alarming(gap)}


# --- words ---


def over_words(gaps: Iterable[HealthGap]) -> str:
    """Return that these gaps are over."""
    names = sorted(gaps)
    verb = "is" if len(names) == 1 else "are"
    return f"the evidence can be judged again: {' and '.join(names)} {verb} over"


def gap_words(judgement: Judgement, gap: Gap) -> str:
    """Return a gap in words, with how long it has lasted once that is a minute."""
    minutes = round(judgement.seconds_of(gap.kind) // 60)
    return f"{gap.kind}{f' for {minutes} min' if minutes else ''}: {gap.detail}"


def action_for(gaps: Iterable[Gap]) -> str:
    """Return what to do about the first gap; the one that only people can close comes first."""
    first = (
        HealthGap.ACTUATION_DRIFT,
        HealthGap.REPEATED_OUTCOMES,
        HealthGap.IMPLAUSIBLE_LATENCY,
    )
    alarming = (gap.kind for gap in gaps if is_alarming(gap))
    kinds = sorted(alarming, key=lambda kind: kind not in first)
    return ACTIONS[next(iter(kinds), HealthGap.BELOW_MIN_SAMPLE)]
