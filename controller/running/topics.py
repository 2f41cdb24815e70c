"""The topics of this environment: made at the start, and read again when one was replaced."""

from __future__ import annotations

from collections.abc import Sequence

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.adapters.kafka.topics import ensure_topics
from controller.adapters.kafka.topology import KafkaTopology
from controller.health import Faults
from controller.settings import KafkaSettings


class Topics:
    """Prepares the topics, and follows what they look like."""

    def __init__(
        self,
        settings: KafkaSettings,
        faults: Faults,
        *,
        logs: Sequence[KafkaEventLog],
        feed: KafkaStateFeed,
    ) -> None:
        self._settings = settings
        self._logs = logs
        self._feed = feed
        self.topology = KafkaTopology(settings, faults, remade=self._topic_replaced)

    async def prepare(self) -> None:
        """Create missing topics and read their partitions. Raises EventLogUnavailable."""
        await self.topology.begin(await ensure_topics(self._settings))

    def _topic_replaced(self, logical: str) -> None:
        """Read a topic that was deleted and created again from its beginning."""
        name = self._settings.topic(logical)
        for log in self._logs:
            log.topic_remade(name)
        if logical == "state":
            self._feed.read_again()
