from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from controller.ports import Record
from schemas import evaluation, outcome
from schemas.structs import OutcomeData
from schemas.terms import QuarantineReason
from schemas.wire import (
    EvaluationEvent,
    OutcomeEvent,
    RecordRefused,
    _known_refusals,
    decode_evaluation,
    decode_outcome,
    read_evaluations,
    read_outcomes,
)
from tests.records import is_alone, outcome_value

ARRIVAL = 1_795_230_000_000  # 2026-11-21T03:00:00Z
STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]


def event(event_type: str, data: Any, **attributes: Any) -> bytes:
    """Return a structured CloudEvent; None leaves an attribute out."""
    document = {
        "specversion": "1.0",
        "type": event_type,
        "source": "/shop",
        "id": "1",
        "data": data,
        **attributes,
    }
    return json.dumps(
        {name: content for name, content in document.items() if content is not None}
    ).encode()


def evaluated(
    value: bytes | None, *, key: bytes | None = b"u-42", headers: Any = STRUCTURED
) -> EvaluationEvent:
    """Decode an evaluation that arrived at ARRIVAL."""
    return decode_evaluation(value, key, ARRIVAL, headers)


def ended(data: Any, **attributes: Any) -> OutcomeEvent:
    """Decode an outcome that arrived at ARRIVAL."""
    return decode_outcome(event(outcome.TYPE, data, **attributes), b"u-42", ARRIVAL, STRUCTURED)


SERVED = {
    "feature_flag.key": "new-checkout",
    "feature_flag.result.variant": "on",
    "feature_flag.context.id": "u-7",
}


def test_an_evaluation_gives_context_flag_variant_and_time() -> None:
    """An evaluation is read from its OpenTelemetry attributes and the event's time."""
    value = event(evaluation.TYPE, SERVED, time="2026-11-21T02:59:59.25Z")
    assert evaluated(value) == EvaluationEvent("u-7", "new-checkout", "on", ARRIVAL - 750)


def test_without_a_time_the_record_s_timestamp_counts() -> None:
    """An event that names no time happened when its record was made."""
    assert evaluated(event(evaluation.TYPE, SERVED)).time_ms == ARRIVAL


@pytest.mark.parametrize(
    ("timestamp_ms", "detail"),
    [
        (
            ARRIVAL + 1_000_000,
            "the record's timestamp is 700 s after 2026-11-21T03:05:00.000Z, the latest accepted",
        ),
        (260_000_000_000_000, "the record's timestamp is after the year 9999"),
        (2**63 - 1, "the record's timestamp is after the year 9999"),
        (-1, "the record has no timestamp"),
    ],
)
def test_a_record_from_the_future_is_refused_and_says_so(timestamp_ms: int, detail: str) -> None:
    """A record's own timestamp is its producer's: past the latest accepted it is refused."""
    value = event(evaluation.TYPE, SERVED, time="2026-11-21T03:00:00Z")
    with pytest.raises(RecordRefused) as refused:
        decode_evaluation(value, b"u-42", timestamp_ms, STRUCTURED, latest_ms=ARRIVAL + 300_000)
    assert refused.value.reason is QuarantineReason.BAD_TIME
    assert refused.value.detail.startswith(detail)


def test_a_time_without_an_offset_is_told_once_what_to_send() -> None:
    """What is wrong and how to fix it were the same words twice."""
    value = event(evaluation.TYPE, SERVED, time="2026-11-21T03:00:00")
    with pytest.raises(RecordRefused) as refused:
        decode_evaluation(value, b"u-42", ARRIVAL, STRUCTURED, latest_ms=ARRIVAL)
    assert str(refused.value) == (
        "bad_time: time is no time with an offset; "
        "send RFC 3339 with an offset, such as 2026-11-21T03:00:00Z"
    )


