"""What `rolloutctl quarantine` says of records that it does not show."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from datetime import timedelta

import pytest

from controller.cli.refused_records import (
    QuarantinedRecord,
    QuarantineRequest,
    _left_out,
    _show,
    misnamed_field,
)
from controller.settings import KafkaSettings
from controller.settings.kafka import EventFormats
from schemas.envelope import format_time
from schemas.quarantine import RefusedRecord
from schemas.terms import EventFormat, QuarantineReason
from tests.builders import T0


def quarantined(
    body: bytes,
    topic: str = "flag.evaluations",
    reason: QuarantineReason = QuarantineReason.NOT_JSON,
) -> QuarantinedRecord:
    """Return a refused record."""
    record = RefusedRecord(
        offset=0,
        timestamp_ms=0,
        sha256="0" * 64,
        size=len(body),
        reason=reason,
        detail="no JSON",
        body=base64.b64encode(body).decode(),
        is_trimmed=False,
    )
    return QuarantinedRecord(topic, 0, record)


@pytest.mark.parametrize(
    ("body", "names_one"),
    [
        (b'{"feature_flag.key":"other",}', True),
        (b'{"flag": "other", "verb": "stop"}', True),
        (b"{'feature_flag.key'", False),
        (b"\xff\x00", False),
    ],
)
def test_a_record_names_some_flag_or_none(body: bytes, names_one: bool) -> None:
    """By the keys that events and commands have."""
    assert quarantined(body).names_any_flag is names_one


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "(empty)"),
        (b"plain text", "plain text"),
        (gzip.compress(b"{}", mtime=0), "the value is compressed with gzip; send it as it is"),
        (b"\x00\x00\x00\x00\x07avro", "the value begins as Avro or Protobuf of a schema registry"),
    ],
)
def test_what_was_sent_is_shown(
    body: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what it is, where it is no text."""
    request = QuarantineRequest(KafkaSettings(), None, timedelta(hours=1), 20, False, False)
    _show(request, quarantined(body))
    assert words in capsys.readouterr().out


def test_records_that_name_no_flag_are_counted() -> None:
    """Nobody is told that nothing was refused while there is something that may be theirs."""
    [first, second] = _left_out("f", T0, 0, Counter(), 5, 2)
    assert first.startswith("no record that names f was refused since 2026-01-05")
    assert second.startswith("2 refused records name no flag, and may be about f too")
    reasons = Counter({("t", "empty"): 2, ("t", "not_json"): 11})
    assert list(_left_out("f", T0, 10, reasons, 0, 0)) == [
        "3 earlier ones are not shown; --last shows more",
        f"all since {format_time(T0)}, by reason: t not_json 11, t empty 2",
    ]
    [only] = _left_out(None, T0, 0, Counter(), 0, 0)
    assert only.startswith("no record was refused since")


@pytest.mark.parametrize(
    ("topic", "evaluations", "question"),
    [
        ("flag.evaluations", "rolloutd", ("flagKey", "feature_flag.key")),
        ("flag.evaluations", "go_feature_flag", None),
        ("rollout.commands", "rolloutd", None),
    ],
)
def test_a_refused_event_of_our_format_is_asked_after_its_misnamed_field(
    topic: str, evaluations: str, question: tuple[str, str] | None
) -> None:
    """Other formats and commands have other fields."""
    body = b'{"data":{"flagKey":"f","feature_flag.result.variant":"on"}}'
    kafka = KafkaSettings(formats=EventFormats(evaluations=EventFormat(evaluations)))
    assert misnamed_field(kafka, quarantined(body, topic, QuarantineReason.INVALID)) == question
