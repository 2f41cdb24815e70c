"""Freeze windows worked out a fortnight at a time, against working out each question by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controller.codec.plans import to_core_plan
from controller.core.plan import Window
from controller.core.windows import frozen_until
from controller.plans import lint
from schemas.plan import PlanDocument
from tests.examples import examples

pytestmark = pytest.mark.property

WEEK = 7 * 24 * 60
FOLLOWED = timedelta(days=56)

# --- the oracle: each window's occurrences around a moment, found by looking back day by day ----


def plainly_until(windows: Sequence[Window], at: datetime) -> datetime | None:
    """Return when the freeze around `at` ends, followed as far as `frozen_until` follows it."""
    end: datetime | None = None
    probe = at
    while True:
        ends = (plain_end(window, probe) for window in windows)
        later = max((until for until in ends if until is not None), default=None)
        if later is None or (end is not None and later <= end):
            return end
        end = probe = later
        if end >= at + FOLLOWED:
            return end


def plain_end(window: Window, at: datetime) -> datetime | None:
    """Return the end of the occurrence of `window` that covers `at`, None if none does."""
    zone = ZoneInfo(window.timezone)
    today = at.astimezone(zone).date()
    latest: datetime | None = None
    # A local day more than the old implementation looked at: where a day was left out, an
    # occurrence lasts longer.
    for back in range(-1, window.minutes // (24 * 60) + 4):
        day = today - timedelta(days=back)
        if day.isoweekday() not in window.weekdays:
            continue
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - local
        start, _ = in_utc(midnight + timedelta(minutes=window.start_minute), zone)
        _, end = in_utc(midnight + timedelta(minutes=window.start_minute + window.minutes), zone)
        if start <= at < end and (latest is None or end > latest):
            latest = end
    return latest


def in_utc(local: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the earliest and the latest moment that a clock in `zone` may mean by `local`."""
    meant = sorted(local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return meant[0], meant[1]


# --- windows ------------------------------------------------------------------------------------

#: With changes of half an hour, two hours, a whole day, in Ramadan, and with odd seconds.
ODD_ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll"),
    *("Pacific/Apia", "Africa/Casablanca", "Africa/Monrovia", "Asia/Kolkata", "America/St_Johns"),
)
windows = st.builds(
    Window,
    weekdays=st.frozensets(st.integers(1, 7), min_size=1),
    start_minute=st.integers(0, 1439) | st.sampled_from([0, 60, 90, 120, 150, 1380, 1439]),
    minutes=st.integers(1, 1440) | st.sampled_from([1, 60, 1440, 2880, WEEK - 1, WEEK]),
    timezone=st.sampled_from(ODD_ZONES),
)
#: Around the days on which clocks change, and anywhere else.
CHANGES = [
    *(datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)),
    *(datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)),
    *(datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2011, 12, 30, 10, tzinfo=UTC)),
    *(datetime(2026, 2, 15, 2, tzinfo=UTC), datetime(1972, 1, 7, 0, 44, 30, tzinfo=UTC)),
]
moments = st.one_of(
    st.builds(
        lambda change, minutes: change + timedelta(minutes=minutes),
        st.sampled_from(CHANGES),
        st.integers(-10_000, 10_000),
    ),
    st.integers(366, 83_000).map(
        lambda days: datetime(1970, 1, 1, 5, 7, tzinfo=UTC) + timedelta(days)
    ),
)


@examples(400)
@given(st.lists(windows, min_size=1, max_size=5), moments)
@example([Window(frozenset({5}), 0, 1440, "Pacific/Apia")], CHANGES[5])
@example([Window(frozenset(range(1, 8)), 0, 1440, "UTC")], datetime(2026, 1, 5, tzinfo=UTC))
def test_a_freeze_ends_when_it_ends_plainly(drawn: list[Window], at: datetime) -> None:
    """Days worked out together and remembered say the same as each moment worked out by itself."""
    until, plainly = frozen_until(drawn, at), plainly_until(drawn, at)
    if plainly is None or plainly < at + FOLLOWED:
        assert until == plainly
    else:  # it is followed no further, and either may stop a little later
        assert until is not None
        assert until >= at + FOLLOWED


@given(
    st.lists(windows, max_size=3),
    st.datetimes(timezones=st.just(UTC))
    | st.sampled_from([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]),
)
def test_at_any_moment_there_is_an_answer(drawn: list[Window], at: datetime) -> None:
    """From the first datetime to the last nothing is raised, and no freeze ends in the past."""
    until = frozen_until(drawn, at)
    assert until is None or until > at


def fifty_windows() -> PlanDocument:
    """Return a plan with as many windows as it may have, each in a zone of its own."""
    zones = sorted(zone for zone in available_timezones() if "/" in zone)[:50]
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    frozen = [
        {"days": days, "from": f"{number % 24:02}:{number:02}", "lasts": "1m", "timezone": zone}
        for number, zone in enumerate(zones)
    ]
    return PlanDocument.model_validate(
        {
            "name": "p",
            "flag": "f",
            "stages": [{"percent": 1, "bake": "1h"}],
            "guardrails": ["error_rate < 1%"],
            "freeze_windows": frozen,
        }
    )


def test_fifty_windows_cost_little() -> None:
    """Neither a start nor a gate stalls the loop for as many windows as a plan may have."""
    document = fifty_windows()
    assert not [finding for finding in lint(document) if finding.is_error]
    at = datetime(2026, 5, 6, 7, tzinfo=UTC)
    began = time.process_time()
    lint(document, at)
    assert time.process_time() - began < 0.2
    drawn = to_core_plan(document).freeze_windows
    frozen_until(drawn, at)
    began = time.process_time()
    for minute in range(100):
        frozen_until(drawn, at + timedelta(minutes=minute))
    assert time.process_time() - began < 0.2  # of what one question cost, 66 ms, a thirtieth
