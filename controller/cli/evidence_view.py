"""The evidence of a judgement, as people read it."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from controller.core.metrics import kind_to_show
from schemas.decision import JudgementRecord, MetricRecord
from schemas.terms import Arm, Verdict

#: Is treatment worse?
HARM_WORDS = {Verdict.FAIL: "YES", Verdict.INCONCLUSIVE: "no", Verdict.PASS: "no"}
#: Is treatment shown not worse?
SAFE_WORDS = {Verdict.PASS: "yes", Verdict.INCONCLUSIVE: "not yet", Verdict.FAIL: "NO"}


def metrics_table(judgement: JudgementRecord) -> Table:
    """Return a table with each guardrail's arms and its two answers: worse, and shown not worse."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("METRIC", overflow="fold")
    table.add_column("ROLE", no_wrap=True)
    for name in ("TREATMENT", "CONTROL", "WORSE?", "SHOWN AS GOOD?"):
        table.add_column(name, justify="right", no_wrap=True)
    for metric in judgement.metrics:
        is_harm, is_safe = metric.harm is Verdict.FAIL, metric.safe is Verdict.PASS
        table.add_row(
            metric.metric,
            metric.role.value,
            estimate(metric, Arm.TREATMENT),
            estimate(metric, Arm.CONTROL),
            Text(
                HARM_WORDS.get(metric.harm, metric.harm.value.replace("_", " ")),
                "bold red" if is_harm else "",
            ),
            Text(
                SAFE_WORDS.get(metric.safe, metric.safe.value.replace("_", " ")),
                "green" if is_safe else "yellow",
            ),
        )
    return table


def estimate(metric: MetricRecord, arm: Arm) -> str:
    """Return an arm's estimate with its unit, a dash for none."""
    measured = metric.arms.get(arm)
    if measured is None or measured.estimate is None:
        return "–"
    if kind_to_show(metric.metric).is_share:
        return f"{100 * measured.estimate:.3g} %"
    return f"{measured.estimate:,.0f} ms"


def harm_words(judgement: JudgementRecord) -> str:
    """Return what the rollout has cost so far."""
    harm = judgement.harm
    excess = (
        ""
        if harm.excess_failed_requests is None
        else f", {harm.excess_failed_requests:,.1f} above control's rate"
    )
    return (
        f"{harm.exposed_contexts:,} users had treatment; {harm.failed_requests:,} of their "
        f"requests failed{excess}"
    )
