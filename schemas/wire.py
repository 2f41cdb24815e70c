"""The hot path: Kafka records to countable events, about a microsecond each.

The pydantic models in `evaluation.py` and `outcome.py` are the contract. Only the counted part is
decoded here. `tests/property/test_wire.py` proves that both accept and refuse the same records.
Checks that the two libraries would make differently are functions of `envelope.py` that both call.

One difference remains: when a name is repeated within an object, the last one counts, as in the
contract, but an earlier one of the wrong type refuses the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

import msgspec

from schemas import evaluation, outcome
from schemas.envelope import (
    MAX_ATTRIBUTE,
    MAX_OPENINGS,
    MAX_TIME_MS,
    Headers,
    binary_attributes,
    check_time,
    check_value,
    is_context_id,
    is_name,
    is_structured,
    known_times,
    time_in_ms,
    why_no_json,
)
from schemas.events import EvaluationFields, OutcomeFields, R, Readable
from schemas.record_refused import RecordRefused, refuse
from schemas.structs import (
    EvaluatedFlagData,
    EvaluationData,
    OutcomeData,
    decode_evaluation_data,
    decode_evaluation_record,
    decode_outcome_data,
    decode_outcome_record,
    decode_text,
)
from schemas.terms import QuarantineReason

__all__ = [
    "EvaluationEvent",
    "OutcomeEvent",
    "RecordRefused",
    "decode_evaluation",
    "decode_outcome",
    "read_evaluations",
    "read_outcomes",
]


class EvaluationEvent(NamedTuple):
    """A context was served a variant."""

    context_id: str
    flag_key: str
    variant: str
    time_ms: int  # since 1970 UTC


class OutcomeEvent(NamedTuple):
    """What happened to one request."""

    context_id: str
    time_ms: int  # since 1970 UTC
    flags: Sequence[tuple[str, str]]  # distinct (flag key, variant) pairs; empty: join by context
    is_error: bool
    latency_ms: float | None
    conversions: Sequence[str]  # distinct names


#: Below this many bytes a record cannot hold more opening brackets than `check_value` allows.
_SMALL = 2 * MAX_OPENINGS

# --- names and contexts

#: Valid names, so that a name costs one look-up instead of a pattern. Bounded, because senders
#: choose names: 16,384 of at most 128 characters are at most 3 MB. A flood of new names only clears
#: the set now and then.
_MAX_KNOWN_NAMES = 16_384
_known_names: set[str] = set()


def _name(text: str, attribute: str) -> None:
    """Remember a new name, or refuse the record."""
    if not is_name(text):
        refuse(
            QuarantineReason.INVALID,
            f"{attribute} is not a name: {text!r}",
            "use up to 128 of A-Z a-z 0-9 . _ : - and begin with a letter or digit",
        )
    if len(_known_names) >= _MAX_KNOWN_NAMES:
        _known_names.clear()
    _known_names.add(text)


def _context(context_id: str | None, key: bytes | None) -> str:
    """Return the context id: the attribute, else the record's key."""
    if context_id is None:
        if not key:
            refuse(
                QuarantineReason.NO_CONTEXT,
                "no feature_flag.context.id and no record key",
                "send the targeting key as either",
            )
        try:
            context_id = key.decode()
        except UnicodeDecodeError:
            refuse(
                QuarantineReason.INVALID,
                "the record key is not UTF-8",
                "send feature_flag.context.id or a text key",
            )
    if not is_context_id(context_id):
        refuse(
            QuarantineReason.INVALID,
            f"not a context id: {context_id!r}",
            "send 1 to 256 characters without control characters",
        )
    return context_id


def _variant_of_value(value: msgspec.Raw) -> str | None:
    """Return the variant that a flag's value names.

    "true" or "false", a string as it is, None for no value.
    """
    content = bytes(value)
    if content in (b"", b"null"):
        return None
    if content in (b"true", b"false"):
        return content.decode()
    if content[:1] != b'"':
        refuse(
            QuarantineReason.INVALID,
            "feature_flag.result.variant is absent and the value is neither a boolean nor a string",
            "send feature_flag.result.variant",
        )
    return decode_text(content)


