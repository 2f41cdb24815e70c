"""Reports what `plan lint` finds beyond faults.

How alpha is spent, and what a few virtual rollouts came to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from controller.cli.typed_traffic import exit_on_bad_input
from controller.codec.plans import to_core_plan
from controller.core.judging.questions import alpha_shares
from controller.core.plan import Guardrail, Plan
from controller.planning.outlook import Outlook, outlook
from controller.planning.typed_traffic import (
    TypedTraffic,
    begin_words,
    begins_at,
    virtual_traffic_of,
)
from controller.plans import Finding
from schemas.fields import format_duration
from schemas.plan import PlanDocument


class Tryout:
    """Tries a plan where its traffic is known, and remembers what for."""

    def __init__(self, typed: TypedTraffic, now: datetime) -> None:
        """Take the traffic as it was typed."""
        self._typed = typed
        self._now = now
        #: Control, what was assumed about it, and when the rollouts begin.
        self._tried: tuple[str, tuple[str, ...], str] | None = None
        self._outlook = Outlook((), 0)

    def __call__(self, document: PlanDocument) -> Iterable[Finding]:
        """Return what virtual rollouts of a plan without errors warn of.

        Nothing where its traffic is not known.
        """
        plan = to_core_plan(document)
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
        """Yield what was tried, in words."""
        if self._tried is None:
            yield (
                "not simulated: `--traffic 50/s`, or `traffic:` in the plan, tells whether its "
                "gates can decide"
            )
            return
        control, assumed, begin = self._tried
        yield f"simulated: {self._outlook.rollouts} rollouts at {control}"
        yield f"simulated rollouts {begin}"
        if assumed:
            yield f"assumed, because not stated: {', '.join(assumed)}"

    def document(self) -> dict[str, Any] | None:
        """Return what was tried, None when nothing was."""
        if self._tried is None:
            return None
        control, assumed, begin = self._tried
        return {
            "rollouts": self._outlook.rollouts,
            "control": control,
            "assumed": list(assumed),
            "begin": begin,
        }


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
    if not plan.guardrails:
        return
    yield (
        f"alpha: {_percent(plan.alpha)} of false alarms per role in a whole rollout, over all "
        f"looks and stages, of which"
    )
    for one, alpha in _spent(plan):
        yield f"  {_percent(alpha):>8}  {one.role.value:<9}  {guardrail_words(one)}"


def _spent(plan: Plan) -> Iterator[tuple[Guardrail, float]]:
    for one, share in zip(plan.guardrails, alpha_shares(plan.guardrails), strict=True):
        yield one, plan.alpha * share


def guardrail_words(one: Guardrail) -> str:
    """Return a guardrail as it is written in a plan.

    With the stages it watches if they are not all.
    """
    sign, worse = (">", "-") if one.kind.is_better_when_higher else ("<", "+")
    bounds = []
    if one.limit is not None:
        bounds.append(f"{sign} {_percent(one.limit) if one.kind.is_share else f'{one.limit:g}ms'}")
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


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
