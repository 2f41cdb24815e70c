"""OpenTelemetry's records: what the Collector's Kafka exporter writes as `otlp_json`, `otlp_proto`.

A record is one export and holds many events:

- logs: each record named `feature_flag.evaluation` is an evaluation;
- spans: each span event of that name is an evaluation; a span of kind SERVER is an outcome, with
  the flags evaluated in its own events. Without any it is an outcome to be joined, if the span has
  `feature_flag.context.id`; without that it is not ours.

Everything else in a record is ignored. One unusable event does not affect the others: it is
reported, and they are used. Attributes have the contract's names (`evaluation.py`, `outcome.py`). A
span has failed when it has `error.type` or the status ERROR.

Bounds: 1 MiB (Kafka's own), 10,000 log records, spans and span events, 100,000 attributes.
Protobuf's parser refuses nesting beyond 100, JSON's what Python cannot nest.

Source: opentelemetry-proto 1.9 (`logs.proto`, `trace.proto`), its JSON mapping; semantic
conventions 1.44.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from schemas.envelope import MAX_TIME_MS, check_time, is_context_id, is_name, why_no_json
from schemas.events import Contents, EvaluationFields, OutcomeFields, Readable
from schemas.otlp_encodings import (
    BODY_VALUE,
    Encoding,
    json_encoding,
    protobuf_encoding,
)
from schemas.outcome import MAX_CONVERSIONS, MAX_DURATION_SECONDS, MAX_FLAGS
from schemas.record_refused import RecordRefused, refuse
from schemas.terms import QuarantineReason

#: Kafka's default limit of a record.
MAX_BYTES = 1024 * 1024
#: Log records, spans and span events in one record; the Collector's batches have 8,192 by default.
MAX_ITEMS = 10_000
#: Attributes of all of these together. Real attributes take more than ten bytes each; a flood of
#: empty ones is an attack.
MAX_ATTRIBUTES = 100_000

#: The second is the name that older hooks send.
EVENT_NAMES = frozenset({"feature_flag.evaluation", "feature_flag"})
_SERVER = 2  # SPAN_KIND_SERVER
_ERROR = 2  # STATUS_CODE_ERROR

_KEY = "feature_flag.key"
_CONTEXT = "feature_flag.context.id"
_ERROR_TYPE = "error.type"
_CONVERSIONS = "rolloutd.conversions"
_NAME = "event.name"  # older exporters send the name as this attribute
#: Attributes that name the variant, the first present one counts: see `Evaluation.variant`.
_VARIANTS = (
    "feature_flag.result.variant",
    "feature_flag.variant",
    "feature_flag.result.value",
    BODY_VALUE,
)
_OF_EVALUATION = frozenset({_KEY, _CONTEXT, _ERROR_TYPE, _NAME, *_VARIANTS})
_OF_RESOURCE = frozenset({_CONTEXT})
_OF_SPAN = frozenset({_CONTEXT, _ERROR_TYPE, _CONVERSIONS})

_SEND_A_NAME = "not a name; use up to 128 of A-Z a-z 0-9 . _ : - and begin with a letter or digit"


class _Problems:
    """The first fault among the events of a record, and how many events have one."""

    def __init__(self) -> None:
        self.first: RecordRefused | None = None
        self.count = 0

    def add(self, refused: RecordRefused) -> None:
        """Note one more."""
        self.first = self.first or refused.alone()  # its frames hold this: a cycle, with the record
        self.count += 1

    def refusal(self, used: int) -> RecordRefused | None:
        """Return what the record is refused for, None when nothing is wrong."""
        if self.first is None:
            return None
        reason, problem, fix = self.first.args
        return RecordRefused(
            reason, f"{self.count} of {self.count + used} events; the first: {problem}", fix
        )


class _Evaluated(NamedTuple):
    """A flag evaluation whose context may still be named by its span or resource."""

    context_id: str | None
    flag_key: str
    variant: str


@dataclass(frozen=True, slots=True)
class OtlpReaders:
    """Readers of one encoding; each takes a record and raises nothing, whatever it holds.

    `latest_ms` is the latest time accepted of the record and of each of its events.
    """

    encoding: Encoding

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
                attributes = self._attributes(log.attributes, _OF_EVALUATION)
                name = log.event_name or attributes.get(_NAME)
                if not isinstance(name, str) or name not in EVENT_NAMES:
                    continue
                if BODY_VALUE not in attributes and log.body is not None:
                    body = self.encoding.plain(log.body)
                    attributes[BODY_VALUE] = (
                        body.get(BODY_VALUE) if isinstance(body, dict) else None
                    )
                try:
                    evaluated = _evaluated(attributes)
                    if evaluated is not None:
                        since = log.time_unix_nano or log.observed_time_unix_nano
                        at = _time_ms(since, record.timestamp, latest_ms)
                        context_id = _context(evaluated.context_id or common)
                        events.append((context_id, evaluated.flag_key, evaluated.variant, at))
                except RecordRefused as refused:
                    problems.add(refused)
        except RecordRefused as refused:
            return Contents((), refused.alone())
        return Contents(events, problems.refusal(len(events)))

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
            return Contents((), refused.alone())
        return Contents(events, problems.refusal(len(events)))

    def outcomes_of_spans(
        self,
        record: Readable,
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Contents[OutcomeFields]:
        """Return the outcomes among spans.

        A server span has one outcome for each context that evaluated a flag in it, usually one.
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
            return Contents((), refused.alone())
        return Contents(events, problems.refusal(len(events)))

    def _outcomes(
        self,
        span: Any,
        common: Any,
        timestamp_ms: int,
        latest_ms: int,
    ) -> list[OutcomeFields]:
        """Return a server span's outcomes; none when neither it nor `common` names a context.

        Raises RecordRefused.
        """
        attributes = self._attributes(span.attributes, _OF_SPAN)
        common = attributes.get(_CONTEXT) or common
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
        is_error = attributes.get(_ERROR_TYPE) is not None or (
            span.status is not None and span.status.code == _ERROR
        )
        time_ms = _time_ms(span.end_time_unix_nano, timestamp_ms, latest_ms)
        latency_ms = _latency_ms(span)
        conversions = _conversions(attributes.get(_CONVERSIONS))
        return [
            (context, time_ms, tuple(named), is_error, latency_ms, conversions)
            for context, named in flags.items()
        ]

    def _attributes(
        self, attributes: Sequence[Any] | None, wanted: frozenset[str]
    ) -> dict[str, Any]:
        plain = self.encoding.plain
        return {one.key: plain(one.value) for one in attributes or () if one.key in wanted}

    def _common(self, resource: Any) -> Any:
        """Return the context of a whole resource, None for none.

        The Collector's processor `groupbyattrs` moves it there.
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
        resources = self._decoded(self.encoding.decode_logs, value).resource_logs
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
        resources = self._decoded(self.encoding.decode_traces, value).resource_spans
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
            f"send the Collector's {of} here, with the encoding {self.encoding.name}, or fix "
            "kafka.formats",
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
                why_no_json(error),
                f"set the exporter's encoding to {self.encoding.name}, or fix kafka.formats",
            )


@lru_cache(1)
def json_readers() -> OtlpReaders:
    """Return the readers of OTLP JSON."""
    return OtlpReaders(json_encoding())


@lru_cache(1)
def protobuf_readers() -> OtlpReaders:
    """Return the readers of OTLP protobuf. Raises ModuleNotFoundError without the extra `otlp`."""
    return OtlpReaders(protobuf_encoding())


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


def _evaluated(attributes: Mapping[str, Any]) -> _Evaluated | None:
    """Return an evaluation by its attributes; None for one that failed and served nothing.

    Raises RecordRefused.
    """
    flag_key = attributes.get(_KEY)
    if flag_key is None:
        refuse(QuarantineReason.INVALID, f"no {_KEY}", "set it to the flag, as the plan spells it")
    if not isinstance(flag_key, str) or not _is_name(flag_key):
        refuse(QuarantineReason.INVALID, f"{_KEY} is {flag_key!r}", _SEND_A_NAME)
    context_id = attributes.get(_CONTEXT)
    if context_id is not None and not isinstance(context_id, str):
        refuse(
            QuarantineReason.INVALID,
            f"{_CONTEXT} is {type(context_id).__name__}",
            "send it as text",
        )
    variant = next(
        (attributes[name] for name in _VARIANTS if attributes.get(name) is not None), None
    )
    if variant is None and attributes.get(_ERROR_TYPE) is not None:
        return None
    if isinstance(variant, bool):
        variant = "true" if variant else "false"
    if not isinstance(variant, str) or not _is_name(variant):
        refuse(
            QuarantineReason.INVALID,
            f"no {_VARIANTS[0]}" if variant is None else f"the variant is {variant!r}",
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
            "send 1 to 256 characters without control characters",
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
    # By way of seconds, so that the last bit is the same as in an outcome with a duration.
    return float(nanoseconds / 1e9 * 1000.0)


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
            _SEND_A_NAME,
        )
    return tuple(dict.fromkeys(value))
