"""Runs a handful of virtual rollouts for `plan lint`, and reports what they show.

Gates that cannot decide, and harms that would be promoted.

A handful, because lint answers in a second or two: what happens in a good part of them is told,
with how often it did. For probabilities there is `simulate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from controller.core.plan import Guardrail, Plan
from controller.planning.figures import TriedTraffic, lacking_words, summed_up
from controller.planning.simulation import VirtualRollout, run_once
from controller.planning.virtual_traffic import TrafficSource, VirtualTraffic, example_harms
from controller.plans import Finding
from controller.text import plural
from schemas.fields import format_duration
from schemas.terms import HealthGap, Severity

HEALTHY_RUNS = 6
HARMED_RUNS = 3
#: Looks over all runs, of about half a millisecond each. Past it no further run is begun: lint
#: stays quick whatever the plan.
MOST_LOOKS = 1200
#: A part of the runs this large is worth a warning: 2 of 6. Rarer trouble is for `simulate` to
#: tell.
WORTH_TELLING = 0.25
#: A gate that takes this much longer than planned is worth a warning.
LONGER = 1.5


@dataclass(frozen=True, slots=True)
class Outlook:
    """Warnings, how many rollouts they rest on, and what a release without harm came to."""

    findings: tuple[Finding, ...]
    rollouts: int
    healthy: TriedTraffic | None = None  # None: nothing was tried


def outlook(plan: Plan, traffic: VirtualTraffic, starts_at: datetime) -> Outlook:
    """Return the warnings about a plan with this traffic, which has no effects.

    A blind plan has none.
    """
    if plan.blind:
        return Outlook((), 0)
    budget = _Budget()
    healthy = budget.spend(plan, traffic, HEALTHY_RUNS, starts_at)
    findings = [*_false_alarms(healthy), *_undecided(plan, healthy)]
    for effect, words, watching in example_harms(plan):
        harmed = budget.spend(plan, replace(traffic, effects=(effect,)), HARMED_RUNS, starts_at)
        findings += _missed(harmed, words, watching)
    return Outlook(tuple(findings), budget.rollouts, healthy)


class _Budget:
    """Runs virtual rollouts within the limit of checks, and at least one per traffic."""

    def __init__(self) -> None:
        self.rollouts = 0
        self._looks = MOST_LOOKS

    def spend(
        self, plan: Plan, traffic: VirtualTraffic, most: int, starts_at: datetime
    ) -> TriedTraffic:
        source = TrafficSource(traffic, plan)
        runs: list[VirtualRollout] = []
        for number in range(most):
            if self._looks <= 0 and runs:
                break
            runs.append(run_once(plan, source, starts_at, np.random.default_rng([1, number])))
            self._looks -= runs[-1].looks
        self.rollouts += len(runs)
        return summed_up(plan, traffic, runs)


def _false_alarms(healthy: TriedTraffic) -> Iterator[Finding]:
    part = healthy.false_alarm
    if part.share >= WORTH_TELLING:
        metrics = sorted({run.metric for run in healthy.runs if run.metric is not None})
        yield _warning(
            ("guardrails",),
            f"in {part.count} of {plural(part.of, 'simulated rollout')} {', '.join(metrics)} finds "
            f"harm in a release as good as control",
            "let the limit lie above what control does",
        )


def _undecided(plan: Plan, healthy: TriedTraffic) -> Iterator[Finding]:
    """Tell of gates that do not reach their verdict.

    And of those that take much longer than planned.
    """
    for index, (stage, declared) in enumerate(zip(healthy.stages, plan.stages, strict=True)):
        came = stage.passed + stage.undecided
        per_second = f"at {healthy.traffic.rate_words}"
        if came and stage.undecided / came >= WORTH_TELLING:
            yield _warning(
                ("stages", index),
                f"the gate is unlikely to decide {per_second}: in {stage.undecided} of "
                f"{plural(came, 'simulated rollout')} of a release "
                f"as good as control it is undecided at max_bake "
                f"({_rounded(declared.max_bake)}): {lacking_words(stage.lacking)}",
                _decidable(stage.lacking),
            )
        elif (
            stage.open_seconds is not None
            and stage.open_seconds.median > LONGER * stage.planned.total_seconds()
        ):
            yield _warning(
                ("stages", index),
                f"the gate takes about {_rounded(timedelta(seconds=stage.open_seconds.median))} "
                f"{'inside the active windows ' if plan.active else ''}"
                f"{per_second}, where "
                f"{_rounded(stage.planned)} are planned",
                "expect it to wait, or bake longer",
            )


def _decidable(lacking: Counter[str]) -> str:
    """Return what lets a gate decide that lacked this."""
    ways = ["raise max_bake", "expose more"]
    if HealthGap.BELOW_MIN_SAMPLE in lacking:
        ways.append("lower min_sample")
    if any(name not in list(HealthGap) for name in lacking):
        ways.append("ask for less with a wider limit or `gate_margin`")
    return f"{', '.join(ways[:-1])}, or {ways[-1]}"


def _missed(harmed: TriedTraffic, words: str, watching: Sequence[Guardrail]) -> Iterator[Finding]:
    part = harmed.missed
    if part.of and part.share >= 0.5:
        yield _warning(
            ("guardrails",),
            f"a release that {words} is promoted in {part.count} of "
            f"{plural(part.of, 'simulated rollout')}",
            _stricter(watching),
        )


def _stricter(watching: Sequence[Guardrail]) -> str:
    """Return what would find the harm that these guardrails miss; nothing that they have."""
    ways = []
    if any(one.limit is not None for one in watching):
        ways.append("tighten the limit")
    metric = watching[0].metric
    if any(one.margin is not None for one in watching):
        ways.append(f"lower the margin of {metric}")
        ways.append("let more traffic or time come to each stage")
    else:
        way = "> control -" if watching[0].kind.is_better_when_higher else "< control +"
        ways.append(f"compare with control, as in `{metric} {way} 10%`")
    return ", or ".join(ways)


def _warning(at: tuple[str | int, ...], message: str, fix: str) -> Finding:
    return Finding(at, Severity.WARNING, message, fix)


def _rounded(duration: timedelta) -> str:
    """Return a duration in its two largest units."""
    return " ".join(format_duration(timedelta(seconds=round(duration.total_seconds()))).split()[:2])
