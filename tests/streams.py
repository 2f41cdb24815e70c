"""Synthetic totals for tests of the gate.

An arm's counts as ingest would have them after each look, from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.evidence import (
    LOWEST_BUCKET,
    ArmTotals,
    Evidence,
    PartitionProgress,
    VisitTotals,
    bucket_of,
)
from controller.core.judging.gate import judge
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from controller.core.visits import Visit
from tests.builders import T0, make_rollout, make_visit

PARTITIONS = ("flag.evaluations/0", "request.outcomes/0")

Sampler = Callable[[np.random.Generator, int], NDArray[np.float64]]


def reference_prior() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log rate ratios and log weights that published vectors were computed with.

    Ours differ, the formulas must not.
    """
    log_ratios = np.linspace(np.sqrt(0.05), np.sqrt(3.0), 32) ** 2
    weights = np.gradient(log_ratios) / (1 + (log_ratios / 0.7) ** 2)
    return log_ratios, np.log(weights / weights.sum())


@dataclass(slots=True)
class Counted:
    """One arm's growing totals. Every context makes one request, unless a test says otherwise."""

    contexts: int = 0
    errors: int = 0
    first_errors: int = 0
    converted: int = 0
    latency: dict[int, int] = field(default_factory=dict)

    def add(
        self, contexts: int, first_errors: int = 0, *, errors: int | None = None, converted: int = 0
    ) -> None:
        """Add contexts with an outcome each.

        `errors` are raw events, one per first error unless given.
        """
        self.contexts += contexts
        self.first_errors += first_errors
        self.errors += first_errors if errors is None else errors
        self.converted += converted

    def add_latencies(self, values_ms: Iterable[float]) -> None:
        """Add latency values of contexts already added."""
        self.latency = dict(self.latency)  # totals already handed out stay as they were
        for value in values_ms:
            bucket = bucket_of(float(value))
            self.latency[bucket] = self.latency.get(bucket, 0) + 1

    def totals(self) -> ArmTotals:
        """Return the arm's totals so far."""
        outcomes = self.contexts + self.errors - self.first_errors
        return ArmTotals(
            evaluations=outcomes,
            exposures=self.contexts,
            outcomes=outcomes,
            errors=self.errors,
            at_risk=self.contexts,
            first_errors=self.first_errors,
            converted={"bought": self.converted} if self.converted else {},
            latency=self.latency,
        )


def make_arm(contexts: int, first_errors: int = 0, **more: object) -> ArmTotals:
    """Return totals of an arm whose contexts made one request each, all equally fast."""
    fields: dict[str, object] = {
        "evaluations": contexts,
        "exposures": contexts,
        "outcomes": contexts,
        "errors": first_errors,
        "at_risk": contexts,
        "first_errors": first_errors,
        "latency": {LOWEST_BUCKET: contexts} if contexts else {},
    }
    # The test that reads the overrides checks them.
    return ArmTotals(**{**fields, **more})  # type: ignore[arg-type]


def make_progress(at: datetime, **overrides: object) -> tuple[PartitionProgress, ...]:
    """Return one caught-up partition of each event topic, fresh at `at`."""
    fields: dict[str, object] = {
        "next_offset": 10,
        "end_offset": 10,
        "freshest": at,
        "reported_at": at,
    }
    return tuple(PartitionProgress(name, **{**fields, **overrides}) for name in PARTITIONS)  # type: ignore[arg-type]


def make_evidence(visits: dict[int, VisitTotals], at: datetime, **overrides: object) -> Evidence:
    """Return complete, fresh evidence of these totals."""
    fields: dict[str, object] = {
        "at": at,
        "visits": visits,
        "partitions": make_progress(at),
        "expected_partitions": len(PARTITIONS),
    }
    return Evidence(**{**fields, **overrides})  # type: ignore[arg-type]


@dataclass(slots=True)
class Watched:
    """A rollout under watch: totals grow, the gate looks after each step, a second apart."""

    rollout: Rollout
    at: datetime = T0 + timedelta(minutes=1)
    tests: SequentialTests = field(default_factory=SequentialTests)
    arms: dict[int, tuple[Counted, Counted]] = field(default_factory=dict)
    judgement: Judgement | None = None

    @property
    def treatment(self) -> Counted:
        """Treatment in the present visit."""
        return self._present()[0]

    @property
    def control(self) -> Counted:
        """Control in the present visit."""
        return self._present()[1]

    def look(self, after: timedelta = timedelta(seconds=1)) -> Judgement:
        """Return what the gate says after some time."""
        self.at += after
        self.judgement, self.tests = judge(self.rollout, self.evidence(), self.tests, self.at)
        return self.judgement

    def evidence(self) -> Evidence:
        """Return everything counted so far, complete and fresh."""
        visits = {
            index: VisitTotals(treatment.totals(), control.totals())
            for index, (treatment, control) in self.arms.items()
        }
        return make_evidence(visits, self.at)

    def last(self) -> Judgement:
        """Return the latest judgement."""
        assert self.judgement is not None, "nobody has looked yet"
        return self.judgement

    def go_on(self, percent: float, stage: int) -> None:
        """Enter another stage; its totals begin at zero."""
        left = self.rollout.visits[-1]
        visits: tuple[Visit, ...] = (
            *self.rollout.visits[:-1],
            make_visit(
                stage=left.stage,
                percent=left.percent,
                entered_at=left.entered_at,
                counts_from=left.counts_from,
                left_at=self.at,
            ),
            make_visit(stage=stage, percent=percent, entered_at=self.at, counts_from=self.at),
        )
        self.rollout = make_rollout(
            plan=self.rollout.plan, phase=self.rollout.phase, visits=visits, percent=percent
        )

    def _present(self) -> tuple[Counted, Counted]:
        return self.arms.setdefault(self.rollout.visit_index, (Counted(), Counted()))


def looks_until_breach(
    watched: Watched,
    rng: np.random.Generator,
    looks: int,
    per_look: int,
    rates: Callable[[int], tuple[float, float]],
) -> int | None:
    """Return the look that found a breach, None when none did.

    `rates(look)` are the error rates of treatment and control.
    """
    share = watched.rollout.visits[-1].percent / 100
    for look in range(looks):
        p_t, p_c = rates(look)
        n_t = int(rng.binomial(per_look, share))
        n_c = per_look - n_t
        watched.treatment.add(n_t, int(rng.binomial(n_t, p_t)))
        watched.control.add(n_c, int(rng.binomial(n_c, p_c)))
        if watched.look().breach is not None:
            return look + 1
    return None
