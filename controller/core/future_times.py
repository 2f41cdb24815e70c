"""Times of a rollout that lie ahead of now, because a machine whose clock was wrong wrote them.

Left as they are, the rollout stands still until they have come: time never runs back past its last
transition. Here they are brought back to now. A bake may become longer by that, never shorter.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from controller.core.rollout import (
    Aborted,
    AdviceRound,
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    Phase,
    RolledBack,
    Rollout,
    Scheduled,
    Visit,
)

#: Clocks may differ by less than this; see `clock.max_skew_seconds`.
AHEAD_AT_MOST_SECONDS: Final = 10.0

Held = Scheduled | Baking | Gating | AwaitingApproval


def seconds_ahead(rollout: Rollout, now: datetime) -> float:
    """Return by how many seconds the last transition is ahead of `now`, 0 when it is not."""
    return max((rollout.updated_at - now).total_seconds(), 0.0)


def healed(rollout: Rollout, now: datetime) -> Rollout:
    """Return the rollout, one revision on, with no transition ahead of `now`.

    Deadlines keep their distance from the time that they were set at, where that is brought back. A
    bake's end is brought back at most to a whole bake from now: how much of it had passed cannot be
    known.
    """
    freeze = rollout.freeze
    return replace(
        rollout,
        revision=rollout.revision + 1,
        phase=_phase(rollout, rollout.phase, now),
        visits=tuple(_visit(visit, now) for visit in rollout.visits),
        started_at=min(rollout.started_at, now),
        updated_at=min(rollout.updated_at, now),
        freeze=None if freeze is None else replace(freeze, since=min(freeze.since, now)),
    )


def _visit(visit: Visit, now: datetime) -> Visit:
    entered_at = min(visit.entered_at, now)
    return replace(
        visit,
        entered_at=entered_at,
        counts_from=entered_at + (visit.counts_from - visit.entered_at),
        left_at=None if visit.left_at is None else min(visit.left_at, now),
    )


def _phase(rollout: Rollout, phase: Phase, now: datetime) -> Phase:
    match phase:
        case Baking(stage=stage, until=until):
            plan = rollout.plan.stages[stage]
            return replace(phase, until=min(until, now + plan.settle + plan.bake))
        case Gating():
            return _shifted(phase, max(phase.since - now, timedelta(0)))
        case AwaitingApproval():
            return replace(phase, since=min(phase.since, now))
        case Paused(since=since, held=held):
            # What was left of the bake is counted from the pause.
            back = max(since - now, timedelta(0))
            return replace(phase, since=since - back, held=_held(held, back))
        case Completed() | RolledBack() | Aborted():
            return replace(phase, at=min(phase.at, now))
        case Scheduled():
            return phase


def _held(held: Held, back: timedelta) -> Held:
    match held:
        case Baking():
            return replace(held, until=held.until - back)
        case Gating():
            return _shifted(held, back)
        case AwaitingApproval():
            return replace(held, since=held.since - back)
        case Scheduled():
            return held


def _shifted(gate: Gating, back: timedelta) -> Gating:
    advice = None if gate.advice is None else _round(gate.advice, back)
    return replace(gate, since=gate.since - back, until=gate.until - back, advice=advice)


def _round(advice: AdviceRound, back: timedelta) -> AdviceRound:
    held_until = None if advice.held_until is None else advice.held_until - back
    return replace(advice, until=advice.until - back, held_until=held_until)
