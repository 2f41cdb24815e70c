"""Records that were refused, and why, on `rollout.quarantine`.

One record holds refusals of one topic partition. Many refusals share a record, so that a flood of
bad records costs few of them. A refusal is written where a record is refused, and only copied from
there on, because a flood must not slow counting down. `Quarantined` is their contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from schemas.envelope import time_of, write
from schemas.record_refused import RecordRefused
from schemas.terms import QuarantineReason

TYPE = "io.rolloutd.quarantine.v1"

#: Refusals in one record.
MAX_REFUSALS = 500
#: Bytes kept of one refused value: enough to recognize its sender.
MAX_BODY = 1024
#: Bytes of all refusals in one record, as JSON: with the rest of the record less than the least
#: `kafka.max_record_bytes`, 512 KiB.
MAX_JSON = 480 * 1024


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


@dataclass(frozen=True, slots=True)
class WrittenRefusals:
    """Refusals of one topic partition as they are written, by offset: what one record holds.

    They are 1 to `MAX_REFUSALS`, and at most `MAX_JSON` bytes.
    """

    count: int
    first_offset: int
    last_offset: int
    latest_ms: int  # the latest timestamp
    by_reason: Mapping[QuarantineReason, int]  # how many
    json: bytes  # objects as `RefusedRecord`, with a comma between two

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return len(self.json) + _OTHER_BYTES


_OTHER_BYTES = 400  # of `WrittenRefusals` beside `json`


class _Quarantined(msgspec.Struct, gc=False):
    topic: str
    partition: int
    refusals: msgspec.Raw


_hash_of_nothing = sha256()
_write = msgspec.json.Encoder().encode


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


def why_as_json(refused: RecordRefused) -> bytes:
    """Return reason and detail as they are written of each record that is refused so."""
    return _write({"reason": refused.reason, "detail": refused.detail})[1:-1]


def written(refusals: Sequence[Refusal]) -> Sequence[WrittenRefusals]:
    """Return refusals of one topic partition as they are written, as few as hold them."""
    texts = [_write(one) for one in refusals]
    return [
        WrittenRefusals(
            len(some := refusals[part]),
            some[0].offset,
            some[-1].offset,
            max([one.timestamp_ms for one in some]),
            Counter([one.reason for one in some]),
            b",".join(texts[part]),
        )
        for part in _parts([(1, len(text)) for text in texts])
    ]


def joined(refusals: Sequence[WrittenRefusals]) -> Sequence[WrittenRefusals]:
    """Return the same refusals of one topic partition in as few as hold them, in their order."""
    return [
        _one_of(refusals[part]) for part in _parts([(one.count, len(one.json)) for one in refusals])
    ]


def _parts(sizes: Sequence[tuple[int, int]]) -> Iterator[slice]:
    """Yield which of them share a record; `sizes` are refusals and bytes of each."""
    begin = count = size = 0
    for place, (more, bytes_) in enumerate(sizes):
        count, size = count + more, size + 1 + bytes_  # with a comma
        if place and (count > MAX_REFUSALS or size - 1 > MAX_JSON):
            yield slice(begin, place)
            begin, count, size = place, more, 1 + bytes_
    if sizes:
        yield slice(begin, len(sizes))


def _one_of(refusals: Sequence[WrittenRefusals]) -> WrittenRefusals:
    if len(refusals) == 1:
        return refusals[0]
    by_reason = Counter[QuarantineReason]()
    for one in refusals:
        by_reason.update(one.by_reason)
    return WrittenRefusals(
        by_reason.total(),
        refusals[0].first_offset,
        refusals[-1].last_offset,
        max([one.latest_ms for one in refusals]),
        by_reason,
        b",".join([one.json for one in refusals]),
    )


def key(topic: str, partition: int) -> bytes:
    """Return the record key: the topic partition that was refused from."""
    return f"{topic}/{partition}".encode()


def event_id(topic: str, partition: int, refusals: WrittenRefusals) -> str:
    """Return the id of a quarantine record: where its refused records are."""
    return f"{topic}/{partition}/{refusals.first_offset}-{refusals.last_offset}"


def encode(
    topic: str, partition: int, refusals: WrittenRefusals, *, source: str = "/rolloutd"
) -> bytes:
    """Return the value of one quarantine record, a structured CloudEvent.

    Send it with `envelope.HEADERS`. The same refusals give the same bytes, id included, so that a
    repeat after a crash is recognized.
    """
    return write(
        TYPE,
        source=source,
        id=event_id(topic, partition, refusals),
        time=time_of(refusals.latest_ms),
        subject=f"{topic}/{partition}",
        data=_Quarantined(topic, partition, msgspec.Raw(b"[%b]" % refusals.json)),
    )[0]
