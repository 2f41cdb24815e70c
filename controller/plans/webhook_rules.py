"""Rules about gate webhooks: whether each can be asked, and a gate can ever pass it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from controller.plans.finding import Finding, error, percent_words, warning
from controller.yaml_places import Path
from schemas.fields import format_duration
from schemas.plan import PlanDocument
from schemas.terms import OnBreach

_SHORTEST: Final = timedelta(seconds=1)


def webhook_faults(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find gate webhooks that cannot work as they are written."""
    known: dict[str, int] = {}
    for index, webhook in enumerate(document.gate_webhooks):
        at: Path = ("gate_webhooks", index)
        if webhook.endpoint in known:
            yield error(
                (*at, "endpoint"),
                f"gate_webhooks[{known[webhook.endpoint]}] asks {webhook.endpoint}, too",
                "leave one out",
            )
        known.setdefault(webhook.endpoint, index)
        if webhook.every < _SHORTEST:
            yield error(
                (*at, "every"), f"it is {format_duration(webhook.every)}", "write at least 1s"
            )
        if webhook.on_fail is OnBreach.STEP_BACK and len(document.stages) == 1:
            yield warning(
                (*at, "on_fail"),
                "no stage lies below the only one, so `step_back` rolls back",
                "write `roll_back` or `pause`",
            )
        for number, stage in enumerate(document.stages):
            time_at_gate = stage.longest_bake - stage.bake
            if webhook.every > time_at_gate >= timedelta(0):
                yield warning(
                    ("stages", number),
                    f"its gate at {percent_words(stage.percent)} is open for "
                    f"{format_duration(time_at_gate)} at most, and {webhook.endpoint} is asked "
                    f"every {format_duration(webhook.every)}: after one `hold` or error it pauses",
                    "ask more often with `every`, or lengthen max_bake",
                )
