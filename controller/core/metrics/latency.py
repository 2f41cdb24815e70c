"""The metrics `latency` and `latency_p<q>`: how long requests take, in milliseconds.

`latency_p99` compares one quantile. Questions about a quantile become questions about a share: of
the values above a bucket, see `core.analysis.latency`. `latency` compares the whole distribution;
people see its p90.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controller.core.evidence import (
    GAMMA,
    HIGHEST_BUCKET,
    LOWEST_BUCKET,
    ArmTotals,
    bucket_of,
    bucket_value,
)
from controller.core.metrics import arithmetic
from controller.core.metrics.kind import (
    NOTHING_MEASURED,
    ArmSummary,
    LimitFault,
    MetricKind,
    Observed,
    VisitSample,
)
from controller.core.metrics.virtual import Bounds, Draw, DrawnArm, ExampleHarm, VirtualMetric
from schemas import metric_names
from schemas.metric_names import DISTRIBUTION, QUANTILE_PREFIX, SMALLEST_LIMIT
from schemas.terms import Arm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from controller.core.analysis.change_point import Floats
    from controller.core.analysis.latency import Ordered
    from controller.core.analysis.proportion import Counts

# --- simulation

#: The effects of a simulation: all requests slower by a factor, or a part of them.
SLOWER, TAIL = "latency", "tail"
#: The part of requests that a `tail` effect slows down.
TAIL_PART = 0.05
_P99 = 2.3263478740408408  # standard normal quantile
#: Histograms are drawn on every bucket near what guardrails read, and on every sixth elsewhere:
#: 12 % of a latency.
_COARSE = 6
_NEAR = 12
_REACH = 4.5  # standard deviations of log latency that are drawn


@dataclass(frozen=True, slots=True)
class VirtualLatency(VirtualMetric):
    """Each request's latency is log-normal through two quantiles."""

    p50_ms: float = 50.0
    p99_ms: float = 150.0

    @classmethod
    def assumed(cls, guardrails: Sequence[Bounds]) -> VirtualLatency:
        """Return quantiles that keep every limit with a quarter to spare; 50 and 150 without."""
        usual = cls()
        over = [
            usual.quantile_ms(quantile_of(one.metric)) / (0.75 * one.limit)
            for one in guardrails
            if one.limit is not None
        ]
        slower = max([1.0, *over])
        return cls(usual.p50_ms / slower, usual.p99_ms / slower)

    def quantile_ms(self, q: float) -> float:
        """Return the q-quantile in ms."""
        return math.exp(math.log(self.p50_ms) + self._log_spread * _normal_quantile(q))

    @property
    def _log_spread(self) -> float:
        return math.log(self.p99_ms / self.p50_ms) / _P99

    def words(self) -> list[str]:
        """Return control's quantiles for people."""
        p50, p99 = (f"{ms:,.0f}" if ms >= 1_000 else f"{ms:.3g}" for ms in self._quantiles)
        return [f"latency p50 {p50} ms, p99 {p99} ms"]

    @property
    def _quantiles(self) -> tuple[float, float]:
        return self.p50_ms, self.p99_ms

    def document(self) -> dict[str, Any]:
        """Return control's quantiles for machines."""
        return {"latency_p50_ms": self.p50_ms, "latency_p99_ms": self.p99_ms}

    @classmethod
    def has_effect(cls, effect: str) -> bool:
        """Return whether the named effect changes latencies."""
        return effect in (SLOWER, TAIL)

    @classmethod
    def example_harms(cls, guardrails: Sequence[Bounds]) -> Iterator[ExampleHarm]:
        """Yield the harm that `plan lint` tries."""
        yield ExampleHarm(SLOWER, 1.5, "takes half as long again as control")

    def drawing(self, guardrails: Sequence[Bounds], effects: Mapping[str, float]) -> Draw | None:
        """Return what draws a histogram on the buckets that the guardrails need."""
        if not guardrails:
            return None
        slowest = math.prod(f for effect, f in effects.items() if self.has_effect(effect))
        return _LatencyDraw(self, self._bucket_grid(guardrails, slowest))

    def _bucket_grid(self, guardrails: Sequence[Bounds], slowest: float) -> NDArray[np.int64]:
        """Return the buckets that values are drawn into, rising.

        They are exact where a guardrail reads, and coarse elsewhere.
        """
        middle, spread = math.log(self.p50_ms), self._log_spread
        low = bucket_of(math.exp(middle - _REACH * spread))
        high = bucket_of(math.exp(middle + _REACH * spread) * max(slowest, 1.0))
        # A margin moves treatment's places by some buckets: all must be there to be moved to.
        is_fine = any(one.metric == DISTRIBUTION and one.margin for one in guardrails)
        buckets = set(range(low, high + _COARSE, 1 if is_fine else _COARSE))
        for one in guardrails:
            if one.limit is not None:
                buckets.add(bucket_of(one.limit))
            middle_bucket = bucket_of(self.quantile_ms(quantile_of(one.metric)))
            above = _NEAR + arithmetic.margin_buckets(one.margin or 0) + 1
            buckets.update(range(middle_bucket - _NEAR, middle_bucket + above))
        return arithmetic.np.array(
            sorted(bucket for bucket in buckets if LOWEST_BUCKET <= bucket <= HIGHEST_BUCKET),
            dtype=arithmetic.np.int64,
        )

    def up_to(self, latencies_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of control's values at or below each latency."""
        z = (arithmetic.np.log(latencies_ms) - math.log(self.p50_ms)) / self._log_spread
        return arithmetic.np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z.tolist()])


