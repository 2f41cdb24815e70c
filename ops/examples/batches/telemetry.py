"""What a flow reports to rolloutd: which run was served which variant. Copy this file.

A hook on OpenFeature emits an event of Prefect's for each flag that a run asks for; Prefect itself
knows how the run ends. The bridge reads both from Prefect's server. So a flow needs no Kafka and
waits for nothing: Prefect sends its events from a thread of its own.

Needs openfeature-sdk and prefect; nothing of rolloutd.
"""

from __future__ import annotations

from typing import Any

from openfeature.flag_evaluation import FlagEvaluationDetails
from openfeature.hook import Hook, HookContext, HookHints
from prefect.events import emit_event


class EvaluationHook(Hook):
    """Says of each flag evaluation who was served what: `api.add_hooks([EvaluationHook()])`."""

    def after(
        self, hook_context: HookContext, details: FlagEvaluationDetails[Any], hints: HookHints
    ) -> None:
        """Report that a variant was served; the code's own default is not reported."""
        context_id = hook_context.evaluation_context.targeting_key
        if details.variant is None or not context_id:
            return
        # Prefect adds the task run and the flow run that it is emitted from.
        emit_event(
            "rolloutd.evaluation",
            {"prefect.resource.id": f"rolloutd.flag.{details.flag_key}"},
            payload={
                "flag": details.flag_key,
                "variant": details.variant,
                "context_id": context_id,
            },
        )
