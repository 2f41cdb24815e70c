"""Draws metrics for a simulation: control's behavior, and what a harm in treatment does to it.

Totals are drawn per arm and stretch of time, not per event: sums of independent events have the
same distribution. Every request is a context of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from controller.core.evidence import ArmTotals
from schemas.counters import add_by_key

if TYPE_CHECKING:
    import numpy as np


class Bounds(Protocol):
    """What a guardrail of the kind asks of a metric."""

    @property
    def metric(self) -> str:
        """The metric's name."""

    @property
    def limit(self) -> float | None:
        """The absolute limit in the metric's unit."""

    @property
    def margin(self) -> float | None:
        """The tolerated harm against control."""


class ExampleHarm(NamedTuple):
    """A harm that nobody wants promoted."""

    effect: str
    factor: float
    words: str  # what a release with it does


class DrawnArm:
    """One arm's growing totals in one visit."""

    def __init__(self) -> None:
        """Start at zero."""
        self.contexts = 0
        self._counted: dict[str, Any] = {}  # by the name of the counter

    def add(self, counter: str, count: int) -> None:
        """Add to a counter that is a number."""
        self._counted[counter] = self._counted.get(counter, 0) + count

    def add_by_key(self, counter: str, counts: Mapping[Any, int]) -> None:
        """Add to a counter that is a mapping; totals that were handed out stay as they were."""
        self._counted[counter] = add_by_key((self._counted.get(counter, {}), counts))

    @property
    def failed(self) -> int:
        """Contexts that failed."""
        failed: int = self._counted.get("first_errors", 0)
        return failed

    def totals(self) -> ArmTotals:
        """Return what counting would have counted."""
        contexts = self.contexts
        return ArmTotals(
            evaluations=contexts,
            exposures=contexts,
            outcomes=contexts,
            at_risk=contexts,
            **self._counted,
        )


class Draw(Protocol):
    """Adds what new contexts do to an arm."""

    def __call__(
        self, arm: DrawnArm, contexts: int, factors: Mapping[str, float], rng: np.random.Generator
    ) -> None:
        """`factors` are treatment's effects by name, empty for control."""


class VirtualMetric(ABC):
    """Control's behavior in one kind of metric."""

    @classmethod
    @abstractmethod
    def assumed(cls, guardrails: Sequence[Bounds]) -> Self:
        """Return a control that keeps the limits of a plan's guardrails of the kind."""

    def completed_by(self, assumed: Self) -> tuple[Self, list[str]]:
        """Return this behavior with what it lacks of `assumed`, and words for what it lacks."""
        return self, []

    @abstractmethod
    def words(self) -> list[str]:
        """Return control's behavior for people."""

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Return control's behavior for machines."""

    @classmethod
    @abstractmethod
    def has_effect(cls, effect: str) -> bool:
        """Return whether the named effect changes this kind."""

    @classmethod
    def is_harm(cls, factor: float) -> bool:
        """Return whether a factor does harm. Most metrics do harm when they rise."""
        return 1 < factor <= 1000

    @classmethod
    @abstractmethod
    def example_harms(cls, guardrails: Sequence[Bounds]) -> Iterable[ExampleHarm]:
        """Return the harms that `plan lint` tries on a plan with these guardrails of the kind."""

    @abstractmethod
    def drawing(self, guardrails: Sequence[Bounds], effects: Mapping[str, float]) -> Draw | None:
        """Return what draws the metric for a plan's guardrails of the kind.

        `effects` are all that treatment may come to have. None: nobody watches it.
        """
