"""Documents of the HTTP API about the inventory of flags."""

from __future__ import annotations

from pydantic import Field

from schemas.decision import Measured, WholeNumber
from schemas.fields import Moment, Name, OpenModel
from schemas.terms import DecisionKind, FlagFinding, FlagType, PhaseName


class FindingRecord(OpenModel):
    """Something about a flag that a person should put right."""

    finding: FlagFinding
    why: str = Field(description="In words, with the numbers.")
    action: str = Field(description="The one thing that resolves it.")


class EvaluationsRecord(OpenModel):
    """How often a flag was evaluated in the last 24 hours, as apps reported it."""

    treatment: WholeNumber
    control: WholeNumber
    neither: WholeNumber = Field(
        description="Of contexts in neither arm, and of variants that the plan does not have."
    )


class LiftRecord(OpenModel):
    """By how much more often treatment converts than control, as last judged."""

    conversion: str
    lift: Measured = Field(description="0.04: 4 % more often; null: control has not converted yet.")
    low: Measured = Field(description="Interval, valid at any time; null: not bounded.")
    high: Measured
    at: Moment = Field(description="Of the judgement.")


class LastDecisionRecord(OpenModel):
    """The newest decision about a flag."""

    kind: DecisionKind
    at: Moment


class FlagLine(OpenModel):
    """One flag with a rollout, in the inventory."""

    flag: Name = Field(description="The flag's key.")
    owner: str = Field(description="Of the plan; empty: it names none.")
    flag_type: FlagType
    phase: PhaseName
    percent: float = Field(description="Of contexts, as decided.")
    started_at: Moment = Field(description="When its present or last rollout began.")
    updated_at: Moment = Field(description="When its rollout changed last.")
    expires_at: Moment | None = Field(description="Of the plan; null: it names no time.")
    evaluations: EvaluationsRecord | None = Field(
        default=None,
        description="In the last 24 hours, over all replicas; null: not known yet. A crash of a "
        "replica loses those of its last minute.",
    )
    evaluated_at: Moment | None = Field(
        default=None, description="Hour of the last evaluation; null: none since `watched_since`."
    )
    watched_since: Moment | None = Field(
        default=None, description="Hour since when evaluations are counted; null: not known yet."
    )
    lifts: list[LiftRecord] = Field(
        default_factory=list, description="Of each conversion that its plan names."
    )
    last_decision: LastDecisionRecord | None = Field(
        default=None, description="null: not known, because it was long ago."
    )
    findings: list[FindingRecord]


class UnknownFlag(OpenModel):
    """A flag that apps name in events, and that has no rollout."""

    flag: str = Field(description="As the events name it.")
    events: WholeNumber = Field(description="Of the last 24 hours, at least.")


class FlagList(OpenModel):
    """Flags with a rollout: those with findings first, then by key."""

    flags: list[FlagLine]
    total: WholeNumber = Field(description="How many there are that fit the question.")
    offset: WholeNumber = Field(description="How many come before these.")
    counts: dict[FlagFinding, WholeNumber] = Field(description="Flags of all with each finding.")
    without_rollout: list[UnknownFlag] = Field(
        default_factory=list,
        description="Flags that events name and that have no rollout, the most frequent first, 100 "
        "at most; only those that `q` fits, and none where `finding` is given.",
    )
    at: Moment = Field(description="When this was answered.")
    stale_since: Moment | None = Field(
        default=None, description="Since when this replica may lack decisions; null: it is current."
    )
