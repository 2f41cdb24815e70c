"""What is shown of a rollout while it runs: its newest evidence, and its course through a stage.

Kept in Redis, where every replica reads it, and answered by the HTTP API. Nothing is decided by it.
"""

from __future__ import annotations

from typing import Final

from pydantic import Field

from schemas.decision import JudgementRecord, Measured, WholeNumber
from schemas.fields import Moment, Name, OpenModel
from schemas.terms import Arm, Verdict

#: Points kept of one visit of a stage. When there are more, every second one is dropped.
MAX_POINTS: Final = 300


class PlaneRecord(OpenModel):
    """Whether a flag plane serves what was decided, as last observed."""

    plane: str
    is_converged: bool
    decided_percent: float
    percent: float | None = Field(
        description="As read last; null: not read yet, or the plane does not know the flag."
    )
    reason: str | None = Field(description="Why it has not converged.")
    since: Moment | None = Field(description="Since when it has not converged.")
    checked_at: Moment | None = Field(description="When it last answered.")


class LiveReport(OpenModel):
    """The newest evidence of one flag, as the replica that runs it wrote it."""

    flag: Name
    rollout_id: str
    revision: WholeNumber
    written_at: Moment
    replica: str = Field(description="Host name and process of the writer.")
    judgement: JudgementRecord | None = Field(description="null: nothing was judged yet.")
    planes: list[PlaneRecord]


class ArmPoint(OpenModel):
    """One arm of one metric at one moment, in the metric's unit."""

    trials: WholeNumber
    estimate: Measured
    low: Measured
    high: Measured


class MetricPoint(OpenModel):
    """One metric at one moment: both arms, and both tests against their thresholds."""

    metric: str
    harm: Verdict
    safe: Verdict
    arms: dict[Arm, ArmPoint]
    e_value: Measured
    threshold: Measured
    e_value_safe: Measured
    threshold_safe: Measured
    ratio: Measured
    ratio_low: Measured
    ratio_high: Measured


class HistoryPoint(OpenModel):
    """The evidence of one visit at one moment."""

    at: Moment
    percent: float = Field(description="Decided for this stage.")
    exposures: dict[Arm, WholeNumber]
    metrics: list[MetricPoint]


class StageHistory(OpenModel):
    """The course of one visit of a stage, oldest point first."""

    flag: Name
    rollout_id: str
    visit: WholeNumber = Field(description="Index into the rollout's visits.")
    stage: WholeNumber = Field(description="1 for the first.")
    points: list[HistoryPoint] = Field(max_length=MAX_POINTS)
