"""What `rolloutctl quarantine` says of records that it does not show."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import pytest

from controller.cli.refused_records import QuarantinedRecord, _left_out, misnamed_field
from controller.settings import KafkaSettings
from controller.settings.kafka import EventFormats
from schemas.envelope import format_time
from schemas.quarantine import RefusedRecord
from schemas.terms import EventFormat, QuarantineReason
from tests.builders import T0


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
    fields: dict[str, Any] = {"offset": 0, "timestamp_ms": 0, "sha256": "0" * 64, "size": 1}
    record = RefusedRecord(
        **fields,
        reason=QuarantineReason.NOT_JSON,
        detail="no JSON",
        body=base64.b64encode(body).decode(),
        is_trimmed=False,
    )
    assert QuarantinedRecord("flag.evaluations", 0, record).names_any_flag is names_one


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
    record = RefusedRecord(
        offset=0,
        timestamp_ms=0,
        sha256="0" * 64,
        size=len(body),
        reason=QuarantineReason.INVALID,
        detail="Object missing required field `feature_flag.key`",
        body=base64.b64encode(body).decode(),
        is_trimmed=False,
    )
    kafka = KafkaSettings(formats=EventFormats(evaluations=EventFormat(evaluations)))
    assert misnamed_field(kafka, QuarantinedRecord(topic, 0, record)) == question
