"""Times of a rollout that lie ahead of now, because a machine with a wrong clock wrote them.

A rollout that is left so stands still until those times have come: time never runs back past its
last transition. Here they are moved back to now. That may make a bake longer, never shorter.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from controller.core.rollout import Baking, Phase, Rollout, Scheduled
from controller.core.visits import Closing, Visit

#: Clocks may differ by less than this; see `clock.max_skew_seconds`.
AHEAD_AT_MOST_SECONDS: Final = 10.0


def seconds_ahead(rollout: Rollout, now: datetime) -> float:
    """Return by how many seconds the last transition is ahead of `now`, 0 when it is not."""
    return max((rollout.updated_at - now).total_seconds(), 0.0)


def healed(rollout: Rollout, now: datetime) -> Rollout:
    """Return the rollout, one revision on, with no transition ahead of `now`.

    Where a time is moved back, the deadlines counted from it move with it. The end of a bake is
    moved to a whole bake from now at most: how much of the bake had passed cannot be known.
    """
    freeze = rollout.freeze
    return replace(
        rollout,
        revision=rollout.revision + 1,
        phase=_phase(rollout, now),
        visits=tuple(
            _visit(visit, now, rollout.plan.stages[visit.stage].settle) for visit in rollout.visits
        ),
        started_at=min(rollout.started_at, now),
        updated_at=min(rollout.updated_at, now),
        freeze=None if freeze is None else replace(freeze, since=min(freeze.since, now)),
    )


def _visit(visit: Visit, now: datetime, settle: timedelta) -> Visit:
    entered_at = min(visit.entered_at, now)
    return replace(
        visit,
        entered_at=entered_at,
        counts_from=entered_at + (visit.counts_from - visit.entered_at),
        left_at=None if visit.left_at is None else min(visit.left_at, now),
        closings=tuple(
            Closing(
                min(one.since, now),
                None if one.counts_from is None else min(one.counts_from, now + settle),
            )
            for one in visit.closings
        ),
    )


def _phase(rollout: Rollout, now: datetime) -> Phase:
    match rollout.phase:
        case Scheduled() as phase:
            return phase  # its start may well lie ahead
        case Baking(stage=stage, until=until) as phase:
            plan = rollout.plan.stages[stage]
            return replace(phase, until=min(until, now + plan.settle + plan.bake))
        case phase:
            return phase.moved_back(max(phase.since - now, timedelta(0)))
