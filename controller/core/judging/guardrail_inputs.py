"""What the report of one guardrail is about, at one moment, and both of its arms.

Does not belong here: verdicts and sentences (`reports.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from controller.core.analysis.latency import Ordered, margin_buckets
from controller.core.analysis.sequential_tests import FloorTest, LimitTest, RatioTest
from controller.core.evidence import VisitTotals, bucket_of
from controller.core.metrics.kind import ArmSummary, Observed
from controller.core.plan import Guardrail
from schemas.terms import Arm


@dataclass(frozen=True, slots=True)
class GuardrailInputs:
    """Everything that one guardrail's questions are about, at one moment."""

    guardrail: Guardrail
    limit: LimitTest | None
    floor: FloorTest | None
    ratio: RatioTest | None
    totals: VisitTotals
    latencies: Mapping[Arm, Ordered]
    elapsed_seconds: float
    alpha: float
    beta: float
    gate_margin: float | None  # of a gate in this stage; None where nothing is compared

    def observed(self) -> Observed:
        """Return treatment's observations and events, as its limit counts them."""
        trials, events = self.guardrail.kind.observed(
            self.totals.treatment, self.latencies[Arm.TREATMENT], self.guardrail.limit
        )
        return Observed(trials, min(events, trials))


class Arms(Mapping[Arm, ArmSummary]):
    """Both arms of the present visit, summed up at the first read.

    Verdicts do not depend on them. Their intervals cost a quarter of a check, and most checks lead
    to no decision that shows them.
    """

    def __init__(self, inputs: GuardrailInputs) -> None:
        """Keep what they are made of, which never changes."""
        self._inputs = inputs

    @cached_property
    def _summaries(self) -> dict[Arm, ArmSummary]:
        inputs = self._inputs
        return {
            arm: inputs.guardrail.kind.summary(
                inputs.totals.arm(arm),
                inputs.latencies[arm],
                _slow_above(inputs, arm),
                inputs.alpha,
            )
            for arm in Arm
        }

    def __getitem__(self, arm: Arm) -> ArmSummary:
        return self._summaries[arm]

    def __iter__(self) -> Iterator[Arm]:
        return iter(self._summaries)

    def __len__(self) -> int:
        return len(self._summaries)

    def __repr__(self) -> str:
        return repr(self._summaries)


def _slow_above(inputs: GuardrailInputs, arm: Arm) -> int | None:
    """Return the latency bucket above which a value is slow: the limit, else the compared place.

    Treatment's place has the margin on top. None for a metric that is no latency.
    """
    guardrail, test = inputs.guardrail, inputs.ratio
    if guardrail.kind.is_share:
        return None
    if guardrail.limit is not None:
        return bucket_of(guardrail.limit)
    if test is None or test.place is None:
        return None
    return test.place + (margin_buckets(guardrail.margin or 0) if arm is Arm.TREATMENT else 0)
