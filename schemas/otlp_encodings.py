"""The two encodings of OpenTelemetry's records: how bytes become log records and spans.

Belongs here: decoding, and the plain value of an attribute. Does not belong here: what the events
mean (`otlp.py`).

Source: opentelemetry-proto 1.9 (`logs.proto`, `trace.proto`) and its JSON mapping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any

import msgspec

from schemas.outcome import MAX_CONVERSIONS

#: The field of a log record's body that tells the value of a flag.
BODY_VALUE = "value"


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one encoding is decoded."""

    decode_logs: Callable[[bytes], Any]  # raises ValueError or RecursionError
    decode_traces: Callable[[bytes], Any]  # raises the same
    plain: Callable[[Any], Any]  # an attribute's value as text, number, bool, list or mapping
    name: str


# --- JSON

_Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # until the year 2262


class _Struct(msgspec.Struct, rename="camel", gc=False):
    pass


class _Array(_Struct):
    values: list[_Any] | None = None


class _KeyValueList(_Struct):
    values: list[_KeyValue] | None = None


class _Any(_Struct):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | None = None
    double_value: float | None = None
    array_value: _Array | None = None
    kvlist_value: _KeyValueList | None = None


class _KeyValue(_Struct):
    key: str = ""
    value: _Any | None = None


class _LogRecord(_Struct):
    time_unix_nano: _Nanoseconds = 0
    observed_time_unix_nano: _Nanoseconds = 0
    event_name: str | None = None
    body: _Any | None = None
    attributes: list[_KeyValue] | None = None


class _ScopeLogs(_Struct):
    log_records: list[_LogRecord] | None = None


class _Resource(_Struct):
    attributes: list[_KeyValue] | None = None


class _ResourceLogs(_Struct):
    resource: _Resource | None = None
    scope_logs: list[_ScopeLogs] | None = None


class _Logs(_Struct):
    resource_logs: list[_ResourceLogs] | None = None


class _SpanEvent(_Struct):
    time_unix_nano: _Nanoseconds = 0
    name: str | None = None
    attributes: list[_KeyValue] | None = None


class _Status(_Struct):
    code: int = 0


class _Span(_Struct):
    kind: int = 0
    start_time_unix_nano: _Nanoseconds = 0
    end_time_unix_nano: _Nanoseconds = 0
    attributes: list[_KeyValue] | None = None
    events: list[_SpanEvent] | None = None
    status: _Status | None = None


class _ScopeSpans(_Struct):
    spans: list[_Span] | None = None


class _ResourceSpans(_Struct):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _Traces(_Struct):
    resource_spans: list[_ResourceSpans] | None = None


def _plain_json(value: _Any | None) -> Any:
    """Return the plain value of a JSON attribute: text, number, bool, list or mapping.

    None for nothing, and for bytes.
    """
    if value is None:
        return None
    if value.string_value is not None:
        return value.string_value
    if value.bool_value is not None:
        return value.bool_value
    if value.int_value is not None:
        return value.int_value
    if value.double_value is not None:
        return value.double_value
    if value.array_value is not None:
        return [
            _scalar_json(one) for one in islice(value.array_value.values or (), MAX_CONVERSIONS + 1)
        ]
    if value.kvlist_value is not None:
        return {
            one.key: _scalar_json(one.value)
            for one in value.kvlist_value.values or ()
            if one.key == BODY_VALUE
        }
    return None


def _scalar_json(value: _Any | None) -> Any:
    if value is None or value.array_value is not None or value.kvlist_value is not None:
        return None
    return _plain_json(value)


@lru_cache(1)
def json_encoding() -> Encoding:
    """Return how OTLP JSON is decoded. Numbers may be texts, as the mapping has 64-bit numbers."""
    logs = msgspec.json.Decoder(_Logs, strict=False).decode
    traces = msgspec.json.Decoder(_Traces, strict=False).decode
    return Encoding(logs, traces, _plain_json, "otlp_json")


# --- protobuf


@lru_cache(1)
def protobuf_encoding() -> Encoding:
    """Return how OTLP protobuf is decoded. Raises ModuleNotFoundError without the extra `otlp`."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    def logs(value: bytes) -> Any:
        try:
            return LogsData.FromString(value)
        except DecodeError as error:
            raise ValueError(str(error)) from None

    def traces(value: bytes) -> Any:
        try:
            return TracesData.FromString(value)
        except DecodeError as error:
            raise ValueError(str(error)) from None

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind is None or kind == "bytes_value":
            return None
        if kind == "array_value":
            return [scalar(one) for one in islice(value.array_value.values, MAX_CONVERSIONS + 1)]
        if kind == "kvlist_value":
            return {
                one.key: scalar(one.value)
                for one in value.kvlist_value.values
                if one.key == BODY_VALUE
            }
        return getattr(value, kind)

    def scalar(value: Any) -> Any:
        return (
            None if value.WhichOneof("value") in ("array_value", "kvlist_value") else plain(value)
        )

    return Encoding(logs, traces, plain, "otlp_proto")
