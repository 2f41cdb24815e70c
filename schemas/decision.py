"""Records of what the controller did, with all the evidence: the audit log.

On `rollout.decisions`, keyed by flag.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from schemas.advice import AdviceRecord
from schemas.fields import Moment, Name, OpenModel
from schemas.plan import PlanDocument
from schemas.terms import (
    Arm,
    DecisionKind,
    GateAnswer,
    HealthGap,
    MetricRole,
    OnBreach,
    PhaseName,
    Verdict,
)

TYPE = "io.rolloutd.decision.v1"


def _finite(value: Any) -> Any:
    """Return a number that JSON has: the largest double for infinity, None for NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else math.copysign(sys.float_info.max, value)
    return value


Measured = Annotated[float | None, BeforeValidator(_finite)]
"""A computed number: null when it could not be computed, ±1.797e308 for infinity."""


def _whole(value: Any) -> int:
    """Return an integer of any type. pydantic lets a TypeError through, and takes a ValueError."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError("write a whole number") from None


WholeNumber = Annotated[int, BeforeValidator(_whole, json_schema_input_type=int), Field(ge=0)]
"""A count, a revision or a place, 0 or more; an array library's integer is accepted too."""


class ArmRecord(OpenModel):
    """One arm of one metric, in the metric's own unit: a share in [0, 1], or milliseconds."""

    trials: WholeNumber = Field(
        description="Observations behind the estimate: user actions (requests of one context in "
        "one batch of counting) for error_rate and latency, contexts for conversions."
    )
    events: WholeNumber = Field(
        description="Of the trials those that were bad (errors, slow ones) or good (conversions)."
    )
    estimate: Measured = Field(description="null: nothing measured.")
    low: Measured
    high: Measured
    repeats: Measured = Field(
        default=1.0,
        description="error_rate only: failed requests per context that failed.",
    )


class MetricRecord(OpenModel):
    """One guardrail's two answers: is treatment worse, and is it shown not to be worse."""

    metric: str
    role: MetricRole
    on_breach: OnBreach
    harm: Verdict = Field(
        description="fail: worse than allowed. inconclusive: no alarm, which is not a pass."
    )
    safe: Verdict = Field(
        description="pass: shown to be not worse than the margin, which a gate requires."
    )
    arms: dict[Arm, ArmRecord]
    e_value: Measured = Field(
        description="Of the harm test. fail at or above `threshold`. A number of a monitoring "
        "system (`external:NAME`) is not tested: for it this is `threshold` to the power of the "
        "looks that missed by those that a breach takes. Its counters (`counters:NAME`) are."
    )
    threshold: Measured
    e_value_safe: Measured = Field(
        description="Of the safety test. pass at or above `threshold_safe`."
    )
    threshold_safe: Measured
    margin: Measured = Field(
        description="Tolerated harm compared with control; relative unless `in_points`."
    )
    limit: Measured
    reason: str = Field(description="One sentence with the numbers.")
    in_points: bool = Field(
        default=False,
        description="Margins are differences of shares: 0.005 is 0.5 percentage points.",
    )
    gate_margin: Measured = Field(
        default=None, description="The harm that `safe` must exclude; null: nothing is compared."
    )
    is_better_when_higher: bool = Field(
        default=False,
        description="external metrics only: a fall is the harm. Of the others the name says it.",
    )
    ratio: Measured = Field(
        default=None,
        description="Harm rate of treatment divided by control's, in this stage, as the tests "
        "estimate it: within each batch, so it is not the quotient of the estimates in `arms`. For "
        "latency, of values in control's tail.",
    )
    ratio_low: Measured = Field(
        default=None,
        description="Interval at the plan's alpha, valid at any time; null: unbounded.",
    )
    ratio_high: Measured = Field(
        default=None,
        description="Anything worse is ruled out: `reason` says this number where margins are "
        "relative. For conversions it is control's rate divided by treatment's, and `reason` says "
        "the reciprocal.",
    )
    difference_low: Measured = Field(
        default=None,
        description="Interval of treatment's value minus control's, in the metric's unit, at "
        "twice the plan's alpha; null: unbounded.",
    )
    difference_high: Measured = Field(
        default=None,
        description="Anything worse is ruled out: `reason` says this number where margins are "
        "`in_points`. It is no other way to write `ratio_high`: that one compares the arms within "
        "each batch, this one each arm's own interval.",
    )


