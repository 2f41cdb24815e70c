"""The metric `conversion:<name>`: the share of exposed contexts that convert; higher is better.

Conversions come late, so they are compared with everyone exposed so far who had not converted. One
share per visit makes both arms' exposures equally old, so the delay cancels out. An absolute limit
is a floor, which is judged by contexts that had time to convert (`core/judging/floors.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from schemas.metric_names import CONVERSION_PREFIX

if TYPE_CHECKING:
    import numpy as np

    from controller.core.analysis.latency import Ordered
    from controller.core.analysis.proportion import Counts


def _conversion_of(metric: str) -> str:
    """Return the conversion's name, as the apps report it."""
    return metric.removeprefix(CONVERSION_PREFIX)


@dataclass(frozen=True, slots=True)
class VirtualConversions(VirtualMetric):
    """Each context converts with the same probability, for each conversion apart."""

    rates: Mapping[str, float] = field(default_factory=dict)  # conversion -> share of contexts

    @classmethod
    def assumed(cls, guardrails: Sequence[Bounds]) -> VirtualConversions:
        """Return one and a half times each limit, at most a half; 5 % without a limit."""
        rates: dict[str, float] = {}
        for one in guardrails:
            rate = min(1.5 * one.limit, 0.5) if one.limit is not None else 0.05
            rates.setdefault(_conversion_of(one.metric), rate)
        return cls(rates)

    def completed_by(self, assumed: VirtualConversions) -> tuple[VirtualConversions, list[str]]:
        """Return these rates with those that only `assumed` has, and words for the latter."""
        lacking = VirtualConversions(
            {name: rate for name, rate in assumed.rates.items() if name not in self.rates}
        )
        return VirtualConversions({**self.rates, **lacking.rates}), lacking.words()

    def words(self) -> list[str]:
        """Return control's rates for people."""
        return [f"{name} {share_words(rate)}" for name, rate in self.rates.items()]

    def document(self) -> dict[str, Any]:
        """Return control's rates for machines."""
        return {"conversions": dict(self.rates)}

    @classmethod
    def is_harm(cls, factor: float) -> bool:
        """Return whether a factor does harm: conversions fall."""
        return 0 <= factor < 1

    @classmethod
    def has_effect(cls, effect: str) -> bool:
        """Return whether the named effect changes conversions."""
        return effect.startswith(CONVERSION_PREFIX)

    @classmethod
    def example_harms(cls, guardrails: Sequence[Bounds]) -> Iterator[ExampleHarm]:
        """Yield the harm that `plan lint` tries."""
        for metric in dict.fromkeys(one.metric for one in guardrails):
            yield ExampleHarm(metric, 0.5, f"has half of control's {metric}")

    def drawing(self, guardrails: Sequence[Bounds], effects: Mapping[str, float]) -> Draw | None:
        """Return what draws the conversions that the guardrails name."""
        metrics = dict.fromkeys(one.metric for one in guardrails)
        rates = [(metric, self.rates[_conversion_of(metric)]) for metric in metrics]

        def draw(
            arm: DrawnArm, contexts: int, factors: Mapping[str, float], rng: np.random.Generator
        ) -> None:
            converted = {}
            for metric, control in rates:
                rate = min(control * factors.get(metric, 1.0), 1.0)
                converted[_conversion_of(metric)] = int(rng.binomial(contexts, rate))
            arm.add_by_key("converted", converted)

        return draw if rates else None


@dataclass(frozen=True, slots=True)
class Conversion(MetricKind):
    """The share of exposed contexts that convert."""

    names = metric_names.CONVERSION
    alpha_weight = 0.1
    # To tolerate that nearly all conversions are lost is no comparison, and its ratio of rates is
    # nearly infinite.
    largest_margin = 0.999
    where_to_search = "the journey to it"
    unit_words = "users"
    virtual = VirtualConversions

    @property
    def conversion(self) -> str:
        """The conversion's name, as the apps report it."""
        return _conversion_of(self.metric)

    def observed(self, arm: ArmTotals, latency: Ordered, limit: float | None) -> Observed:
        """Return the exposed contexts, and those that converted."""
        return Observed(arm.exposures, arm.converted.get(self.conversion, 0))

    def compared(
        self, before: VisitSample, now: VisitSample, place: int | None, margin: float
    ) -> Counts | None:
        """Return the contexts that could still convert and those that did; the fall is the harm."""
        n_t, k_t = self._converted(before.totals.treatment, now.totals.treatment)
        n_c, k_c = self._converted(before.totals.control, now.totals.control)
        return arithmetic.Counts(n_t, k_t, n_c, k_c).swapped()

    def _converted(self, before: ArmTotals, now: ArmTotals) -> tuple[int, int]:
        earlier = before.converted.get(self.conversion, 0)
        return now.exposures - earlier, now.converted.get(self.conversion, 0) - earlier

    def limit_words(self, limit: float) -> str:
        """Return what is compared with the limit."""
        return f"reached {self.conversion}"

    def summary(
        self, arm: ArmTotals, latency: Ordered, slow_above: int | None, alpha: float
    ) -> ArmSummary:
        """Return the share of exposed contexts that converted."""
        trials = arm.exposures
        events = min(arm.converted.get(self.conversion, 0), trials)
        if trials == 0:
            return NOTHING_MEASURED
        return ArmSummary(
            trials, events, events / trials, *arithmetic.rate_interval(events, trials, alpha)
        )
