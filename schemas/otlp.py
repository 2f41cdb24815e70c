"""OpenTelemetry's own records.

What the Collector's Kafka exporter writes as `otlp_json` and `otlp_proto`.

A record is one export and holds many events:

- logs: each record named `feature_flag.evaluation` is an evaluation;
- spans: each span event of that name is an evaluation; a span of kind SERVER is an outcome, with
  the flags evaluated in its own events. Without any it is an outcome to be joined, if the span has
  `feature_flag.context.id`; without that it is not ours.

Everything else in a record is somebody else's and passed over. One event that cannot be used costs
none of the others: it is told of, and they are used. What an export says is read with the
contract's names (`evaluation.py`, `outcome.py`); a span has failed when it has `error.type` or the
status ERROR.

Bounds: 1 MiB (Kafka's own), 10,000 log records, spans and span events, 100,000 attributes.
Protobuf's parser refuses nesting beyond 100, JSON's what Python cannot nest.

Source: opentelemetry-proto 1.9 (`logs.proto`, `trace.proto`), its JSON mapping; semantic
conventions 1.44.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, NamedTuple

import msgspec

from schemas.envelope import (
    MAX_TIME_MS,
    RecordRefused,
    check_time,
    is_context_id,
    is_name,
    refuse,
)
from schemas.events import Contents, EvaluationFields, OutcomeFields, Readable
from schemas.outcome import MAX_CONVERSIONS, MAX_DURATION_SECONDS, MAX_FLAGS
from schemas.terms import QuarantineReason

#: Kafka's default limit of a record.
MAX_BYTES = 1024 * 1024
#: Log records, spans and span events in one record; the Collector's batches have 8,192 by default.
MAX_ITEMS = 10_000
#: Of all of these together: real ones take more than ten bytes each, empty ones are there to keep
#: us busy.
MAX_ATTRIBUTES = 100_000

EVENT_NAMES = frozenset(
    {"feature_flag.evaluation", "feature_flag"}
)  # the second is the older hooks'
_SERVER = 2  # SPAN_KIND_SERVER
_ERROR = 2  # STATUS_CODE_ERROR

_KEY = "feature_flag.key"
_CONTEXT = "feature_flag.context.id"
_ERROR_TYPE = "error.type"
_CONVERSIONS = "rolloutd.conversions"
_NAME = "event.name"  # where the name stood before it had a field
_BODY_VALUE = "value"
#: What tells the variant, first one first: see `Evaluation.variant`.
_VARIANTS = (
    "feature_flag.result.variant",
    "feature_flag.variant",
    "feature_flag.result.value",
    _BODY_VALUE,
)
_OF_EVALUATION = frozenset({_KEY, _CONTEXT, _ERROR_TYPE, _NAME, *_VARIANTS})
_OF_RESOURCE = frozenset({_CONTEXT})
_OF_SPAN = frozenset({_CONTEXT, _ERROR_TYPE, _CONVERSIONS})

_NEVER_NAMED = "not a name; use up to 128 of A-Z a-z 0-9 . _ : - and begin with a letter or digit"

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
    """Return what a JSON value says: text, a number, a list or a mapping.

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
            if one.key == _BODY_VALUE
        }
    return None


def _scalar_json(value: _Any | None) -> Any:
    if value is None or value.array_value is not None or value.kvlist_value is not None:
        return None
    return _plain_json(value)


@lru_cache(1)
def json_encoding() -> Encoding:
    """Return the readers of OTLP JSON. Numbers may be texts, as the mapping has it for 64 bits."""
    logs = msgspec.json.Decoder(_Logs, strict=False).decode
    traces = msgspec.json.Decoder(_Traces, strict=False).decode
    return Encoding(logs, traces, _plain_json, "otlp_json")


# --- protobuf


@lru_cache(1)
def protobuf_encoding() -> Encoding:
    """Return the readers of OTLP protobuf. Raises ModuleNotFoundError without the extra `otlp`."""
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
                if one.key == _BODY_VALUE
            }
        return getattr(value, kind)

    def scalar(value: Any) -> Any:
        return (
            None if value.WhichOneof("value") in ("array_value", "kvlist_value") else plain(value)
        )

    return Encoding(logs, traces, plain, "otlp_proto")


