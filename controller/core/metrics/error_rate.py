"""The metric `error_rate`: the share of contexts whose requests fail.

The unit of the tests is the context: those with an outcome that have not failed before in their
visit, and those of them that fail now. People see the share of requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from controller.core.analysis.latency import Ordered, Spread
from controller.core.analysis.proportion import Counts, rate_interval
from controller.core.evidence import ArmTotals
from controller.core.metrics.kind import (
    NOTHING_MEASURED,
    ArmSummary,
    MetricKind,
    Observed,
    Sample,
)
from controller.core.metrics.virtual import (
    Bounds,
    Draw,
    DrawnArm,
    ExampleHarm,
    VirtualMetric,
    percent,
)
from schemas import metric_names

#: The effect of a simulation: control's error rate times a factor.
ERRORS = "errors"


@dataclass(frozen=True, slots=True)
class VirtualErrors(VirtualMetric):
    """Each context fails with the same probability."""

    rate: float = 0.005

    @classmethod
    def assumed(cls, guardrails: Sequence[Bounds]) -> VirtualErrors:
        """Return half of the lowest limit; 0.5 % without any limit."""
        limits = [one.limit for one in guardrails if one.limit is not None]
        return cls(min(limits) / 2) if limits else cls()

    def words(self) -> list[str]:
        """Return control's rate for people."""
        return [f"errors {percent(self.rate)}"]

    def document(self) -> dict[str, Any]:
        """Return control's rate for machines."""
        return {"error_rate": self.rate}

    @classmethod
    def has_effect(cls, effect: str) -> bool:
        """Return whether the named effect changes errors."""
        return effect == ERRORS

    @classmethod
    def example_harms(cls, guardrails: Sequence[Bounds]) -> Iterator[ExampleHarm]:
        """Yield the harm that `plan lint` tries."""
        yield ExampleHarm(ERRORS, 2.0, "fails twice as often as control")

    def drawing(self, guardrails: Sequence[Bounds], effects: Mapping[str, float]) -> Draw:
        """Return what draws failures; simulations count them whether a plan watches them or not."""
        return self._draw

    def _draw(
        self, arm: DrawnArm, contexts: int, factors: Mapping[str, float], rng: np.random.Generator
    ) -> None:
        failed = int(rng.binomial(contexts, min(self.rate * factors.get(ERRORS, 1.0), 1.0)))
        arm.add("errors", failed)
        arm.add("first_errors", failed)


@dataclass(frozen=True, slots=True)
class ErrorRate(MetricKind):
    """The share of contexts that fail."""

    names = metric_names.ERROR_RATE
    alpha_weight = 0.65
    takes_points = True
    # Without it a service without errors could never be shown to be as good as control. It lies
    # far below any limit that people write. To show it takes some 60,000 contexts without an error.
    negligible_rate = 1e-4
    where_to_search = "logs and traces of failed requests"
    virtual = VirtualErrors

    def observed(self, arm: ArmTotals, latency: Ordered, limit: float | None) -> Observed:
        """Return the contexts at risk, and those with a first error."""
        return Observed(arm.at_risk, arm.first_errors)

    def compared(
        self, before: Sample, now: Sample, place: int | None, margin: float
    ) -> Counts | None:
        """Return the new contexts at risk and first errors of both arms."""
        old, new = before.totals, now.totals
        return Counts(
            new.treatment.at_risk - old.treatment.at_risk,
            new.treatment.first_errors - old.treatment.first_errors,
            new.control.at_risk - old.control.at_risk,
            new.control.first_errors - old.control.first_errors,
        )

    def limit_words(self, limit: float) -> str:
        """Return what is compared with the limit."""
        return "treatment failing"

    def summary(
        self, arm: ArmTotals, latency: Spread, slow_above: int | None, alpha: float
    ) -> ArmSummary:
        """Return the share of failed requests.

        The estimate counts requests, because people see that share elsewhere. The interval counts
        contexts, whose errors are independent; where a context had several errors, it is scaled in
        proportion.
        """
        if arm.outcomes == 0:
            return NOTHING_MEASURED
        errors = min(arm.errors, arm.outcomes)
        estimate = errors / arm.outcomes
        if arm.at_risk == 0:
            return ArmSummary(arm.outcomes, errors, estimate, 0.0, 1.0)
        first_errors = min(arm.first_errors, arm.at_risk)
        low, high = rate_interval(first_errors, arm.at_risk, alpha)
        repeats = estimate / (first_errors / arm.at_risk) if first_errors else 1.0
        return ArmSummary(
            arm.outcomes,
            errors,
            estimate,
            min(low * repeats, estimate),
            max(min(high * repeats, 1.0), estimate),
            repeats=errors / first_errors if first_errors else 1.0,
        )
