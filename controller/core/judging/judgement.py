"""Judgements: what is concluded from evidence.

Values only. `gate.judge` makes them; the state machine and every report read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from controller.core.evidence import WebhookReply
from controller.core.metrics.kind import ArmSummary
from schemas.terms import AdviceChoice, Arm, HealthGap, MetricRole, OnBreach, Verdict

if TYPE_CHECKING:
    from controller.core.analysis.sequential_tests import GapTime


def difference(arms: Mapping[Arm, ArmSummary]) -> tuple[float | None, float | None]:
    """Return the interval of treatment's value minus control's, in the metric's unit.

    None: not bounded. Both arms' intervals hold at once with probability 1 - 2 alpha, at any time,
    so this does too.
    """
    treatment, control = arms.get(Arm.TREATMENT), arms.get(Arm.CONTROL)
    if treatment is None or control is None:
        return None, None
    low = None if treatment.low is None or control.high is None else treatment.low - control.high
    high = None if treatment.high is None or control.low is None else treatment.high - control.low
    return low, high


@dataclass(frozen=True, slots=True)
class MetricReport:
    """One guardrail's answer to both questions: is it worse, and is it shown not worse."""

    metric: str
    role: MetricRole
    on_breach: OnBreach
    harm: Verdict  # FAIL: worse than allowed, found. INCONCLUSIVE: no alarm (which is not a pass)
    safe: Verdict  # PASS: shown not worse than the margin. What a gate asks for
    arms: Mapping[Arm, ArmSummary]
    e_value: float  # of the harm test; FAIL at or above `threshold`
    threshold: float
    e_value_safe: float | None  # of the non-inferiority test; PASS at or above `threshold_safe`
    threshold_safe: float | None
    margin: float | None
    limit: float | None
    reason: str  # one sentence with the numbers
    in_points: bool = False  # margins are differences of shares
    is_better_when_higher: bool = False  # an external metric's; others have it by their name
    #: Relative harm that `safe` has to exclude; None where nothing is compared.
    gate_margin: float | None = None
    #: Harm rate of treatment over control's in this visit; for latency, in control's tail.
    ratio: float | None = None
    #: Interval of the ratio at the plan's alpha, valid at any time; None: not bounded.
    ratio_low: float | None = None
    ratio_high: float | None = None

    @property
    def difference_low(self) -> float | None:
        """The least by which treatment's value may exceed control's, see `difference`."""
        return difference(self.arms)[0]

    @property
    def difference_high(self) -> float | None:
        """The most by which treatment's value may exceed control's, see `difference`."""
        return difference(self.arms)[1]

    @property
    def is_breach(self) -> bool:
        """True when this guardrail regressed: the one thing that needs no gate and no advice."""
        return self.role is MetricRole.GUARDRAIL and self.harm is Verdict.FAIL


@dataclass(frozen=True, slots=True)
class Gap:
    """A reason why the evidence cannot be judged yet."""

    kind: HealthGap
    detail: str  # one sentence with the numbers
    #: Actuation drift only: exposures show it, whatever the planes report.
    is_observed: bool = False
    #: SRM only: treatment is far below its share, as when it crashes before it can report.
    treatment_missing: bool = False
    #: For how long it was found without a break.
    lasted_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Harm:
    """The cost of the rollout so far, over all its stages."""

    exposed_contexts: int = 0  # distinct contexts that saw treatment, summed over stages
    failed_requests: int = 0  # error events in treatment
    excess_failed_requests: float = 0.0  # of them above what control's rate would have given


@dataclass(frozen=True, slots=True)
class Judgement:
    """What all the evidence of a rollout's present stage says, at one moment."""

    at: datetime
    visit: int  # index into Rollout.visits: the visit that the evidence belongs to
    gaps: tuple[Gap, ...]
    metrics: tuple[MetricReport, ...]
    harm: Harm
    exposures: Mapping[Arm, int]  # distinct contexts of this visit
    srm_e_value: float = 1.0
    observed_share: float | None = None  # of treatment among exposures, in [0, 1]
    #: "topic/partition" -> offset to read next.
    offsets: Mapping[str, int] = field(default_factory=dict)
    batches: int = 0  # closed by the sequential tests so far
    #: The gaps of this visit, also those that are gone for less than the plan's grace time.
    gap_times: Mapping[HealthGap, GapTime] = field(default_factory=dict)
    #: Why less is counted of this visit than has happened in it; None: all that has happened is.
    incomplete: str | None = None
    #: What the gate webhooks reply about the open gate, as far as they were asked.
    replies: tuple[WebhookReply, ...] = ()

    def seconds_of(self, kind: HealthGap) -> float:
        """Return for how long a kind of gap has lasted; 0 for one that is not there."""
        return self.gap_times[kind].lasted if kind in self.gap_times else 0.0

    @property
    def breach(self) -> MetricReport | None:
        """The first breached guardrail, harshest policy first."""
        breached = [metric for metric in self.metrics if metric.is_breach]
        return max(breached, key=lambda metric: metric.on_breach.strength, default=None)

    @property
    def statistics(self) -> Verdict:
        """The gate's statistical verdict.

        PASS only when every guardrail is shown not worse and no signal regressed.
        """
        judging = [metric for metric in self.metrics if metric.role is not MetricRole.OBSERVE]
        verdicts = {Verdict.FAIL for metric in judging if metric.harm is Verdict.FAIL}
        verdicts |= {metric.safe for metric in judging if metric.role is MetricRole.GUARDRAIL}
        for worst in (Verdict.FAIL, Verdict.NO_DATA, Verdict.INCONCLUSIVE):
            if worst in verdicts:
                return worst
        return Verdict.PASS


@dataclass(frozen=True, slots=True)
class Explanation:
    """The model's guess at why something happened. It is for people; no code acts on it."""

    likely_cause: str
    next_steps: tuple[str, ...]
    model: str
    server: str
    prompt: str  # name and version of the prompt's text
    prompt_sha256: str
    latency_ms: int


@dataclass(frozen=True, slots=True)
class Advice:
    """The model's opinion, parsed and bounded."""

    choice: AdviceChoice
    confidence: int  # 0..100, claimed by the model; recorded, never acted on
    reasons: tuple[str, ...]
    model: str
    prompt_sha256: str
    latency_ms: int
    raw: str = ""  # the answer, capped
    # What else is needed to repeat the question; empty in advice of earlier releases.
    server: str = ""  # its address without path and key
    prompt: str = ""  # name and version of the prompt's text
    parameters: str = ""  # what else was asked for, as JSON
    prompt_tokens: int | None = None  # the server's counts, None where it gives none
    completion_tokens: int | None = None
