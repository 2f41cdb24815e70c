"""Rules about the active windows of a plan: that they open, for long enough, and ever close."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from controller.core.plan import Window
from controller.core.windows import closes_at, frozen_until, opens_at
from controller.plans.finding import Finding, error, warning
from controller.plans.window_rules import SEASONS, core_window, is_zone
from schemas.fields import format_duration
from schemas.plan import PlanDocument

#: Openings are looked at for so long. Weekly windows repeat by then, with daylight saving too.
_LOOKED_AT: Final = timedelta(days=56)
_MOST_OPENINGS: Final = 200
_WEEK: Final = timedelta(days=7)
_DAY: Final = timedelta(days=1)


def active_window_faults(document: PlanDocument, now: datetime | None) -> Iterator[Finding]:
    """Find windows that together never open, never close, or are too short for the stages."""
    windows = _windows(document)
    begin = _begin(document, now)
    if not windows:
        return
    if opens_at(windows, begin) is None:
        if now is not None or document.start_at is not None:
            what = "no active window comes any more"
            yield error(("active",), what, "give later dates, or windows that recur")
        return
    if all(closes_at(windows, at) is None for at in SEASONS):
        what = "the windows cover every moment: it never closes"
        yield warning(("active",), what, "leave `active` out, or narrow the windows")
        return
    yield from _too_short(document, windows, _openings(windows, begin))


def windows_closed_for_good(document: PlanDocument, now: datetime | None) -> Iterator[Finding]:
    """Find single windows that never open: dates without their days, and dates that are past."""
    for index, written in enumerate(document.active):
        window = core_window(written) if is_zone(written.timezone) else None
        if window is None or window.first_day is None:
            continue
        midnight = datetime.combine(window.first_day, datetime.min.time(), SEASONS[0].tzinfo)
        dates = written.dates
        if opens_at([window], midnight - _DAY) is None:
            what = f"it never opens: no day of {dates} is one of its days"
            yield error(("active", index, "dates"), what, "fix the dates or the days")
        elif now is not None and opens_at([window], now) is None:
            what = f"its dates are past: {dates}"
            yield warning(("active", index, "dates"), what, "give later dates, or remove it")


def _windows(document: PlanDocument) -> tuple[Window, ...]:
    """Return the windows; none where one has an unknown time zone, which another rule reports."""
    windows = tuple(core_window(window) for window in document.active if is_zone(window.timezone))
    return windows if len(windows) == len(document.active) else ()


def _begin(document: PlanDocument, now: datetime | None) -> datetime:
    """Return from when on the windows are looked at."""
    return max((at for at in (document.start_at, now) if at is not None), default=SEASONS[0])


def _openings(windows: Sequence[Window], begin: datetime) -> list[tuple[datetime, datetime]]:
    """Return when they open and close from `begin` on, for eight weeks from the first opening."""
    openings: list[tuple[datetime, datetime]] = []
    at: datetime | None = opens_at(windows, begin)
    until = (at or begin) + _LOOKED_AT
    while at is not None and at < until and len(openings) < _MOST_OPENINGS:
        closing = closes_at(windows, at)
        if closing is None:
            break
        openings.append((at, closing))
        at = opens_at(windows, closing)
    return openings


def always_frozen_windows(document: PlanDocument, now: datetime | None) -> Iterator[Finding]:
    """Find freeze windows that cover every active window: nothing could ever advance."""
    windows = _windows(document)
    if not windows or all(closes_at(windows, at) is None for at in SEASONS):
        return
    openings = _openings(windows, _begin(document, now))
    freezes = tuple(
        core_window(window) for window in document.freeze_windows if is_zone(window.timezone)
    )
    if not freezes or not openings:
        return
    ends = (frozen_until(freezes, opening) or opening for opening, _ in openings)
    if all(end >= closing for end, (_, closing) in zip(ends, openings, strict=True)):
        yield error(
            ("active",),
            "every active window lies in a freeze window: nothing ever advances",
            "leave a time that is active and not frozen",
        )


def _too_short(
    document: PlanDocument, windows: Sequence[Window], openings: Sequence[tuple[datetime, datetime]]
) -> Iterator[Finding]:
    """Find stages that gather no evidence in a window, and bakes that take many of them."""
    if not openings:
        return
    longest = max(closing - opening for opening, closing in openings)
    begin = openings[0][0]
    week = sum(
        (closing - opening for opening, closing in openings if opening < begin + _WEEK),
        timedelta(0),
    )
    for index, stage in enumerate(document.stages):
        if stage.settle >= longest:
            yield error(
                ("stages", index, "settle"),
                f"settle ({format_duration(stage.settle)}) is not shorter than an active window "
                f"({format_duration(longest)}): no event would ever count",
                "settle for less, or make the windows longer: it settles whenever one opens",
            )
        elif stage.bake > week:
            yield warning(
                ("stages", index, "bake"),
                f"the active windows of a week ({format_duration(week)} together) are shorter "
                f"than bake ({format_duration(stage.bake)}), which counts in them alone",
                "bake for less, if the stage is to end within a week",
            )
    if all(window.last_day is not None for window in windows):
        least = sum((stage.settle + stage.bake for stage in document.stages), timedelta(0))
        together = sum((closing - opening for opening, closing in openings), timedelta(0))
        if together < least and openings[-1][0] < begin + _LOOKED_AT - _WEEK:
            yield warning(
                ("active",),
                f"the windows are over before the plan can be through: they last "
                f"{format_duration(together)} together, its stages at least "
                f"{format_duration(least)}",
                "give later dates, or bake for less, if the last stage is to be reached",
            )
