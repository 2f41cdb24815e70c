"""What is read of OpenTelemetry's exports: made by its own SDK, and made wrong by hand."""

from __future__ import annotations

import gc
import json
import weakref
from base64 import b64decode
from dataclasses import dataclass
from typing import Any

import pytest

from schemas.envelope import Headers
from schemas.events import Contents, Packed
from schemas.formats import evaluation_reader, outcome_reader
from schemas.otlp import MAX_BYTES, MAX_ITEMS
from schemas.terms import EventFormat, QuarantineReason
from tests.records import is_alone
from tests.telemetry import Request, export_of_logs, export_of_spans

AT = 1_795_230_000_000
ENCODINGS = (EventFormat.OTLP_JSON, EventFormat.OTLP_PROTO)
REQUESTS = [
    Request(
        "u1",
        [("new-checkout", "on"), ("search", "off")],
        AT,
        latency_ms=123,
        conversions=["paid", "paid"],
    ),
    Request("u2", [("new-checkout", "off")], AT + 1, error=True),
    Request("u3", [], AT + 2),
]


@dataclass(frozen=True)
class Arrived:
    """A record, as far as it is read."""

    value: bytes | None
    timestamp: int = AT + 1000
    key: bytes | None = None
    headers: Headers = ()


def unpack(reader: object, value: bytes | None) -> Contents[Any]:
    """Return what a packed format's reader makes of a value."""
    assert isinstance(reader, Packed)
    contents: Contents[Any] = reader.unpack(Arrived(value))
    return contents


def logs(*records: dict[str, Any]) -> bytes:
    """Return an export of log records in JSON."""
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}).encode()


def spans(*records: dict[str, Any]) -> bytes:
    """Return an export of spans in JSON."""
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": records}]}]}).encode()


def attributes(**named: Any) -> list[dict[str, Any]]:
    """Return attributes; `__` stands for a dot."""
    kinds = {bool: "boolValue", str: "stringValue", int: "intValue", float: "doubleValue"}
    return [
        {"key": name.replace("__", "."), "value": {kinds[type(value)]: value}}
        for name, value in named.items()
    ]


def evaluation(**overrides: Any) -> dict[str, Any]:
    """Return a log record of an evaluation; an attribute given as None is left out."""
    named = {
        "feature_flag__key": "f",
        "feature_flag__result__variant": "on",
        "feature_flag__context__id": "u1",
        **overrides,
    }
    told = {name: value for name, value in named.items() if value is not None}
    return {
        "timeUnixNano": str(AT * 1_000_000),
        "eventName": "feature_flag.evaluation",
        "attributes": attributes(**told),
    }


