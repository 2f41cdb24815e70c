"""Windows of a plan: as the core has them, and the rules about zones and freeze windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Final
from zoneinfo import ZoneInfo

from controller.core.plan import Window
from controller.core.windows import frozen_until
from controller.plans.finding import Finding, error
from schemas.plan import ActiveWindowDocument, FreezeWindowDocument, PlanDocument, days_of
from schemas.terms import WEEKDAYS

_HOW_TO_NAME: Final = "write an IANA name, as in Europe/Berlin"
_DAY_MINUTES: Final = 24 * 60
_WEEK_MINUTES: Final = 7 * _DAY_MINUTES
#: A moment in winter and one in summer. Windows of several zones are checked from both, because
#: daylight saving time shifts them against each other.
SEASONS: Final = (datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 7, 6, tzinfo=UTC))
#: A freeze that lasts for longer than this from either moment counts as endless.
_LONGEST_FREEZE: Final = timedelta(days=50)


def unknown_time_zones(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find time zones that do not exist."""
    for place, name in _zones(document):
        if not is_zone(name):
            yield error(place, f"unknown time zone {name!r}", _HOW_TO_NAME)


def time_zones_of_one_machine(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find time zones that other replicas may not have, or not the same: they could not read it.

    `localtime` is whatever a machine is set to, `right/UTC` has leap seconds.
    """
    for place, name in _zones(document):
        if is_zone(name) and name not in _names_everywhere():
            what = f"time zone {name!r} is not the same on every machine"
            yield error(place, what, _HOW_TO_NAME)


def _zones(document: PlanDocument) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield place and name of each time zone."""
    for index, freeze in enumerate(document.freeze_windows):
        yield ("freeze_windows", index, "timezone"), freeze.timezone
    for index, active in enumerate(document.active):
        yield ("active", index, "timezone"), active.timezone


@cache
def _names_everywhere() -> frozenset[str]:
    """Return the names of the database that every installation has."""
    return frozenset(resources.files("tzdata").joinpath("zones").read_text("utf-8").split())


def is_zone(name: str) -> bool:
    """Return whether there is a time zone of this name."""
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # not found, a directory, or outside the tree
        return False
    return True


def endless_freezes(document: PlanDocument, _: datetime | None) -> Iterator[Finding]:
    """Find windows that leave no minute in which a rollout may advance."""
    by_zone: dict[str, list[Window]] = {}
    for window in document.freeze_windows:
        if is_zone(window.timezone):
            by_zone.setdefault(window.timezone, []).append(core_window(window))
    whole = [zone for zone, windows in by_zone.items() if _is_whole_week(windows)]
    for zone in whole:
        yield error(
            ("freeze_windows",),
            f"the windows in {zone} freeze the whole week",
            "leave a time in which it may advance",
        )
    together = tuple(window for windows in by_zone.values() for window in windows)
    durations = [(frozen_until(together, at) or at) - at for at in SEASONS]
    if not whole and max(durations) > _LONGEST_FREEZE:
        yield error(
            ("freeze_windows",),
            f"the windows in {', '.join(by_zone)[:200]} together freeze whole weeks",
            "leave a time in which it may advance",
        )


def _is_whole_week(windows: Sequence[Window]) -> bool:
    """Return whether windows of one zone leave no minute of a week."""
    pairs = ((window, (day - 1) * _DAY_MINUTES) for window in windows for day in window.weekdays)
    starts = sorted((midnight + window.start_minute, window.minutes) for window, midnight in pairs)
    reached = starts[0][0] if starts else 0
    # The second pass covers what a window of the week before still reaches.
    for week in (0, _WEEK_MINUTES):
        for start, minutes in starts:
            if start + week > reached:
                return False
            reached = max(reached, start + week + minutes)
    return reached >= starts[0][0] + _WEEK_MINUTES if starts else False


def core_window(window: FreezeWindowDocument | ActiveWindowDocument) -> Window:
    """Return a window as the core has it."""
    dates = window.dates if isinstance(window, ActiveWindowDocument) else None
    first, last = (None, None) if dates is None else days_of(dates)
    return Window(
        frozenset(WEEKDAYS.index(day) + 1 for day in window.days),
        _minute(window.begins),
        min(_length(window), _WEEK_MINUTES),
        window.timezone,
        first,
        last,
    )


def _minute(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)


def _length(window: FreezeWindowDocument | ActiveWindowDocument) -> int:
    """Return a window's length in minutes; an end not after the start lies on the next day."""
    if window.lasts is not None:
        return window.lasts // timedelta(minutes=1)
    start, end = _minute(window.begins), _minute(window.ends or "24:00")
    return (end - start) % _DAY_MINUTES or _DAY_MINUTES
