"""Tries a plan on virtual rollouts: what was requested, and all its scenarios.

The terminal and the page request the same, and show what `trial_words.py` says about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from controller.codec.plans import to_core_plan
from controller.core.plan import Plan
from controller.errors import BadInput
from controller.planning.figures import TriedTraffic, simulate
from controller.planning.typed_traffic import (
    TypedTraffic,
    begin_words,
    begins_at,
    effects_of,
    virtual_traffic_of,
)
from controller.planning.virtual_traffic import Effect, VirtualTraffic
from schemas.plan import PlanDocument


@dataclass(frozen=True, slots=True)
class SimulationRequest:
    """What to simulate."""

    plan: Plan
    traffic: VirtualTraffic  # without effects
    assumed: tuple[str, ...]
    effects: tuple[Effect, ...]
    runs: int
    seed: int
    starts_at: datetime
    begin: str  # the same in words, with the windows that hold


def request_of(
    document: PlanDocument,
    typed: TypedTraffic,
    effects: Sequence[str],
    runs: int,
    seed: int,
    now: datetime,
) -> SimulationRequest:
    """Return what to simulate. Raises BadInput for what was typed and cannot be meant."""
    plan = to_core_plan(document)
    virtual = virtual_traffic_of(plan, document.traffic, typed)
    if virtual is None:
        raise BadInput(
            "say how much traffic there is, as in --traffic 50/s, or `traffic:` in the plan "
            "(contexts per hour)"
        )
    starts_at = begins_at(plan, now)
    return SimulationRequest(
        plan,
        *virtual,
        effects_of(effects, plan),
        runs,
        seed,
        starts_at,
        begin_words(plan, starts_at),
    )


def simulated(
    request: SimulationRequest,
    progress: Callable[[VirtualTraffic], Callable[[int], None]],
) -> list[TriedTraffic]:
    """Return a treatment as good as control, and again with the effects, if there are any.

    `progress` returns what hears of each rollout with a traffic.
    """
    traffics = [request.traffic]
    if request.effects:
        traffics.append(replace(request.traffic, effects=request.effects))
    return [
        simulate(
            request.plan,
            traffic,
            request.runs,
            request.seed,
            request.starts_at,
            progress(traffic),
        )
        for traffic in traffics
    ]
