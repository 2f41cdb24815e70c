"""Times read through the memory of earlier ones, against the one reader of times."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from schemas.envelope import known_times, milliseconds, parse_time, time_in_ms

# : Pieces of valid times and of invalid ones, so that a piece that fits in one text stands where it
# does not in another.
pieces = st.tuples(
    st.sampled_from(
        ["2026-11-21", "1969-12-31", "0001-01-01", "9999-12-31", "2026-02-29", "2026-1-1"]
    ),
    st.sampled_from(["T", "t", " ", ""]),
    st.sampled_from(["00:00:00", "23:59:59", "23:59:60", "03:00", "24:00:00"]),
    st.sampled_from(
        [
            "",
            ".",
            ".1",
            ".12",
            ".123",
            ".999",
            ".1234",
            ".123999",
            ".999999",
            ".9999999",
            ".000000000001",
        ]
    ),
    st.sampled_from(["Z", "z", "+00:00", "-00:00", "+02:00", "-23:59", "+0000", "", "Z ", "00:00"]),
).map("".join)


def plainly(text: str) -> int | None:
    """Return the milliseconds as the contract reads them, None for no time."""
    try:
        return milliseconds(parse_time(text))
    except ValueError:
        return None


def remembered(text: str) -> int | None:
    """Return the milliseconds as the fast path reads them, None for no time."""
    try:
        known = known_times.get(text)
        return time_in_ms(text) if known is None else known
    except ValueError:
        return None


@given(
    st.lists(
        pieces
        | st.text(max_size=30)
        | st.datetimes().map(lambda at: at.replace(tzinfo=UTC).isoformat()),
        max_size=12,
    )
)
@example(
    [
        "2026-11-21T03:00:00.123456Z",
        "2026-11-21T03:00:00.123Z",
        "2026-11-21T03:00:00.123",
        "2026-11-21T03:00:00.12Z",
    ]
)
@example(
    [
        "2026-11-21T03:00:00.123Z",
        "2026-11-21T03:00:00.123999+00:00",
        "2026-11-21T03:00:00.123+02:00",
    ]
)
def test_a_time_means_the_same_whatever_was_read_before(texts: list[str]) -> None:
    """Remembering accepts, refuses and floors exactly as reading does."""
    for text in texts * 2:
        assert remembered(text) == plainly(text), text


def test_times_finer_than_a_millisecond_share_one_memory() -> None:
    """Apps that write microseconds do not fill the memory with times nobody repeats."""
    at = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    known_times.clear()
    for microsecond in range(1000, 2000):
        time_in_ms(at.replace(microsecond=microsecond).isoformat())
    assert list(known_times) == ["2031-05-06T07:08:09.001Z"]


def test_the_memory_of_times_is_bounded() -> None:
    """Senders choose the texts; neither many nor long ones take memory for good."""
    known_times.clear()
    for second in range(20_000):
        time_in_ms(datetime.fromtimestamp(second, UTC).isoformat())
    assert len(known_times) <= 8_192
    known_times.clear()
    assert time_in_ms(f"2031-05-06T07:08:09.{'0' * 10_000}Z") == time_in_ms("2031-05-06T07:08:09Z")
    assert all(len(text) < 100 for text in known_times)
