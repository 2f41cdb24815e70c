"""Reports what `plan lint` finds beyond faults.

How alpha is spent, and what a few virtual rollouts came to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from controller.cli.typed_traffic import exit_on_bad_input
from controller.codec.plans import to_core_plan
from controller.core.judging.questions import alpha_shares
from controller.core.metrics.kind import share_words
from controller.core.plan import Guardrail, Plan, Stage
from controller.planning.figures import Spread, TriedTraffic
from controller.planning.outlook import Outlook, outlook
from controller.planning.typed_traffic import (
    TypedTraffic,
    begin_words,
    begins_at,
    virtual_traffic_of,
)
from controller.plans import Finding
from controller.reporting.situation import about
from controller.text import plural
from schemas.fields import format_duration
from schemas.plan import PlanDocument

_ENOUGH = {True: "enough traffic", False: "too little traffic", None: "not known if enough traffic"}


class Tryout:
    """Tries a plan where its traffic is known, and remembers what for."""

    def __init__(self, typed: TypedTraffic, now: datetime) -> None:
        """Take the traffic as it was typed."""
        self._typed = typed
        self._now = now
        #: Control, what was assumed about it, and when the rollouts begin.
        self._tried: tuple[str, tuple[str, ...], str] | None = None
        self._plan: Plan | None = None
        self._outlook = Outlook((), 0)

    def __call__(self, document: PlanDocument) -> Iterable[Finding]:
        """Return what virtual rollouts of a plan without errors warn of.

        Nothing where its traffic is not known.
        """
        self._plan = plan = to_core_plan(document)
        with exit_on_bad_input():
            tried = virtual_traffic_of(plan, document.traffic, self._typed)
        if tried is None or plan.blind:
            return ()
        traffic, assumed = tried
        starts_at = begins_at(plan, self._now)
        self._tried = traffic.words(plan), assumed, begin_words(plan, starts_at)
        self._outlook = outlook(plan, traffic, starts_at)
        return self._outlook.findings

    def lines(self) -> Iterator[str]:
        """Yield what was tried and what came of it, in words."""
        if self._plan is not None and self._plan.blind:
            took = _planned(self._plan.stages)
            yield f"not simulated: the plan is blind, so its stages take {about(took)} as planned"
            return
        if self._tried is None or self._plan is None or self._outlook.healthy is None:
            yield (
                "not simulated: `--traffic 50/s`, or `traffic:` in the plan, tells whether its "
                "gates can decide"
            )
            return
        control, assumed, begin = self._tried
        yield from _result_lines(self._plan, self._outlook.healthy)
        yield f"simulated: {plural(self._outlook.rollouts, 'rollout')} at {control}"
        yield f"simulated rollouts {begin}"
        if assumed:
            yield f"assumed, because not stated: {', '.join(assumed)}"

    def document(self) -> dict[str, Any] | None:
        """Return what was tried and what came of it, None when nothing was tried."""
        healthy = self._outlook.healthy
        if self._tried is None or healthy is None:
            return None
        control, assumed, begin = self._tried
        return {
            "rollouts": self._outlook.rollouts,
            "control": control,
            "assumed": list(assumed),
            "begin": begin,
            "is_enough_traffic": _is_enough(healthy),
            "healthy": {
                "rollouts": healthy.promoted.of,
                "completed": healthy.promoted.count,
                "undecided": healthy.undecided.count,
                "seconds_to_complete": _median(healthy.seconds_to_complete),
                "stages": [
                    {
                        "percent": stage.percent,
                        "planned_seconds": stage.planned.total_seconds(),
                        "seconds": _median(stage.seconds),
                        "passed": stage.passed,
                        "undecided": stage.undecided,
                    }
                    for stage in healthy.stages
                ],
            },
        }


def _result_lines(plan: Plan, healthy: TriedTraffic) -> Iterator[str]:
    """Yield whether a release without harm completes with this traffic, and how long it takes."""
    done, total = healthy.promoted.count, healthy.promoted.of
    reasons = {run.reason for run in healthy.runs if run.ended in ("paused", "given_up")}
    ends = [
        f"{part.count} {words}"
        for part, words in (
            (healthy.undecided, "stay undecided at max_bake"),
            (healthy.false_alarm, "find harm that is not there"),
            (healthy.otherwise, f"end otherwise ({', '.join(sorted(reasons))})"),
        )
        if part.count
    ]
    completed = f"{done} of {plural(total, 'rollout')} of a release as good as control complete"
    if (took := healthy.seconds_to_complete) is not None:
        completed += f", after about {about(timedelta(seconds=took.median))}"
    yield f"{_ENOUGH[_is_enough(healthy)]}: {'; '.join([completed, *ends])}"
    closed = ", closed and frozen times included" if plan.active or plan.freeze_windows else ""
    for index, stage in enumerate(healthy.stages):
        if stage.seconds is not None:
            words = f"about {about(timedelta(seconds=stage.seconds.median))}{closed}"
        else:
            is_reached = any(run.stage >= index for run in healthy.runs)
            words = "its gate never passes" if is_reached else "not reached"
        undecided = f", undecided in {stage.undecided}" if stage.undecided else ""
        planned = f"{about(stage.planned)} planned"
        yield f"  stage {index + 1}, {stage.percent:g} %: {words} ({planned}){undecided}"


def _is_enough(healthy: TriedTraffic) -> bool | None:
    """Return whether no gate lacks evidence; None where something else ends rollouts before."""
    if healthy.undecided.count:
        return False
    return None if healthy.otherwise.count else True


def _median(values: Spread | None) -> float | None:
    return None if values is None else values.median


def _planned(stages: Iterable[Stage]) -> timedelta:
    return sum((stage.settle + stage.bake for stage in stages), timedelta(0))


def alpha_budget(document: PlanDocument) -> dict[str, Any]:
    """Return how the plan's alpha is spent.

    Per guardrail its part, which its looks, stages and questions share.
    """
    plan = to_core_plan(document)
    return {
        "of_the_whole_rollout": plan.alpha,
        "guardrails": [
            {
                "metric": one.metric,
                "role": one.role.value,
                "from_percent": one.from_percent,
                "to_percent": one.to_percent,
                "alpha": alpha,
            }
            for one, alpha in _spent(plan)
        ],
    }


def alpha_lines(document: PlanDocument) -> Iterator[str]:
    """Yield how the plan's alpha is spent, in words; nothing for a plan without guardrails."""
    plan = to_core_plan(document)
    for metric in plan.external:
        if not metric.is_counted:
            yield f"{metric.name}: {metric.words}; a threshold: its false alarms are not bounded"
    for webhook in plan.gate_webhooks:
        yield f"gate webhook {webhook.endpoint}: {webhook.words}; silence holds"
    if not plan.tested:
        return
    yield (
        f"alpha: {share_words(plan.alpha)} of false alarms per role in a whole rollout, over all "
        f"looks and stages, of which"
    )
    for one, alpha in _spent(plan):
        yield f"  {share_words(alpha):>8}  {one.role.value:<9}  {guardrail_words(one)}"


def _spent(plan: Plan) -> Iterator[tuple[Guardrail, float]]:
    for one, share in zip(plan.tested, alpha_shares(plan.tested), strict=True):
        yield one, plan.alpha * share


def guardrail_words(one: Guardrail) -> str:
    """Return a guardrail as it is written in a plan.

    With the stages it watches if they are not all.
    """
    sign, worse = (">", "-") if one.kind.is_better_when_higher else ("<", "+")
    bounds = []
    if one.limit is not None:
        bounds.append(
            f"{sign} {share_words(one.limit) if one.kind.is_share else f'{one.limit:g}ms'}"
        )
    if one.margin is not None:
        bounds.append(
            f"{sign} control {worse} {100 * one.margin:.3g}{'pp' if one.in_points else ' %'}"
        )
    within = f" within {format_duration(one.within)}" if one.has_floor else ""
    range_ = (
        f" (from {one.from_percent:g} to {one.to_percent:g} %)"
        if (one.from_percent, one.to_percent) != (0.0, 100.0)
        else ""
    )
    return f"{one.metric} {' and '.join(bounds)}{within}{range_}"
