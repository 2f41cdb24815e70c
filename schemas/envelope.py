"""The CloudEvents 1.0 envelope on Kafka: structured and binary are read, structured is written.

Belongs here: what every event has in common, and the small checks that the fast path (`wire.py`)
and the pydantic models share. What `data` holds is defined in each event's own module.

Sources: CloudEvents 1.0.2, its JSON event format and its Kafka protocol binding; RFC 3339 for
times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from schemas.record_refused import refuse
from schemas.terms import NAME, NAME_PATTERN, QuarantineReason

SPEC_VERSION = "1.0"
CONTENT_TYPE = "application/cloudevents+json; charset=UTF-8"
#: Of every record we write.
HEADERS: Sequence[tuple[str, bytes]] = (("content-type", CONTENT_TYPE.encode()),)

#: A larger record is refused unread: 11 MB of JSON would stall the loop for 0.2 s, and no event
#: needs it.
MAX_BYTES = 256 * 1024
#: Opening brackets allowed in one record. Parsers recurse, and the depth that they reach depends on
#: their caller. This bound keeps them far from Python's limit, so that a replay refuses exactly
#: what the first reading refused. The largest legitimate event (an outcome with 64 flags) has 67.
MAX_OPENINGS = 512
_OPENING = re.compile(rb"[\[{]")
#: How far an event may be ahead of its record's timestamp: clocks of apps differ by seconds, not by
#: minutes.
MAX_AHEAD_MS = 5 * 60 * 1000
#: The end of the year 9999 in milliseconds since 1970. No later time is read or shown.
MAX_TIME_MS = 253_402_300_799_999
#: Characters of `id`, `source`, `subject` and the like.
MAX_ATTRIBUTE = 1024
MAX_CONTEXT_ID = 256

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: Content types in their usual spelling; any other one is parsed.
_STRUCTURED = frozenset(
    {CONTENT_TYPE.encode(), b"application/cloudevents+json", b"application/cloudevents"}
)

Headers = Sequence[tuple[str, bytes | None]]


# --- names, contexts, times ---

#: Printable in any script. Control characters, line separators and bidirectional overrides are
#: refused, because they would forge what a person reads in a log or a terminal.
CONTEXT_ID_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]{1,256}$"
_HOSTILE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


#: The same in text for people, and the marks that change the direction of the text after them.
_FORGING = re.compile(_HOSTILE.pattern.replace("[", "[\u061c\u200e\u200f"))


def without_control_characters(text: str) -> str:
    """Return `text` with a space for each line end and tab, `?` for any other forging character."""
    if text.isprintable():
        return text
    return _FORGING.sub(lambda match: " " if match[0] in "\t\n\r\u2028\u2029" else "?", text)


def is_name(text: str) -> bool:
    """Return whether `text` may name a flag, a variant or a conversion (`terms.NAME_PATTERN`)."""
    return NAME.match(text) is not None


def is_context_id(text: str) -> bool:
    """Return whether `text` may identify a context: 1 to 256 characters that forge no output."""
    if not 0 < len(text) <= MAX_CONTEXT_ID:
        return False
    # In every version of Unicode, what is printable is harmless.
    return text.isprintable() or _HOSTILE.search(text) is None


def _checked_name(text: str) -> str:
    if not is_name(text):
        raise ValueError(
            "not a name; use up to 128 of A-Z a-z 0-9 . _ : - and begin with a letter or digit"
        )
    return text


def _checked_context_id(text: str) -> str:
    if not is_context_id(text):
        raise ValueError(
            f"not a context id; use 1 to {MAX_CONTEXT_ID} characters without control characters"
        )
    return text


Name = Annotated[
    str, AfterValidator(_checked_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})
]
ContextId = Annotated[
    str,
    AfterValidator(_checked_context_id),
    WithJsonSchema({"type": "string", "pattern": CONTEXT_ID_PATTERN}),
]

#: RFC 3339 with an offset. All times are read by this type, also `time` in the fast path.
EventTime = Annotated[datetime, msgspec.Meta(tz=True)]


class _Time(msgspec.Struct, array_like=True, gc=False):
    """A time alone. msgspec caches how to read a Struct, but not a bare type."""

    time: EventTime


def parse_time(text: str) -> datetime:
    """Return an RFC 3339 time, which must carry an offset. Raises ValueError."""
    try:
        return msgspec.convert((text,), _Time).time
    except msgspec.ValidationError as error:
        raise ValueError(
            "not an RFC 3339 time with an offset, such as 2026-11-21T03:00:00Z"
        ) from error


def milliseconds(when: datetime) -> int:
    """Return milliseconds since 1970 UTC, rounded down."""
    since = when - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


#: Milliseconds of times that were read recently, because events that arrive together were made
#: together. Bounded, because senders choose the texts: 8,192 of at most 40 characters are 1 MB.
known_times: dict[str, int] = {}
_MAX_KNOWN_TIMES = 8_192
_MAX_KNOWN_TIME = 40
_UTC = ("Z", "+00:00")
#: The rest of a time in UTC after its milliseconds, up to microseconds.
_BELOW_MS = frozenset(
    [
        *_UTC,
        *(
            f"{number:0{digits}}{utc}"
            for digits in (1, 2, 3)
            for number in range(10**digits)
            for utc in _UTC
        ),
    ]
)


def time_in_ms(text: str) -> int:
    """Return `milliseconds(parse_time(text))`, cached in `known_times`. Raises ValueError."""
    # A time finer than milliseconds is cached under its milliseconds, which other events share.
    name = text[:23] + "Z" if text[23:] in _BELOW_MS else text
    time_ms = known_times.get(name)
    if time_ms is None:
        time_ms = milliseconds(parse_time(text))
        if len(name) <= _MAX_KNOWN_TIME:
            if len(known_times) >= _MAX_KNOWN_TIMES:
                known_times.clear()
            known_times[name] = time_ms
    return time_ms


def format_time(when: datetime) -> str:
    """Return RFC 3339 in UTC with `Z` and milliseconds. Raises ValueError for a naive time."""
    if when.tzinfo is None:
        raise ValueError("a time on the wire has an offset")
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def time_of(time_ms: int) -> datetime:
    """Return milliseconds since 1970 as a time; outside the years 1970 to 9999 the nearer end."""
    return _EPOCH + timedelta(milliseconds=min(max(time_ms, 0), MAX_TIME_MS))


def _checked_time(text: str) -> str:
    parse_time(text)
    return text


TimeText = Annotated[
    str, AfterValidator(_checked_time), WithJsonSchema({"type": "string", "format": "date-time"})
]


# --- one record ---


class CloudEvent(BaseModel):
    """The attributes that every event has. Unknown ones are ignored, null ones are absent."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", defer_build=True)

    specversion: Literal["1.0"]
    type: str = Field(min_length=1, max_length=MAX_ATTRIBUTE)
    source: str = Field(
        min_length=1,
        max_length=MAX_ATTRIBUTE,
        description="Who emitted it, a URI reference such as /checkout-api.",
        json_schema_extra={"format": "uri-reference"},
    )
    id: str = Field(
        min_length=1, max_length=MAX_ATTRIBUTE, description="Unique together with `source`."
    )
    time: TimeText | None = Field(
        default=None,
        description="When it happened, RFC 3339 with an offset. Absent: the Kafka record's "
        "timestamp counts.",
    )


