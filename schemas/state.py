"""The document of one rollout, on `rollout.state` (compacted, keyed by flag).

Apps may follow it, and rolloutd recovers from it. `percent` of all contexts get the treatment
variant. What audiences get in addition stands in the plan's stages up to the present one. Readers
ignore a `revision` that is older than one they have read. `schema_version` grows with every change
of this form: readers refuse an unknown version, and every release reads its own and the one before.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from schemas.advice import AdviceRecord
from schemas.fields import Count, Name, Number, StoredMoment, StrictModel, Switch
from schemas.plan import PlanDocument
from schemas.terms import HoldReason

TYPE = "io.rolloutd.state.v1"

SCHEMA_VERSION: Final = 2
#: Version 1 has no audiences, flag types and values; otherwise it is version 2.
READ_VERSIONS: Final = (1, 2)


class ScheduledPhase(StrictModel):
    """Accepted; 0 % is served until the start."""

    name: Literal["scheduled"]
    start_at: StoredMoment


class BakingPhase(StrictModel):
    """The stage gathers evidence."""

    name: Literal["baking"]
    stage: Count
    until: StoredMoment


class AdviceRoundRecord(StrictModel):
    """The present question to the model."""

    number: Count
    until: StoredMoment
    answer: AdviceRecord | None
    is_closed: Switch
    held_until: StoredMoment | None


class GatingPhase(StrictModel):
    """The bake is over; the stage stays live while the gate waits for a verdict."""

    name: Literal["gating"]
    stage: Count
    gate_id: str
    since: StoredMoment
    until: StoredMoment
    advice: AdviceRoundRecord | None


class AwaitingApprovalPhase(StrictModel):
    """Everything else has passed; a person decides."""

    name: Literal["awaiting_approval"]
    stage: Count
    gate_id: str
    since: StoredMoment
    reason: HoldReason


class PausedPhase(StrictModel):
    """Stopped where it is; guardrails can still roll it back."""

    name: Literal["paused"]
    since: StoredMoment
    reason: HoldReason
    held: Annotated[
        ScheduledPhase | BakingPhase | GatingPhase | AwaitingApprovalPhase,
        Field(discriminator="name"),
    ] = Field(description="The phase that was interrupted.")


class CompletedPhase(StrictModel):
    """The last gate passed; the last stage's percentage stays."""

    name: Literal["completed"]
    at: StoredMoment


class RolledBackPhase(StrictModel):
    """0 % is served, because of a fault."""

    name: Literal["rolled_back"]
    at: StoredMoment
    reason: str


class AbortedPhase(StrictModel):
    """0 % is served, because an operator aborted the rollout."""

    name: Literal["aborted"]
    at: StoredMoment
    reason: str


PhaseRecord = Annotated[
    ScheduledPhase
    | BakingPhase
    | GatingPhase
    | AwaitingApprovalPhase
    | PausedPhase
    | CompletedPhase
    | RolledBackPhase
    | AbortedPhase,
    Field(discriminator="name"),
]


class VisitRecord(StrictModel):
    """One visit of a stage."""

    stage: Count = Field(description="0 for the first.")
    percent: Number = Field(ge=0, le=100)
    entered_at: StoredMoment
    counts_from: StoredMoment = Field(description="Events before it do not count.")
    left_at: StoredMoment | None


class FreezeRecord(StrictModel):
    """A freeze by an operator: nothing advances."""

    since: StoredMoment
    issuer: str
    reason: str


class RolloutState(StrictModel):
    """The document of one rollout after a transition."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    flag: Name
    rollout_id: str = Field(description="The id of the command that started it.")
    revision: Count = Field(
        description="Grows by one per transition, over all rollouts of the flag."
    )
    percent: Number = Field(
        ge=0,
        le=100,
        description="The decided share of all contexts that get treatment, whatever audience they "
        "belong to.",
    )
    stage_percent: Number | None = Field(
        default=None,
        ge=0,
        le=100,
        description="The decided share of the present stage's audience that gets treatment; "
        "`percent` where the stage has no audience.",
    )
    phase: PhaseRecord
    hold: HoldReason | None = Field(
        description="Why the rollout does not move; null while nothing holds it."
    )
    freeze: FreezeRecord | None
    visits: list[VisitRecord] = Field(
        description="Oldest first. They assign each event to its stage."
    )
    started_at: StoredMoment
    updated_at: StoredMoment
    plan_version: str = Field(
        description="Identifies the content of the plan; pinned with it at the start."
    )
    plan: PlanDocument
