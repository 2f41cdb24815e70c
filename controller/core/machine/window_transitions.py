"""Changes at the edges of a plan's active windows, with what is announced of them.

Closing gives everybody control, and opening restores what was decided before, never more. What is
allowed, and when, is decided by those who call this.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from controller.core.effects import RaiseAlert, Transition
from controller.core.machine import announcements, transitions
from controller.core.machine.cause import Cause
from controller.core.machine.holding import round_to_ask_again
from controller.core.machine.revisions import announced, next_revision
from controller.core.machine.times import opens_words
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    Phase,
    Retired,
    RolledBack,
    Rollout,
    Scheduled,
)
from controller.core.windows import closes_at, local_words, opens_at
from schemas.terms import AlertKind, DecisionKind, HoldReason, Severity

#: A closing by the tick of its time is in time.
LATE_AFTER: Final = timedelta(seconds=5)


def close(rollout: Rollout, now: datetime) -> Transition:
    """Serve 0 % until the next active window. What waits, waits on after it."""
    phase = _without_open_question(rollout.phase, now)
    visits = (*rollout.visits[:-1], rollout.visits[-1].closed(now))
    after = next_revision(rollout, now, phase=phase, visits=visits)
    why = f"no active window of the plan covers this time; {opens_words(rollout, now)}"
    cause = Cause(why + _lateness(rollout, now))
    opening = opens_at(rollout.plan.active, now)
    is_kept = isinstance(phase, Paused) or after.freeze is not None or opening is None
    alerts = [_stays_closed(after, opening, now)] if is_kept else []
    return announced(rollout, after, DecisionKind.CLOSE, cause, *alerts)


def _lateness(rollout: Rollout, now: datetime) -> str:
    """Return that a closing comes late, and what was served until then; empty for one in time."""
    windows = rollout.plan.active
    due = closes_at(windows, rollout.updated_at)
    if due is None or now - due < LATE_AFTER:
        return ""
    return (
        f"; it should have closed {local_words(due, windows, now)}, and {rollout.served_words} was "
        "served until now"
    )


def _stays_closed(after: Rollout, opening: datetime | None, now: datetime) -> RaiseAlert:
    """Return the alert that no active window opens the rollout again by itself."""
    windows = after.plan.active
    is_paused = isinstance(after.phase, Paused)
    kept = "it is paused" if is_paused else "an operator has frozen it"
    why = kept if opening is not None else "no active window comes any more"
    summary = f"{after.flag_key} closed, 0 % is served, and it does not open by itself: {why}"
    action = "abort it, or apply a plan with active windows to come"
    if opening is not None:
        verb = "resume" if is_paused else "unfreeze"
        action = f"`{verb}` lets it open {local_words(opening, windows, now)}; else roll back"
    return announcements.alert(after, AlertKind.PAUSED, Severity.WARNING, summary, action, None)


def open_again(rollout: Rollout, now: datetime) -> Transition:
    """Serve what was decided before it closed. Apps need another settle to pick it up.

    Bakes and gates get the closed time and that settle on top. A visit that has too many closings
    ends, and the stage begins again: to drop the oldest would take back what was counted between
    them, and evidence that falls is not judged.
    """
    visit = rollout.visits[-1]
    counts_from = now + rollout.plan.stages[visit.stage].settle
    closed_since = visit.closings[-1].since
    since = local_words(closed_since, rollout.plan.active, now)
    visits = (*rollout.visits[:-1], visit.opened(counts_from))
    why = (
        "an active window of the plan has begun"
        if rollout.plan.active
        else ("the plan has no active windows any more")
    )
    why = f"{why}; closed since {since}"
    if visit.is_full and rollout.stage_index is not None:
        again = f"the stage begins again, because it has closed {len(visit.closings)} times"
        after = transitions.entered(replace(rollout, visits=visits), rollout.stage_index, now)
        return announced(rollout, after, DecisionKind.OPEN, Cause(f"{why}; {again}"))
    stood_still = max(closed_since, visit.counting_since)
    after = next_revision(
        rollout,
        now,
        phase=_later(rollout.phase, stood_still, counts_from),
        percent=visit.percent,
        visits=visits,
        hold=_hold(rollout),
    )
    cause = Cause(why)
    return announced(rollout, after, DecisionKind.OPEN, cause)


def note_missed_closing(rollout: Rollout, closing: datetime, now: datetime) -> Transition:
    """Record that it was not closed at the end of a window: nobody ran the rollout then."""
    windows = rollout.plan.active
    after = next_revision(rollout, now, phase=_without_open_question(rollout.phase, now))
    cause = Cause(
        f"it should have closed {local_words(closing, windows, now)}, and no replica could; "
        f"{rollout.served_words} was served until an active window began again"
    )
    return announced(rollout, after, DecisionKind.HOLD, cause)


def _without_open_question(phase: Phase, now: datetime) -> Phase:
    """Return the phase; the model is asked again, because the evidence gets old meanwhile."""
    if isinstance(phase, Gating) and phase.advice is not None and not phase.advice.is_closed:
        return replace(phase, advice=round_to_ask_again(phase.advice, now))
    return phase


def _later(phase: Phase, since: datetime, until: datetime) -> Phase:
    """Return the phase with its deadlines later: from `since` to `until` its time stood still."""
    by = max(until - since, timedelta(0))
    match phase:
        case Baking():
            return replace(phase, until=max(phase.until, since) + by)
        case Gating(advice=advice):
            moved = None if advice is None else advice.moved_back(-by)
            return replace(phase, until=max(phase.until, since) + by, advice=moved)
        case Scheduled() | AwaitingApproval() | Paused():
            return phase
        case Completed() | RolledBack() | Aborted() | Retired():
            return phase


def _hold(rollout: Rollout) -> HoldReason | None:
    """Return what holds the rollout now that it is open; a gate says again what is in its way."""
    if isinstance(rollout.phase, AwaitingApproval):
        return rollout.phase.reason
    return HoldReason.HEALTH if rollout.told_gaps else None