@pytest.mark.parametrize("latest_ms", [ARRIVAL, ARRIVAL + 299_999])
def test_an_event_ahead_of_its_record_is_held_to_the_same_bound(latest_ms: int) -> None:
    """An event may be five minutes ahead of its record, but not of the latest accepted time."""
    value = event(evaluation.TYPE, SERVED, time="2026-11-21T03:05:00Z")
    ahead = ARRIVAL + 300_000
    assert decode_evaluation(value, b"u", ARRIVAL, STRUCTURED, latest_ms=ahead).time_ms == ahead
    with pytest.raises(RecordRefused, match="the latest accepted") as refused:
        decode_evaluation(value, b"u", ARRIVAL, STRUCTURED, latest_ms=latest_ms)
    assert refused.value.reason is QuarantineReason.BAD_TIME


def test_without_a_context_id_the_record_key_is_the_context() -> None:
    """Producers that key by context need not repeat it."""
    data = {"feature_flag.key": "new-checkout", "feature_flag.result.variant": "on"}
    assert evaluated(event(evaluation.TYPE, data), key="ü-1".encode()).context_id == "ü-1"


@pytest.mark.parametrize(
    ("told", "variant"),
    [
        ({"feature_flag.variant": "blue"}, "blue"),
        ({"feature_flag.result.value": True}, "true"),
        ({"feature_flag.result.value": False}, "false"),
        ({"feature_flag.result.value": "green"}, "green"),
        ({"value": "red"}, "red"),
        ({"feature_flag.result.variant": None, "feature_flag.variant": "blue"}, "blue"),
        ({"feature_flag.result.variant": "on", "feature_flag.variant": "blue"}, "on"),
        ({"feature_flag.result.variant": "on", "feature_flag.result.value": {"size": 3}}, "on"),
    ],
)
def test_the_variant_is_told_by_the_newest_name_or_by_the_value(
    told: dict[str, Any], variant: str
) -> None:
    """Deprecated names and values tell the variant where the current attribute is absent."""
    data = {"feature_flag.key": "new-checkout", "feature_flag.context.id": "u-7", **told}
    assert evaluated(event(evaluation.TYPE, data)).variant == variant


def test_binary_mode_means_the_same_as_structured_mode() -> None:
    """Attributes in ce_ headers and data as the value give the same event."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_type", evaluation.TYPE.encode()),
        ("ce_source", b"/shop"),
        ("ce_id", b"1"),
        ("ce_time", b"2026-11-21T02:59:59.25Z"),
        ("content-type", b"application/json"),
    ]
    structured = event(evaluation.TYPE, SERVED, time="2026-11-21T02:59:59.25Z")
    assert evaluated(json.dumps(SERVED).encode(), headers=headers) == evaluated(structured)


@pytest.mark.parametrize(
    "headers",
    [[], (("traceparent", b"00-1"),), (("Content-Type", b"APPLICATION/CLOUDEVENTS+JSON"),)],
)
def test_plain_producers_send_whole_events_too(headers: Any) -> None:
    """A whole event is recognised without a content type, and whatever the letters' case of one."""
    assert evaluated(event(evaluation.TYPE, SERVED), headers=headers).variant == "on"


def test_an_outcome_gives_what_became_of_the_request() -> None:
    """Seconds become milliseconds, an error type an error; names are kept once each."""
    flag = {"feature_flag.key": "new-checkout", "feature_flag.result.variant": "on"}
    told = ended(
        {
            "feature_flag.context.id": "u-7",
            "http.server.request.duration": 0.25,
            "error.type": "503",
            "rolloutd.flags": [flag, flag],
            "rolloutd.conversions": ["buy", "buy", "visit"],
            "http.response.status_code": 503,
        }
    )
    assert told == OutcomeEvent(
        "u-7", ARRIVAL, [("new-checkout", "on")], True, 250.0, ["buy", "visit"]
    )


def test_an_outcome_may_say_next_to_nothing() -> None:
    """A success without flags is joined by context."""
    told = ended({"feature_flag.context.id": "u-42"})
    assert (told.context_id, list(told.flags), told.is_error, told.latency_ms) == (
        "u-42",
        [],
        False,
        None,
    )