# --- refusing


_SEND_TIME = "send RFC 3339 with an offset, such as 2026-11-21T03:00:00Z"
_SEE_SCHEMA = (QuarantineReason.INVALID, "see schemas/json")
_SEND_CLOUDEVENT = (
    QuarantineReason.NOT_CLOUDEVENT,
    "send a CloudEvent 1.0 (specversion, type, source, id, data)",
)
#: How msgspec's messages about the envelope end. Any other message is about `data`.
_BY_PLACE = {
    "`$.type`": (
        QuarantineReason.UNKNOWN_TYPE,
        f"send {evaluation.TYPE} to the topic of evaluations, {outcome.TYPE} to that of outcomes",
    ),
    "`$.time`": (QuarantineReason.BAD_TIME, _SEND_TIME),
    "`$.specversion`": _SEND_CLOUDEVENT,
    "`$.id`": _SEND_CLOUDEVENT,
    "`$.source`": _SEND_CLOUDEVENT,
    "Expected `object`, got `array`": _SEND_CLOUDEVENT,
    "Expected `object`, got `str`": _SEND_CLOUDEVENT,
    "Expected `object`, got `int`": _SEND_CLOUDEVENT,
    "Expected `object`, got `float`": _SEND_CLOUDEVENT,
    "Expected `object`, got `bool`": _SEND_CLOUDEVENT,
    "Expected `object`, got `null`": _SEND_CLOUDEVENT,
    "Object missing required field `type`": _SEND_CLOUDEVENT,
    "Object missing required field `specversion`": _SEND_CLOUDEVENT,
    "Object missing required field `id`": _SEND_CLOUDEVENT,
    "Object missing required field `source`": _SEND_CLOUDEVENT,
}


#: Earlier refusals. A faulty sender makes the same fault in each record, and in a flood of bad
#: records a new refusal for each would cost more than to count a good one. Bounded, because senders
#: choose what some of the problems quote.
_known_refusals: dict[tuple[bool, str], RecordRefused] = {}
_MAX_KNOWN_REFUSALS = 1024
_MAX_KNOWN_PROBLEM = 200


def _refusal(error: Exception) -> RecordRefused:
    """Return why msgspec refused a record.

    Its messages end with the place, as in ` - at `$.data.feature_flag.key``.
    """
    problem = why_no_json(error)
    is_invalid = isinstance(error, msgspec.ValidationError)
    refused = _known_refusals.get((is_invalid, problem))
    if refused is not None:
        return refused
    if is_invalid:
        reason, fix = _BY_PLACE.get(problem.rpartition(" - at ")[2], _SEE_SCHEMA)
    else:
        reason, fix = QuarantineReason.NOT_JSON, "send one UTF-8 JSON object per record"
    refused = RecordRefused(reason, problem, fix)
    if len(problem) <= _MAX_KNOWN_PROBLEM:
        if len(_known_refusals) >= _MAX_KNOWN_REFUSALS:
            _known_refusals.clear()
        _known_refusals[is_invalid, problem] = refused
    return refused


def _binary_time(headers: Headers, timestamp_ms: int, expected_type: str) -> int:
    """Return a binary event's time after checking its attributes."""
    attributes = binary_attributes(headers)
    if attributes.get("specversion") != "1.0" or not all(
        0 < len(attributes.get(name, "")) <= MAX_ATTRIBUTE for name in ("id", "source", "type")
    ):
        refuse(
            QuarantineReason.NOT_CLOUDEVENT,
            "no content-type application/cloudevents+json, and ce_ headers are missing or invalid",
            "send structured JSON, or the headers ce_specversion (1.0), ce_type, ce_source "
            "and ce_id",
        )
    if attributes["type"] != expected_type:
        refuse(
            QuarantineReason.UNKNOWN_TYPE,
            f"ce_type {attributes['type']}",
            f"this topic takes {expected_type}",
        )
    if "time" not in attributes:
        return timestamp_ms
    return _time(attributes["time"], "ce_time")


