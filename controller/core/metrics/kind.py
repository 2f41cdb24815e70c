"""`MetricKind`: everything that the rest of the program asks about a guardrail's metric.

A kind is one file beside this one. It says the metric's unit and direction, the bounds of its
limit and margin, its part of alpha, what it counts, which tests it uses, how an arm is summed up,
the words for people, and how a simulation draws it.

Belongs here: the questions, with the answer that most kinds give. Does not belong here: a test for
one kind. An answer that differs is a method of that kind.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from controller.core.evidence import ArmTotals, VisitTotals
from controller.core.metrics import arithmetic
from controller.core.metrics.virtual import VirtualMetric
from schemas.metric_names import SMALLEST_LIMIT, MetricNames, Unit
from schemas.terms import Arm

if TYPE_CHECKING:
    from controller.core.analysis.change_point import Floats
    from controller.core.analysis.latency import Ordered
    from controller.core.analysis.proportion import Counts


class LimitFault(NamedTuple):
    """What is wrong with a bound in a plan, and how to fix it."""

    message: str
    fix: str


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm of one metric, in the metric's own unit (share in [0, 1], or milliseconds)."""

    trials: int  # observations behind the estimate, in the kind's `unit_words`
    events: int  # of them bad ones (errors, slow requests), or good ones (conversions)
    estimate: float | None  # None: nothing measured
    low: float | None  # interval at the plan's alpha, valid at any time
    high: float | None
    # failed requests per context that failed
    repeats: float = 1.0


NOTHING_MEASURED = ArmSummary(0, 0, None, None, None)


@dataclass(frozen=True, slots=True)
class VisitSample:
    """One visit's counters at one moment, its latencies ready for questions."""

    totals: VisitTotals = field(default_factory=VisitTotals)
    latencies: Mapping[Arm, Ordered] = field(default_factory=dict)


class Observed(NamedTuple):
    """How many observations one arm has, and how many of them are events."""

    trials: int
    events: int


@dataclass(frozen=True, slots=True)
class ShownKind:
    """What is asked about a metric to show its report, whether it is a guardrail's or external."""

    metric: str

    #: Names, unit and direction.
    names: ClassVar[MetricNames]
    #: What one observation is, in the plural, for people. A user action is the requests of one user
    #: that are counted in the same batch (about 100 ms).
    unit_words: ClassVar[str] = "user actions"
    #: Where people should search for the cause of a regression.
    where_to_search: ClassVar[str]

    @property
    def unit(self) -> Unit:
        """What the metric's values and limits are measured in."""
        return self.names.unit

    @property
    def is_share(self) -> bool:
        """Whether a value is events per observation, so that two values have a difference."""
        return self.unit is Unit.SHARE

    @property
    def compares_values(self) -> bool:
        """Whether both arms' values are compared, and not how many of their requests are slow."""
        return self.unit is not Unit.MILLISECONDS

    @property
    def is_better_when_higher(self) -> bool:
        """Whether a fall is the harm."""
        return self.names.is_better_when_higher

    @property
    def conversion(self) -> str | None:
        """The conversion whose contexts counting must count for this metric, None for none."""
        return None


@dataclass(frozen=True, slots=True)
class MetricKind(ShownKind, ABC):
    """What one metric name of a guardrail stands for."""

    #: The kind's share of a role's alpha, before it is divided among the kinds that a plan has.
    alpha_weight: ClassVar[float]
    #: Whether margins may be differences of shares: `control + 0.5pp`. Not for conversions: they
    #: come late, so a check compares who converts now, and not the final share.
    takes_points: ClassVar[bool] = False
    #: A relative margin of this or more is no comparison.
    largest_margin: ClassVar[float] = 10.0
    #: Whether events of a visit that is over still reach the tests.
    counts_late_events: ClassVar[bool] = True
    #: Treatment below this rate passes a gate whatever control's rate is; None: no such rate.
    negligible_rate: ClassVar[float | None] = None
    #: How a simulation draws this kind.
    virtual: ClassVar[type[VirtualMetric]]

    # --- bounds

    def limit_fault(self, limit: float) -> LimitFault | None:
        """Return what is wrong with an absolute limit, None for one that can be meant."""
        if SMALLEST_LIMIT <= limit < 1:
            return None
        return LimitFault(
            f"a limit of {limit:g} means {limit * 100:g} %", "write a share, as in 1% or 0.01"
        )

    def log_tolerated(self, margin: float) -> float:
        """Return the log of the rate ratio, harm over no harm, that a relative margin tolerates."""
        return -math.log1p(-margin) if self.is_better_when_higher else math.log1p(margin)

    def limit_share(self, limit: float) -> float:
        """Return the share of events at which an absolute limit lies."""
        return limit

    def limit_doubt(self, limit: float, control: Ordered) -> str | None:
        """Return why the limit says nothing about the release; None when it does.

        That is when control's values, too, are so far beyond it that they cannot be what the plan's
        author meant. `control` has the latencies of the present visit.
        """
        return None

    # --- counting and testing

    @abstractmethod
    def observed(self, arm: ArmTotals, latency: Ordered, limit: float | None) -> Observed:
        """Return what one arm's counters say about the limit; `latency` is the arm's."""

    @abstractmethod
    def compared(
        self, before: VisitSample, now: VisitSample, place: int | None, margin: float
    ) -> Counts | None:
        """Return what came between two moments, with treatment's harm as the event.

        None when nothing can be compared. `place` is the latency bucket above which a value is
        slow, see `place`.
        """

    def place(self, control_past: Ordered, previous: int | None) -> int | None:
        """Return the latency bucket above which a value of the next batch is slow.

        It depends on control's past alone, so it is predictable. `previous` was the last batch's.
        None for a metric that is no latency, and while the past is too short.
        """
        return None

    def harm_log_weights(self, log_tolerated: float) -> Floats:
        """Return the weights of the alternatives that the test of harm bets on."""
        return arithmetic.harm_alternatives(log_tolerated).log_weights

    def harm_increment(
        self, before: VisitSample, now: VisitSample, margin: float, of_rates: Floats | None
    ) -> Floats | None:
        """Return a batch's log e-value per alternative of harm, None when it says nothing.

        `of_rates` is what a comparison of rates gives.
        """
        return of_rates

    # --- words for people

    @abstractmethod
    def limit_words(self, limit: float) -> str:
        """Return what is compared with the limit: `failed` in `2 % of 50 user actions failed`."""

    def bound_words(self, limit: float, share: str) -> str:
        """Return the limit by itself; `share` is the share that it allows, in words."""
        return f"{'at least' if self.is_better_when_higher else 'limit'} {share}"

    def place_words(self, place: int | None, margin: float) -> str:
        """Return where each arm's tail begins, to stand before a sentence; often empty.

        Treatment's begins `margin` later than control's.
        """
        return ""

    def harm_words(self, latencies: Mapping[Arm, Ordered]) -> str | None:
        """Return what to say of harm whose size the test does not tell, None when it tells it."""
        return None

    # --- arms

    @abstractmethod
    def summary(
        self, arm: ArmTotals, latency: Ordered, slow_above: int | None, alpha: float
    ) -> ArmSummary:
        """Return an arm in the metric's unit, with an interval at `alpha`.

        `slow_above` is the latency bucket above which a value counts as an event.
        """


def share_words(share: float) -> str:
    """Return a share in [0, 1] as `0.031 %`, with three significant digits."""
    return f"{100 * share:.3g} %"
