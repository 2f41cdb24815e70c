"""Rules about what a plan asks of a language model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from controller.plans.finding import Finding, error, warning
from schemas.fields import format_duration
from schemas.plan import PlanDocument
from schemas.terms import AdvisorMode


def advice_faults(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find a model without time to answer, and what a plan that asks for one may not expect."""
    if document.advisor.mode is not AdvisorMode.OFF and document.advisor.deadline <= timedelta(0):
        yield error(
            ("advisor", "deadline"),
            "the model gets no time to answer",
            "write a duration, as in 30s",
        )
    if "advisor" in document.model_fields_set:
        yield from advice_beyond_max_bake(document)


def advice_beyond_max_bake(document: PlanDocument) -> Iterator[Finding]:
    """Find gates that a model keeps open for longer than their `max_bake`.

    This is for plans that ask for advice, and for settings that have a model: without one no gate
    waits for it.
    """
    plan = document.advisor
    if plan.mode is AdvisorMode.OFF:
        return
    rounds = (plan.deadline + plan.hold_for) * plan.hold_rounds
    for index, stage in enumerate(document.stages):
        if stage.max_bake is not None and stage.bake <= stage.max_bake < stage.bake + rounds:
            longer = format_duration(stage.bake + rounds - stage.max_bake)
            yield warning(
                ("stages", index, "max_bake"),
                f"with a model its gate may stay open for {longer} longer than max_bake: "
                f"{plan.hold_rounds} rounds of advice take {format_duration(rounds)}",
                'write `advisor: {mode: "off"}`, fewer hold_rounds or a shorter hold_for; without '
                "a model max_bake is kept",
            )
