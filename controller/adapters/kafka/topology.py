"""What our topics look like now: how many partitions each has, and which topic of its name it is.

Belongs here: asking the cluster every few seconds, and telling who must know. Does not belong here:
making topics, and what is refused at start (`kafka_topics.py`).

aiokafka speaks the Metadata request up to version 5, which does not name topic ids. Version 10 does
(KIP-516, Kafka 2.8).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import UUID

import structlog
from aiokafka.client import AIOKafkaClient
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

from controller.adapters.kafka.client import (
    client_options,
    disconnect,
    must_propagate,
    reason_of,
)
from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from controller.settings import KafkaSettings, TopicNames

log = structlog.get_logger(__name__)

#: A topic that was made anew is to be noticed within 10 s. One request for eight topics costs a
#: broker nothing.
REFRESH_SECONDS = 5.0
_FAULT = "kafka topics"
_NO_ID = UUID(int=0)


# --- the request
# --------------------------------------------------------------------------------------------------


class _Id:
    """Sixteen bytes."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))

    @classmethod
    def repr(cls, value: UUID) -> str:
        return str(value)


class _Answer(Response):  # type: ignore[misc]  # aiokafka ships no types
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


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Answer
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


class _Ask(Request[MetadataRequest_v1 | MetadataRequest_v4 | MetadataRequest_v5 | _Question]):  # type: ignore[misc]
    """Metadata of some topics, in the newest version that the broker and we know.

    It makes no topic.
    """

    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is _Question:
            topics: list[tuple[UUID, str, dict[int, bytes]]] = [
                (_NO_ID, name, {}) for name in self._names
            ]
            return _Question(topics, False, False, False, {})
        if request_struct_class.API_VERSION >= 4:
            return request_struct_class(self._names, False)
        # All topics: a broker would make those that are asked for by name.
        return request_struct_class(None)


@dataclass(frozen=True, slots=True)
class _Topic:
    partitions: int
    topic_id: str | None


async def _look_up(client: Any, names: list[str]) -> dict[str, _Topic]:
    """Return those of the named topics that there are. Raises whatever aiokafka raises."""
    node = client.get_random_node()
    if node is None:
        raise KafkaConnectionError("no broker is known")
    answer = await client.send(node, _Ask(names))
    found = {}
    for topic in answer.to_object()["topics"]:
        if topic["error_code"] == 0 and topic["partitions"]:
            identity = topic.get("topic_id", _NO_ID)
            found[topic["topic"]] = _Topic(
                len(topic["partitions"]), None if identity == _NO_ID else str(identity)
            )
        elif topic["topic"] in names:
            log.info(
                "topic_not_seen",
                topic=topic["topic"],
                reason=for_code(topic["error_code"]).__name__,
            )
    return {name: found[name] for name in names if name in found}


# --- keeping up
# --------------------------------------------------------------------------------------------------


class KafkaTopology:
    """Our topics as they are: `controller.ports.Topology`, kept up to date by `run`.

    A topic that cannot be seen keeps what it had: it may be on its way back, and flags must belong
    to a replica meanwhile.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        faults: Faults,
        *,
        remade: Callable[[str], object] = lambda logical: None,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        """`remade` is told the logical name of each topic that has become another topic."""
        self._settings = settings
        self._faults = faults
        self._remade = remade
        self._refresh_seconds = refresh_seconds
        self._names = {logical: settings.topic(logical) for logical in TopicNames.model_fields}
        self._partitions: dict[str, int] = {}
        self._ids: dict[str, str] = {}
        self._client: Any = None

    def partitions(self, logical: str) -> int:
        return self._partitions[logical]

    def topic_id(self, logical: str) -> str | None:
        return self._ids.get(logical)

    @property
    def counts(self) -> Mapping[str, int]:
        """Partitions by logical name, as last heard; empty before `begin`."""
        return dict(self._partitions)

    async def begin(self, counts: Mapping[str, int]) -> None:
        """Take the partition counts, by logical name, as checked at start, and look up the rest.

        Raises EventLogUnavailable.
        """
        self._partitions.update(counts)
        await self.refresh()

    async def run(self) -> None:
        """Refresh for ever. Whatever goes wrong is logged, and tried again."""
        while True:
            await asyncio.sleep(self._refresh_seconds)
            try:
                await self.refresh()
            except EventLogUnavailable as trouble:
                log.warning("topology_unknown", error=str(trouble))

    async def refresh(self) -> None:
        """Look once, and tell of what has changed.

        Raises EventLogUnavailable within `call_seconds`.
        """
        try:
            async with asyncio.timeout(self._settings.call_seconds):
                if self._client is None:
                    await self._connect()
                found = await _look_up(self._client, sorted(set(self._names.values())))
        except BaseException as error:
            await self.stop()
            if must_propagate(error):
                raise
            raise EventLogUnavailable(
                f"looking up topics: {reason_of(error)} ({self._settings.bootstrap_servers})"
            ) from error
        self._take(found)

    async def stop(self) -> None:
        """Disconnect; what does not close in time is left to the end of the process."""
        client, self._client = self._client, None
        if client is not None:
            await disconnect(client.close(), self._settings.stop_seconds)

    async def _connect(self) -> None:
        # By itself the client asks for every topic of the cluster: rarely, for we ask for ours.
        client = AIOKafkaClient(
            **{**client_options(self._settings), "metadata_max_age_ms": 300_000}
        )
        try:
            await client.bootstrap()
        except BaseException:
            await client.close()
            raise
        self._client = client

    def _take(self, found: Mapping[str, _Topic]) -> None:
        """Note what was found. First all of it, then who must know is told.

        They ask for what is new.
        """
        remade = []
        for logical, name in self._names.items():
            topic = found.get(name)
            if topic is None:
                continue
            before = self._partitions.get(logical)
            if before is not None and before != topic.partitions:
                log.warning(
                    "topic_partitions_changed",
                    topic=name,
                    before=before,
                    partitions=topic.partitions,
                )
            self._partitions[logical] = topic.partitions
            if topic.topic_id is not None:
                known = self._ids.get(logical)
                self._ids[logical] = topic.topic_id
                if known is not None and known != topic.topic_id:
                    log.error("topic_made_anew", topic=name, before=known, topic_id=topic.topic_id)
                    remade.append(logical)
        self._report(found)
        for logical in remade:
            self._remade(logical)

    def _report(self, found: Mapping[str, _Topic]) -> None:
        """Report what a person must repair.

        Topics that are gone, and event topics that do not match.
        """
        missing = sorted({name for name in self._names.values() if name not in found})
        evaluations, outcomes = self._settings.event_topics
        if missing:
            self._faults.report(
                Scope.DEPENDENCY,
                _FAULT,
                f"{', '.join(missing)} cannot be seen: deleted, or we may not describe it",
                f"`kafka-topics --describe --topic {missing[0]}`; restart rolloutd to have "
                f"it made, or make it with "
                "`kafka-topics --create`",
            )
        elif found[evaluations].partitions != found[outcomes].partitions:
            fewer, more = sorted((evaluations, outcomes), key=lambda name: found[name].partitions)
            self._faults.report(
                Scope.DEPENDENCY,
                _FAULT,
                f"{fewer} has {found[fewer].partitions} partitions and {more} has "
                f"{found[more].partitions}: a "
                "context's evaluations and outcomes must have the same partition number, "
                "else outcomes without flags "
                "are not attributed",
                f"`kafka-topics --alter --topic {fewer} --partitions {found[more].partitions}`",
            )
        else:
            self._faults.clear(Scope.DEPENDENCY, _FAULT)