# --- both


class _Problems:
    """The first thing wrong with the events of a record, and how many have something wrong."""

    def __init__(self) -> None:
        self.first: RecordRefused | None = None
        self.count = 0

    def add(self, refused: RecordRefused) -> None:
        """Take one more."""
        self.first = self.first or refused
        self.count += 1

    def told(self, used: int) -> RecordRefused | None:
        """Return what is told of the record, None when nothing is wrong."""
        if self.first is None:
            return None
        reason, problem, fix = self.first.args
        return RecordRefused(
            reason, f"{self.count} of {self.count + used} events; the first: {problem}", fix
        )


class _Evaluated(NamedTuple):
    """A flag evaluation, before it is known whose it is."""

    context_id: str | None
    flag_key: str
    variant: str


@dataclass(frozen=True, slots=True)
class Encoding:
    """Readers of one encoding; each takes a record and raises nothing, whatever it holds.

    `latest_ms` is the latest time accepted of the record and of each of its events.
    """

    decode_logs: Callable[[bytes], Any]  # raises ValueError or RecursionError
    decode_traces: Callable[[bytes], Any]
    plain: Callable[[Any], Any]
    name: str

    def evaluations_of_logs(
        self,
        record: Readable,
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Contents[EvaluationFields]:
        """Return the evaluations among log records."""
        problems = _Problems()
        events: list[EvaluationFields] = []
        try:
            for log, common in self._logs(record.value):
                if log.event_name and log.event_name not in EVENT_NAMES:
                    continue
                found = self._attributes(log.attributes, _OF_EVALUATION)
                name = log.event_name or found.get(_NAME)
                if not isinstance(name, str) or name not in EVENT_NAMES:
                    continue
                if _BODY_VALUE not in found and log.body is not None:
                    body = self.plain(log.body)
                    found[_BODY_VALUE] = body.get(_BODY_VALUE) if isinstance(body, dict) else None
                try:
                    evaluated = _evaluated(found)
                    if evaluated is not None:
                        since = log.time_unix_nano or log.observed_time_unix_nano
                        at = _time_ms(since, record.timestamp, latest_ms)
                        context_id = _context(evaluated.context_id or common)
                        events.append((context_id, evaluated.flag_key, evaluated.variant, at))
                except RecordRefused as refused:
                    problems.add(refused)
        except RecordRefused as refused:
            return Contents((), refused)
        return Contents(events, problems.told(len(events)))

    def evaluations_of_spans(
        self,
        record: Readable,
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Contents[EvaluationFields]:
        """Return the evaluations among span events, of spans of any kind."""
        problems = _Problems()
        events: list[EvaluationFields] = []
        try:
            for span, common in self._spans(record.value):
                named = [event for event in span.events or () if event.name in EVENT_NAMES]
                of_span = (
                    self._attributes(span.attributes, _OF_SPAN).get(_CONTEXT) if named else None
                )
                for event in named:
                    try:
                        evaluated = _evaluated(self._attributes(event.attributes, _OF_EVALUATION))
                        if evaluated is not None:
                            since = event.time_unix_nano or span.end_time_unix_nano
                            at = _time_ms(since, record.timestamp, latest_ms)
                            context_id = _context(evaluated.context_id or of_span or common)
                            events.append((context_id, evaluated.flag_key, evaluated.variant, at))
                    except RecordRefused as refused:
                        problems.add(refused)
        except RecordRefused as refused:
            return Contents((), refused)
        return Contents(events, problems.told(len(events)))

    def outcomes_of_spans(
        self,
        record: Readable,
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Contents[OutcomeFields]:
        """Return the outcomes among spans.

        One a context that evaluated something in a server span, nearly always one.
        """
        problems = _Problems()
        events: list[OutcomeFields] = []
        try:
            for span, common in self._spans(record.value):
                if span.kind == _SERVER:
                    try:
                        events.extend(self._outcomes(span, common, record.timestamp, latest_ms))
                    except RecordRefused as refused:
                        problems.add(refused)
        except RecordRefused as refused:
            return Contents((), refused)
        return Contents(events, problems.told(len(events)))

    def _outcomes(
        self,
        span: Any,
        common: Any,
        timestamp_ms: int,
        latest_ms: int,
    ) -> list[OutcomeFields]:
        """Return a server span's outcomes; none when no context is named, by `common` either.

        Raises RecordRefused.
        """
        found = self._attributes(span.attributes, _OF_SPAN)
        common = found.get(_CONTEXT) or common
        flags: dict[str, dict[tuple[str, str], None]] = {}
        for event in span.events or ():
            if event.name in EVENT_NAMES:
                evaluated = _evaluated(self._attributes(event.attributes, _OF_EVALUATION))
                if evaluated is not None:
                    context_id = _context(evaluated.context_id or common)
                    flags.setdefault(context_id, {})[evaluated.flag_key, evaluated.variant] = None
        if not flags:
            if common is None:
                return []
            flags[_context(common)] = {}
        if sum(map(len, flags.values())) > MAX_FLAGS:
            refuse(
                QuarantineReason.INVALID,
                f"a span with more than {MAX_FLAGS} flags",
                "evaluate fewer in one request",
            )
        is_error = found.get(_ERROR_TYPE) is not None or (
            span.status is not None and span.status.code == _ERROR
        )
        time_ms = _time_ms(span.end_time_unix_nano, timestamp_ms, latest_ms)
        latency_ms = _latency_ms(span)
        conversions = _conversions(found.get(_CONVERSIONS))
        return [
            (context, time_ms, tuple(named), is_error, latency_ms, conversions)
            for context, named in flags.items()
        ]

    def _attributes(
        self, attributes: Sequence[Any] | None, wanted: frozenset[str]
    ) -> dict[str, Any]:
        plain = self.plain
        return {one.key: plain(one.value) for one in attributes or () if one.key in wanted}

    def _common(self, resource: Any) -> Any:
        """Return the context that a whole resource belongs to.

        As the Collector's groupbyattrs moves it there, if any.
        """
        return (
            None
            if resource is None
            else self._attributes(resource.attributes, _OF_RESOURCE).get(_CONTEXT)
        )

    def _logs(self, value: bytes | None) -> Iterator[tuple[Any, Any]]:
        """Yield the log records of an export, each with its resource's context.

        Raises RecordRefused.
        """
        resources = self._decoded(self.decode_logs, value).resource_logs
        if not resources:
            self._is_no_export("logs")
        items = 0
        for resource in resources:
            for scope in resource.scope_logs or ():
                items += len(scope.log_records or ())
                _check_size(items, 0)
        attributes = 0
        for resource in resources:
            for scope in resource.scope_logs or ():
                attributes += sum(len(log.attributes or ()) for log in scope.log_records or ())
                _check_size(items, attributes)
        for resource in resources:
            common = self._common(resource.resource)
            for scope in resource.scope_logs or ():
                for log in scope.log_records or ():
                    yield log, common

    def _spans(self, value: bytes | None) -> Iterator[tuple[Any, Any]]:
        """Yield the spans of an export, each with its resource's context. Raises RecordRefused."""
        resources = self._decoded(self.decode_traces, value).resource_spans
        if not resources:
            self._is_no_export("spans")
        items = attributes = 0
        for resource in resources:
            for scope in resource.scope_spans or ():
                for span in scope.spans or ():
                    events = span.events or ()
                    items += 1 + len(events)
                    attributes += len(span.attributes or ())
                    _check_size(items, attributes)
                    attributes += sum(len(event.attributes or ()) for event in events)
                    _check_size(items, attributes)
        for resource in resources:
            common = self._common(resource.resource)
            for scope in resource.scope_spans or ():
                for span in scope.spans or ():
                    yield span, common

    def _is_no_export(self, of: str) -> None:
        refuse(
            QuarantineReason.NOT_OTLP,
            f"no {of} in it",
            f"send the Collector's {of} here, with the encoding {self.name}, or fix kafka.formats",
        )

    def _decoded(self, decode: Callable[[bytes], Any], value: bytes | None) -> Any:
        if not value:
            refuse(QuarantineReason.EMPTY, "the record has no value", "send one export per record")
        if len(value) > MAX_BYTES:
            refuse(
                QuarantineReason.TOO_LARGE,
                f"{len(value)} bytes, at most {MAX_BYTES} are read",
                "lower the Collector's send_batch_max_size",
            )
        try:
            return decode(value)
        except (ValueError, RecursionError) as error:
            refuse(
                QuarantineReason.NOT_OTLP,
                str(error),
                f"set the exporter's encoding to {self.name}, or fix kafka.formats",
            )


def _check_size(items: int, attributes: int) -> None:
    if items > MAX_ITEMS or attributes > MAX_ATTRIBUTES:
        refuse(
            QuarantineReason.TOO_LARGE,
            f"more than {MAX_ITEMS} log records, spans and span events, or "
            f"{MAX_ATTRIBUTES} attributes",
            "lower the Collector's send_batch_max_size",
        )


@lru_cache(16_384)
def _is_name(text: str) -> bool:
    return is_name(text)


def _evaluated(found: Mapping[str, Any]) -> _Evaluated | None:
    """Return an evaluation by its attributes; None for one that failed and served nothing.

    Raises RecordRefused.
    """
    flag_key = found.get(_KEY)
    if not isinstance(flag_key, str) or not _is_name(flag_key):
        refuse(QuarantineReason.INVALID, f"{_KEY} is {flag_key!r}", _NEVER_NAMED)
    context_id = found.get(_CONTEXT)
    if context_id is not None and not isinstance(context_id, str):
        refuse(
            QuarantineReason.INVALID,
            f"{_CONTEXT} is {type(context_id).__name__}",
            "send it as text",
        )
    variant = next((found[name] for name in _VARIANTS if found.get(name) is not None), None)
    if variant is None and found.get(_ERROR_TYPE) is not None:
        return None
    if isinstance(variant, bool):
        variant = "true" if variant else "false"
    if not isinstance(variant, str) or not _is_name(variant):
        refuse(
            QuarantineReason.INVALID,
            f"the variant is {variant!r}",
            "send feature_flag.result.variant, a name",
        )
    return _Evaluated(context_id, flag_key, variant)


def _context(context_id: Any) -> str:
    if context_id is None:
        refuse(
            QuarantineReason.NO_CONTEXT,
            f"no {_CONTEXT}",
            "set it on the event or on its span: it is the targeting key",
        )
    if not isinstance(context_id, str) or not is_context_id(context_id):
        refuse(
            QuarantineReason.INVALID,
            f"not a context id: {context_id!r}",
            "send 1 to 256 characters, none of control",
        )
    return context_id


def _time_ms(nanoseconds: int, timestamp_ms: int, latest_ms: int) -> int:
    """Return an event's time; the record's own timestamp where the event has none.

    Raises RecordRefused.
    """
    time_ms = nanoseconds // 1_000_000 if nanoseconds else timestamp_ms
    return check_time(time_ms, timestamp_ms, latest_ms)


def _latency_ms(span: Any) -> float | None:
    if not span.start_time_unix_nano:
        return None
    nanoseconds = span.end_time_unix_nano - span.start_time_unix_nano
    if not 0 <= nanoseconds <= MAX_DURATION_SECONDS * 1_000_000_000:
        refuse(QuarantineReason.INVALID, f"a span took {nanoseconds} ns", "fix the clock")
    return float(
        nanoseconds / 1e9 * 1000.0
    )  # by way of seconds, so that the last bit is that of an outcome that says so


def _conversions(value: Any) -> Sequence[str]:
    if value is None:
        return ()
    if (
        not isinstance(value, list)
        or len(value) > MAX_CONVERSIONS
        or not all(isinstance(one, str) and _is_name(one) for one in value)
    ):
        refuse(
            QuarantineReason.INVALID,
            f"{_CONVERSIONS} is no list of at most {MAX_CONVERSIONS} names",
            _NEVER_NAMED,
        )
    return tuple(dict.fromkeys(value))