@dataclass(frozen=True, slots=True)
class Envelope:
    """The CloudEvents attributes of one record, and its `data`, not yet checked."""

    type: str
    source: str
    id: str
    time_ms: int  # event time; the record's timestamp where the event names none
    data: Mapping[str, Any]


def is_structured(headers: Headers) -> bool:
    """Return whether the value holds the whole event (structured mode) or its data (binary mode).

    Without a content-type header and without `ce_` headers the value counts as a whole event,
    because plain producers such as kcat send no headers. Of several content types the first counts.
    Raises RecordRefused for a CloudEvents format other than JSON.
    """
    content_type = None
    for name, content in headers:
        if content is not None and (name == "content-type" or name.lower() == "content-type"):
            if content in _STRUCTURED:
                return True
            content_type = content
            break
    if content_type is None:
        return not any(name.startswith("ce_") for name, _ in headers)
    if content_type == b"application/json":
        return False
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type in _STRUCTURED:
        return True
    if media_type.startswith(b"application/cloudevents"):
        refuse(
            QuarantineReason.NOT_CLOUDEVENT,
            f"content-type {media_type.decode('latin-1')} is not read",
            "send application/cloudevents+json, one event per record",
        )
    return False


_ATTRIBUTES = ("specversion", "type", "source", "id", "time")


