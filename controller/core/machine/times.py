"""Times of a rollout by its plan: frozen, active, expired, how long a gate may take."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from controller.core.plan import Plan
from controller.core.rollout import HOLD_ANNOUNCED_EVERY, Paused, Rollout, Waiting
from controller.core.windows import closes_at, frozen_until, is_active, local_words, opens_at
from schemas.terms import AdvisorMode


def is_frozen(rollout: Rollout, at: datetime) -> bool:
    """Return whether nothing may advance at `at`: in an operator's freeze or a freeze window."""
    return rollout.freeze is not None or frozen_until(rollout.plan.freeze_windows, at) is not None


def first_unfrozen(rollout: Rollout, at: datetime) -> datetime | None:
    """Return the first moment from `at` on without a freeze, None during an operator's freeze."""
    if rollout.freeze is not None:
        return None
    return frozen_until(rollout.plan.freeze_windows, at) or at


# --- active windows


def first_free(rollout: Rollout, at: datetime) -> datetime | None:
    """Return the first moment from `at` on at which the rollout may start.

    Without a freeze and inside an active window. None: an operator freezes it, or there is none.
    """
    return None if rollout.freeze is not None else first_start(rollout.plan, at)


def first_start(plan: Plan, at: datetime) -> datetime | None:
    """Return the first moment from `at` on that is in an active window and in no freeze window."""
    free = at
    for _ in range(_MOST_WINDOWS_TRIED):
        unfrozen = frozen_until(plan.freeze_windows, free) or free
        active = opens_at(plan.active, unfrozen)
        if active is None or active == unfrozen:
            return active
        free = active
    return free


#: A freeze may cover many active windows in turn. Then it is asked again at the last of them.
_MOST_WINDOWS_TRIED = 100


def may_start(rollout: Rollout, at: datetime) -> bool:
    """Return whether a first stage may begin at `at`: no freeze, and inside an active window."""
    return not is_frozen(rollout, at) and is_active(rollout.plan.active, at)


def is_exposed(rollout: Rollout) -> bool:
    """Return whether an active window that ends takes treatment from somebody."""
    return bool(rollout.visits) and not rollout.serves_nothing


def must_close(rollout: Rollout, at: datetime) -> bool:
    """Return whether everybody has to get control, because no active window covers `at`."""
    return is_exposed(rollout) and not is_active(rollout.plan.active, at)


def may_open(rollout: Rollout, at: datetime) -> bool:
    """Return whether what was decided is to be served again.

    A pause and an operator's freeze keep it closed. The plan's freeze windows do not: they come
    from the same author as the active windows.
    """
    is_kept = isinstance(rollout.phase, Paused) or rollout.freeze is not None
    is_closed = rollout.closed_since is not None
    return is_closed and not is_kept and is_active(rollout.plan.active, at)


def missed_closing(rollout: Rollout, at: datetime) -> datetime | None:
    """Return when it should have closed, where nobody ran it and the next window has begun."""
    if not is_exposed(rollout) or not is_active(rollout.plan.active, at):
        return None
    closing = closes_at(rollout.plan.active, rollout.updated_at)
    return closing if closing is not None and closing <= at else None


def window_boundary(rollout: Rollout, now: datetime) -> datetime | None:
    """Return when it closes or opens next by its active windows, None when it does neither.

    A closing that nobody made lies in the past, an opening never. An end beyond the search is
    looked for again before the search is over.
    """
    windows = rollout.plan.active
    if rollout.closed_since is None:
        if not windows or not is_exposed(rollout):
            return None
        found = closes_at(windows, rollout.updated_at) or closes_at(windows, now)
        return now + _SEARCHED_AGAIN if found is None else found
    opening = opens_at(windows, now)
    return opening if opening is not None and may_open(rollout, opening) else None


#: Less than the search of `closes_at` looks ahead.
_SEARCHED_AGAIN = timedelta(days=200)


def bake_time(rollout: Rollout, now: datetime) -> datetime:
    """Return the time by which bakes and gates are measured: it stands still while closed."""
    return rollout.closed_since or now


def opens_words(rollout: Rollout, now: datetime) -> str:
    """Return when the active windows open, in words: `closed until Mon 09:00 CET`."""
    windows = rollout.plan.active
    opening = opens_at(windows, now)
    if opening is None:
        return "closed: no active window comes any more"
    if opening <= now:
        return "closed, though an active window has begun"
    return f"closed until {local_words(opening, windows, now)}"


def scheduled_words(plan: Plan, start_at: datetime, now: datetime) -> str:
    """Return when a rollout starts, and what it waits for."""
    if start_at == plan.start_at:
        why = "the plan's start_at"
    elif plan.active and not is_active(plan.active, max(plan.start_at or now, now)):
        why = "when an active window of the plan begins"
    else:
        why = "when the plan's freeze window is over"
    return f"scheduled for {local_words(start_at, plan.active, now)}, {why}"


# --- the plan's own end


def is_expired(rollout: Rollout, at: datetime) -> bool:
    """Return whether the plan's `expires_at` has come."""
    return rollout.plan.expires_at is not None and at >= rollout.plan.expires_at


def has_just_expired(rollout: Rollout, at: datetime) -> bool:
    """Return whether the plan has expired, and the rollout still goes on by itself."""
    return isinstance(rollout.phase, Waiting) and is_expired(rollout, at)


def is_over(rollout: Rollout, at: datetime) -> bool:
    """Return whether the plan's `ends_at` has come, and not everybody has control yet."""
    ends_at = rollout.plan.ends_at
    is_off = rollout.has_ended and rollout.phase.serves_nothing
    return ends_at is not None and at >= ends_at and not is_off


def may_announce(rollout: Rollout, at: datetime) -> bool:
    """Return whether the last transition is old enough for a change of the hold to be announced."""
    return at - rollout.updated_at >= HOLD_ANNOUNCED_EVERY


def gate_time(rollout: Rollout, stage_index: int) -> timedelta:
    """Return how long a gate may stay undecided.

    That is what `max_bake` leaves, and at least the time for every round of advice.
    """
    stage = rollout.plan.stages[stage_index]
    return stage.max_bake - stage.bake + time_for_advice(rollout, stage_index)


def time_for_advice(rollout: Rollout, stage_index: int) -> timedelta:
    """Return how much longer than `max_bake` a stage may last, because a model is asked."""
    if rollout.advisor_mode is AdvisorMode.OFF:
        return timedelta(0)
    stage = rollout.plan.stages[stage_index]
    return max(rollout.plan.advisor.all_rounds - (stage.max_bake - stage.bake), timedelta(0))


def due_at(
    first_free_from: Callable[[Rollout, datetime], datetime | None],
    rollout: Rollout,
    at: datetime,
    now: datetime,
) -> datetime | None:
    """Return when what waits until `at` can happen: in the past where it is overdue.

    While a window keeps it from happening now, that is when the window ends.
    """
    if at < now and (free := first_free_from(rollout, now)) != now:
        return free
    return first_free_from(rollout, at)