class GapRecord(OpenModel):
    """A reason why the evidence cannot be judged yet."""

    kind: HealthGap
    detail: str
    treatment_missing: bool = Field(description="srm only: treatment has far less than its share.")
    is_observed: bool = Field(
        default=False,
        description="actuation_drift only: the exposures show it, whatever the planes report.",
    )
    lasted_seconds: float = Field(
        default=0.0, ge=0, description="For how long it was found without a break."
    )


class WebhookRecord(OpenModel):
    """What a gate webhook replied to the newest question about the open gate."""

    endpoint: str = Field(description="Its name in the settings.")
    answer: GateAnswer | None = Field(description="null: there is none, and `gap` says why.")
    gap: HealthGap | None
    words: str = Field(description="The reason that it gives, or what is wrong.")
    at: Moment = Field(description="When it was asked.")


class HarmRecord(OpenModel):
    """What the rollout has cost so far, over all its stages."""

    exposed_contexts: WholeNumber = Field(
        description="Distinct contexts that were served treatment, summed over stages."
    )
    failed_requests: WholeNumber = Field(description="Failed requests in treatment.")
    excess_failed_requests: Measured = Field(
        description="Of the failed requests those beyond control's rate."
    )


class JudgementRecord(OpenModel):
    """One judgement of all the evidence of a stage."""

    at: Moment
    visit: WholeNumber = Field(description="Index into the rollout's visits.")
    verdict: Verdict = Field(
        description="Over all guardrails and signals: pass only when each is shown to be not "
        "worse. While there are gaps, pass does not count: nothing advances by it."
    )
    gaps: list[GapRecord]
    metrics: list[MetricRecord]
    harm: HarmRecord
    exposures: dict[Arm, WholeNumber] = Field(
        description="Distinct contexts of this visit of the stage."
    )
    srm_e_value: Measured = Field(description="Against the decided share.")
    observed_share: Measured = Field(description="Of treatment among exposures.")
    offsets: dict[str, WholeNumber] = Field(
        description="By `topic/partition`, the next offset to read: everything before was counted."
    )
    batches: WholeNumber = Field(
        description="Batches of evidence that the sequential tests have taken in."
    )
    incomplete: str | None = Field(
        default=None,
        description="Why less is counted of this visit than has happened in it, as after a loss of "
        "the stored totals: all figures are of what is counted so far. null: they are complete.",
    )
    webhooks: list[WebhookRecord] = Field(
        default=[],
        description="At a gate: what the plan's gate webhooks replied, as far as they were asked.",
    )


class PlanReference(OpenModel):
    """The plan on which the decision rests."""

    name: Name
    version: str


class AppliedPlanRecord(OpenModel):
    """A change of a running plan."""

    before: PlanDocument
    after: PlanDocument = Field(description="With the stages that the rollout had entered.")
    changes: list[str] = Field(description="Each difference in words.")


class Decision(OpenModel):
    """One thing the controller did, who requested it, and on what evidence."""

    flag: Name
    rollout_id: str
    revision: WholeNumber = Field(description="Of the rollout after the decision.")
    at: Moment
    kind: DecisionKind
    reason: str
    issuer: str = Field(description="`rolloutd`, or who issued the command.")
    phase: PhaseName = Field(description="After the decision.")
    stage: WholeNumber | None = Field(description="1 for the first; null: in no stage.")
    stage_name: str | None = Field(
        default=None, description="The stage's name, or its share as in `10%`."
    )
    from_percent: float
    to_percent: float
    audience: str | None = Field(
        default=None,
        description="The audience that `to_percent` is a share of; null: everybody. "
        "`from_percent` may be the share of another one.",
    )
    plan: PlanReference
    gate_id: str | None
    command_id: str | None
    judgement: JudgementRecord | None = Field(description="null: decided without evidence.")
    advice: AdviceRecord | None = Field(description="null: none was requested, or none came.")
    applied: AppliedPlanRecord | None = Field(
        default=None, description="Both plans, where `apply` changed the plan; else null."
    )
    evidence_trouble: str | None = Field(
        default=None,
        description="Why there is no `judgement` although a stage lasts; null: there is one, or "
        "there was nothing to judge.",
    )
