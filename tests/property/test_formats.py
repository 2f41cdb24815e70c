"""Every format's readers against arbitrary bytes, and OTLP's two encodings against each other."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from schemas.events import Contents, Packed
from schemas.formats import evaluation_reader, outcome_reader
from schemas.terms import EventFormat
from tests.records import make_record
from tests.telemetry import Request, encoded, export_of_logs, export_of_spans

AT = 1_795_230_000_000
JSON, PROTO = EventFormat.OTLP_JSON, EventFormat.OTLP_PROTO


def unpack(reader: object, value: bytes) -> Contents[Any]:
    """Return what a packed format's reader makes of a value."""
    assert isinstance(reader, Packed)
    contents: Contents[Any] = reader.unpack(make_record(0, value, timestamp_ms=AT + 1000))
    return contents


def readers(encoding: EventFormat) -> list[object]:
    """Return the three readers of an encoding: logs, spans for evaluations, spans for outcomes."""
    return [
        evaluation_reader(encoding),
        evaluation_reader(encoding, of_spans=True),
        outcome_reader(encoding),
    ]


# --- exports near the real ones ---

scalars: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.sampled_from(["on", "off", "", "a b", "x" * 129, "é", "a\x00", "u1"]).map(
        lambda text: {"stringValue": text}
    ),
    st.booleans().map(lambda value: {"boolValue": value}),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: {"intValue": str(value)}),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda value: {"doubleValue": value}),
    st.just({}),
)
any_value = scalars | st.lists(scalars, max_size=18).map(
    lambda values: {"arrayValue": {"values": values}}
)
any_value |= st.lists(scalars, max_size=2).map(
    lambda values: {
        "kvlistValue": {"values": [{"key": "value", "value": value} for value in values]}
    }
)
names = st.sampled_from(
    [
        *(
            "feature_flag.key",
            "feature_flag.result.variant",
            "feature_flag.context.id",
            "feature_flag.variant",
            "value",
        ),
        *(
            "feature_flag.result.value",
            "error.type",
            "event.name",
            "rolloutd.conversions",
            "http.route",
        ),
    ]
)
attributes = st.lists(st.fixed_dictionaries({"key": names, "value": any_value}), max_size=6)
sound = st.just(
    [
        {"key": "feature_flag.key", "value": {"stringValue": "f"}},
        {"key": "feature_flag.result.variant", "value": {"stringValue": "on"}},
        {"key": "feature_flag.context.id", "value": {"stringValue": "u1"}},
    ]
)
nanoseconds = st.sampled_from(
    [0, 1, AT * 10**6, (AT + 999) * 10**6 + 999_999, (AT + 10**9) * 10**6, 2**63 - 1]
).map(str)
event_names = st.sampled_from(["feature_flag.evaluation", "feature_flag", "exception", ""])
log_records = st.fixed_dictionaries(
    {"timeUnixNano": nanoseconds, "observedTimeUnixNano": nanoseconds, "eventName": event_names},
    optional={"body": any_value, "attributes": sound | attributes},
)
span_events = st.fixed_dictionaries(
    {"timeUnixNano": nanoseconds, "name": event_names, "attributes": sound | attributes}
)
span_records = st.fixed_dictionaries(
    {"kind": st.integers(0, 5), "startTimeUnixNano": nanoseconds, "endTimeUnixNano": nanoseconds},
    optional={
        "attributes": attributes,
        "events": st.lists(span_events, max_size=3),
        "status": st.fixed_dictionaries({"code": st.integers(0, 2)}),
    },
)


@given(st.lists(log_records, max_size=4), st.lists(span_records, max_size=4))
def test_both_encodings_mean_the_same(
    logs: list[dict[str, Any]], spans: list[dict[str, Any]]
) -> None:
    """For any export, JSON and protobuf give the same events and the same refusals."""
    of_logs = ParseDict({"resourceLogs": [{"scopeLogs": [{"logRecords": logs}]}]}, LogsData())
    of_spans = ParseDict({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}, TracesData())
    for message in (of_logs, of_spans):
        for json_reader, proto_reader in zip(readers(JSON), readers(PROTO), strict=True):
            name = json_reader.unpack.__name__  # type: ignore[attr-defined]
            if (message is of_logs) is (name != "evaluations_of_logs"):
                continue  # protobuf cannot tell logs from spans, JSON can
            from_json = unpack(json_reader, encoded(message, JSON))
            from_proto = unpack(proto_reader, encoded(message, PROTO))
            assert list(from_json.events) == list(from_proto.events)
            assert str(from_json.refused) == str(from_proto.refused)


@given(st.binary(max_size=200), st.sampled_from([JSON, PROTO]))
def test_arbitrary_bytes_raise_nothing(value: bytes, encoding: EventFormat) -> None:
    """Whatever a record holds, reading it ends in events and refusals."""
    for reader in readers(encoding):
        unpack(reader, value)


REQUESTS = [
    Request("u1", [("f", "on"), ("g", "off")], AT, error=True, conversions=["paid"]),
    Request("u2", [("f", "on")], AT),
]
EXPORTS = [
    (encoding, export(REQUESTS, encoding))
    for encoding in (JSON, PROTO)
    for export in (export_of_logs, export_of_spans)
]


@given(st.sampled_from(EXPORTS), st.data())
def test_damaged_exports_raise_nothing(
    export: tuple[EventFormat, bytes], data: st.DataObject
) -> None:
    """An export with a few bytes changed, cut or doubled ends in events and refusals.

    And each event is whole.
    """
    encoding, value = export
    damaged = bytearray(value)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["change", "cut", "double"])):
            case "change":
                damaged[at] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 20))]
                damaged = damaged or bytearray(b"x")
            case _:
                damaged[at:at] = damaged[at : at + 20]
    for reader in readers(encoding):
        contents = unpack(reader, bytes(damaged))
        for event in contents.events:
            assert all(isinstance(part, str) and part for part in event[:1])
        if contents.refused is not None:
            assert contents.refused.detail.isascii()
            assert contents.refused.detail.isprintable()
