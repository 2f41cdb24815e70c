"""Alerts for people, on `rollout.alerts`, keyed by flag."""

from __future__ import annotations

from pydantic import Field

from schemas.advice import ExplanationRecord
from schemas.decision import HarmRecord
from schemas.fields import Count, Moment, Name, OpenModel
from schemas.terms import AlertKind, PhaseName, Severity

TYPE = "io.rolloutd.alert.v1"


class Alert(OpenModel):
    """One thing a person should know, and what to do now."""

    flag: Name
    rollout_id: str
    revision: Count
    at: Moment
    kind: AlertKind
    severity: Severity
    summary: str
    action: str = Field(description="What to do now, one sentence.")
    dedup_key: str = Field(description="Alerts with the same key need one page together.")
    phase: PhaseName
    stage: Count | None = Field(
        default=None, description="After the event; 1 for the first, null: in no stage."
    )
    percent: float = Field(
        description="The decided percentage after the event that the alert is about."
    )
    stage_name: str | None = Field(
        default=None, description="The present stage's name, or its share as in `10%`."
    )
    harm: HarmRecord | None = Field(
        description="What the rollout has cost so far; null when nothing was counted."
    )
    explanation: ExplanationRecord | None = Field(
        default=None,
        description="A model's guess at the cause. It comes on a later alert with the dedup key "
        "of the one that it explains; null on all others.",
    )
