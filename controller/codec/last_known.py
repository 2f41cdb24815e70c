"""The last known state as bytes: whose it is, how old it is, and every rollout's document.

| line | what |
|---|---|
| 1 | SHA-256 of everything after this line, in hexadecimal |
| 2 | header, as JSON: format, environment, topic prefix, time, number of documents |
| others | one document of a rollout each, as JSON |

Belongs here: writing and reading the bytes. Does not belong here: the file
(`adapters/last_known_file.py`), and what is served of it (`web/flags.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from controller.codec.rollouts import rollout_from_json
from controller.core.rollout import Rollout
from controller.errors import DocumentNewer, DocumentUnreadable, ForeignDocument

#: A reader refuses a greater one.
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose state it is: the same names as of Redis's keys, apart from the Kafka cluster's id.

    The id is not known while Kafka is away.
    """

    environment: str
    topic_prefix: str


@dataclass(frozen=True, slots=True)
class LastKnownState:
    """What was decided last, as far as was known at a time."""

    known_at: datetime  # UTC; Kafka or Redis said then that nothing newer was decided
    rollouts: Sequence[Rollout]
    documents: Sequence[bytes]  # those that the rollouts were read from
    #: When Kafka said so: earlier than `known_at` in an outage of Kafka. None: not known.
    confirmed_at: datetime | None = None


class _Header(msgspec.Struct):
    format: int
    environment: str
    topic_prefix: str
    known_at: datetime
    rollouts: int
    confirmed_at: datetime | None = None  # releases that do not know it pass over it


def last_known_to_bytes(
    origin: Origin,
    known_at: datetime,
    documents: Sequence[bytes],
    confirmed_at: datetime | None = None,
) -> bytes:
    """Return the state as bytes; `documents` are rollouts as `codec.rollouts` writes them."""
    header = _Header(
        FORMAT, origin.environment, origin.topic_prefix, known_at, len(documents), confirmed_at
    )
    body = b"\n".join([msgspec.json.encode(header), *documents])
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def last_known_from_bytes(
    content: bytes, origin: Origin, former_environments: Collection[str] = ()
) -> LastKnownState:
    """Return the state that `last_known_to_bytes` wrote for `origin`.

    `former_environments` are earlier names of the environment. Raises DocumentUnreadable for
    anything else, DocumentNewer for what a newer release wrote, and ForeignDocument for another
    environment's state. A part is never returned: a flag that is missing would look deleted.
    """
    digest, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DocumentUnreadable("its content does not match its checksum")
    first, *documents = body.split(b"\n")
    try:
        header = msgspec.json.decode(first, type=_Header)
    except (ValueError, RecursionError) as error:
        raise DocumentUnreadable(f"its header cannot be read: {error}") from None
    if header.format > FORMAT:
        raise DocumentNewer(f"it has format {header.format}, this release reads up to {FORMAT}")
    if header.environment not in (origin.environment, *former_environments):
        raise ForeignDocument(header.environment)
    if header.topic_prefix != origin.topic_prefix:
        raise DocumentUnreadable(
            f"it is of topic prefix {header.topic_prefix!r}, and this is {origin.topic_prefix!r}"
        )
    times = [at for at in (header.known_at, header.confirmed_at) if at is not None]
    if header.rollouts != len(documents) or any(at.tzinfo is None for at in times):
        raise DocumentUnreadable("its header does not fit its content")
    rollouts = tuple(map(rollout_from_json, documents))
    return LastKnownState(header.known_at, rollouts, documents, header.confirmed_at)
