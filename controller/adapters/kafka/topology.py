"""Reads what our topics are now: the partitions of each, and which topic of its name it is.

Belongs here: asking the cluster every few seconds, and reporting changes. Does not belong here: the
request (`metadata_request.py`); making topics, and what is refused at start (`topics.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from aiokafka.client import AIOKafkaClient

from controller.adapters.kafka.client import (
    client_options,
    disconnect,
    must_propagate,
    reason_of,
)
from controller.adapters.kafka.connection_pace import pace_connections
from controller.adapters.kafka.metadata_request import TopicMetadata, look_up
from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from controller.log_identity import is_other_topic
from controller.settings import KafkaSettings, TopicNames
from controller.text import plural

log = structlog.get_logger(__name__)

#: A topic that was deleted and made again must be noticed within 10 s. One request for eight topics
#: costs a broker nothing.
REFRESH_SECONDS = 5.0
_FAULT = "kafka topics"


class KafkaTopology:
    """Our topics as they are: `controller.ports.Topology`, kept up to date by `run`.

    A topic that is missing keeps what was known of it: it may come back, and meanwhile flags must
    belong to a replica.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        faults: Faults,
        *,
        remade: Callable[[str], object] = lambda logical: None,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        """`remade` is called with the logical name of each topic that has become another one."""
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
        """Partitions by logical name, as last answered; empty before `begin`."""
        return dict(self._partitions)

    async def begin(self, counts: Mapping[str, int]) -> None:
        """Begin with the partition counts by logical name that were checked at start.

        Looks up the topic ids. Raises EventLogUnavailable.
        """
        self._partitions.update(counts)
        await self.refresh()

    async def run(self) -> None:
        """Refresh forever. Whatever goes wrong is logged and tried again."""
        while True:
            await asyncio.sleep(self._refresh_seconds)
            try:
                await self.refresh()
            except EventLogUnavailable as trouble:
                log.warning("topology_unknown", error=str(trouble))

    async def refresh(self) -> None:
        """Look the topics up once, and report what has changed.

        Raises EventLogUnavailable within `call_seconds`.
        """
        try:
            async with asyncio.timeout(self._settings.call_seconds):
                if self._client is None:
                    await self._connect()
                present = await look_up(self._client, sorted(set(self._names.values())))
        except BaseException as error:
            await self.stop()
            if must_propagate(error):
                raise
            raise EventLogUnavailable(
                f"looking up topics: {reason_of(error)} ({self._settings.bootstrap_servers})"
            ) from error
        self._update(present)

    async def stop(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            await disconnect(client.close(), client, self._settings.stop_seconds)

    async def _connect(self) -> None:
        # The client itself asks for every topic of the cluster. Rarely, because we ask for ours.
        client = AIOKafkaClient(
            **{**client_options(self._settings), "metadata_max_age_ms": 300_000}
        )
        pace_connections(client)
        try:
            await client.bootstrap()
        except BaseException:
            await client.close()
            raise
        self._client = client

    def _update(self, present: Mapping[str, TopicMetadata]) -> None:
        """Record all topics that are present, then report those that were made again.

        In this order, because the report's receivers ask for what is new.
        """
        remade = []
        for logical, name in self._names.items():
            topic = present.get(name)
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
                previous = self._ids.get(logical)
                self._ids[logical] = topic.topic_id
                if is_other_topic(previous, topic.topic_id):
                    log.error(
                        "topic_made_anew", topic=name, before=previous, topic_id=topic.topic_id
                    )
                    remade.append(logical)
        self._report(present)
        for logical in remade:
            self._remade(logical)

    def _report(self, present: Mapping[str, TopicMetadata]) -> None:
        """Report what a person must repair: missing topics, and event topics that do not match."""
        missing = sorted({name for name in self._names.values() if name not in present})
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
        elif present[evaluations].partitions != present[outcomes].partitions:
            fewer, more = sorted((evaluations, outcomes), key=lambda name: present[name].partitions)
            self._faults.report(
                Scope.DEPENDENCY,
                _FAULT,
                f"{fewer} has {plural(present[fewer].partitions, 'partition')} and {more} has "
                f"{present[more].partitions}: a "
                "context's evaluations and outcomes must have the same partition number, "
                "else outcomes without flags "
                "are not attributed",
                f"`kafka-topics --alter --topic {fewer} --partitions {present[more].partitions}`",
            )
        else:
            self._faults.clear(Scope.DEPENDENCY, _FAULT)
