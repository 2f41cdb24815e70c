"""Publishes records that cannot be used to the quarantine topic."""

from __future__ import annotations

from collections.abc import Sequence

from controller.adapters.kafka.shared_topic import topic_of
from controller.ports import OutboxEntry, Publisher
from schemas import quarantine


class QuarantineTopic:
    """The quarantine topic, written."""

    def __init__(self, publisher: Publisher, source: str) -> None:
        self._publisher = publisher
        self._source = source

    async def publish(
        self, stream: str, partition: int, refusals: Sequence[quarantine.Refusal]
    ) -> None:
        """Return once the topic has refusals of one partition. Raises EventLogUnavailable."""
        topic = topic_of(stream)
        key = quarantine.key(topic, partition).decode()
        effect_id = f"{key}/{refusals[0].offset}-{refusals[-1].offset}"
        value = quarantine.encode(topic, partition, refusals, source=self._source)
        await self._publisher.publish([OutboxEntry("", effect_id, "quarantine", key, value)])
