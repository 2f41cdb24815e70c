"""The world a plan is tried in.

How much traffic, how often it fails, how long it takes, and what the release does to that.

Here totals are drawn per arm and stretch of time, not per event: the sums of independent events
have the same distribution. Every request is a context of its own. Where contexts come back, give
the traffic of contexts: a context's first error counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from controller.core.analysis.latency import margin_buckets
from controller.core.evidence import GAMMA, HIGHEST_BUCKET, LOWEST_BUCKET, ArmTotals, bucket_of
from controller.core.judging.questions import limit_bucket
from controller.core.plan import Guardrail, Plan
from controller.core.rollout import Visit
from controller.core.serving import decided_share
from schemas.fields import format_duration
from schemas.terms import Arm

ERRORS, LATENCY, TAIL = "errors", "latency", "tail"
#: The part of requests that a `tail` effect slows down.
TAIL_PART = 0.05
_P99 = 2.3263478740408408  # standard normal quantile
#: Histograms are drawn on every bucket near what guardrails look at, and on every sixth elsewhere:
#: 12 % of a latency.
_COARSE = 6
_NEAR = 12
_REACH = 4.5  # standard deviations of log latency that are drawn


@dataclass(frozen=True, slots=True)
class Effect:
    """What treatment does worse than control, and from when on.

    At once, from a stage on, or after some time.
    """

    metric: str  # errors | latency | tail | conversion:<name>
    factor: float  # above 1 for errors and latency, below 1 for conversions
    stage: int | None = None  # 0-based; in this stage and all after it
    after: timedelta | None = None  # since the rollout began

    def is_active(self, visit: Visit, at: datetime, started_at: datetime) -> bool:
        """Whether it does harm to what is served from `at` on."""
        if self.stage is not None:
            return visit.stage >= self.stage
        return self.after is None or at >= started_at + self.after

    def __str__(self) -> str:
        """Return it as it is written on the command line."""
        from_when = (
            f"@stage{self.stage + 1}"
            if self.stage is not None
            else ""
            if self.after is None
            else f"@{format_duration(self.after)}"
        )
        return f"{self.metric}=x{self.factor:g}{from_when}"


@dataclass(frozen=True, slots=True)
class World:
    """Control's traffic and rates, and treatment's effects. Rates are shares in [0, 1]."""

    contexts_per_second: float  # both arms together
    error_rate: float
    latency_p50_ms: float
    latency_p99_ms: float
    conversions: Mapping[str, float] = field(default_factory=dict)
    effects: tuple[Effect, ...] = ()


class Drawn:
    """One arm's growing totals in one visit."""

    def __init__(self) -> None:
        """Start at zero."""
        self.contexts = 0
        self.failed = 0
        self.converted: dict[str, int] = {}
        self.latency: dict[int, int] = {}

    def totals(self) -> ArmTotals:
        """Return what ingest would have counted.

        Every latency once only: `latency_all` is for pictures.
        """
        return ArmTotals(
            evaluations=self.contexts,
            exposures=self.contexts,
            outcomes=self.contexts,
            errors=self.failed,
            at_risk=self.contexts,
            first_errors=self.failed,
            converted=dict(self.converted),
            latency=self.latency,
        )


