"""Maps times of events to visits, and computes freeze windows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from controller.core.plan import FreezeWindow
from controller.core.rollout import Visit


def locate(visits: Sequence[Visit], event_time: datetime) -> int | None:
    """Return the index of the visit that an event counts for.

    None while settling, before the start and after the end.
    A pure function of the event's own time, so that a replay counts the same. `event_time` is
    UTC-aware.
    """
    for index in range(len(visits) - 1, -1, -1):
        visit = visits[index]
        if event_time >= visit.entered_at:
            has_left = visit.left_at is not None and event_time >= visit.left_at
            return None if has_left or event_time < visit.counts_from else index
    return None


#: Freezes are computed for this many days at once: nearly every question is about these two weeks.
_DAYS_AT_ONCE = 14
#: The end of a freeze is searched no further ahead. Windows can together freeze every week.
_FOLLOWED = timedelta(days=56)
#: Windows apply between these years. At the limits of `datetime` no day comes before or after.
_FIRST_YEAR, _LAST_YEAR = 1900, 9900
_DAY_MINUTES = 24 * 60
_MINUTE = timedelta(minutes=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = _EPOCH.date().toordinal()

Interval = tuple[int, int]
"""Start and end in seconds since 1970 UTC."""


def frozen_until(windows: Sequence[FreezeWindow], at: datetime) -> datetime | None:
    """Return when the freeze around `at` ends, None when no window covers it.

    Windows that overlap or touch are one freeze. The end of a freeze is searched for eight weeks.
    `at` is UTC-aware, and so is the result. Where a daylight-saving change skips or repeats a local
    time, a window starts at the earliest and ends at the latest moment that the local time can be:
    no part of it is lost.
    """
    if not windows or not _FIRST_YEAR < at.year < _LAST_YEAR:
        return None
    windows = tuple(windows)
    horizon = at + _FOLLOWED
    end: datetime | None = None
    probe = at
    while (later := _end_in_block(windows, probe)) is not None and later > probe:
        end = probe = later
        if later >= horizon:
            break
    return end


def _end_in_block(windows: tuple[FreezeWindow, ...], at: datetime) -> datetime | None:
    """Return the end of the freeze around `at` within its block of days, None without a freeze."""
    second = (at - _EPOCH) // timedelta(seconds=1)
    starts, ends = _freezes(windows, second // (86_400 * _DAYS_AT_ONCE))
    place = bisect_right(starts, second) - 1
    if place < 0 or second >= ends[place]:
        return None
    return _EPOCH + timedelta(seconds=ends[place])


@lru_cache(maxsize=256)
def _freezes(windows: tuple[FreezeWindow, ...], block: int) -> tuple[list[int], list[int]]:
    """Return the starts and ends, rising, of the freezes in a block of days; no two touch."""
    first = _EPOCH_DAY + block * _DAYS_AT_ONCE
    starts: list[int] = []
    ends: list[int] = []
    for start, end in sorted({each for window in windows for each in _occurrences(window, first)}):
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        elif start < end:
            starts.append(start)
            ends.append(end)
    return starts, ends


def _occurrences(window: FreezeWindow, first: int) -> Iterator[Interval]:
    """Yield the occurrences of a window that may reach into a block of days.

    `first` is the block's first day, as an ordinal. A local day may begin a day before or after the
    UTC day.
    """
    zone = _zone(window.timezone)
    days = range(first - window.minutes // _DAY_MINUTES - 2, first + _DAYS_AT_ONCE + 2)
    offset = _offset(window.timezone, days.start, days.stop + window.minutes // _DAY_MINUTES + 1)
    for day in days:
        if (day - 1) % 7 + 1 not in window.weekdays:
            continue
        if offset is not None:
            start = ((day - _EPOCH_DAY) * _DAY_MINUTES + window.start_minute) * 60 - offset
            yield start, start + window.minutes * 60
            continue
        midnight = datetime.combine(date.fromordinal(day), datetime.min.time())
        begins = midnight + window.start_minute * _MINUTE
        yield _in_utc(begins, zone)[0], _in_utc(begins + window.minutes * _MINUTE, zone)[1]


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    """Return a time zone. ZoneInfo caches only eight, and reads the file of any other again."""
    return ZoneInfo(name)


@lru_cache(maxsize=4096)
def _offset(zone_name: str, first: int, last: int) -> int | None:
    """Return the zone's offset from UTC in seconds between two days, None when it changes."""
    zone = _zone(zone_name)
    days = range(first - 1, last + 2)
    noons = (datetime.fromordinal(day).replace(hour=12, tzinfo=UTC) for day in days)
    offsets = {noon.astimezone(zone).utcoffset() for noon in noons}
    only = offsets.pop()
    return only // timedelta(seconds=1) if not offsets and only is not None else None


def _in_utc(local: datetime, zone: ZoneInfo) -> Interval:
    """Return the earliest and the latest second that a clock in `zone` may show as `local`."""
    seconds = sorted(local.replace(tzinfo=zone, fold=fold) - _EPOCH for fold in (0, 1))
    return seconds[0] // timedelta(seconds=1), seconds[1] // timedelta(seconds=1)
