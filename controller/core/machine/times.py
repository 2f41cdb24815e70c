"""What a rollout's plan and freezes say about time: frozen, expired, how long a gate may take."""

from __future__ import annotations

from datetime import datetime, timedelta

from controller.core.rollout import Rollout
from controller.core.timeline import frozen_until
from schemas.terms import AdvisorMode

#: A hold whose reason changes is announced at most this often, so that evidence on the edge cannot
#: flood the audit log.
HOLD_ANNOUNCED_EVERY = timedelta(minutes=1)


def is_frozen(rollout: Rollout, at: datetime) -> bool:
    """Return whether nothing may advance at `at`: in an operator's freeze or a freeze window."""
    return rollout.freeze is not None or frozen_until(rollout.plan.freeze_windows, at) is not None


def first_unfrozen(rollout: Rollout, at: datetime) -> datetime | None:
    """Return the first moment from `at` on without a freeze, None during an operator's freeze."""
    if rollout.freeze is not None:
        return None
    return frozen_until(rollout.plan.freeze_windows, at) or at


def is_expired(rollout: Rollout, at: datetime) -> bool:
    """Return whether the plan's `expires_at` has come."""
    return rollout.plan.expires_at is not None and at >= rollout.plan.expires_at


def may_announce(rollout: Rollout, at: datetime) -> bool:
    """Return whether the last transition is old enough for a change of the hold to be announced."""
    return at - rollout.updated_at >= HOLD_ANNOUNCED_EVERY


def gate_time(rollout: Rollout, stage_index: int) -> timedelta:
    """Return how long a gate may stay undecided.

    That is what `max_bake` leaves, and at least the time for every round of advice.
    """
    policy, stage = rollout.plan.advisor, rollout.plan.stages[stage_index]
    rounds = timedelta(0)
    if policy.mode is not AdvisorMode.OFF:
        rounds = (policy.deadline + policy.hold_for) * policy.hold_rounds
    return max(stage.max_bake - stage.bake, rounds)