class Source:
    """Draws what happens in a world under a plan.

    One for all its runs; what is drawn depends on the generator alone.
    """

    def __init__(self, world: World, plan: Plan) -> None:
        """Lay out the latency buckets that the plan's guardrails need."""
        self.world = world
        self._plan = plan
        self._goals = tuple(
            guardrail.metric.removeprefix("conversion:")
            for guardrail in plan.guardrails
            if guardrail.is_better_when_higher
        )
        self._has_latency = any(guardrail.quantile is not None for guardrail in plan.guardrails)
        self._buckets = _bucket_grid(world, plan.guardrails)
        self._shares: dict[tuple[float, float], NDArray[np.float64]] = {}

    def draw(
        self,
        onto: Mapping[Arm, Drawn],
        visit: Visit,
        since: datetime,
        until: datetime,
        active: Iterable[Effect],
        rng: np.random.Generator,
    ) -> None:
        """Add to both arms what happens in a stretch of time during which nothing changes."""
        seconds = (until - max(since, visit.counts_from)).total_seconds()
        if seconds <= 0:
            return
        share, compared = visit.percent / 100, decided_share(self._plan, visit)
        factors = {effect.metric: effect.factor for effect in active}
        expected = self.world.contexts_per_second * seconds
        self._add(onto[Arm.TREATMENT], int(rng.poisson(expected * share)), factors, rng)
        if compared is not None:
            self._add(
                onto[Arm.CONTROL],
                int(rng.poisson(expected * share * (1 - compared) / compared)),
                {},
                rng,
            )

    def _add(
        self, arm: Drawn, contexts: int, factors: Mapping[str, float], rng: np.random.Generator
    ) -> None:
        arm.contexts += contexts
        arm.failed += int(
            rng.binomial(contexts, min(self.world.error_rate * factors.get(ERRORS, 1.0), 1.0))
        )
        for goal in self._goals:
            rate = min(self.world.conversions[goal] * factors.get(f"conversion:{goal}", 1.0), 1.0)
            arm.converted[goal] = arm.converted.get(goal, 0) + int(rng.binomial(contexts, rate))
        if self._has_latency:
            counts = rng.multinomial(
                contexts, self._latency_shares(factors.get(LATENCY, 1.0), factors.get(TAIL, 1.0))
            )
            latency = dict(arm.latency)  # totals already handed out stay as they were
            for bucket, count in zip(self._buckets.tolist(), counts.tolist(), strict=True):
                if count:
                    latency[bucket] = latency.get(bucket, 0) + count
            arm.latency = latency

    def _latency_shares(self, slower: float, tail: float) -> NDArray[np.float64]:
        """Return the probability of each bucket of the grid.

        Of what lies above the one before it.
        """
        known = self._shares.get((slower, tail))
        if known is None:
            edges = np.exp(self._buckets * math.log(GAMMA))
            up_to = _up_to(self.world, edges / slower)
            if tail != 1.0:
                up_to = (1 - TAIL_PART) * up_to + TAIL_PART * _up_to(
                    self.world, edges / slower / tail
                )
            up_to[-1] = 1.0
            known = self._shares[slower, tail] = np.diff(up_to, prepend=0.0)
        return known


def _up_to(world: World, latencies_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of control's values at or below each.

    Log-normal through the two quantiles.
    """
    spread = _log_spread(world)
    z = (np.log(latencies_ms) - math.log(world.latency_p50_ms)) / spread
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z.tolist()])


def _log_spread(world: World) -> float:
    return math.log(world.latency_p99_ms / world.latency_p50_ms) / _P99


def quantile_ms(p50_ms: float, p99_ms: float, q: float) -> float:
    """Return the q-quantile in ms of the log-normal distribution through two of its quantiles."""
    return math.exp(math.log(p50_ms) + math.log(p99_ms / p50_ms) / _P99 * _normal_quantile(q))


def _bucket_grid(world: World, guardrails: Sequence[Guardrail]) -> NDArray[np.int64]:
    """Return the buckets that values are drawn into, rising.

    Exact where a guardrail looks, coarse elsewhere.
    """
    slowest = math.prod(
        effect.factor for effect in world.effects if effect.metric in (LATENCY, TAIL)
    )
    middle, spread = math.log(world.latency_p50_ms), _log_spread(world)
    low = bucket_of(math.exp(middle - _REACH * spread))
    high = bucket_of(math.exp(middle + _REACH * spread) * max(slowest, 1.0))
    # A margin moves treatment's places by some buckets: all must be there to be moved to.
    is_fine = any(guardrail.is_distribution and guardrail.margin for guardrail in guardrails)
    buckets = set(range(low, high + _COARSE, 1 if is_fine else _COARSE))
    for guardrail in guardrails:
        if guardrail.quantile is None:
            continue
        if guardrail.limit is not None:
            buckets.add(limit_bucket(guardrail))
        quantile = bucket_of(
            quantile_ms(world.latency_p50_ms, world.latency_p99_ms, guardrail.quantile)
        )
        buckets.update(
            range(quantile - _NEAR, quantile + _NEAR + margin_buckets(guardrail.margin or 0) + 1)
        )
    return np.array(
        sorted(bucket for bucket in buckets if LOWEST_BUCKET <= bucket <= HIGHEST_BUCKET),
        dtype=np.int64,
    )


def _normal_quantile(share: float) -> float:
    """Return the standard normal quantile by halving; `share` in (0.0001, 0.9999)."""
    low, high = -4.0, 4.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if 0.5 * math.erfc(-middle / math.sqrt(2)) < share else (low, middle)
        )
    return (low + high) / 2