def binary_attributes(headers: Headers) -> dict[str, str]:
    """Return the CloudEvents attributes that we use from the `ce_` headers.

    Of a repeated header the last counts. Raises RecordRefused for one that is not UTF-8.
    """
    contents = dict(headers)
    attributes = {}
    for name in _ATTRIBUTES:
        content = contents.get("ce_" + name)
        if content is not None:
            try:
                attributes[name] = content.decode()
            except UnicodeDecodeError:
                refuse(
                    QuarantineReason.NOT_CLOUDEVENT,
                    f"header ce_{name} is not UTF-8",
                    "send header values as UTF-8",
                )
    return attributes


def check_value(value: bytes | None) -> bytes:
    """Return `value` if it is present, small enough, UTF-8 and not deep. Raises RecordRefused."""
    if not value:
        refuse(QuarantineReason.EMPTY, "the record has no value", "send one JSON event per record")
    size = len(value)
    if size > MAX_BYTES:
        refuse(
            QuarantineReason.TOO_LARGE,
            f"{size} bytes, at most {MAX_BYTES} are read",
            "send smaller events, one per record",
        )
    if not value.isascii():
        try:
            value.decode()
        except UnicodeDecodeError as error:
            refuse(
                QuarantineReason.NOT_JSON,
                f"invalid UTF-8 at byte {error.start}",
                "send JSON as UTF-8",
            )
    if size > 2 * MAX_OPENINGS and value.count(b"[") + value.count(b"{") > MAX_OPENINGS:
        *_, last = islice(_OPENING.finditer(value), MAX_OPENINGS + 1)
        problem = f"more than {MAX_OPENINGS} opening brackets: one more at byte {last.start()}"
        refuse(QuarantineReason.NOT_JSON, problem, "send a flat event")
    return value


def check_time(time_ms: int, timestamp_ms: int, latest_ms: int = MAX_TIME_MS) -> int:
    """Return an event's time if both it and its record's timestamp are plausible.

    Neither may be before 1970 or after `latest_ms`, and the event may be at most five minutes ahead
    of its record. The record's timestamp needs a bound, too: with CreateTime, Kafka's default, its
    producer chose it, and one that is ahead would make every later event look old. Raises
    RecordRefused.
    """
    if timestamp_ms < 0:
        refuse(
            QuarantineReason.BAD_TIME,
            "the record has no timestamp",
            "use a producer that sets one (message format v1 or newer)",
        )
    if timestamp_ms > latest_ms:
        refuse(
            QuarantineReason.BAD_TIME,
            f"the record's timestamp is {_ahead(timestamp_ms, latest_ms)}",
            "set the producer's clock, or let the topic use message.timestamp.type=LogAppendTime",
        )
    if time_ms < 0:
        refuse(QuarantineReason.BAD_TIME, "time is before 1970", "set the sender's clock")
    if time_ms > timestamp_ms + MAX_AHEAD_MS:
        refuse(
            QuarantineReason.BAD_TIME,
            f"time is {(time_ms - timestamp_ms) // 1000} s ahead of the record's timestamp",
            "set the sender's clock; at most 300 s are accepted",
        )
    if time_ms > latest_ms:
        ahead = _ahead(time_ms, latest_ms)
        refuse(QuarantineReason.BAD_TIME, f"time is {ahead}", "set the sender's clock")
    return time_ms