def _time(text: str, attribute: str) -> int:
    """Return the milliseconds of a time in a spelling that is not cached."""
    try:
        return time_in_ms(text)
    except ValueError:  # its words say what to send, as ours do
        refuse(QuarantineReason.BAD_TIME, f"{attribute} is no time with an offset", _SEND_TIME)


# --- decoding

# The two readers are generators with one long body each, and yield plain tuples: a call per record
# and a named object would cost as much as taking the JSON apart.


def read_evaluations(
    records: Iterable[R],
    refused: Callable[[R, RecordRefused], None],
    *,
    latest_ms: int = MAX_TIME_MS,
) -> Iterator[EvaluationFields]:
    """Yield the fields of `EvaluationEvent` for each record that holds one, and report the others.

    `latest_ms` is the latest time accepted of a record and of its event. Nothing is raised,
    whatever the records hold.
    """
    decode, known_names, known_time = decode_evaluation_record, _known_names, known_times.get
    for record in records:
        value, timestamp_ms, headers = record.value, record.timestamp, record.headers
        try:
            if not value or len(value) > _SMALL or not value.isascii():
                value = check_value(value)
            time_ms = timestamp_ms
            try:
                if not headers or is_structured(headers):
                    event = decode(value)
                    data = event.data
                    time = event.time
                    if time is not None:
                        time_ms = known_time(time) or _time(time, "time")
                else:
                    time_ms = _binary_time(headers, timestamp_ms, evaluation.TYPE)
                    data = decode_evaluation_data(value)
            except (ValueError, RecursionError) as error:
                refused(record, _refusal(error))
                continue
            variant = data.variant
            if variant is None:
                variant = _old_variant(data)
            context_id = data.context_id
            if context_id is None or not context_id.isprintable():
                context_id = _context(context_id, record.key)
            if not 0 <= time_ms <= timestamp_ms <= latest_ms:
                check_time(time_ms, timestamp_ms, latest_ms)
            flag_key = data.flag_key
            if flag_key not in known_names:
                _name(flag_key, "feature_flag.key")
            if variant not in known_names:
                _name(variant, "feature_flag.result.variant")
        except RecordRefused as refusal:
            refused(record, refusal.alone())
            continue
        yield context_id, flag_key, variant, time_ms


def _old_variant(data: EvaluationData) -> str:
    """Return the variant of an evaluation that does not name it where it should."""
    variant = data.old_variant
    if variant is None:
        variant = _variant_of_value(data.value)
    if variant is None:
        variant = _variant_of_value(data.old_value)
    if variant is None:
        refuse(
            QuarantineReason.INVALID,
            "no feature_flag.result.variant and no value",
            "send the variant that was served",
        )
    return variant


def read_outcomes(
    records: Iterable[R],
    refused: Callable[[R, RecordRefused], None],
    *,
    latest_ms: int = MAX_TIME_MS,
) -> Iterator[tuple[R, *OutcomeFields]]:
    """Yield (record, fields of `OutcomeEvent`) for each record that holds one; report the others.

    `latest_ms` is the latest time accepted of a record and of its event. Nothing is raised,
    whatever the records hold. A record is read only when the next event is requested.
    """
    decode, known_names, known_time = decode_outcome_record, _known_names, known_times.get
    for record in records:
        value, timestamp_ms, headers = record.value, record.timestamp, record.headers
        try:
            if not value or len(value) > _SMALL or not value.isascii():
                value = check_value(value)
            time_ms = timestamp_ms
            try:
                if not headers or is_structured(headers):
                    event = decode(value)
                    data = event.data
                    time = event.time
                    if time is not None:
                        time_ms = known_time(time) or _time(time, "time")
                else:
                    time_ms = _binary_time(headers, timestamp_ms, outcome.TYPE)
                    data = decode_outcome_data(value)
            except (ValueError, RecursionError) as error:
                refused(record, _refusal(error))
                continue
            context_id = data.context_id
            if context_id is None or not context_id.isprintable():
                if context_id is None:
                    _check_known(data)
                context_id = _context(context_id, record.key)
            if not 0 <= time_ms <= timestamp_ms <= latest_ms:
                check_time(time_ms, timestamp_ms, latest_ms)
            flags: Sequence[tuple[str, str]] = ()
            evaluated = data.flags
            if evaluated:
                flag = evaluated[0]
                if (
                    len(evaluated) == 1
                    and flag.flag_key in known_names
                    and flag.variant in known_names
                ):
                    flags = ((flag.flag_key, flag.variant),)
                else:
                    flags = _flags(evaluated)
            conversions = _conversions(data.conversions) if data.conversions else ()
            latency_ms = None if data.duration is None else data.duration * 1000.0
            is_error = data.error_type is not None
        except RecordRefused as refusal:
            refused(record, refusal.alone())
            continue
        yield record, context_id, time_ms, flags, is_error, latency_ms, conversions


