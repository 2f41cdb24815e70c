"""Everything outside this process that a replica connects to. Nothing is connected when it is made.

How calls are made is the adapters'. What is done with the answers is everybody else's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.publisher import KafkaPublisher
from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.adapters.llm.advisor import ModelAdvisor, NoAdvisor, make_advisor
from controller.adapters.redis.address import connect_redis
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.totals import RedisTotals
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults
from controller.ports import Clock
from controller.running.environment import StateReader
from controller.running.flag_faults import DamagedDocuments
from controller.running.topics import Topics
from controller.settings import Settings, insecure_connections


class Connections:
    """The adapters for Kafka, Redis and the model."""

    def __init__(
        self, settings: Settings, clock: Clock, faults: Faults, registry: RolloutRegistry
    ) -> None:
        self._insecure = insecure_connections(settings)
        kafka = settings.kafka
        self.redis = connect_redis(settings)
        self.damaged = DamagedDocuments(faults)
        self.rollouts = RedisRollouts(self.redis, unreadable=self.damaged.add)
        self.totals = RedisTotals(self.redis, faults)
        self.publisher = KafkaPublisher(kafka)
        event_topics = sorted(set(kafka.event_topics))
        self.events = KafkaEventLog(
            kafka, event_topics, kafka.events_group, faults=faults, bare_records=True
        )
        self.commands = KafkaEventLog(
            kafka,
            [kafka.topic("commands")],
            kafka.commands_group,
            faults=faults,
            reads_committed=False,
        )
        self.state_reader = StateReader(settings, faults)
        self.feed = KafkaStateFeed(kafka, self.state_reader.read, overtaken=registry.republish)
        self.topics = Topics(
            kafka, faults, events=self.events, commands=self.commands, feed=self.feed
        )
        self.advisor = make_advisor(settings.advisor, clock)

    def log_insecure(self) -> None:
        """Log each connection off loopback without authentication or encryption."""
        log = structlog.get_logger()
        for warning in self._insecure:
            log.warning("open_door", warning=warning)

    @property
    def model(self) -> ModelAdvisor | None:
        """The configured model, None when there is none."""
        return None if isinstance(self.advisor, NoAdvisor) else self.advisor

    @property
    def closers(self) -> Sequence[tuple[str, Callable[[], Awaitable[None]]]]:
        """What closes each connection; all at once."""
        return (
            ("events", self.events.stop),
            ("commands", self.commands.stop),
            ("state_feed", self.feed.stop),
            ("publisher", self.publisher.stop),
            ("topology", self.topics.topology.stop),
            ("redis", self.redis.close),
            ("advisor", self.advisor.close),
        )
