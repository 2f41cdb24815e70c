"""What is read of GO Feature Flag's Kafka exporter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from schemas.envelope import Headers
from schemas.go_feature_flag import read_evaluations
from schemas.record_refused import RecordRefused
from schemas.terms import QuarantineReason
from tests.records import is_alone

AT = 1_795_230_000


@dataclass(frozen=True)
class Arrived:
    """A record, as far as it is read."""

    value: bytes | None
    timestamp: int = AT * 1000 + 1500
    key: bytes | None = b"u-42"
    headers: Headers = ()


def feature(**overrides: Any) -> bytes:
    """Return a record as the exporter writes it."""
    event = {
        "kind": "feature",
        "contextKind": "user",
        "userKey": "u-42",
        "creationDate": AT,
        "key": "new-checkout",
        "variation": "on",
        "value": True,
        "default": False,
        "version": "",
        "source": "SERVER",
        **overrides,
    }
    return json.dumps(event).encode()


def read(value: bytes | None) -> list[tuple[str, str, str, int] | RecordRefused]:
    """Return the evaluation in a value, or the refusal."""
    refusals: list[RecordRefused] = []
    found = list(read_evaluations([Arrived(value)], lambda _, refused: refusals.append(refused)))
    return [*found, *refusals]


@pytest.mark.parametrize(
    ("date", "time_ms"),
    [(AT, AT * 1000), (AT * 1000 + 7, AT * 1000 + 7), (AT + 0.5, AT * 1000 + 500)],
)
def test_seconds_and_milliseconds_are_told_apart(date: float, time_ms: int) -> None:
    """A creation date is in seconds or milliseconds, by its magnitude."""
    assert read(feature(creationDate=date)) == [("u-42", "new-checkout", "on", time_ms)]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, QuarantineReason.EMPTY),
        (b"{", QuarantineReason.NOT_JSON),
        (b'{"x":' * 1000, QuarantineReason.NOT_JSON),
        (b"7", QuarantineReason.INVALID),
        (feature(kind="tracking"), QuarantineReason.UNKNOWN_TYPE),
        (feature(userKey=""), QuarantineReason.NO_CONTEXT),
        (feature(userKey="a\x07"), QuarantineReason.INVALID),
        (feature(key="a b"), QuarantineReason.INVALID),
        (feature(variation=None), QuarantineReason.INVALID),
        (feature(creationDate="now"), QuarantineReason.INVALID),
        (feature(creationDate=-1), QuarantineReason.INVALID),
        (feature(creationDate=1e300), QuarantineReason.INVALID),
        (feature(creationDate=AT + 1000), QuarantineReason.BAD_TIME),
    ],
)
def test_what_is_no_evaluation_is_refused(value: bytes | None, reason: QuarantineReason) -> None:
    """Everything else is refused with its reason, and nothing is raised."""
    (refused,) = read(value)
    assert isinstance(refused, RecordRefused)
    assert refused.reason is reason
    assert is_alone(refused)


@pytest.mark.parametrize(
    ("timestamp_ms", "latest_ms"),
    [
        (AT * 1000, AT * 1000 - 1),
        (2**62, 2**61),
        (-1, 2**61),
    ],
)
def test_a_record_from_the_future_is_refused(timestamp_ms: int, latest_ms: int) -> None:
    """The record's timestamp is the exporter's; past the latest accepted the record is refused."""
    refusals: list[RecordRefused] = []
    record = Arrived(feature(), timestamp=timestamp_ms)
    events = read_evaluations(
        [record],
        lambda _, refused: refusals.append(refused),
        latest_ms=latest_ms,
    )
    assert not list(events)
    assert [refused.reason for refused in refusals] == [QuarantineReason.BAD_TIME]
