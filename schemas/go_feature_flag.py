"""Reads what GO Feature Flag's Kafka exporter writes: one evaluation a record, keyed by user.

Its tracking events are of another kind and refused here by name: the exporter has a topic of its
own for them. GO Feature Flag knows nothing of requests, so outcomes come from elsewhere.

Source: thomaspoignant/go-feature-flag 1.55, `exporter/feature_event.go` and its documentation of
the data format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import msgspec

from schemas.envelope import (
    MAX_CONTEXT_ID,
    MAX_TIME_MS,
    check_time,
    check_value,
    is_context_id,
    is_name,
    why_no_json,
)
from schemas.events import R, Readable
from schemas.record_refused import RecordRefused, refuse
from schemas.terms import QuarantineReason

#: Below this a `creationDate` is in seconds (the code's unit), from here on in milliseconds (the
#: documentation's): the year 5138 in one, 1973 in the other.
_FIRST_MS = 100_000_000_000
_MAX_DATE = 2**53


class _FeatureEvent(msgspec.Struct, gc=False):
    kind: str
    key: str
    variation: str
    creation_date: Annotated[float, msgspec.Meta(ge=0, le=_MAX_DATE)] = msgspec.field(
        name="creationDate"
    )
    user_key: Annotated[str, msgspec.Meta(max_length=MAX_CONTEXT_ID)] = msgspec.field(
        default="", name="userKey"
    )


_decode = msgspec.json.Decoder(_FeatureEvent).decode


def read_evaluations(
    records: Iterable[R],
    refused: Callable[[R, RecordRefused], None],
    *,
    latest_ms: int = MAX_TIME_MS,
) -> Iterator[tuple[str, str, str, int]]:
    """Yield (context id, flag key, variant, time in ms) of each record.

    And tell `refused` of every one that holds none.

    `latest_ms` is the latest time accepted of a record and of its event. Nothing is
    raised, whatever the records hold.
    """
    for record in records:
        try:
            event = _read(record, latest_ms)
        except RecordRefused as refusal:
            refused(record, refusal.alone())
            continue
        yield event


def _read(record: Readable, latest_ms: int) -> tuple[str, str, str, int]:
    try:
        event = _decode(check_value(record.value))
    except msgspec.ValidationError as error:
        refuse(
            QuarantineReason.INVALID,
            str(error),
            "send GO Feature Flag's feature events, format JSON",
        )
    except (ValueError, RecursionError) as error:
        refuse(QuarantineReason.NOT_JSON, why_no_json(error), "set the exporter's format to JSON")
    if event.kind != "feature":
        refuse(
            QuarantineReason.UNKNOWN_TYPE,
            f"kind {event.kind}",
            "give tracking events a topic of their own",
        )
    context_id = event.user_key
    if not context_id:
        refuse(QuarantineReason.NO_CONTEXT, "no userKey", "evaluate with a targeting key")
    if not is_context_id(context_id):
        refuse(
            QuarantineReason.INVALID,
            f"not a context id: {context_id!r}",
            "send 1 to 256 characters, none of control",
        )
    for text, attribute in ((event.key, "key"), (event.variation, "variation")):
        if not is_name(text):
            refuse(
                QuarantineReason.INVALID,
                f"{attribute} is not a name: {text!r}",
                "use up to 128 of A-Z a-z 0-9 . _ : -",
            )
    date = event.creation_date
    time_ms = int(date * 1000 if date < _FIRST_MS else date)
    check_time(time_ms, record.timestamp, latest_ms)
    return context_id, event.key, event.variation, time_ms
