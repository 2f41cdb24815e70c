"""The metric `error_rate`: the share of user actions that fail.

A user action is the requests of one context that are counted in the same batch. It fails with the
context's first failed request in its visit of the stage. After that the context does not count any
more: the failures of one context depend on each other. The actions of a context that is far more
active than the others are left out. Tests, tables and sentences have this one rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controller.core.evidence import ArmTotals
from controller.core.metrics import arithmetic
from controller.core.metrics.kind import (
    NOTHING_MEASURED,
    ArmSummary,
    MetricKind,
    Observed,
    VisitSample,
    share_words,
)
from controller.core.metrics.virtual import (
    Bounds,
    Draw,
    DrawnArm,
    ExampleHarm,
    VirtualMetric,
)
from schemas import metric_names

#: The effect of a simulation: control's error rate times a factor.
ERRORS = "errors"

if TYPE_CHECKING:
    import numpy as np

    from controller.core.analysis.latency import Ordered
    from controller.core.analysis.proportion import Counts


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
        return [f"errors {share_words(self.rate)}"]

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
    """The share of user actions that fail."""

    names = metric_names.ERROR_RATE
    alpha_weight = 0.65
    takes_points = True
    # Without it a service without errors could never be shown to be as good as control. It lies
    # far below any limit that people write. To show it takes some 76,000 contexts without an error.
    negligible_rate = 1e-4
    where_to_search = "logs and traces of failed requests"
    virtual = VirtualErrors

    def observed(self, arm: ArmTotals, latency: Ordered, limit: float | None) -> Observed:
        """Return the contexts at risk, and those with a first error."""
        return Observed(arm.at_risk, arm.first_errors)

    def compared(
        self, before: VisitSample, now: VisitSample, place: int | None, margin: float
    ) -> Counts | None:
        """Return the new contexts at risk and first errors of both arms."""
        old, new = before.totals, now.totals
        return arithmetic.Counts(
            new.treatment.at_risk - old.treatment.at_risk,
            new.treatment.first_errors - old.treatment.first_errors,
            new.control.at_risk - old.control.at_risk,
            new.control.first_errors - old.control.first_errors,
        )

    def limit_words(self, limit: float) -> str:
        """Return what is compared with the limit."""
        return "failed"

    def summary(
        self, arm: ArmTotals, latency: Ordered, slow_above: int | None, alpha: float
    ) -> ArmSummary:
        """Return the rate that the tests judge, which is not that of requests.

        An app that sends several requests per user has another rate of failed requests. To show
        that one beside the tests' sentences would contradict them.
        """
        if arm.at_risk == 0:
            return NOTHING_MEASURED
        failed = min(arm.first_errors, arm.at_risk)
        low, high = arithmetic.rate_interval(failed, arm.at_risk, alpha)
        return ArmSummary(
            arm.at_risk,
            failed,
            failed / arm.at_risk,
            low,
            high,
            repeats=arm.errors / failed if failed else 1.0,
        )