def _ahead(time_ms: int, latest_ms: int) -> str:
    """Return how far a time lies beyond the latest one that is accepted."""
    if time_ms > MAX_TIME_MS:
        return "after the year 9999"
    seconds = max((time_ms - latest_ms) // 1000, 1)
    return f"{seconds} s after {format_time(time_of(latest_ms))}, the latest accepted"


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _integer(digits: str) -> int | float:
    """Read an integer of any length; beyond a float's range it is infinity, which is refused."""
    return int(digits) if len(digits) <= 300 else float(digits)


def parse_json(value: bytes) -> Any:
    """Return the JSON value of a checked record, by strict RFC 8259.

    Of a repeated name the last counts. Raises RecordRefused.
    """
    try:
        msgspec.json.decode(value, type=msgspec.Raw)
        return json.loads(value.decode(), parse_constant=_not_a_number, parse_int=_integer)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        problem = why_no_json(error)
        refuse(QuarantineReason.NOT_JSON, problem, "send one UTF-8 JSON object per record")


def why_no_json(error: Exception) -> str:
    """Return why a parser took no value; its own words for one that is too deep are Python's."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def first_fault(error: ValidationError) -> str:
    """Return the first problem of a pydantic error as `path: what`, without quoting the input."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def read(
    value: bytes | None,
    timestamp_ms: int,
    headers: Headers,
    types: Sequence[str],
    *,
    latest_ms: int = MAX_TIME_MS,
) -> Envelope:
    """Return the event in one Kafka record, structured or binary, if its type is one of `types`.

    `timestamp_ms` is that of the record. Neither it nor the event's time may be after `latest_ms`.
    Raises RecordRefused, and nothing else, for anything that is not such an event.
    """
    if is_structured(headers):
        document = parse_json(check_value(value))
        if not isinstance(document, dict):
            refuse(
                QuarantineReason.NOT_CLOUDEVENT,
                "the value is not an object",
                "send one CloudEvent per record",
            )
        data = document.get("data")
    else:
        document = binary_attributes(headers)
        data = parse_json(check_value(value))
    try:
        event = CloudEvent.model_validate(document)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        is_time = faults[0]["loc"] == ("time",)
        reason = QuarantineReason.BAD_TIME if is_time else QuarantineReason.NOT_CLOUDEVENT
        refuse(
            reason,
            first_fault(error),
            "send a CloudEvent 1.0 (specversion, type, source, id, data)",
        )
    if event.type not in types:
        refuse(
            QuarantineReason.UNKNOWN_TYPE,
            f"type {event.type}",
            f"this topic takes {' or '.join(types)}",
        )
    if not isinstance(data, dict):
        refuse(
            QuarantineReason.INVALID,
            "data is not an object",
            "send `data` as a JSON object, not as text or data_base64",
        )
    time_ms = timestamp_ms if event.time is None else milliseconds(parse_time(event.time))
    check_time(time_ms, timestamp_ms, latest_ms)
    return Envelope(event.type, event.source, event.id, time_ms, data)


def write(
    type: str,
    *,
    source: str,
    id: str,
    time: datetime,
    subject: str,
    data: Mapping[str, Any] | msgspec.Struct | msgspec.Raw,
) -> tuple[bytes, Sequence[tuple[str, bytes]]]:
    """Return (value, headers) of a structured CloudEvent.

    `subject` is the flag key, which is also the record's key. `data` is JSON-ready: dumped by its
    model with `mode="json"`, a msgspec Struct, or already encoded.
    """
    document = {
        "specversion": SPEC_VERSION,
        "type": type,
        "source": source,
        "id": id,
        "time": format_time(time),
        "subject": subject,
        "partitionkey": subject,
        "datacontenttype": "application/json",
        "data": data,
    }
    return msgspec.json.encode(document), HEADERS
