"""Maps times of events to visits: which stage an event counts for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from controller.core.visits import Visit


def locate(visits: Sequence[Visit], event_time: datetime) -> int | None:
    """Return the index of the visit that an event counts for.

    None while settling, before the start, after the end and while it was closed.
    A pure function of the event's own time, so that a replay counts the same. `event_time` is
    UTC-aware.
    """
    for index in range(len(visits) - 1, -1, -1):
        visit = visits[index]
        if event_time >= visit.entered_at:
            has_left = visit.left_at is not None and event_time >= visit.left_at
            was_closed = any(
                event_time >= closing.since
                and (closing.counts_from is None or event_time < closing.counts_from)
                for closing in visit.closings
            )
            counts = event_time >= visit.counts_from and not has_left and not was_closed
            return index if counts else None
    return None