class _LatencyDraw:
    """Draws histograms on a grid of buckets."""

    def __init__(self, control: VirtualLatency, buckets: NDArray[np.int64]) -> None:
        self._control = control
        self._buckets = buckets
        self._shares: dict[tuple[float, float], NDArray[np.float64]] = {}

    def __call__(
        self, arm: DrawnArm, contexts: int, factors: Mapping[str, float], rng: np.random.Generator
    ) -> None:
        shares = self._bucket_shares(factors.get(SLOWER, 1.0), factors.get(TAIL, 1.0))
        counts = rng.multinomial(contexts, shares).tolist()
        drawn = zip(self._buckets.tolist(), counts, strict=True)
        arm.add_by_key("latency", {bucket: count for bucket, count in drawn if count})

    def _bucket_shares(self, slower: float, tail: float) -> NDArray[np.float64]:
        """Return the probability of each bucket, from the bucket below it on."""
        shares = self._shares.get((slower, tail))
        if shares is None:
            edges = arithmetic.np.exp(self._buckets * math.log(GAMMA))
            up_to = self._control.up_to(edges / slower)
            if tail != 1.0:
                slow = self._control.up_to(edges / slower / tail)
                up_to = (1 - TAIL_PART) * up_to + TAIL_PART * slow
            up_to[-1] = 1.0
            shares = self._shares[slower, tail] = arithmetic.np.diff(up_to, prepend=0.0)
        return shares


def _normal_quantile(share: float) -> float:
    """Return the standard normal quantile by halving; `share` in (0.0001, 0.9999)."""
    low, high = -4.0, 4.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if 0.5 * math.erfc(-middle / math.sqrt(2)) < share else (low, middle)
        )
    return (low + high) / 2


# --- what both metrics share

#: A median above a minute, and above ten times the limit, in the arm that nothing was changed in:
#: the limit is about other values than those that are sent. Milliseconds sent as seconds are a
#: thousand times too large.
_IMPLAUSIBLE_MS = 60_000.0
_FAR_BEYOND = 10
_LEAST_VALUES = 3  # as many as a breach needs in treatment


def ms_words(ms: float) -> str:
    """Return a duration in ms, with three significant digits or more: `2.51 ms`, `2,890 ms`."""
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def quantile_of(metric: str) -> float:
    """Return the quantile that people see: 0.99 for `latency_p99`, 0.9 for `latency`."""
    if metric == DISTRIBUTION:
        return 0.9
    return float("0." + metric.removeprefix(QUANTILE_PREFIX))


