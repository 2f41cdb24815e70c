"""The next revision of a rollout, and the decision that goes with it.

Every change of phase, stage, percent or hold goes through `next_revision`. Only `transitions.py`,
`holding.py`, `retirement.py`, `plan_transitions.py` and `window_transitions.py` call it:
`tests/unit/core/machine/test_transitions.py` checks the syntax trees.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from controller.core.effects import Effect, Transition
from controller.core.machine import announcements
from controller.core.machine.cause import Cause
from controller.core.rollout import Rollout
from controller.core.visits import Visit
from schemas.terms import DecisionKind


def next_revision(rollout: Rollout, now: datetime, **changes: object) -> Rollout:
    """Return the rollout one revision on. The last visit of a rollout that has ended is left.

    Whatever changes while it is closed, 0 % is served.
    """
    changes = {"revision": rollout.revision + 1, "updated_at": now, **changes}
    after = replace(rollout, **changes)  # type: ignore[arg-type]
    if after.closed_since is not None:
        after = replace(after, percent=0.0)
    return replace(after, visits=left(after.visits, now)) if after.has_ended else after


def left(visits: tuple[Visit, ...], now: datetime) -> tuple[Visit, ...]:
    """Return the visits with the last one left, now unless it was left before."""
    if not visits or visits[-1].left_at is not None:
        return visits
    return (*visits[:-1], replace(visits[-1], left_at=now))


def announced(
    before: Rollout, after: Rollout, kind: DecisionKind, cause: Cause, *alerts: Effect
) -> Transition:
    """Return the transition with its decision and alerts, in this order."""
    return Transition(after, (announcements.decision(before, after, kind, cause), *alerts))
