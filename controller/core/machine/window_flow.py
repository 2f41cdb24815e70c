"""Handles time and evidence at the edges of a plan's active windows, and between them."""

from __future__ import annotations

from datetime import datetime

from controller.core.effects import Transition
from controller.core.events import Event, EvidenceJudged, Ticked
from controller.core.machine import window_transitions
from controller.core.machine.times import may_open, missed_closing, must_close
from controller.core.rollout import Rollout


def close_or_open(rollout: Rollout, event: Event, now: datetime) -> Transition | None:
    """Close at the end of a window, open at the begin of one; None for a rollout that is open.

    While it is closed nothing else happens. Evidence closes it too: it may come before the tick.
    """
    if isinstance(event, Ticked | EvidenceJudged) and must_close(rollout, now):
        return window_transitions.close(rollout, now)
    if isinstance(event, Ticked):
        if may_open(rollout, now):
            return window_transitions.open_again(rollout, now)
        if (closing := missed_closing(rollout, now)) is not None:
            return window_transitions.note_missed_closing(rollout, closing, now)
    return Transition(rollout) if rollout.closed_since is not None else None
