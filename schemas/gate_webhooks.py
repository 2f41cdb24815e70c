"""A gate webhook as people write it in a plan: a system that is asked before a stage is left.

The plan names an endpoint of the settings, which have its address and secret: whoever may write a
plan cannot aim rolloutd at an address of their own. What is sent is in `schemas/gate_question.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from schemas.fields import Duration, StrictModel, parse_duration
from schemas.fields import at_most as up_to
from schemas.terms import OnBreach

#: Of an endpoint, in the plan and in the settings.
ENDPOINT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Endpoint = Annotated[str, Field(pattern=ENDPOINT_PATTERN)]


class GateWebhookDocument(StrictModel):
    """A system of your own that is asked at each gate: `pass`, `hold` or `fail`."""

    endpoint: Endpoint = Field(
        description="Its name in the settings, under `gate_webhooks.endpoints`; unique in the plan."
    )
    every: Annotated[Duration, up_to("1d")] = Field(
        default=parse_duration("30s"),
        validate_default=True,
        description="Time between two questions about one gate.",
    )
    on_fail: OnBreach = Field(
        default=OnBreach.PAUSE,
        description="What `fail` does. `pause`: a person decides.",
    )


def _read_webhook(value: Any) -> Any:
    """Return the mapping that a bare name stands for."""
    return {"endpoint": value} if isinstance(value, str) else value


WrittenGateWebhook = Annotated[
    GateWebhookDocument,
    BeforeValidator(_read_webhook, json_schema_input_type=GateWebhookDocument | Endpoint),
]
