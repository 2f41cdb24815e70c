"""Computes when windows by local clocks begin and end: freeze windows, and active windows.

Belongs here: calendars, time zones and daylight saving. What a window does to a rollout is decided
in `machine/`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from controller.core.plan import Window
from schemas.terms import WEEKDAYS

#: Windows are computed for this many days at once: nearly every question is about these two weeks.
_DAYS_AT_ONCE = 14
#: The end of a freeze is searched no further ahead. Windows can together freeze every week.
_FOLLOWED = timedelta(days=56)
#: The end of active windows that touch is searched no further ahead: a whole season has an end.
_FOLLOWED_OPEN = timedelta(days=400)
#: Windows apply between these years. At the limits of `datetime` no day comes before or after.
_FIRST_YEAR, _LAST_YEAR = 1900, 9900
_DAY_MINUTES = 24 * 60
_MINUTE = timedelta(minutes=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = _EPOCH.date().toordinal()

Interval = tuple[int, int]
"""Start and end in seconds since 1970 UTC."""


# --- freeze windows ---


def frozen_until(windows: Sequence[Window], at: datetime) -> datetime | None:
    """Return when the freeze around `at` ends, None when no window covers it.

    Windows that overlap or touch are one freeze. The end of a freeze is searched for eight weeks.
    `at` is UTC-aware, and so is the result. Where a daylight-saving change skips or repeats a local
    time, a window starts at the earliest and ends at the latest moment that the local time can be:
    no part of it is lost.
    """
    if not windows or not _FIRST_YEAR < at.year < _LAST_YEAR:
        return None
    return _end(tuple(windows), at, at + _FOLLOWED, is_freeze=True)


# --- active windows ---


def is_active(windows: Sequence[Window], at: datetime) -> bool:
    """Return whether `at` is inside a window; without windows every moment is.

    `at` is UTC-aware. A window begins and ends when its local clock first shows that time, or a
    later one. So where a daylight-saving change repeats an hour, a window opens and closes once.
    """
    if not windows:
        return True
    if not _FIRST_YEAR < at.year < _LAST_YEAR:
        return False
    return _end_in_block(tuple(windows), at, is_freeze=False) is not None


def closes_at(windows: Sequence[Window], at: datetime) -> datetime | None:
    """Return the first moment from `at` on that is in no window.

    None without windows, and where they touch for more than a year. `at` is UTC-aware.
    """
    if not windows:
        return None
    if not _FIRST_YEAR < at.year < _LAST_YEAR:
        return at
    horizon = at + _FOLLOWED_OPEN
    end = _end(tuple(windows), at, horizon, is_freeze=False) or at
    return None if end >= horizon else end


def opens_at(windows: Sequence[Window], at: datetime) -> datetime | None:
    """Return the first moment from `at` on that is inside a window; None: there is none any more.

    `at` is UTC-aware. Without windows it is `at`.
    """
    if is_active(windows, at):
        return at
    if not _FIRST_YEAR < at.year < _LAST_YEAR:
        return None
    windows = tuple(windows)
    second = _seconds(at)
    present = second // (86_400 * _DAYS_AT_ONCE)
    blocks = {present, present + 1}
    for window in windows:
        if window.first_day is not None:
            begins = (window.first_day.toordinal() - _EPOCH_DAY) // _DAYS_AT_ONCE
            blocks |= {begins - 1, begins, begins + 1}
    for block in sorted(block for block in blocks if block >= present):
        starts, _ = _intervals(windows, block, is_freeze=False)
        place = bisect_right(starts, second)
        if place < len(starts):
            return _EPOCH + timedelta(seconds=starts[place])
    return None


def local_words(at: datetime, windows: Sequence[Window], now: datetime) -> str:
    """Return a moment by the clock of the first window: `Mon 09:00 CET`, from afar with its date.

    Both times are UTC-aware.
    """
    local = at.astimezone(_zone(windows[0].timezone) if windows else UTC)
    is_near = abs(at - now) < timedelta(days=6)
    day = WEEKDAYS[local.weekday()].capitalize() + ("" if is_near else f"{local: %Y-%m-%d}")
    clock = f"{local:%H:%M:%S}" if local.second else f"{local:%H:%M}"
    return f"{day} {clock} {local.tzname()}"


# --- both ---


def _end(
    windows: tuple[Window, ...], at: datetime, horizon: datetime, *, is_freeze: bool
) -> datetime | None:
    """Return the end of the windows around `at` that touch, None when none covers it."""
    end: datetime | None = None
    probe = at
    while (later := _end_in_block(windows, probe, is_freeze=is_freeze)) is not None:
        if later <= probe:
            break
        end = probe = later
        if later >= horizon:
            break
    return end


def _end_in_block(windows: tuple[Window, ...], at: datetime, *, is_freeze: bool) -> datetime | None:
    """Return the end of the window around `at` within its block of days, None without one."""
    second = _seconds(at)
    block = second // (86_400 * _DAYS_AT_ONCE)
    starts, ends = _intervals(windows, block, is_freeze=is_freeze)
    place = bisect_right(starts, second) - 1
    if place < 0 or second >= ends[place]:
        return None
    return _EPOCH + timedelta(seconds=ends[place])


def _seconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(seconds=1)


@lru_cache(maxsize=256)
def _intervals(
    windows: tuple[Window, ...], block: int, *, is_freeze: bool
) -> tuple[list[int], list[int]]:
    """Return the starts and ends, rising, of the windows in a block of days; no two touch."""
    first = _EPOCH_DAY + block * _DAYS_AT_ONCE
    occurrences = {each for window in windows for each in _occurrences(window, first, is_freeze)}
    starts: list[int] = []
    ends: list[int] = []
    for start, end in sorted(occurrences):
        if start >= end:
            continue  # of an active window that lies within a skipped hour
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return starts, ends


def _occurrences(window: Window, first: int, is_freeze: bool) -> Iterator[Interval]:
    """Yield the occurrences of a window that may reach into a block of days.

    `first` is the block's first day, as an ordinal. A local day may begin a day before or after the
    UTC day.
    """
    zone = _zone(window.timezone)
    days = _days(window, first - window.minutes // _DAY_MINUTES - 2, first + _DAYS_AT_ONCE + 2)
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
        ends = begins + window.minutes * _MINUTE
        if is_freeze:
            yield _in_utc(begins, zone)[0], _in_utc(ends, zone)[1]
        else:
            yield _first_shown(begins, zone), _first_shown(ends, zone)


def _days(window: Window, start: int, stop: int) -> range:
    """Return the days, as ordinals from `start` to before `stop`, that the window's dates allow."""
    if window.first_day is not None:
        start = max(start, window.first_day.toordinal())
    if window.last_day is not None:
        stop = min(stop, window.last_day.toordinal() + 1)
    return range(start, max(start, stop))


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


def _first_shown(local: datetime, zone: ZoneInfo) -> int:
    """Return the first second at which a clock in `zone` shows `local` or a later time."""
    before, after = (
        (local.replace(tzinfo=zone, fold=fold) - _EPOCH) // timedelta(seconds=1) for fold in (0, 1)
    )
    if before <= after:
        return before  # shown once, or for the first time of two
    # The clock skips `local`. It is set forward somewhere between the two.
    low, high = after, before
    while high - low > 1:
        middle = (low + high) // 2
        shown = (_EPOCH + timedelta(seconds=middle)).astimezone(zone).replace(tzinfo=None)
        low, high = (low, middle) if shown >= local else (middle, high)
    return high
