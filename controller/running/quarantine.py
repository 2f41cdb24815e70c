"""Publishes records that cannot be used to the quarantine topic."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from controller.adapters.kafka.shared_topic import topic_of
from controller.counting.refusals import RefusalBatch
from controller.ports import OutboxEntry, Publisher
from schemas import quarantine


class QuarantineTopic:
    """The quarantine topic, written."""

    def __init__(self, publisher: Publisher, source: str) -> None:
        self._publisher = publisher
        self._source = source

    async def publish(self, batches: Sequence[RefusalBatch]) -> None:
        """Return once the topic has a record of each batch. Raises EventLogUnavailable."""
        entries = []
        for batch in batches:
            entries.append(self._entry(batch))
            await asyncio.sleep(0)  # to write one and to compress it takes a millisecond or two
        await self._publisher.publish(entries)

    def _entry(self, batch: RefusalBatch) -> OutboxEntry:
        topic, refusals = topic_of(batch.topic), batch.refusals
        key = quarantine.key(topic, batch.partition).decode()
        effect_id = quarantine.event_id(topic, batch.partition, refusals)
        value = quarantine.encode(topic, batch.partition, refusals, source=self._source)
        return OutboxEntry("", effect_id, "quarantine", key, value)
