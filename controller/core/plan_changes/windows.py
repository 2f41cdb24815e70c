"""Compares the windows of two plans: which of them changed, which covers which, and their words.

Belongs here: windows alone. What a change of them needs is judged in `comparison.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

from controller.core.plan import Window
from schemas.terms import WEEKDAYS

#: Of the five facts of a window, so many are the same in one that was changed.
_ALIKE: Final = 3


def pairs(
    old: Sequence[Window], new: Sequence[Window]
) -> Iterator[tuple[Window | None, Window | None]]:
    """Yield windows that differ: added ones, changed ones with what they were, and removed ones.

    A change is one window for another that is much like it, or the only one for the only other.
    """
    added = [window for window in new if window not in old]
    removed = [window for window in old if window not in new]
    least = 0 if len(added) == len(removed) == 1 else _ALIKE
    for after in added:
        before = max(removed, key=lambda one: _likeness(one, after), default=None)
        if before is not None and _likeness(before, after) >= least:
            removed.remove(before)
            yield before, after
        else:
            yield None, after
    for window in removed:
        yield window, None


def _likeness(one: Window, other: Window) -> int:
    """Return how many facts of two windows are the same, of five."""
    return sum(
        (
            one.weekdays == other.weekdays,
            one.start_minute == other.start_minute,
            one.minutes == other.minutes,
            one.timezone == other.timezone,
            (one.first_day, one.last_day) == (other.first_day, other.last_day),
        )
    )


def covers(wider: Window, window: Window) -> bool:
    """Return whether every occurrence of a window lies within one of the wider window."""
    first, last = window.first_day, window.last_day
    return (
        (wider.first_day is None or (first is not None and first >= wider.first_day))
        and (wider.last_day is None or (last is not None and last <= wider.last_day))
        and wider.timezone == window.timezone
    ) and (
        wider.weekdays >= window.weekdays
        and wider.start_minute <= window.start_minute
        and wider.start_minute + wider.minutes >= window.start_minute + window.minutes
    )


def window_words(window: Window | None) -> str:
    """Return a window in words: `mon tue from 09:00 for 8h UTC`; empty for none."""
    if window is None:
        return ""
    days = " ".join(WEEKDAYS[day - 1] for day in sorted(window.weekdays))
    hours, minutes = divmod(window.start_minute, 60)
    length = duration_words(timedelta(minutes=window.minutes))
    dates = "" if window.first_day is None else f" in {window.first_day}..{window.last_day}"
    return f"{days}{dates} from {hours:02}:{minutes:02} for {length} {window.timezone}"


# --- words

_UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def duration_words(value: timedelta) -> str:
    """Return a duration as people write it in a plan: `1d 2h`."""
    rest, parts = value / timedelta(seconds=1), []
    for unit, seconds in _UNITS[:-1]:
        whole, rest = divmod(rest, seconds)
        parts += [f"{whole:g}{unit}"] if whole else []
    return " ".join([*parts, f"{rest:g}s"] if rest or not parts else parts)
