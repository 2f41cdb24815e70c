"""Records that were refused, and why, on `rollout.quarantine`.

One record holds refusals of one topic partition. Many refusals share a record, so that a flood of
bad records costs few of them. Records are written with msgspec, because a flood must not slow
counting down. `Quarantined` is their contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from operator import attrgetter
from typing import Annotated

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from schemas.envelope import RecordRefused, time_of, write
from schemas.terms import QuarantineReason

TYPE = "io.rolloutd.quarantine.v1"

#: Refusals in one record.
MAX_REFUSALS = 500
#: Bytes kept of one refused value: enough to recognize its sender.
MAX_BODY = 1024
#: Bytes kept of all values in one record. Where they are more, each keeps an equal share at most.
#: With the other fields of its refusals a full record stays below Kafka's default limit of 1 MB.
_MAX_BODIES = 256 * 1024


class RefusedRecord(BaseModel):
    """One record that was refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    offset: int = Field(ge=0)
    timestamp_ms: int = Field(
        description="Of the record, in ms since 1970 UTC; negative: it has none."
    )
    reason: QuarantineReason
    detail: str = Field(
        max_length=1000, description="What is wrong, where, and how to fix it. Printable ASCII."
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = Field(
        description="Of the whole value; of nothing where there is none."
    )
    size: int = Field(ge=0, description="Bytes of the whole value.")
    body: str = Field(
        description="The value's first bytes, at most 1 KiB, base64. It may be hostile: never "
        "render it as it is.",
        json_schema_extra={"contentEncoding": "base64"},
    )
    is_trimmed: bool = Field(description="The value was longer than `body`.")


class Quarantined(BaseModel):
    """Refusals of one topic partition, in the order of their offsets."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    topic: str
    partition: int = Field(ge=0)
    refusals: Annotated[tuple[RefusedRecord, ...], Field(min_length=1, max_length=MAX_REFUSALS)]


class Refusal(msgspec.Struct, gc=False):
    """One refused record as it is written; `RefusedRecord` says what the fields mean."""

    offset: int
    timestamp_ms: int
    reason: QuarantineReason
    detail: str
    sha256: str
    size: int
    body: bytes  # base64 in JSON
    is_trimmed: bool


class _Quarantined(msgspec.Struct, gc=False):
    topic: str
    partition: int
    refusals: Sequence[Refusal]


_hash_of_nothing = sha256()
_body_of, _timestamp_of = attrgetter("body"), attrgetter("timestamp_ms")


def refusal(offset: int, timestamp_ms: int, value: bytes | None, refused: RecordRefused) -> Refusal:
    """Return what is kept of a refused record. It holds no reference to the value."""
    content = value or b""
    size = len(content)
    hashed = _hash_of_nothing.copy()  # a new one takes longer to make than an event to hash
    hashed.update(content)
    return Refusal(
        offset,
        timestamp_ms,
        refused.reason,
        refused.detail,
        hashed.hexdigest(),
        size,
        content[:MAX_BODY],
        size > MAX_BODY,
    )


def key(topic: str, partition: int) -> bytes:
    """Return the record key: the topic partition that was refused from."""
    return f"{topic}/{partition}".encode()


def encode(
    topic: str, partition: int, refusals: Sequence[Refusal], *, source: str = "/rolloutd"
) -> bytes:
    """Return the value of one quarantine record, a structured CloudEvent.

    Send it with `envelope.HEADERS`. `refusals` are 1 to 500 of one topic partition, by offset. The
    same refusals give the same bytes, id included, so that a repeat after a crash is recognized.
    Raises ValueError for none or too many.
    """
    if not 1 <= len(refusals) <= MAX_REFUSALS:
        raise ValueError(f"{len(refusals)} refusals: a quarantine record holds 1 to {MAX_REFUSALS}")
    if sum(map(len, map(_body_of, refusals))) > _MAX_BODIES:
        share = _MAX_BODIES // len(refusals)
        refusals = [_trimmed(one, share) if len(one.body) > share else one for one in refusals]
    place = f"{topic}/{partition}"
    return write(
        TYPE,
        source=source,
        id=f"{place}/{refusals[0].offset}-{refusals[-1].offset}",
        time=time_of(max(map(_timestamp_of, refusals))),
        subject=place,
        data=_Quarantined(topic, partition, refusals),
    )[0]


def _trimmed(one: Refusal, size: int) -> Refusal:
    return msgspec.structs.replace(one, body=one.body[:size], is_trimmed=True)
