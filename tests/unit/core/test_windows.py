from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from controller.core.plan import Window
from controller.core.windows import frozen_until
from tests.builders import T0

WEEKEND = Window(frozenset({6, 7}), 0, 24 * 60, "Europe/Berlin")
NIGHTS = Window(frozenset(range(1, 8)), 22 * 60, 10 * 60, "UTC")


def utc(text: str) -> datetime:
    """Return a time of the year 2026, as `01-31 22:00`, UTC."""
    return datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)


# --- freeze windows ---


def test_without_windows_nothing_is_frozen() -> None:
    """No window, no freeze."""
    assert frozen_until((), T0) is None


@pytest.mark.parametrize(
    ("at", "until"),
    [
        ("01-09 22:59", None),  # Friday evening in Berlin, one hour ahead of UTC
        ("01-09 23:00", "01-11 23:00"),  # Saturday and Sunday are one freeze
        ("01-11 22:59", "01-11 23:00"),
        ("01-11 23:00", None),
        ("06-05 21:59", None),  # two hours ahead in summer
        ("06-05 22:00", "06-07 22:00"),
    ],
)
def test_a_weekend_is_local(at: str, until: str | None) -> None:
    """A window starts and ends by the clock of its own zone, its last moment excluded."""
    assert frozen_until((WEEKEND,), utc(at)) == (None if until is None else utc(until))


@pytest.mark.parametrize(
    ("at", "until"),
    [
        ("01-05 21:59", None),
        ("01-05 22:00", "01-06 08:00"),
        ("01-06 07:59", "01-06 08:00"),
        ("01-06 08:00", None),
    ],
)
def test_a_window_runs_past_midnight(at: str, until: str | None) -> None:
    """What began yesterday still lasts this morning."""
    assert frozen_until((NIGHTS,), utc(at)) == (None if until is None else utc(until))


def test_a_window_belongs_to_the_day_it_starts_on() -> None:
    """A Friday night lasts into Saturday; there is none from Saturday to Sunday."""
    friday = Window(frozenset({5}), 22 * 60, 10 * 60, "UTC")
    assert frozen_until((friday,), utc("01-10 03:00")) == utc("01-10 08:00")
    assert frozen_until((friday,), utc("01-11 03:00")) is None


def test_a_window_longer_than_a_day_reaches_as_far_back() -> None:
    """Sixty hours from Friday evening cover Monday morning."""
    long = Window(frozenset({5}), 20 * 60, 60 * 60, "UTC")
    assert frozen_until((long,), utc("01-12 07:59")) == utc("01-12 08:00")
    assert frozen_until((long,), utc("01-12 08:00")) is None


def test_overlapping_and_touching_windows_are_one() -> None:
    """The end is that of the whole chain, in whatever order the windows stand."""
    morning = Window(frozenset({1}), 8 * 60, 120, "UTC")
    overlapping = Window(frozenset({1}), 9 * 60 + 30, 60, "UTC")
    touching = Window(frozenset({1}), 10 * 60 + 30, 30, "UTC")
    apart = Window(frozenset({1}), 11 * 60 + 1, 30, "UTC")
    for windows in (
        (morning, overlapping, touching, apart),
        (apart, touching, overlapping, morning),
    ):
        assert frozen_until(windows, utc("01-05 08:00")) == utc("01-05 11:00")
        assert frozen_until(windows, utc("01-05 11:00")) is None


def test_windows_of_several_zones_chain() -> None:
    """Noon in Berlin ends when noon in New York has long begun; the chain is found across zones."""
    berlin = Window(frozenset({1}), 12 * 60, 7 * 60, "Europe/Berlin")  # 11:00 to 18:00 UTC
    york = Window(frozenset({1}), 12 * 60, 60, "America/New_York")  # 17:00 to 18:00 UTC
    later = Window(frozenset({1}), 13 * 60, 60, "America/New_York")  # 18:00 to 19:00 UTC
    assert frozen_until((berlin, york, later), utc("01-05 11:00")) == utc("01-05 19:00")


@pytest.mark.parametrize(
    ("start", "minutes", "at", "until"),
    [
        (
            1 * 60,
            120,
            "03-29 00:30",
            "03-29 01:00",
        ),  # 02:00 to 03:00 is skipped: one hour of two is left
        (
            2 * 60 + 30,
            60,
            "03-29 01:00",
            "03-29 01:30",
        ),  # it would start inside the skipped hour, and is not lost
        (
            1 * 60,
            120,
            "10-25 01:30",
            "10-25 02:00",
        ),  # 02:00 to 03:00 comes twice: three hours for two
        (22 * 60, 600, "03-29 05:59", "03-29 06:00"),  # a night with 23 hours in the day
        (22 * 60, 600, "10-25 06:59", "10-25 07:00"),  # and with 25
        (2 * 60 + 30, 30, "10-25 00:30", "10-25 02:00"),  # it starts at the first 02:30
        (1 * 60, 90, "10-25 01:29", "10-25 01:30"),  # and ends at the second
    ],
)
def test_daylight_saving_loses_no_window(start: int, minutes: int, at: str, until: str) -> None:
    """On the two odd days of the year a window still ends by the local clock.

    In doubt it starts early and ends late.
    """
    window = Window(frozenset(range(1, 8)), start, minutes, "Europe/Berlin")
    assert frozen_until((window,), utc(at)) == utc(until)


def test_a_window_that_never_ends_does_not_hang() -> None:
    """Every day from midnight to midnight.

    Some end is given, a week or so away, and asking again gives a later one.
    """
    always = Window(frozenset(range(1, 8)), 0, 24 * 60, "UTC")
    until = frozen_until((always,), T0)
    assert until is not None
    assert until > T0 + timedelta(days=7)
    assert frozen_until((always,), until) is not None
