"""The document of one rollout, on `rollout.state` (compacted, keyed by flag).

Apps may follow it, and rolloutd recovers from it. `percent` of all contexts get the treatment
variant. What audiences get in addition stands in the plan's stages up to the present one. Readers
ignore a `revision` that is older than one they have read. `schema_version` grows with every change
of this form: readers refuse an unknown version, and every release reads its own and those before.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from schemas.advice import AdviceRecord
from schemas.fields import (
    LARGEST_INTEGER,
    Count,
    Name,
    Number,
    StoredMoment,
    StrictModel,
    Switch,
)
from schemas.plan import PlanDocument
from schemas.terms import HealthGap, HoldReason

TYPE = "io.rolloutd.state.v1"

#: Header of the record without a value that retires a flag; its content is the revision, in digits.
RETIRED_HEADER: Final = "rolloutd-retired"
#: Each transition adds one, and no reader of JSON may take two revisions for the same.
LARGEST_REVISION: Final = LARGEST_INTEGER // 2

SCHEMA_VERSION: Final = 5
#: Version 1 has no audiences, flag types and values; otherwise it is version 2. Both number stages
#: from 0, and have neither names of stages, nor `told_gaps`, nor `has_advisor`. None before version
#: 4 has active windows and `closings`, and none before version 5 `authors` and `four_eyes`.
READ_VERSIONS: Final = (1, 2, 3, 4, 5)
#: From this version on the first stage is 1, as in every record.
STAGES_FROM_1: Final = 3


StageNumber = Annotated[Count, Field(description="1 for the first; in versions 1 and 2 it was 0.")]


class ScheduledPhase(StrictModel):
    """Accepted; 0 % is served until the start."""

    name: Literal["scheduled"]
    start_at: StoredMoment


class BakingPhase(StrictModel):
    """The stage gathers evidence."""

    name: Literal["baking"]
    stage: StageNumber
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
    stage: StageNumber
    gate_id: str
    since: StoredMoment
    until: StoredMoment
    advice: AdviceRoundRecord | None


class AwaitingApprovalPhase(StrictModel):
    """Everything else has passed; a person decides."""

    name: Literal["awaiting_approval"]
    stage: StageNumber
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


class RetiredPhase(StrictModel):
    """rolloutd has let go of the flag.

    No record of `rollout.state` has this phase: a retired flag has a record without a value there.
    """

    name: Literal["retired"]
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
    | AbortedPhase
    | RetiredPhase,
    Field(discriminator="name"),
]


class ClosingRecord(StrictModel):
    """A time outside the plan's active windows: everybody had control, and no event counts."""

    since: StoredMoment
    counts_from: StoredMoment | None = Field(
        default=None, description="When it opened, plus `settle`; null: it is closed still."
    )


class VisitRecord(StrictModel):
    """One visit of a stage."""

    stage: StageNumber
    percent: Number = Field(ge=0, le=100)
    entered_at: StoredMoment
    counts_from: StoredMoment = Field(description="Events before it do not count.")
    left_at: StoredMoment | None
    closings: list[ClosingRecord] = Field(
        default=[], description="Oldest first; after completion only the last goes on."
    )


class FreezeRecord(StrictModel):
    """A freeze by an operator: nothing advances."""

    since: StoredMoment
    issuer: str
    reason: str


class RolloutState(StrictModel):
    """The document of one rollout after a transition."""

    schema_version: Literal[1, 2, 3, 4, 5] = SCHEMA_VERSION
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
    closed_since: StoredMoment | None = Field(
        default=None,
        description="Since when `percent` is 0 outside the plan's active windows; null: it is "
        "not. A copy of what `visits` says.",
    )
    told_gaps: list[HealthGap] = Field(
        default=[],
        max_length=len(HealthGap),
        description="The health gaps of the present stage that an alert told of, until another "
        "says that they are over.",
    )
    told_breaches: list[Annotated[str, Field(max_length=200)]] = Field(
        default=[],
        max_length=50,
        description="The metrics whose breach an alert told of since the rollout was paused for "
        "one, until another says that it is over.",
    )
    visits: list[VisitRecord] = Field(
        description="Oldest first. They assign each event to its stage."
    )
    started_at: StoredMoment
    updated_at: StoredMoment
    plan_version: str = Field(
        description="Identifies the content of the plan; pinned with it at the start."
    )
    plan: PlanDocument
    has_advisor: Switch = Field(
        default=True,
        description="Whether a model is configured where the rollout runs. Without one, advice "
        "that the plan does not require is neither asked for nor waited for.",
    )
    authors: list[Annotated[str, Field(max_length=200)]] = Field(
        default=[],
        max_length=100,
        description="Who started the rollout, and who applied a plan to it since, each once. Empty "
        "in versions before 5.",
    )
