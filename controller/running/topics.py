"""The topics of this environment: made at the start, and read again when one was replaced.

Now and then their cleanup policies are compared: one that was changed since loses records unseen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.adapters.kafka.topics import check_policies, ensure_topics
from controller.adapters.kafka.topology import KafkaTopology
from controller.errors import ConfigInvalid, EventLogUnavailable
from controller.health import Faults, Scope
from controller.settings import KafkaSettings

#: A policy that was changed deletes nothing before the broker's next round, each five minutes.
POLICIES_SECONDS: Final = 120.0
POLICIES: Final = "topic policies"
_FIX: Final = (
    "correct it as said there; replicas that are started meanwhile refuse it. What rollout.state "
    "has lost is then published again"
)

log = structlog.get_logger(__name__)


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
        self._faults = faults
        self._logs = logs
        self._feed = feed
        self.topology = KafkaTopology(settings, faults, remade=self._topic_replaced)

    async def prepare(self) -> None:
        """Create missing topics and read their partitions. Raises EventLogUnavailable."""
        await self.topology.begin(await ensure_topics(self._settings))

    async def run(self) -> None:
        """Compare cleanup policies now and then until cancelled."""
        while True:
            await asyncio.sleep(POLICIES_SECONDS)
            try:
                await check_policies(self._settings)
            except ConfigInvalid as invalid:
                self._faults.report(Scope.DEPENDENCY, POLICIES, str(invalid), _FIX)
            except EventLogUnavailable as trouble:
                log.warning("topic_policies_unknown", reason=str(trouble))
            else:
                self._policies_are_right()

    def _policies_are_right(self) -> None:
        if self._faults.of(Scope.DEPENDENCY, POLICIES) is not None:
            # Deleted records are no new ones: only reading from the beginning shows what is gone.
            self._feed.read_again()
        self._faults.clear(Scope.DEPENDENCY, POLICIES)

    def _topic_replaced(self, logical: str) -> None:
        """Read a topic that was deleted and created again from its beginning."""
        name = self._settings.topic(logical)
        for log in self._logs:
            log.topic_remade(name)
        if logical == "state":
            self._feed.read_again()
