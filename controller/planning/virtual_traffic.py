"""The virtual traffic that a plan is tried with, and what a release does to it.

Traffic is a number of contexts per second, control's behavior in each kind of metric, and
treatment's effects. The kinds draw their own counters, see `controller/core/metrics/virtual.py`.
Every request is a context of its own. Where contexts come back, give the traffic of contexts: a
context's first error counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from controller.core.metrics import VIRTUAL_METRICS
from controller.core.metrics.error_rate import VirtualErrors
from controller.core.metrics.virtual import Draw, DrawnArm, VirtualMetric
from controller.core.plan import Guardrail, Plan
from controller.core.serving import decided_share
from controller.core.visits import Visit
from schemas.fields import format_duration
from schemas.terms import Arm, MetricRole


@dataclass(frozen=True, slots=True)
class Effect:
    """What treatment does worse than control, and from when on.

    At once, from a stage on, or after some time.
    """

    name: str  # see `VirtualMetric.has_effect`: errors | latency | tail | conversion:<name>
    factor: float  # of control's value: above 1 for errors and latency, below 1 for conversions
    stage: int | None = None  # 0-based; in this stage and all after it
    after: timedelta | None = None  # since the rollout began

    def is_active(self, visit: Visit, at: datetime, started_at: datetime) -> bool:
        """Return whether it does harm to what is served from `at` on."""
        if self.stage is not None:
            return visit.stage >= self.stage
        return self.after is None or at >= started_at + self.after

    def __str__(self) -> str:
        """Return it as it is written on the command line."""
        begin = ""
        if self.stage is not None:
            begin = f"@stage{self.stage + 1}"
        elif self.after is not None:
            begin = f"@{format_duration(self.after)}"
        return f"{self.name}=x{self.factor:g}{begin}"


@dataclass(frozen=True, slots=True)
class VirtualTraffic:
    """Control's traffic and behavior, and treatment's effects."""

    contexts_per_second: float  # both arms together
    control: tuple[VirtualMetric, ...]  # one of each kind, in the order of `VIRTUAL_METRICS`
    effects: tuple[Effect, ...] = ()

    @classmethod
    def of(cls, contexts_per_second: float, *control: VirtualMetric) -> VirtualTraffic:
        """Return traffic without effects; a kind that is not given has its usual behavior."""
        given = {type(metric): metric for metric in control}
        return cls(contexts_per_second, tuple(given.get(one) or one() for one in VIRTUAL_METRICS))

    @property
    def error_rate(self) -> float:
        """Control's share of contexts that fail."""
        return next(one.rate for one in self.control if isinstance(one, VirtualErrors))

    @property
    def rate_words(self) -> str:
        """The traffic per second, or per the shortest unit that has at least one context."""
        rate = self.contexts_per_second
        units = (("s", 1), ("min", 60), ("h", 3_600), ("d", 86_400))
        unit, seconds = next((one for one in units if rate * one[1] >= 1), units[-1])
        return f"{rate * seconds:.3g} contexts/{unit}"

    def words(self, plan: Plan) -> str:
        """Return what control is like, as far as the plan watches it."""
        watched = [one.words() for one in self.control if guardrails_of(plan, type(one))]
        parts = [f"{self.rate_words} in both arms"]
        return "; ".join([*parts, *(words for several in watched for words in several)])

    def document(self) -> dict[str, Any]:
        """Return what control is like, for machines."""
        document: dict[str, Any] = {"contexts_per_second": self.contexts_per_second}
        for one in self.control:
            document |= one.document()
        return document


def guardrails_of(plan: Plan, virtual: type[VirtualMetric]) -> list[Guardrail]:
    """Return the plan's guardrails whose kind a virtual metric draws."""
    return [one for one in plan.guardrails if one.kind.virtual is virtual]


def example_harms(plan: Plan) -> Iterator[tuple[Effect, str, list[Guardrail]]]:
    """Yield harms that nobody wants promoted, each with the guardrails that watch for it."""
    for virtual in VIRTUAL_METRICS:
        armed = [one for one in guardrails_of(plan, virtual) if one.role is MetricRole.GUARDRAIL]
        if armed:
            for harm in virtual.example_harms(armed):
                own = [one for one in armed if one.metric == harm.effect]
                yield Effect(harm.effect, harm.factor), harm.words, own or armed


class TrafficSource:
    """Draws what happens in virtual traffic under a plan.

    One source does for all runs: what is drawn depends on the generator alone.
    """

    def __init__(self, traffic: VirtualTraffic, plan: Plan) -> None:
        """Prepare the drawing of each kind for the plan's guardrails."""
        self.traffic = traffic
        self._plan = plan
        effects = {effect.name: effect.factor for effect in traffic.effects}
        drawings = [
            metric.drawing(guardrails_of(plan, type(metric)), effects) for metric in traffic.control
        ]
        self._drawings: list[Draw] = [draw for draw in drawings if draw is not None]

    def draw(
        self,
        onto: Mapping[Arm, DrawnArm],
        visit: Visit,
        since: datetime,
        until: datetime,
        active: Iterable[Effect],
        rng: np.random.Generator,
    ) -> None:
        """Add to both arms what happens in a stretch of time during which nothing changes."""
        seconds = (until - max(since, visit.counting_since)).total_seconds()
        if seconds <= 0:
            return
        share, compared = visit.percent / 100, decided_share(self._plan, visit)
        factors = {effect.name: effect.factor for effect in active}
        expected = self.traffic.contexts_per_second * seconds * share
        self._add(onto[Arm.TREATMENT], int(rng.poisson(expected)), factors, rng)
        if compared is not None:
            contexts = int(rng.poisson(expected * (1 - compared) / compared))
            self._add(onto[Arm.CONTROL], contexts, {}, rng)

    def _add(
        self, arm: DrawnArm, contexts: int, factors: Mapping[str, float], rng: np.random.Generator
    ) -> None:
        arm.contexts += contexts
        for draw in self._drawings:
            draw(arm, contexts, factors, rng)
