"""Rules about health gaps: whether a plan's `health` can act as it is written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from controller.plans.finding import Finding, warning
from schemas.fields import format_duration
from schemas.plan import PlanDocument
from schemas.terms import WEBHOOK_GAPS, GapPolicy, HealthGap

#: Gaps whose policy does not wait for `health_grace`.
_WITHOUT_GRACE = (HealthGap.SRM, HealthGap.BELOW_MIN_SAMPLE)


def health_faults(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find policies of gaps that this plan never acts on."""
    acting = [gap for gap, policy in document.health.items() if policy is not GapPolicy.WAIT]
    if document.blind:
        for gap in acting:
            if gap is not HealthGap.ACTUATION_DRIFT and gap not in WEBHOOK_GAPS:
                yield warning(
                    ("health", gap),
                    "a blind plan judges no events, so it never has this gap",
                    "leave it out, or remove `blind`",
                )
        return
    longest = max((stage.longest_bake for stage in document.stages), default=None)
    slow = [gap for gap in acting if gap not in _WITHOUT_GRACE]
    if slow and longest is not None and document.health_grace > longest:
        yield warning(
            ("health_grace",),
            f"it is {format_duration(document.health_grace)}, and no stage lasts longer than "
            f"{format_duration(longest)}: {', '.join(slow)} would never act",
            "shorten it, as in 5m",
        )
