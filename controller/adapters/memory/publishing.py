"""`Publisher` and `StateFeed` of `controller.ports` in memory."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence

from controller.adapters.memory.event_log import MemoryBroker
from controller.adapters.memory.outage import Outage
from controller.core.rollout import Rollout
from controller.errors import (
    EventLogUnavailable,
)
from controller.ports import (
    OutboxEntry,
)


class MemoryPublisher:
    """Keeps what was published, in order, with repeats; writes it to a `MemoryBroker` if given."""

    def __init__(
        self, broker: MemoryBroker | None = None, topics: Mapping[str, str] | None = None
    ) -> None:
        """Publish nothing yet.

        `topics` is logical name -> topic name on the broker. A missing name stands for itself.
        """
        self.published: list[OutboxEntry] = []
        self.outage = Outage(EventLogUnavailable)
        self._broker = broker
        self._topics = dict(topics or {})

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        self.outage.before()
        self.published.extend(entries)
        if self._broker is not None:
            for entry in entries:
                topic = self._topics.get(entry.topic, entry.topic)
                self._broker.append(topic, entry.value, key=entry.key.encode())
        self.outage.after()

    def partition_of(self, key: str, partitions: int) -> int:
        return zlib.crc32(key.encode()) % partitions

    def distinct(self, topic: str | None = None) -> list[OutboxEntry]:
        """Return each effect once, of one logical topic or all, by its first publication."""
        first = {entry.effect_id: entry for entry in reversed(self.published)}
        effect_ids: set[str] = set()
        kept = []
        for entry in self.published:
            if entry.effect_id not in effect_ids and topic in (None, entry.topic):
                kept.append(first[entry.effect_id])
            effect_ids.add(entry.effect_id)
        return kept


class MemoryStateFeed:
    """The state topic as a list of documents."""

    def __init__(self, documents: Sequence[Rollout] = ()) -> None:
        """`documents` were in the topic at start."""
        self._documents = list(documents)
        self._at_start = len(self._documents)
        self._arrived = asyncio.Event()
        self._caught_up = asyncio.Event()

    def append(self, rollout: Rollout) -> None:
        """Add a document, as another replica's publisher does."""
        self._documents.append(rollout)
        self._arrived.set()

    async def documents(self) -> AsyncIterator[Rollout]:
        position = 0
        while True:
            if position >= self._at_start:
                self._caught_up.set()
            while position >= len(self._documents):
                self._arrived.clear()
                await self._arrived.wait()
            yield self._documents[position]
            position += 1

    async def caught_up(self) -> None:
        await self._caught_up.wait()
