"""What a gate webhook is sent: one gate of one rollout, with all the evidence; and its answer.

A POST of a CloudEvent, signed as in Standard Webhooks 1.0. The answer is a JSON object.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from schemas.decision import JudgementRecord, PlanReference, WholeNumber
from schemas.envelope import without_control_characters
from schemas.fields import Moment, Name, OpenModel
from schemas.terms import GateAnswer

TYPE = "io.rolloutd.gate.v1"
MAX_REASON = 1_000


class GateQuestion(OpenModel):
    """One open gate at which everything that is measured has passed."""

    flag: Name
    rollout_id: str
    revision: WholeNumber = Field(description="Of the rollout when the question was asked.")
    gate_id: str = Field(description="Of this gate alone: no other one has it.")
    stage: WholeNumber = Field(description="1 for the first.")
    stage_name: str
    percent: float = Field(description="Share of the audience in treatment now.")
    next_percent: float | None = Field(
        description="After the gate; null: the rollout completes, and `percent` stays."
    )
    audience: str | None = Field(description="null: everybody.")
    plan: PlanReference
    owner: str
    opened_at: Moment = Field(description="When the gate opened.")
    closes_at: Moment = Field(description="Past it an undecided gate pauses the rollout.")
    judgement: JudgementRecord


class GateReply(OpenModel):
    """What the webhook answers, with a status of 2xx and a JSON content type."""

    answer: GateAnswer
    reason: Annotated[
        str, Field(max_length=MAX_REASON), AfterValidator(without_control_characters)
    ] = Field(default="", description="Shown to people as it is.")
