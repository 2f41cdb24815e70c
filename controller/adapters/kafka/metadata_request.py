"""The request that asks the cluster for our topics, with their ids.

aiokafka supports the Metadata request up to version 5, which does not name topic ids. Version 10
does (KIP-516, Kafka 2.8). Belongs here: that version, and what its answer says of a topic. Does not
belong here: what follows from it (`topology.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import UUID

import structlog
from aiokafka.errors import KafkaConnectionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import (
    MetadataRequest_v1,
    MetadataRequest_v4,
    MetadataRequest_v5,
)
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

log = structlog.get_logger(__name__)

_NO_ID = UUID(int=0)


class _Id:
    """A topic id on the wire: sixteen bytes."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))

    @classmethod
    def repr(cls, value: UUID) -> str:
        return str(value)


class _MetadataResponse(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString()),
                ("topic_id", _Id),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Id), ("topic", CompactString()), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


_Versions = MetadataRequest_v1 | MetadataRequest_v4 | MetadataRequest_v5 | _MetadataRequest


class _TopicsRequest(Request[_Versions]):  # type: ignore[misc]
    """Metadata of some topics, in the newest version that the broker and we know.

    It creates no topic.
    """

    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is _MetadataRequest:
            topics: list[tuple[UUID, str, dict[int, bytes]]] = [
                (_NO_ID, name, {}) for name in self._names
            ]
            return _MetadataRequest(topics, False, False, False, {})
        if request_struct_class.API_VERSION >= 4:
            return request_struct_class(self._names, False)
        # All topics: a broker would create those that are requested by name.
        return request_struct_class(None)


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """One topic of the cluster."""

    partitions: int
    topic_id: str | None  # None: the broker does not say


async def look_up(client: Any, names: list[str]) -> dict[str, TopicMetadata]:
    """Return those of the named topics that exist. Raises whatever aiokafka raises."""
    node = client.get_random_node()
    if node is None:
        raise KafkaConnectionError("no broker is known")
    answer = await client.send(node, _TopicsRequest(names))
    topics = {}
    for topic in answer.to_object()["topics"]:
        if topic["error_code"] == 0 and topic["partitions"]:
            identity = topic.get("topic_id", _NO_ID)
            topics[topic["topic"]] = TopicMetadata(
                len(topic["partitions"]), None if identity == _NO_ID else str(identity)
            )
        elif topic["topic"] in names:
            log.info(
                "topic_not_seen",
                topic=topic["topic"],
                reason=for_code(topic["error_code"]).__name__,
            )
    return {name: topics[name] for name in names if name in topics}
