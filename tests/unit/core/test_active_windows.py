"""When active windows open and close, by local clocks that daylight saving changes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from controller.core.plan import Window
from controller.core.windows import closes_at, is_active, local_words, opens_at
from tests.builders import T0

ALL = frozenset(range(1, 8))
WEEKDAYS = frozenset(range(1, 6))
BERLIN = "Europe/Berlin"
LORD_HOWE = "Australia/Lord_Howe"
SUNDAY = frozenset({7})


def utc(text: str) -> datetime:
    """Return a time of the year 2026, as `01-31 22:00`, UTC."""
    return datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)


def window(begin: str, end: str, zone: str = "UTC", days: frozenset[int] = ALL) -> Window:
    """Return a window of a day, from and to local times; 24:00 is the end of the day."""
    first, last = (60 * int(text[:2]) + int(text[3:]) for text in (begin, end))
    return Window(days, first, last - first, zone)


def edges(windows: list[Window], at: str, count: int = 1) -> list[tuple[str, str]]:
    """Return the next openings after a moment, each with when it closes, UTC."""
    found, moment = [], utc(at)
    for _ in range(count):
        opening = opens_at(windows, moment)
        assert opening is not None
        closing = closes_at(windows, opening)
        assert closing is not None
        found.append((f"{opening:%m-%d %H:%M}", f"{closing:%m-%d %H:%M}"))
        moment = closing
    return found


def test_without_windows_it_is_always_active() -> None:
    """No window, no closing."""
    assert is_active((), T0)
    assert opens_at((), T0) == T0
    assert closes_at((), T0) is None


def test_business_hours_leave_out_the_weekend() -> None:
    """Friday 17:00 is followed by Monday 09:00; both edges belong to what follows."""
    office = [window("09:00", "17:00", BERLIN, WEEKDAYS)]
    friday = ("01-09 08:00", "01-09 16:00")
    assert edges(office, "01-09 00:00", 2) == [friday, ("01-12 08:00", "01-12 16:00")]
    assert is_active(office, utc("01-09 08:00"))
    assert not is_active(office, utc("01-09 16:00"))


@pytest.mark.parametrize(
    ("drawn", "at", "expected"),
    [
        # Berlin, 29 March: 02:00 to 03:00 is skipped at 01:00 UTC.
        (window("02:30", "04:00", BERLIN), "03-29 00:00", ("03-29 01:00", "03-29 02:00")),
        (window("01:00", "02:30", BERLIN), "03-29 00:00", ("03-29 00:00", "03-29 01:00")),
        # A window within the skipped hour does not open on that day.
        (window("02:10", "02:50", BERLIN), "03-28 12:00", ("03-30 00:10", "03-30 00:50")),
        # 25 October: 02:00 to 03:00 comes twice, from 00:00 and from 01:00 UTC. It opens once.
        (window("02:10", "02:50", BERLIN), "10-24 12:00", ("10-25 00:10", "10-25 00:50")),
        (window("02:10", "02:50", BERLIN), "10-25 00:50", ("10-26 01:10", "10-26 01:50")),
        (window("02:30", "05:00", BERLIN), "10-24 12:00", ("10-25 00:30", "10-25 04:00")),
        (window("00:00", "24:00", BERLIN, SUNDAY), "10-24 00:00", ("10-24 22:00", "10-25 23:00")),
        # Lord Howe skips half an hour on 4 October, and repeats it on 5 April (15:00 UTC).
        (window("02:10", "04:00", LORD_HOWE), "10-03 12:00", ("10-03 15:30", "10-03 17:00")),
        (window("01:30", "01:45", LORD_HOWE), "04-04 12:00", ("04-04 14:30", "04-04 14:45")),
        (window("01:30", "03:00", LORD_HOWE), "04-04 12:00", ("04-04 14:30", "04-04 16:30")),
        # A zone without daylight saving.
        (window("09:00", "17:00", "Asia/Kolkata"), "03-29 00:00", ("03-29 03:30", "03-29 11:30")),
        # Over midnight.
        (Window(ALL, 22 * 60, 4 * 60, "UTC"), "03-29 03:00", ("03-29 22:00", "03-30 02:00")),
    ],
)  # fmt: skip
def test_a_window_opens_and_closes_when_the_clock_first_shows_it(
    drawn: Window, at: str, expected: tuple[str, str]
) -> None:
    """A skipped time counts as reached at the change, a repeated one at its first showing."""
    assert edges([drawn], at) == [expected]


def test_windows_that_touch_are_one() -> None:
    """24:00 touches 00:00 of the next day, and nothing closes in between."""
    whole = [window("00:00", "24:00", BERLIN, frozenset({1, 2})), window("00:00", "08:00", BERLIN)]
    assert edges(whole, "01-11 20:00") == [("01-11 23:00", "01-14 07:00")]


def test_dates_limit_the_days_on_which_a_window_begins() -> None:
    """A promotion of four days, in whole days or from hour to hour, and never again."""
    span = {"first_day": date(2026, 11, 27), "last_day": date(2026, 11, 30)}
    whole = [Window(ALL, 0, 1440, BERLIN, **span)]
    assert edges(whole, "02-01 00:00") == [("11-26 23:00", "11-30 23:00")]
    hours = [Window(frozenset({6, 7}), 540, 60, BERLIN, **span)]
    assert edges(hours, "02-01 00:00", 2) == [
        ("11-28 08:00", "11-28 09:00"),
        ("11-29 08:00", "11-29 09:00"),
    ]
    for windows in (whole, hours):
        assert opens_at(windows, utc("11-30 23:00")) is None
    assert edges([*hours, window("12:00", "13:00")], "11-29 13:00", 1)[0][0] == "11-30 12:00"


def test_windows_without_an_end_never_close() -> None:
    """The week around, and a season longer than the one that is looked at in one go."""
    assert closes_at([window("00:00", "24:00", BERLIN)], T0) is None
    year = Window(ALL, 0, 1440, "UTC", date(2026, 1, 1), date(2026, 12, 31))
    assert closes_at([year], T0) == datetime(2027, 1, 1, tzinfo=UTC)


def test_a_moment_is_told_by_the_local_clock() -> None:
    """With its date from six days on."""
    office = [window("09:00", "17:00", BERLIN)]
    assert local_words(utc("01-12 08:00"), office, utc("01-09 16:00")) == "Mon 09:00 CET"
    assert local_words(utc("07-13 07:00"), office, utc("01-09 16:00")) == (
        "Mon 2026-07-13 09:00 CEST"
    )


@pytest.mark.parametrize("at", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)])
def test_at_the_limits_of_time_it_is_closed(at: datetime) -> None:
    """Neither end of the calendar raises anything."""
    windows = [window("09:00", "17:00", BERLIN)]
    assert not is_active(windows, at)
    assert closes_at(windows, at) == at
    assert opens_at(windows, at) is None


def test_a_second_before_and_after() -> None:
    """The edges are exact to the second."""
    office = [window("09:00", "17:00")]
    for edge, inside in (("01-09 09:00", True), ("01-09 17:00", False)):
        assert is_active(office, utc(edge)) is inside
        assert is_active(office, utc(edge) - timedelta(microseconds=1)) is not inside
