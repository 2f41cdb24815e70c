"""The evidence of a judgement in words: the same for terminal, page and API.

Pure. Does not belong here: layout (`cli/evidence_view.py`, `web/page/`).
"""

from __future__ import annotations

from typing import Final

from controller.core.judging.questions import gate_bound, gate_margin_origin
from controller.core.metrics import kind_to_show
from controller.core.metrics.kind import MetricKind
from controller.core.plan import Guardrail
from controller.core.rollout import Rollout
from controller.text import one_line, plural
from schemas.decision import JudgementRecord, MetricRecord, WebhookRecord
from schemas.metric_names import Unit
from schemas.terms import Arm, HealthGap, Verdict

#: Is treatment worse?
HARM_WORDS = {Verdict.FAIL: "YES", Verdict.INCONCLUSIVE: "no", Verdict.PASS: "no"}
#: Is treatment shown not worse?
SAFE_WORDS = {Verdict.PASS: "yes", Verdict.INCONCLUSIVE: "not yet", Verdict.FAIL: "NO"}

#: Failed requests per user that failed, from which on a dashboard of requests differs visibly.
_TOLD_REPEATS: Final = 1.1

#: What keeps evidence from counting.
GAP_WORDS = {
    HealthGap.NO_TRAFFIC: "an arm has no traffic",
    HealthGap.NO_OUTCOMES: "outcomes are missing",
    HealthGap.BELOW_MIN_SAMPLE: "the sample is too small",
    HealthGap.STALE: "the evidence is stale",
    HealthGap.SRM: "the arms do not have the decided sizes",
    HealthGap.MULTIPLE_EXPOSURE: "users were in both arms",
    HealthGap.REPEATED_OUTCOMES: "outcomes arrive again",
    HealthGap.IMPLAUSIBLE_LATENCY: "control's latency is beyond the limit, too",
    HealthGap.ACTUATION_DRIFT: "a flag plane does not serve what was decided",
    HealthGap.TAINTED: "records of the stage are lost",
    HealthGap.METRIC_NO_DATA: "an external metric has no data",
    HealthGap.METRIC_NOT_A_NUMBER: "an external metric is no number",
    HealthGap.METRIC_SEVERAL_SERIES: "an external metric has several series",
    HealthGap.METRIC_LATE: "an external metric is late",
    HealthGap.METRIC_REFUSED: "the query of an external metric is refused",
    HealthGap.METRIC_NO_ANSWER: "the monitoring system does not answer",
    HealthGap.WEBHOOK_NO_ANSWER: "a gate webhook does not answer",
    HealthGap.WEBHOOK_HTTP_ERROR: "a gate webhook answers with an error",
    HealthGap.WEBHOOK_REDIRECT: "a gate webhook points elsewhere",
    HealthGap.WEBHOOK_TOO_LARGE: "a gate webhook's answer is too large",
    HealthGap.WEBHOOK_WRONG_TYPE: "a gate webhook's answer is not sent as JSON",
    HealthGap.WEBHOOK_MALFORMED: "a gate webhook's answer cannot be read",
    HealthGap.WEBHOOK_NOT_SET: "a gate webhook is not in the settings",
}


def reply_words(reply: WebhookRecord) -> str:
    """Return what a gate webhook replied, as in `load-test: hold (still running)`."""
    said = one_line(reply.words)
    if reply.answer is None:
        return f"{reply.endpoint}: {said}"
    return f"{reply.endpoint}: {reply.answer}" + (f" ({said})" if said else "")


def worse_words(metric: MetricRecord) -> str:
    """Return the answer to "is treatment worse?"."""
    return HARM_WORDS.get(metric.harm, metric.harm.value.replace("_", " "))


def proven_words(metric: MetricRecord) -> str:
    """Return the answer to "is treatment proven safe?"."""
    return SAFE_WORDS.get(metric.safe, metric.safe.value.replace("_", " "))


def value_words(metric: str, value: float | None) -> str:
    """Return a value with its metric's unit, a dash for none."""
    if value is None:
        return "–"
    unit = kind_to_show(metric).unit
    if unit is Unit.SHARE:
        return f"{100 * value:.3g} %"
    return f"{value:,.0f} ms" if unit is Unit.MILLISECONDS else f"{value:,.4g}"


def estimate(metric: MetricRecord, arm: Arm) -> str:
    """Return an arm's estimate with its unit, a dash for none."""
    measured = metric.arms.get(arm)
    return value_words(metric.metric, None if measured is None else measured.estimate)


def legend(judgement: JudgementRecord, rollout: Rollout) -> list[str]:
    """Return what a reader of the values must know: what is counted, where margins come from."""
    kinds = [kind_to_show(metric.metric) for metric in judgement.metrics]
    lines = []
    if any(kind.unit_words == MetricKind.unit_words for kind in kinds):
        lines.append(
            "A user action is one user's requests within about 100 ms. It fails once per user and "
            "stage, so a dashboard of requests shows another rate."
        )
    lines += [words for one in judgement.metrics if (words := _repeats_words(one))]
    percent = _judged_percent(judgement, rollout)
    for metric, kind in zip(judgement.metrics, kinds, strict=True):
        margin = metric.gate_margin
        guardrail = next((one for one in rollout.plan.guardrails if is_about(metric, one)), None)
        if guardrail is None or margin is None or not percent:
            continue
        bound = gate_bound(kind, margin, in_points=metric.in_points)
        origin = gate_margin_origin(guardrail, percent)
        lines.append(f"{metric.metric}, the gate's margin: {bound}; {origin}.")
    return list(dict.fromkeys(lines))