@pytest.mark.parametrize("data", [{}, {"duration": 0.2}, {"http.response.status_code": 500}])
def test_an_outcome_that_says_nothing_is_refused(data: dict[str, Any]) -> None:
    """It would count as a success, although its sender meant something else."""
    with pytest.raises(RecordRefused) as refused:
        ended(data)
    assert refused.value.reason is QuarantineReason.INVALID
    assert "http.server.request.duration" in refused.value.detail


NO_FLAG = {"feature_flag.result.variant": "on"}


@pytest.mark.parametrize(
    ("value", "key", "headers", "reason"),
    [
        (None, b"u", STRUCTURED, QuarantineReason.EMPTY),
        (b"", b"u", STRUCTURED, QuarantineReason.EMPTY),
        (b" " * 262_145, b"u", STRUCTURED, QuarantineReason.TOO_LARGE),
        (b"{", b"u", STRUCTURED, QuarantineReason.NOT_JSON),
        (b'{"a":"\xff"}', b"u", STRUCTURED, QuarantineReason.NOT_JSON),
        (b"[" * 5000, b"u", STRUCTURED, QuarantineReason.NOT_JSON),
        (b"[]", b"u", STRUCTURED, QuarantineReason.NOT_CLOUDEVENT),
        (b"{}", b"u", STRUCTURED, QuarantineReason.NOT_CLOUDEVENT),
        (
            event(evaluation.TYPE, SERVED),
            b"u",
            [("content-type", b"application/json")],
            QuarantineReason.NOT_CLOUDEVENT,
        ),
        (
            event(evaluation.TYPE, SERVED),
            b"u",
            [("content-type", b"application/cloudevents+avro")],
            QuarantineReason.NOT_CLOUDEVENT,
        ),
        (event(evaluation.TYPE, SERVED, id=""), b"u", STRUCTURED, QuarantineReason.NOT_CLOUDEVENT),
        (
            event(evaluation.TYPE, SERVED, specversion="0.3"),
            b"u",
            STRUCTURED,
            QuarantineReason.NOT_CLOUDEVENT,
        ),
        (event(outcome.TYPE, SERVED), b"u", STRUCTURED, QuarantineReason.UNKNOWN_TYPE),
        (event(evaluation.TYPE, NO_FLAG), b"u", STRUCTURED, QuarantineReason.INVALID),
        (event(evaluation.TYPE, None), b"u", STRUCTURED, QuarantineReason.INVALID),
        (
            event(evaluation.TYPE, {**SERVED, "feature_flag.key": "new checkout"}),
            b"u",
            STRUCTURED,
            QuarantineReason.INVALID,
        ),
        (
            event(evaluation.TYPE, {**SERVED, "feature_flag.context.id": "a\n"}),
            b"u",
            STRUCTURED,
            QuarantineReason.INVALID,
        ),
        (
            event(evaluation.TYPE, {**SERVED, "feature_flag.context.id": None}),
            None,
            STRUCTURED,
            QuarantineReason.NO_CONTEXT,
        ),
        (
            event(evaluation.TYPE, {**SERVED, "feature_flag.context.id": None}),
            b"\xff",
            STRUCTURED,
            QuarantineReason.INVALID,
        ),
        (
            event(evaluation.TYPE, SERVED, time="2026-11-21T03:00:00"),
            b"u",
            STRUCTURED,
            QuarantineReason.BAD_TIME,
        ),
        (
            event(evaluation.TYPE, SERVED, time="2026-11-21T03:05:00.001Z"),
            b"u",
            STRUCTURED,
            QuarantineReason.BAD_TIME,
        ),
    ],
)
def test_a_refusal_names_its_reason(
    value: bytes | None, key: bytes | None, headers: Any, reason: QuarantineReason
) -> None:
    """Each way of being unusable has its own reason, and a detail that can be printed."""
    with pytest.raises(RecordRefused) as refused:
        evaluated(value, key=key, headers=headers)
    assert refused.value.reason is reason
    assert refused.value.detail.isascii()
    assert refused.value.detail.isprintable()
    assert "; " in refused.value.detail
    record = Record("t", 0, 0, ARRIVAL, key, value, headers)
    kept: list[RecordRefused] = []
    list(read_evaluations([record], lambda _, why: kept.append(why)))
    list(read_outcomes([record], lambda _, why: kept.append(why)))
    assert all(is_alone(one) for one in kept)
    assert len(kept) in (1, 2)  # one of them is an outcome


