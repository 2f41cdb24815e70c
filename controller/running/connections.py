"""Everything outside this process that a replica connects to. Nothing is connected when it is made.

How calls are made is the adapters'. What is done with the answers is everybody else's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from controller.adapters.gate_webhooks import HttpGateWebhooks
from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.publisher import KafkaPublisher
from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.adapters.llm.no_advisor import NoAdvisor
from controller.adapters.measuring.measures import MonitoringSystems
from controller.adapters.redis.address import connect_redis
from controller.adapters.redis.flag_uses import RedisFlagUses
from controller.adapters.redis.reports import RedisReports
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.totals import RedisTotals
from controller.codec.cloud_events import source_of
from controller.counting.folding.native import batch_reader
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults
from controller.ports import Clock
from controller.running.environment import StateReader
from controller.running.flag_faults import DamagedDocuments
from controller.running.start_line import log_start
from controller.running.topics import Topics
from controller.settings import AdvisorSettings, Settings, insecure_connections

if TYPE_CHECKING:
    from controller.adapters.llm.advisor import ModelAdvisor
    from controller.adapters.oidc import OidcProvider

SECONDS_PER_DAY: Final = 86_400


class Connections:
    """The adapters for Kafka, Redis, the model, monitoring systems and gate webhooks."""

    def __init__(
        self, settings: Settings, clock: Clock, faults: Faults, registry: RolloutRegistry
    ) -> None:
        self._settings = settings
        kafka = settings.kafka
        self.redis = connect_redis(settings)
        self.damaged = DamagedDocuments(faults)
        self.rollouts = RedisRollouts(self.redis, unreadable=self.damaged.add)
        self.reports = RedisReports(
            self.redis, keep_seconds=settings.redis.reports_kept_days * SECONDS_PER_DAY
        )
        self.flag_uses = RedisFlagUses(self.redis)
        self.totals = RedisTotals(self.redis, faults)
        self.publisher = KafkaPublisher(kafka)
        event_topics = sorted(set(kafka.event_topics))
        self.events = KafkaEventLog(
            kafka,
            event_topics,
            kafka.events_group,
            faults=faults,
            bare_records=True,
            read_batches=batch_reader(kafka.formats.evaluations, kafka.formats.outcomes),
        )
        self.commands = KafkaEventLog(
            kafka,
            [kafka.topic("commands")],
            kafka.commands_group,
            faults=faults,
            reads_committed=False,
        )
        self.signals = self._make_signals(faults) if settings.hooks.is_on else None
        self.state_reader = StateReader(settings, faults)
        self.feed = KafkaStateFeed(kafka, self.state_reader.read, overtaken=registry.republish)
        self.topics = Topics(
            kafka,
            faults,
            logs=(self.events, self.commands, *([] if self.signals is None else [self.signals])),
            feed=self.feed,
        )
        self.advisor = make_advisor(settings.advisor, clock)
        self.people = make_people(settings)
        self.monitoring = MonitoringSystems(settings.checks, clock)
        self.gate_webhooks = HttpGateWebhooks(
            settings.gate_webhooks.endpoints, source_of(settings.environment)
        )

    def _make_signals(self, faults: Faults) -> KafkaEventLog:
        kafka = self._settings.kafka
        topics = [kafka.topic("signals")]
        return KafkaEventLog(
            kafka, topics, kafka.signals_group, faults=faults, reads_committed=False
        )

    def log_start(self, planes: Iterable[str]) -> None:
        """Log what the process is and connects to, and each insecure connection off loopback."""
        log_start(self._settings, planes)
        log = structlog.get_logger()
        for warning in insecure_connections(self._settings):
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
            *([] if self.signals is None else [("signals", self.signals.stop)]),
            ("state_feed", self.feed.stop),
            ("publisher", self.publisher.stop),
            ("topology", self.topics.topology.stop),
            ("redis", self.redis.close),
            ("advisor", self.advisor.close),
            ("monitoring", self.monitoring.close),
            ("gate_webhooks", self.gate_webhooks.close),
            *([] if self.people is None else [("people", self.people.close)]),
        )


# What a replica without a model, or without sign-in, does not need is imported with its settings.


def make_advisor(settings: AdvisorSettings, clock: Clock) -> ModelAdvisor | NoAdvisor:
    """Return the advisor that the settings name; connects to nothing yet. Raises ConfigInvalid."""
    if settings.url is None:
        return NoAdvisor()
    from controller.adapters.llm.advisor import ModelAdvisor

    return ModelAdvisor(settings, clock)


def make_people(settings: Settings) -> OidcProvider | None:
    """Return who says who people are, None where nobody is set. Raises ConfigInvalid."""
    if settings.sign_in.oidc.issuer is None:
        return None
    from controller.adapters.oidc import make_provider

    return make_provider(settings.sign_in)