@dataclass(frozen=True, slots=True)
class _Latency(MetricKind, ABC):
    """A metric whose observations are latencies: one per context and batch.

    Those of a context that is far more active than the others are left out.
    """

    names = metric_names.LATENCY
    alpha_weight = 0.25
    counts_late_events = False  # the histograms of a visit that is over are dropped
    where_to_search = "traces of slow requests"
    virtual = VirtualLatency

    @property
    def quantile(self) -> float:
        """The quantile that people see."""
        return quantile_of(self.metric)

    def log_tolerated(self, margin: float) -> float:
        """Return 0: the margin is one of milliseconds and moves the place.

        Then no ratio of shares above 1 is tolerated.
        """
        return 0.0

    def limit_share(self, limit: float) -> float:
        """Return the share of values that may lie above the limit."""
        return round(1 - self.quantile, 9)

    def limit_doubt(self, limit: float, control: Ordered) -> str | None:
        """Return that control's median is implausible, as when milliseconds are sent as seconds."""
        implausible = bucket_of(max(_IMPLAUSIBLE_MS, _FAR_BEYOND * limit))
        if control.total < _LEAST_VALUES or 2 * control.above(implausible) <= control.total:
            return None
        median = ms_words(control.quantile(0.5) or 0.0)
        return (
            f"control's median, too, is {median}, where the limit is "
            f"{limit:g} ms: are milliseconds sent as seconds?"
        )

    def observed(self, arm: ArmTotals, latency: Ordered, limit: float | None) -> Observed:
        """Return the values, and those above the limit's bucket.

        Values in that bucket count as within the limit, so a limit is at most 2 % generous.
        """
        return Observed(latency.total, 0 if limit is None else latency.above(bucket_of(limit)))

    def compared(
        self, before: VisitSample, now: VisitSample, place: int | None, margin: float
    ) -> Counts | None:
        """Return the new values, and those above `place`; treatment's place has the margin."""
        if place is None:
            return None
        above_place = {Arm.TREATMENT: place + arithmetic.margin_buckets(margin), Arm.CONTROL: place}
        (n_t, k_t), (n_c, k_c) = (
            (
                now.latencies[arm].total - before.latencies[arm].total,
                now.latencies[arm].above(bucket) - before.latencies[arm].above(bucket),
            )
            for arm, bucket in above_place.items()
        )
        return arithmetic.Counts(n_t, k_t, n_c, k_c)

    def place(self, control_past: Ordered, previous: int | None) -> int | None:
        """Return the bucket of control's quantile so far."""
        place = arithmetic.quantile_bucket(control_past, self.quantile)
        return previous if place is None else place

    def limit_words(self, limit: float) -> str:
        """Return what is compared with the limit."""
        return f"took more than {limit:g} ms"

    def bound_words(self, limit: float, share: str) -> str:
        """Return the limit as the plan writes it, with the share of slower ones that it allows."""
        return f"limit {limit:g} ms (at most {share} slower)"

    def place_words(self, place: int | None, margin: float) -> str:
        """Return where control's tail begins, and how much later treatment's does."""
        if place is None:
            return ""
        quantile = f"p{100 * self.quantile:g}".replace(".", "")
        tolerated = f", for treatment {100 * margin:.3g} % more" if margin else ""
        return f"slower than control's {quantile} ({ms_words(bucket_value(place))}{tolerated}): "

    def summary(
        self, arm: ArmTotals, latency: Ordered, slow_above: int | None, alpha: float
    ) -> ArmSummary:
        """Return the quantile in ms.

        It has one value per context and batch, as the tests have, so that no table contradicts
        their sentences. Events are the values above `slow_above`.
        """
        if latency.total == 0:
            return NOTHING_MEASURED
        estimate = latency.quantile(self.quantile)
        low, high = arithmetic.quantile_interval(latency, self.quantile, alpha)
        return ArmSummary(
            trials=latency.total,
            events=0 if slow_above is None else latency.above(slow_above),
            estimate=estimate,
            low=low if low is None or estimate is None else min(low, estimate),
            high=high if high is None or estimate is None else max(high, estimate),
        )

    @abstractmethod
    def limit_fault(self, limit: float) -> LimitFault | None:
        """Return what is wrong with an absolute limit in ms."""


@dataclass(frozen=True, slots=True)
class LatencyQuantile(_Latency):
    """One quantile of latency."""

    def limit_fault(self, limit: float) -> LimitFault | None:
        """Return what is wrong with an absolute limit in ms."""
        if limit >= SMALLEST_LIMIT:
            return None
        return LimitFault(
            f"a limit of {limit:g} ms is always exceeded", "write a latency, as in 200ms"
        )


@dataclass(frozen=True, slots=True)
class LatencyDistribution(_Latency):
    """Latency as a whole: harm is searched at every level, not at one quantile."""

    def limit_fault(self, limit: float) -> LimitFault | None:
        """Return that a distribution has no single value to compare with a limit."""
        return LimitFault(
            "latency as a whole has no absolute limit",
            "name a quantile, as in `latency_p99 < 200ms`",
        )

    def harm_log_weights(self, log_tolerated: float) -> Floats:
        """Return the weights of the shapes of a regression."""
        return arithmetic.SHAPE_LOG_WEIGHTS

    def harm_increment(
        self, before: VisitSample, now: VisitSample, margin: float, of_rates: Floats | None
    ) -> Floats | None:
        """Return the log e-value per shape, None while control's past is too short."""
        return arithmetic.slowness_increment(
            before.latencies, now.latencies, arithmetic.margin_buckets(margin)
        )

    def harm_words(self, latencies: Mapping[Arm, Ordered]) -> str:
        """Return three quantiles of both arms: shapes tell no single size."""
        return f"treatment is slower than control: {_quantiles(latencies)} in this stage"


def latency_kind(metric: str) -> MetricKind:
    """Return the kind of a latency metric by its name."""
    return LatencyDistribution(metric) if metric == DISTRIBUTION else LatencyQuantile(metric)


def _quantiles(latencies: Mapping[Arm, Ordered]) -> str:
    """Return both arms' quantiles side by side, for people."""
    words = []
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        both = [latencies[arm].quantile(q) for arm in (Arm.TREATMENT, Arm.CONTROL)]
        values = " against ".join("nothing" if ms is None else ms_words(ms) for ms in both)
        words.append(f"{name} {values}")
    return ", ".join(words)
