"""Event time to stage, and freeze windows: everything about when, nothing about what."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from controller.core.plan import FreezeWindow
from controller.core.rollout import Visit


def locate(visits: Sequence[Visit], event_time: datetime) -> int | None:
    """Return the index of the visit an event counts for, None while settling, before the start and after the end.

    A pure function of the event's own time, so that a replay counts the same. `event_time` is UTC-aware.
    """
    for index in range(len(visits) - 1, -1, -1):
        visit = visits[index]
        if event_time >= visit.entered_at:
            has_left = visit.left_at is not None and event_time >= visit.left_at
            return None if has_left or event_time < visit.counts_from else index
    return None


def frozen_until(windows: Sequence[FreezeWindow], at: datetime) -> datetime | None:
    """Return when the freeze window around `at` ends, None when no window covers it.

    Overlapping and touching windows are one. `at` is UTC-aware, and so is the answer. Where a daylight-saving change skips or
    repeats a local time, a window starts at the earliest and ends at the latest that it may mean: none is lost.
    """
    end: datetime | None = None
    probe = at
    # Each round either extends the end or stops; a week of touching windows has at most 8 starts per window.
    for _ in range(8 * len(windows) + 1):
        later = max((until for window in windows if (until := _window_end(window, probe))), default=None)
        if later is None or (end is not None and later <= end):
            return end
        end = probe = later
    return end


def _window_end(window: FreezeWindow, at: datetime) -> datetime | None:
    """Return the end of the occurrence of `window` that covers `at`, None if none does."""
    zone = ZoneInfo(window.timezone)
    today = at.astimezone(zone).date()
    days_back = window.minutes // (24 * 60) + 1
    latest: datetime | None = None
    for back in range(days_back + 1):
        day = today - timedelta(days=back)
        if day.isoweekday() not in window.weekdays:
            continue
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - local, as the plan says it
        start, _ = _in_utc(midnight + timedelta(minutes=window.start_minute), zone)
        _, end = _in_utc(midnight + timedelta(minutes=window.start_minute + window.minutes), zone)
        if start <= at < end and (latest is None or end > latest):
            latest = end
    return latest


def _in_utc(local: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the earliest and the latest moment that a clock on the wall of `zone` may mean by `local`."""
    meant = sorted(local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return meant[0], meant[1]