_NOTHING_READ: Final = OutcomeData()


def _check_known(data: OutcomeData) -> None:
    """Refuse an outcome that names no context and has no attribute that is read.

    It would count as a success without a latency, although its sender meant something else, such as
    a duration under another name.
    """
    if data == _NOTHING_READ:
        refuse(
            QuarantineReason.INVALID,
            outcome.NOTHING_KNOWN,
            "send at least feature_flag.context.id, and the duration in seconds as "
            "http.server.request.duration",
        )


def _flags(evaluated: Sequence[EvaluatedFlagData]) -> Sequence[tuple[str, str]]:
    """Return the distinct (flag key, variant) pairs of an outcome, or refuse the record."""
    for flag in evaluated:
        if flag.flag_key not in _known_names:
            _name(flag.flag_key, "rolloutd.flags: feature_flag.key")
        if flag.variant not in _known_names:
            _name(flag.variant, "rolloutd.flags: feature_flag.result.variant")
    if len(evaluated) == 1:
        return ((evaluated[0].flag_key, evaluated[0].variant),)
    return list(dict.fromkeys([(flag.flag_key, flag.variant) for flag in evaluated]))


def _conversions(names: Sequence[str]) -> Sequence[str]:
    """Return the distinct conversions of an outcome, or refuse the record."""
    for name in names:
        if name not in _known_names:
            _name(name, "rolloutd.conversions")
    return list(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class _One:
    """A record by its parts."""

    value: bytes | None
    key: bytes | None
    timestamp: int
    headers: Headers


def _raise(record: Readable, refused: RecordRefused) -> NoReturn:
    raise refused.alone()  # it may be cached, and would keep this record


def decode_evaluation(
    value: bytes | None,
    key: bytes | None,
    timestamp_ms: int,
    headers: Headers,
    *,
    latest_ms: int = MAX_TIME_MS,
) -> EvaluationEvent:
    """Return the evaluation in one Kafka record.

    Raises RecordRefused, and nothing else, whatever the record holds.

    `timestamp_ms` is the record's own; it is the event's time where the event names none.
    `latest_ms` is the latest time accepted of both.
    """
    record = _One(value, key, timestamp_ms, headers)
    return EvaluationEvent(*next(read_evaluations([record], _raise, latest_ms=latest_ms)))


def decode_outcome(
    value: bytes | None,
    key: bytes | None,
    timestamp_ms: int,
    headers: Headers,
    *,
    latest_ms: int = MAX_TIME_MS,
) -> OutcomeEvent:
    """Return the outcome in one Kafka record.

    Raises RecordRefused, and nothing else, whatever the record holds.

    `timestamp_ms` is the record's own; it is the event's time where the event names none.
    `latest_ms` is the latest time accepted of both.
    """
    record = _One(value, key, timestamp_ms, headers)
    return OutcomeEvent(*next(read_outcomes([record], _raise, latest_ms=latest_ms))[1:])