def _repeats_words(metric: MetricRecord) -> str:
    """Return how many requests failed per user that failed, where that is more than one."""
    arms = [metric.arms.get(arm) for arm in Arm]
    repeats = [1.0 if one is None or one.repeats is None else one.repeats for one in arms]
    if max(repeats) < _TOLD_REPEATS:
        return ""
    return (
        f"{metric.metric}: of each user that failed {repeats[0]:.2g} requests failed in "
        f"treatment, {repeats[1]:.2g} in control; each such user counts once."
    )


def ratio_legend(judgement: JudgementRecord) -> list[str]:
    """Return what the ratios of `reporting/comparison.py` are, for where they are shown."""
    of_shares = {
        kind.is_share
        for metric in judgement.metrics
        if metric.gate_margin is not None
        and not metric.in_points
        and (kind := kind_to_show(metric.metric)).unit is not Unit.PLAIN
    }
    words = {
        True: "×: treatment's rate divided by control's, as shown. In brackets is what the tests "
        "leave open; they compare the arms within each batch, so it need not center on ×.",
        False: "slow ×: the share of slow user actions in treatment divided by control's, as the "
        "tests estimate it, not a ratio of milliseconds. Slow is above control's percentile; for "
        "treatment the margin is added.",
    }
    return [words[is_share] for is_share in words if is_share in of_shares]


def _judged_percent(judgement: JudgementRecord, rollout: Rollout) -> float:
    """Return the percentage of the stage that was judged, also after the end; 0: not known."""
    known = judgement.visit < len(rollout.visits)
    return rollout.visits[judgement.visit].percent if known else 0.0


def is_about(metric: MetricRecord, guardrail: Guardrail) -> bool:
    """Return whether a report is about this guardrail of the plan."""
    return (metric.metric, metric.role, metric.margin) == (
        guardrail.metric,
        guardrail.role,
        guardrail.margin,
    )


def verdict_words(judgement: JudgementRecord) -> str:
    """Return the verdict, and where a gap keeps a good one from counting, that it does not count.

    A failing guardrail acts whatever the gaps are, so nothing is added to it.
    """
    words = (GAP_WORDS.get(gap.kind, gap.kind.value) for gap in judgement.gaps)
    gaps = ", ".join(dict.fromkeys(words))  # both arms may have the same gap
    if gaps and judgement.verdict is Verdict.PASS:
        return f"every guardrail passes, but this does not count: {gaps}"
    return f"verdict {judgement.verdict.value.replace('_', ' ')}"


def incomplete_words(judgement: JudgementRecord) -> str:
    """Return that figures are of what is counted so far, and why; empty: they are complete."""
    if judgement.incomplete is None:
        return ""
    return f"figures are of what is counted so far: {judgement.incomplete}"


def harm_words(judgement: JudgementRecord) -> str:
    """Return what the rollout has cost so far."""
    harm = judgement.harm
    users = plural(harm.exposed_contexts, "user")
    failed = f"{harm.failed_requests:,}" if harm.failed_requests else "none"
    return f"{users} had treatment; {failed} of their requests failed{_excess_words(judgement)}"


def _excess_words(judgement: JudgementRecord) -> str:
    """Return how many of the failed requests control's rate does not account for.

    The excess is counted per stage and never below 0, so 0 is no equality; and without a control
    it is not known.
    """
    harm = judgement.harm
    excess = harm.excess_failed_requests
    if excess is None or harm.failed_requests == 0:
        return ""
    has_control = judgement.exposures.get(Arm.CONTROL, 0) > 0
    where = "" if has_control else ", where there was a control"
    if excess <= 0:
        return f", no more than at control's rate{where}"
    # Rounded, a part of one failure would be none, or all of a single one.
    count = "less than one" if excess < 1 else f"about {excess:,.0f}"
    return f", {count} of them beyond control's rate{where}"


def evidence_line(judgement: JudgementRecord) -> str:
    """Return a judgement in one line: users of both arms, and the two answers of each metric."""
    users = " against ".join(f"{judgement.exposures.get(arm, 0):,}" for arm in Arm)
    parts = [one_line(words)] if (words := incomplete_words(judgement)) else []
    parts.append(f"users {users}")
    for metric in judgement.metrics:
        arms = f"{estimate(metric, Arm.TREATMENT)} against {estimate(metric, Arm.CONTROL)}"
        answers = f"worse? {worse_words(metric)}, proven safe? {proven_words(metric)}"
        parts.append(one_line(f"{metric.metric} {arms}, {answers}"))
    if judgement.gaps and judgement.verdict is Verdict.PASS:
        parts.append(verdict_words(judgement))
    parts += [one_line(f"{gap.kind}: {gap.detail}") for gap in judgement.gaps]
    return "; ".join(parts)
