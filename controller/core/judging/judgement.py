"""What was concluded from evidence.

Values only, filled by `gate.judge`, read by `machine.decide` and by every report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from controller.core.metrics.kind import ArmSummary
from schemas.terms import AdviceChoice, Arm, HealthGap, MetricRole, OnBreach, Verdict


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
    gate_margin: float | None = (
        None  # relative harm that `safe` has to exclude; None where nothing is compared
    )
    ratio: float | None = (
        # harm rate of treatment over control's in this stay; for latency, of values in control's
        # tail
        None
    )
    ratio_low: float | None = (
        None  # interval at the plan's alpha, valid at any time; None: not bounded
    )
    ratio_high: float | None = None

    @property
    def difference_low(self) -> float | None:
        """The least that treatment's value may exceed control's by, in the metric's unit.

        None: not bounded.

        Both arms' intervals hold at once with probability 1 - 2 alpha, hence so does this, at any
        time.
        """
        low, high = self._end(Arm.TREATMENT, "low"), self._end(Arm.CONTROL, "high")
        return None if low is None or high is None else low - high

    @property
    def difference_high(self) -> float | None:
        """The most that treatment's value may exceed control's by, see `difference_low`."""
        high, low = self._end(Arm.TREATMENT, "high"), self._end(Arm.CONTROL, "low")
        return None if low is None or high is None else high - low

    def _end(self, arm: Arm, name: str) -> float | None:
        end: float | None = getattr(self.arms[arm], name) if arm in self.arms else None
        return end

    @property
    def is_breach(self) -> bool:
        """True when this guardrail regressed: the one thing that needs no gate and no advice."""
        return self.role is MetricRole.GUARDRAIL and self.harm is Verdict.FAIL


@dataclass(frozen=True, slots=True)
class Gap:
    """A reason why the evidence cannot be judged yet."""

    kind: HealthGap
    detail: str  # one sentence with the numbers
    is_observed: bool = (
        False  # actuation drift only: exposures show it, whatever the planes say of themselves
    )
    treatment_missing: bool = (
        False  # SRM only: treatment is far below its share, as when it crashes before it can report
    )


@dataclass(frozen=True, slots=True)
class Harm:
    """What the rollout has cost so far, over all its stages."""

    exposed_contexts: int = 0  # distinct contexts that saw treatment, summed over stages
    failed_requests: int = 0  # error events in treatment
    excess_failed_requests: float = 0.0  # of them above what control's rate would have given


@dataclass(frozen=True, slots=True)
class Judgement:
    """One look at all the evidence of a rollout's present stage."""

    at: datetime
    visit: int  # index into Rollout.visits: the stay the evidence belongs to
    gaps: tuple[Gap, ...]
    metrics: tuple[MetricReport, ...]
    harm: Harm
    exposures: Mapping[Arm, int]  # distinct contexts of this stay
    srm_e_value: float = 1.0
    observed_share: float | None = None  # of treatment among exposures, in [0, 1]
    offsets: Mapping[str, int] = field(
        default_factory=dict
    )  # "topic/partition" -> offset to read next
    batches: int = 0  # looks the sequential tests have had

    @property
    def breach(self) -> MetricReport | None:
        """The first breached guardrail, harshest policy first."""
        breached = [metric for metric in self.metrics if metric.is_breach]
        order = (OnBreach.ROLL_BACK, OnBreach.STEP_BACK, OnBreach.PAUSE)
        return min(breached, key=lambda metric: order.index(metric.on_breach), default=None)

    @property
    def statistics(self) -> Verdict:
        """The gate's statistical verdict.

        PASS only when every guardrail is shown not worse and no signal regressed.
        """
        asked = [metric for metric in self.metrics if metric.role is not MetricRole.OBSERVE]
        verdicts = {Verdict.FAIL for metric in asked if metric.harm is Verdict.FAIL}
        verdicts |= {metric.safe for metric in asked if metric.role is MetricRole.GUARDRAIL}
        for worst in (Verdict.FAIL, Verdict.ERROR, Verdict.NO_DATA, Verdict.INCONCLUSIVE):
            if worst in verdicts:
                return worst
        return Verdict.PASS


@dataclass(frozen=True, slots=True)
class Explanation:
    """The model's guess at why something happened: for people, acted on by nobody else."""

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
    confidence: int  # 0..100, the model's own claim; recorded, never acted on
    reasons: tuple[str, ...]
    model: str
    prompt_sha256: str
    latency_ms: int
    raw: str = ""  # the answer, capped
    # Besides the evidence and the model, what it takes to ask for this opinion again; empty in
    # advice of earlier releases.
    server: str = ""  # its address without path and key
    prompt: str = ""  # name and version of the prompt's text
    parameters: str = ""  # what else was asked for, as JSON
    prompt_tokens: int | None = None  # the server's counts, None where it gives none
    completion_tokens: int | None = None
