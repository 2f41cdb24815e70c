"""Adds up many virtual rollouts.

Probabilities with intervals, durations, and what harm would cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from controller.core.plan import Plan
from controller.planning.simulation import VirtualRollout, run_once
from controller.planning.virtual_traffic import TrafficSource, VirtualTraffic
from controller.reporting.evidence_words import GAP_WORDS


@dataclass(frozen=True, slots=True)
class ShareOfRuns:
    """How many runs of all, with the Wilson interval of the probability at 95 %.

    TrafficSource: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212.
    """

    count: int
    of: int

    @property
    def share(self) -> float:
        """The estimate; 0 of nothing is 0."""
        return self.count / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The (low, high) bounds, both in [0, 1]."""
        if self.of == 0:
            return 0.0, 1.0
        z2 = 1.959964**2
        middle = self.share + z2 / (2 * self.of)
        half = math.sqrt(z2 * (self.share * (1 - self.share) + z2 / (4 * self.of)) / self.of)
        scale = 1 + z2 / self.of
        low, high = (middle - half) / scale, (middle + half) / scale
        return (0.0 if self.count == 0 else low), (1.0 if self.count == self.of else high)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 90 % quantile of some values."""

    median: float
    p90: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of values, None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return Spread(ordered[(len(ordered) - 1) // 2], ordered[math.ceil(0.9 * len(ordered)) - 1])


@dataclass(frozen=True, slots=True)
class StageFigures:
    """One stage over all runs that came to it."""

    percent: float
    planned: timedelta  # settle and bake: the least it takes
    seconds: Spread | None  # from entering it to passing its gate; None when no run passed it
    #: The same in open time alone, as `planned` is: without what active windows close.
    open_seconds: Spread | None
    passed: int
    undecided: int  # runs that ended here at max_bake
    contexts: Spread | None  # of treatment, when it was passed
    #: What the gates of the undecided ones lacked, by how often: gaps, else metrics not shown safe.
    lacking: Counter[str]


def lacking_words(lacking: Counter[str]) -> str:
    """Return what undecided gates lacked, the most frequent first."""
    gaps = {gap.value: words for gap, words in GAP_WORDS.items()}
    return ", ".join(
        gaps.get(name, f"{name} is not shown to be safe") for name, _ in lacking.most_common(3)
    )


@dataclass(frozen=True, slots=True)
class TriedTraffic:
    """All runs with one virtual traffic."""

    traffic: VirtualTraffic
    runs: Sequence[VirtualRollout]
    stages: tuple[StageFigures, ...]

    def part(self, counts: Callable[[VirtualRollout], bool]) -> ShareOfRuns:
        """Return the part of runs that something is true of."""
        return ShareOfRuns(sum(1 for run in self.runs if counts(run)), len(self.runs))

    @property
    def promoted(self) -> ShareOfRuns:
        """Runs that completed."""
        return self.part(lambda run: run.ended == "completed")

    @property
    def false_alarm(self) -> ShareOfRuns:
        """Runs in which a guardrail found harm while there was none."""
        return self.part(lambda run: run.found_at is not None and not run.is_found)

    @property
    def found(self) -> ShareOfRuns:
        """Of the runs that came to harm, those in which a guardrail found it."""
        harmed = [run for run in self.runs if run.harm_began_at is not None]
        return ShareOfRuns(sum(run.is_found for run in harmed), len(harmed))

    @property
    def missed(self) -> ShareOfRuns:
        """Of the runs that came to harm, those that completed nevertheless."""
        harmed = [run for run in self.runs if run.harm_began_at is not None]
        return ShareOfRuns(
            sum(run.ended == "completed" and not run.is_found for run in harmed), len(harmed)
        )

    @property
    def undecided(self) -> ShareOfRuns:
        """Runs that ended paused at max_bake."""
        return self.part(lambda run: run.ended == "undecided")

    @property
    def otherwise(self) -> ShareOfRuns:
        """Runs that ended in none of the ways above.

        Paused by a gap or an expiry, or never through.
        """
        return self.part(lambda run: run.ended in ("paused", "given_up") and run.found_at is None)

    @property
    def seconds_to_complete(self) -> Spread | None:
        """Of the runs that completed."""
        return spread(
            [
                (run.at - run.started_at).total_seconds()
                for run in self.runs
                if run.ended == "completed"
            ]
        )

    @property
    def seconds_to_find(self) -> Spread | None:
        """From the begin of harm until it was found."""
        return spread([seconds for run in self.runs if (seconds := time_to_find(run)) is not None])

    @property
    def harmed_contexts(self) -> Spread | None:
        """Contexts that saw treatment between the begin of harm and the end, where it was found."""
        return spread([run.harmed_contexts for run in self.runs if run.is_found])

    @property
    def extra_failures(self) -> Spread | None:
        """Of them those that failed and would not have in control."""
        return spread([max(run.extra_failures, 0.0) for run in self.runs if run.is_found])

    @property
    def finders(self) -> Counter[str]:
        """The metrics that found it, by how often."""
        return Counter(run.metric for run in self.runs if run.is_found and run.metric is not None)


def time_to_find(run: VirtualRollout) -> float | None:
    """Return the seconds from the begin of harm until a guardrail found it, None if it did not."""
    if run.found_at is None or run.harm_began_at is None or not run.is_found:
        return None
    return (run.found_at - run.harm_began_at).total_seconds()


def simulate(
    plan: Plan,
    traffic: VirtualTraffic,
    runs: int,
    seed: int,
    starts_at: datetime,
    tell: Callable[[int], None] = lambda _: None,
) -> TriedTraffic:
    """Return what `runs` virtual rollouts come to.

    The same seed gives the same figures; `tell` hears of each run done.
    """
    source = TrafficSource(traffic, plan)
    done = []
    for number in range(runs):
        done.append(run_once(plan, source, starts_at, np.random.default_rng([seed, number])))
        tell(number + 1)
    return summed_up(plan, traffic, done)


def summed_up(plan: Plan, traffic: VirtualTraffic, runs: Sequence[VirtualRollout]) -> TriedTraffic:
    """Return what runs of one plan with one virtual traffic come to."""
    stages = tuple(
        StageFigures(
            percent=stage.percent,
            planned=stage.settle + stage.bake,
            seconds=spread(
                [run.stage_times[index].total_seconds() for run in runs if index in run.stage_times]
            ),
            open_seconds=spread(
                [run.open_times[index].total_seconds() for run in runs if index in run.open_times]
            ),
            passed=sum(index in run.stage_times for run in runs),
            undecided=sum(run.ended == "undecided" and run.stage == index for run in runs),
            contexts=spread(
                [run.stage_contexts[index] for run in runs if index in run.stage_contexts]
            ),
            lacking=Counter(
                name
                for run in runs
                if run.ended == "undecided" and run.stage == index
                for name in run.lacking
            ),
        )
        for index, stage in enumerate(plan.stages)
    )
    return TriedTraffic(traffic, runs, stages)
