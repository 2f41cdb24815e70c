"""The evidence of a judgement as a table for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from controller.reporting.evidence_words import estimate, proven_words, worse_words
from schemas.decision import JudgementRecord
from schemas.terms import Arm, Verdict


def metrics_table(judgement: JudgementRecord) -> Table:
    """Return a table with each guardrail's arms and its two answers: worse, and shown not worse."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("METRIC", overflow="fold")
    table.add_column("ROLE", no_wrap=True)
    for name in ("TREATMENT", "CONTROL", "WORSE?", "PROVEN SAFE?"):
        table.add_column(name, justify="right", no_wrap=True)
    for metric in judgement.metrics:
        is_harm, is_safe = metric.harm is Verdict.FAIL, metric.safe is Verdict.PASS
        table.add_row(
            metric.metric,
            metric.role.value,
            estimate(metric, Arm.TREATMENT),
            estimate(metric, Arm.CONTROL),
            Text(
                worse_words(metric),
                "bold red" if is_harm else "",
            ),
            Text(
                proven_words(metric),
                "green" if is_safe else "yellow",
            ),
        )
    return table