def test_a_wrong_type_is_told_what_goes_where() -> None:
    """It is a misspelled type, or an event of ours on the other topic."""
    for wrong in (outcome.TYPE, "evaluation"):
        with pytest.raises(RecordRefused) as refused:
            evaluated(event(wrong, SERVED), key=b"u", headers=STRUCTURED)
        assert f"{evaluation.TYPE} to the topic of evaluations" in refused.value.detail
        assert f"{outcome.TYPE} to that of outcomes" in refused.value.detail


def test_five_minutes_ahead_is_still_accepted() -> None:
    """Clocks differ; an event may be up to five minutes ahead of its record, to the millisecond."""
    assert (
        evaluated(event(evaluation.TYPE, SERVED, time="2026-11-21T03:05:00Z")).time_ms
        == ARRIVAL + 300_000
    )


@pytest.mark.parametrize("seconds", [-0.001, 86_400.1, True, "0.2"])
def test_a_latency_that_cannot_be_one_refuses_the_outcome(seconds: Any) -> None:
    """Negative, longer than a day, or not a number: guessing would poison the histogram."""
    with pytest.raises(RecordRefused) as refused:
        ended({"http.server.request.duration": seconds})
    assert refused.value.reason is QuarantineReason.INVALID


def test_hostile_text_is_escaped_in_the_detail() -> None:
    """What a sender wrote cannot steer the terminal of whoever reads why it was refused."""
    value = event(evaluation.TYPE, {**SERVED, "feature_flag.key": "\x1b[2J\u202e" + "x" * 5000})
    with pytest.raises(RecordRefused) as refused:
        evaluated(value)
    assert "\\x1b" in refused.value.detail
    assert len(refused.value.detail) < 400


def test_a_refusal_told_again_says_the_same_of_another_record() -> None:
    """Senders are wrong in the same way again and again.

    Reason and words are those of the first time, whoever else came.
    """
    details = []
    for _ in range(2):
        for wrong in (
            b"{",
            event("io.rolloutd.nope.v1", SERVED),
            event(evaluation.TYPE, {**SERVED, "feature_flag.key": 7}),
        ):
            with pytest.raises(RecordRefused) as refused:
                evaluated(wrong)
            details.append((refused.value.reason, refused.value.detail))
    assert details[:3] == details[3:]
    assert [reason for reason, _ in details[:3]] == [
        QuarantineReason.NOT_JSON,
        QuarantineReason.UNKNOWN_TYPE,
        QuarantineReason.INVALID,
    ]


def test_a_flood_of_different_refusals_is_not_kept() -> None:
    """What senders choose is remembered up to a bound, and nothing that is long."""
    for number in range(3000):
        with pytest.raises(RecordRefused, match=f"io.rolloutd.nope.v{number}'"):
            evaluated(event(f"io.rolloutd.nope.v{number}", SERVED))
    with pytest.raises(RecordRefused):
        evaluated(event("x" * 1000, SERVED))
    assert 0 < len(_known_refusals) <= 1024
    assert max(len(problem) for _, problem in _known_refusals) <= 200


def test_the_fast_reader_knows_every_attribute_of_an_outcome_that_is_read() -> None:
    """So do the outcomes that other tests send, with which both folds are compared."""
    known = {field.encode_name for field in msgspec.structs.fields(OutcomeData)}
    assert known == set(outcome.READ_ATTRIBUTES)
    value = outcome_value(
        "u1", time_ms=0, flags=[("f", "on")], error=True, latency_ms=1.0, conversions=["paid"]
    )
    assert set(json.loads(value)["data"]) == known