JSON_LOGS: object = evaluation_reader(EventFormat.OTLP_JSON)
JSON_SPANS: object = evaluation_reader(EventFormat.OTLP_JSON, of_spans=True)
JSON_OUTCOMES: object = outcome_reader(EventFormat.OTLP_JSON)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_evaluations_of_the_sdks_logs(encoding: EventFormat) -> None:
    """Each log record of a flag evaluation is one; what else a service logs is passed over."""
    contents = unpack(evaluation_reader(encoding), export_of_logs(REQUESTS, encoding))
    assert contents.refused is None
    assert contents.events == [
        ("u1", "new-checkout", "on", AT),
        ("u1", "search", "off", AT),
        ("u2", "new-checkout", "off", AT + 1),
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_evaluations_and_outcomes_of_the_sdks_spans(encoding: EventFormat) -> None:
    """A server span with evaluations as its events is an outcome.

    And each event an evaluation; other spans are passed over.
    """
    export = export_of_spans(REQUESTS, encoding)
    contents = unpack(evaluation_reader(encoding, of_spans=True), export)
    assert contents.refused is None
    assert [event[:3] for event in contents.events] == [
        ("u1", "new-checkout", "on"),
        ("u1", "search", "off"),
        ("u2", "new-checkout", "off"),
    ]
    contents = unpack(outcome_reader(encoding), export)
    assert contents.refused is None
    assert contents.events == [
        ("u1", AT, (("new-checkout", "on"), ("search", "off")), False, 123.0, ("paid",)),
        ("u2", AT + 1, (("new-checkout", "off"),), True, 5.0, ()),
    ]


#: Values of records that a Collector 0.155.0 wrote, configured as ops/formats.md says: spans, and
#: logs grouped by context.
COLLECTORS_SPANS_JSON = b"""{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name",
"value":{"stringValue":"checkout-api"}}]},"scopeSpans":[{"scope":{"name":"asgi"},"spans":[{
"traceId":"d67e0f4d8ef86e96dcbd03e1798f4734","spanId":"a2f930fdbfc9a30d","flags":256,"name":
"GET /checkout","kind":2,"startTimeUnixNano":"1795270704670000000","endTimeUnixNano":
"1795270704680000000","events":[{"timeUnixNano":"1795270704680000000","name":
"feature_flag.evaluation","attributes":[{"key":"feature_flag.key","value":{"stringValue":"f"}},{
"key":"feature_flag.result.variant","value":{"stringValue":"on"}},{"key":
"feature_flag.context.id","value":{"stringValue":"u3"}}]}],"status":{}}]}]}]}"""
COLLECTORS_SPANS_PROTO = b64decode(
    "Cv0BEtgBEs0BegBagQEaFxIDCgFmChBmZWF0dXJlX2ZsYWcua2V5GiMSBAoCb24KG2ZlYXR1cmVfZmxhZy5yZXN1bHQu"
    "dmFyaWFudBofEgQKAnUxChdmZWF0dXJlX2ZsYWcuY29udGV4dC5pZBIXZmVhdHVyZV9mbGFnLmV2YWx1YXRpb24JAB/I"
    "IDUV6hhBAB/IIDUV6hg5gIgvIDUV6hgwAioNR0VUIC9jaGVja291dIUBAAEAACIAEgh/kE22Nwrm5QoQqqAYa3C3aLj7"
    "YeQ4m2dHSwoGCgRhc2dpCiAKHhIOCgxjaGVja291dC1hcGkKDHNlcnZpY2UubmFtZQ=="
)
COLLECTORS_LOGS_JSON = b"""{"resourceLogs":[{"resource":{"attributes":[{"key":
"feature_flag.context.id","value":{"stringValue":"u1"}}]},"scopeLogs":[{"scope":{"name":
"openfeature"},"logRecords":[{"timeUnixNano":"1795270704680000000","observedTimeUnixNano":
"1795270704854299308","body":{},"attributes":[{"key":"feature_flag.key","value":{"stringValue":
"f"}},{"key":"feature_flag.result.variant","value":{"stringValue":"on"}},{"key":
"feature_flag.result.reason","value":{"stringValue":"split"}}],"eventName":
"feature_flag.evaluation"}]}]}]}"""


def test_what_a_collector_wrote() -> None:
    """Records of a real Collector are read.

    The context on the resource, where it was grouped, or on the span event.
    """
    at = 1_795_270_704_680

    def arrived(reader: object, value: bytes) -> list[Any]:
        assert isinstance(reader, Packed)
        contents: Contents[Any] = reader.unpack(Arrived(value, timestamp=at + 60_000))
        assert contents.refused is None
        return list(contents.events)

    assert arrived(JSON_LOGS, COLLECTORS_LOGS_JSON) == [("u1", "f", "on", at)]
    assert arrived(JSON_SPANS, COLLECTORS_SPANS_JSON) == [("u3", "f", "on", at)]
    assert arrived(JSON_OUTCOMES, COLLECTORS_SPANS_JSON) == [
        ("u3", at, (("f", "on"),), False, 10.0, ())
    ]
    ((context, _, flags, is_error, latency_ms, _),) = arrived(
        outcome_reader(EventFormat.OTLP_PROTO), COLLECTORS_SPANS_PROTO
    )
    assert (context, flags, is_error, latency_ms) == ("u1", (("f", "on"),), False, 10.0)


@pytest.mark.parametrize(
    ("overrides", "variant"),
    [
        ({"feature_flag__result__variant": None, "feature_flag__variant": "old"}, "old"),
        ({"feature_flag__result__variant": None, "feature_flag__result__value": True}, "true"),
        ({"feature_flag__result__variant": None, "feature_flag__result__value": "blue"}, "blue"),
    ],
)
def test_older_names_and_values(overrides: dict[str, Any], variant: str) -> None:
    """Where no variant is named by its present name, an older one or the value names it."""
    assert unpack(JSON_LOGS, logs(evaluation(**overrides))).events == [("u1", "f", variant, AT)]


def test_an_event_named_by_attribute_with_its_value_in_the_body() -> None:
    """Older producers name the event in an attribute and put the value into the body."""
    record = evaluation(feature_flag__result__variant=None, event__name="feature_flag.evaluation")
    del record["eventName"]
    record["body"] = {"kvlistValue": {"values": [{"key": "value", "value": {"boolValue": False}}]}}
    assert unpack(JSON_LOGS, logs(record)).events == [("u1", "f", "false", AT)]


def test_an_event_named_by_something_that_is_no_text() -> None:
    """A name that is a list is nobody's event, and raises nothing."""
    record = {"attributes": [{"key": "event.name", "value": {"arrayValue": {"values": []}}}]}
    assert unpack(JSON_LOGS, logs(record)) == Contents([])


def test_a_time_that_is_not_told() -> None:
    """The time of observing stands in for the event's, the record's own timestamp for both."""
    observed, nothing = evaluation(), evaluation()
    observed["observedTimeUnixNano"] = observed.pop("timeUnixNano")
    del nothing["timeUnixNano"]
    assert [event[3] for event in unpack(JSON_LOGS, logs(observed, nothing)).events] == [
        AT,
        AT + 1000,
    ]


def test_a_failed_evaluation_served_nothing() -> None:
    """An evaluation with an error and no variant is nobody's exposure.

    And no fault of the record's.
    """
    contents = unpack(
        JSON_LOGS,
        logs(evaluation(feature_flag__result__variant=None, error__type="flag_not_found")),
    )
    assert contents == Contents([])


def test_one_bad_event_costs_none_of_the_others() -> None:
    """Events that cannot be used are told of, with the first one's reason; the others are used."""
    bad = [
        evaluation(feature_flag__context__id=None),
        evaluation(feature_flag__key="a b"),
        evaluation(feature_flag__result__variant=5),
        evaluation(feature_flag__context__id="a\x1bb"),
        evaluation(feature_flag__result__variant=None),
        {**evaluation(), "timeUnixNano": str((AT + 1_000_000) * 1_000_000)},
    ]
    contents = unpack(
        JSON_LOGS, logs(evaluation(), *bad, evaluation(feature_flag__context__id="u2"))
    )
    assert [event[0] for event in contents.events] == ["u1", "u2"]
    assert contents.refused is not None
    assert contents.refused.reason is QuarantineReason.NO_CONTEXT
    assert contents.refused.detail.startswith(
        "6 of 8 events; the first: no feature_flag.context.id"
    )


@pytest.mark.parametrize("lacking", ["feature_flag.key", "feature_flag.result.variant"])
def test_what_an_evaluation_lacks_is_named(lacking: str) -> None:
    """An attribute that is missing or misnamed is no name with forbidden characters."""
    contents = unpack(JSON_LOGS, logs(evaluation(**{lacking.replace(".", "__"): None})))
    assert contents.refused is not None
    assert f"the first: no {lacking}; s" in contents.refused.detail
    assert "None" not in contents.refused.detail


def test_a_record_with_a_bad_event_is_given_up_once_it_is_read() -> None:
    """Not when cycles are collected: a flood of large exports would fill memory until then."""
    bad = {"name": "feature_flag.evaluation", "attributes": attributes(feature_flag__key="a b")}
    of_spans = spans({"kind": 2, "attributes": attributes(feature_flag__key="f"), "events": [bad]})
    of_logs = logs(evaluation(feature_flag__key="a b"))
    for reader, value in ((JSON_LOGS, of_logs), (JSON_SPANS, of_spans), (JSON_OUTCOMES, of_spans)):
        assert isinstance(reader, Packed)
        record = Arrived(value)
        given_up = weakref.ref(record)
        gc.disable()
        try:
            contents: Contents[Any] = reader.unpack(record)
            del record
            assert given_up() is None
        finally:
            gc.enable()
        assert contents.refused is not None
        assert contents.refused.detail.startswith("1 of 1 events")


def test_the_context_may_stand_on_the_span() -> None:
    """An evaluation that names no context is its span's."""
    event = {
        "name": "feature_flag",
        "attributes": evaluation(feature_flag__context__id=None)["attributes"],
    }
    span = {
        "kind": 2,
        "startTimeUnixNano": AT * 1_000_000 - 7_000_000,
        "endTimeUnixNano": AT * 1_000_000,
        "attributes": attributes(feature_flag__context__id="u9"),
        "events": [event],
    }
    assert unpack(JSON_SPANS, spans(span)).events == [("u9", "f", "on", AT)]
    assert unpack(JSON_OUTCOMES, spans(span)).events == [("u9", AT, (("f", "on"),), False, 7.0, ())]


def test_the_context_may_stand_on_the_resource() -> None:
    """What names no context is its resource's.

    The Collector moves the attribute there to key records by it.
    """
    resource = {"attributes": attributes(feature_flag__context__id="u7", service__name="checkout")}
    records = [evaluation(feature_flag__context__id=None), evaluation()]
    export = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": records}]}]}
    assert [event[0] for event in unpack(JSON_LOGS, json.dumps(export).encode()).events] == [
        "u7",
        "u1",
    ]
    span = {
        "kind": 2,
        "endTimeUnixNano": AT * 1_000_000,
        "events": [{"name": "feature_flag", **records[0]}],
    }
    export = {
        "resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span, {"kind": 2}]}]}]
    }
    assert [event[0] for event in unpack(JSON_SPANS, json.dumps(export).encode()).events] == ["u7"]
    assert [
        event[::2][:2] for event in unpack(JSON_OUTCOMES, json.dumps(export).encode()).events
    ] == [
        ("u7", (("f", "on"),)),
        ("u7", ()),
    ]


def test_a_server_span_without_flags_is_joined_by_its_context() -> None:
    """A server span that names its context and no flag is an outcome to be joined.

    With neither it is not ours.
    """
    named = {
        "kind": 2,
        "endTimeUnixNano": AT * 1_000_000,
        "attributes": attributes(feature_flag__context__id="u9"),
    }
    assert unpack(JSON_OUTCOMES, spans(named, {"kind": 2}, {"kind": 3})).events == [
        ("u9", AT, (), False, None, ())
    ]


def test_a_request_in_two_contexts_is_an_outcome_of_each() -> None:
    """Flags evaluated for a user and for an organisation in one request are told apart."""
    events = [
        {
            "name": "feature_flag.evaluation",
            "attributes": evaluation(feature_flag__context__id=context)["attributes"],
        }
        for context in ("user", "organisation")
    ]
    span = {"kind": 2, "endTimeUnixNano": AT * 1_000_000, "events": events, "status": {"code": 2}}
    found = unpack(JSON_OUTCOMES, spans(span)).events
    assert [(event[0], event[3]) for event in found] == [("user", True), ("organisation", True)]


@pytest.mark.parametrize(
    ("reader", "value", "reason"),
    [
        (JSON_LOGS, None, QuarantineReason.EMPTY),
        (JSON_LOGS, b"", QuarantineReason.EMPTY),
        (JSON_LOGS, b"{", QuarantineReason.NOT_OTLP),
        (JSON_LOGS, b"{}", QuarantineReason.NOT_OTLP),
        (JSON_LOGS, b"[" * 100_000, QuarantineReason.NOT_OTLP),
        (JSON_LOGS, b'{"x":' * 100_000, QuarantineReason.NOT_OTLP),
        (JSON_LOGS, spans({}), QuarantineReason.NOT_OTLP),
        (JSON_OUTCOMES, logs({}), QuarantineReason.NOT_OTLP),
        (JSON_LOGS, b" " * (MAX_BYTES + 1), QuarantineReason.TOO_LARGE),
        (JSON_LOGS, logs(*[{}] * (MAX_ITEMS + 1)), QuarantineReason.TOO_LARGE),
        (JSON_LOGS, logs(*[{"attributes": [{}] * 10_001}] * 10), QuarantineReason.TOO_LARGE),
        (
            JSON_SPANS,
            spans({"events": [{"attributes": [{}] * 50_001}] * 2}),
            QuarantineReason.TOO_LARGE,
        ),
        (
            JSON_SPANS,
            spans(*[{"events": [{}] * 10}] * (MAX_ITEMS // 10)),
            QuarantineReason.TOO_LARGE,
        ),
        (
            evaluation_reader(EventFormat.OTLP_PROTO),
            b'{"resourceLogs":[{}]}',
            QuarantineReason.NOT_OTLP,
        ),
        (evaluation_reader(EventFormat.OTLP_PROTO), b"\x0a\x05hello", QuarantineReason.NOT_OTLP),
        (evaluation_reader(EventFormat.OTLP_PROTO), b"\x12\x00", QuarantineReason.NOT_OTLP),
    ],
)
def test_what_is_no_export_is_refused_whole(
    reader: object, value: bytes | None, reason: QuarantineReason
) -> None:
    """Broken, foreign, too large and too deep values are refused with a reason.

    And nothing is raised.
    """
    contents = unpack(reader, value)
    assert not contents.events
    assert contents.refused is not None
    assert contents.refused.reason is reason
    assert is_alone(contents.refused)


def test_values_nested_deep_are_not_followed() -> None:
    """A value as deep as the parser takes it neither raises nor counts."""
    for depth in (10, 200, 400, 5_000):
        nested = b'{"arrayValue":{"values":[' * depth + b'{"stringValue":"x"}' + b"]}}" * depth
        value = logs(evaluation()).replace(b'{"stringValue": "on"}', nested)
        contents = unpack(JSON_LOGS, value)
        assert not contents.events
        assert contents.refused is not None
        is_read = depth < 1_000
        assert is_read or contents.refused.detail.startswith("nested too deeply; ")


def test_numbers_beyond_any_clock_are_refused() -> None:
    """Times beyond 64 bits, however long, refuse the record."""
    for number in ('"' + "9" * 5000 + '"', "-1", "1e30", str(2**64)):
        value = logs(evaluation()).replace(f'"{AT * 1_000_000}"'.encode(), number.encode())
        contents = unpack(JSON_LOGS, value)
        assert not contents.events
        assert contents.refused is not None


@pytest.mark.parametrize("encoding", [EventFormat.OTLP_JSON, EventFormat.OTLP_PROTO])
@pytest.mark.parametrize(
    ("timestamp_ms", "latest_ms"),
    [
        (AT + 1, AT),
        (AT, AT - 1),
        (2**62, 2**61),
        (-1, 2**61),
    ],
)
def test_records_from_the_future_give_no_events(
    encoding: EventFormat,
    timestamp_ms: int,
    latest_ms: int,
) -> None:
    """A record's timestamp is its producer's; past the latest accepted no event of it is taken."""
    logs_of, spans_of = export_of_logs(REQUESTS, encoding), export_of_spans(REQUESTS, encoding)
    for reader, value in (
        (evaluation_reader(encoding), logs_of),
        (evaluation_reader(encoding, of_spans=True), spans_of),
        (outcome_reader(encoding), spans_of),
    ):
        assert isinstance(reader, Packed)
        record = Arrived(value, timestamp=AT + 60_000)
        sound: Contents[Any] = reader.unpack(record, latest_ms=AT + 60_000)
        assert sound.events
        assert sound.refused is None
        record = Arrived(value, timestamp=timestamp_ms)
        contents: Contents[Any] = reader.unpack(record, latest_ms=latest_ms)
        assert not contents.events
        assert contents.refused is not None
        assert contents.refused.reason is QuarantineReason.BAD_TIME
