"""The CloudEvents that rolloutd writes: one envelope for every record on its own topics.

Belongs here: the envelope. Each kind of record has a module for its `data`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

import msgspec
from pydantic import BaseModel

from schemas.envelope import write

#: CloudEvents `source` without an environment, as early releases wrote it.
SOURCE = "/rolloutd"

RecordT = TypeVar("RecordT", bound=BaseModel)


def source_of(environment: str) -> str:
    """Return the CloudEvents `source` of everything that the rolloutd of an environment writes."""
    return f"{SOURCE}/{environment}"


def write_event(
    event_type: str,
    event_id: str,
    flag_key: str,
    at: datetime,
    record: BaseModel,
    source: str = SOURCE,
) -> bytes:
    """Return a structured CloudEvent whose subject is the flag."""
    data = msgspec.Raw(record.model_dump_json().encode())
    value, _ = write(event_type, source=source, id=event_id, time=at, subject=flag_key, data=data)
    return value


def with_extension(event: bytes, name: str, text: str) -> bytes:
    """Return a structured CloudEvent with one more extension attribute."""
    return event[:-1] + b"," + msgspec.json.encode(name) + b":" + msgspec.json.encode(text) + b"}"


def optional_record(kind: type[RecordT], value: object | None) -> RecordT | None:
    """Return the record made from a core value's attributes; None for None."""
    return None if value is None else kind.model_validate(value, from_attributes=True)
