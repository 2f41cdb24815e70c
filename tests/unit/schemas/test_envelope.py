from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from schemas import envelope
from schemas.record_refused import RecordRefused
from schemas.terms import QuarantineReason

TYPE = "io.rolloutd.test.v1"
AT = datetime(2026, 11, 21, 3, 0, 0, 123_456, tzinfo=UTC)
ARRIVAL = 1_795_230_000_000


def test_what_is_written_is_read_back() -> None:
    """A written event is structured JSON that reads back with its attributes and data."""
    value, headers = envelope.write(
        TYPE, source="/rolloutd", id="f/1/0", time=AT, subject="f", data={"a": 1}
    )
    read = envelope.read(value, ARRIVAL, headers, [TYPE])
    assert read == envelope.Envelope(TYPE, "/rolloutd", "f/1/0", ARRIVAL + 123, {"a": 1})


def test_what_is_written_names_subject_and_partition_key() -> None:
    """Whoever forwards the event can key it again."""
    document = json.loads(
        envelope.write(TYPE, source="/rolloutd", id="1", time=AT, subject="f", data={})[0]
    )
    assert (document["subject"], document["partitionkey"], document["time"]) == (
        "f",
        "f",
        "2026-11-21T03:00:00.123Z",
    )


def test_times_are_written_in_utc() -> None:
    """A time with another offset is the same moment in UTC; one without an offset is refused."""
    assert (
        envelope.format_time(AT.astimezone(timezone(timedelta(hours=2))))
        == "2026-11-21T03:00:00.123Z"
    )
    with pytest.raises(ValueError, match="offset"):
        envelope.format_time(AT.replace(tzinfo=None))


def test_milliseconds_round_down_on_both_sides_of_1970() -> None:
    """A millisecond is the one that has begun."""
    assert envelope.milliseconds(AT) == ARRIVAL + 123
    assert envelope.milliseconds(datetime(1969, 12, 31, 23, 59, 59, 999_900, tzinfo=UTC)) == -1
    assert envelope.time_of(ARRIVAL) == AT.replace(microsecond=0)


def test_a_foreign_type_is_refused() -> None:
    """A record of another type on our topic is named, not guessed."""
    value, headers = envelope.write(TYPE, source="/rolloutd", id="1", time=AT, subject="f", data={})
    with pytest.raises(RecordRefused) as refused:
        envelope.read(value, ARRIVAL, headers, ["io.rolloutd.other.v1"])
    assert refused.value.reason is QuarantineReason.UNKNOWN_TYPE


def test_of_a_repeated_header_the_last_counts() -> None:
    """Kafka headers may repeat; the last ce_ header is the one in force."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_type", b"x"),
        ("ce_source", b"/s"),
        ("ce_id", b"1"),
        ("ce_type", TYPE.encode()),
    ]
    assert envelope.read(b"{}", ARRIVAL, headers, [TYPE]).type == TYPE


@pytest.mark.parametrize("text", ["u-42", "x" * 256, "ü", "用户", "a b", "\u200d"])
def test_contexts_may_be_printable_in_any_script(text: str) -> None:
    """A context id is whatever the apps call their users."""
    assert envelope.is_context_id(text)


@pytest.mark.parametrize(
    "text", ["", "x" * 257, "a\n", "\x00", "\x1b[0m", "\x7f", "\u2028", "\u202e", "\ud800"]
)
def test_contexts_cannot_forge_output(text: str) -> None:
    """Control characters, line separators and direction overrides do not get in."""
    assert not envelope.is_context_id(text)
