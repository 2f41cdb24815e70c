"""Everything of a replica that notifies people, made and connected.

Belongs here: which part gets what, and reading the rules again. Does not belong here: what the
parts do (`controller/notifying/`, `controller/adapters/channels/`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog

from controller.adapters.kafka.news_log import KafkaNewsLog
from controller.adapters.redis.turns import RedisTurnStore
from controller.codec.cloud_events import source_of
from controller.deciding.registry import RolloutRegistry
from controller.errors import ConfigInvalid
from controller.health import Scope
from controller.notifying.book import Book, without_histories
from controller.notifying.intake import TOPICS
from controller.notifying.notifier import TEMPLATES, Notifier, Surroundings
from controller.notifying.rules import NotificationRules, rules_of
from controller.notifying.standing import SharedReading, standing_of
from controller.running.claims import replica_name
from controller.running.connections import Connections
from controller.running.oversight import Process
from controller.running.signal_inlet import SignalInlet
from controller.running.supervisor import Loop
from controller.settings import Settings
from schemas.notifications import NotificationsView
from schemas.signal import Signal

RULES: Final = "notification_rules"


class NotificationParts:
    """The channels, the rules, and what notifies by them."""

    setting: Final = "notifications.rules_file"

    def __init__(
        self, process: Process, connections: Connections, registry: RolloutRegistry
    ) -> None:
        """Raises ConfigInvalid for channels or rules that cannot be used."""
        self._process = process
        self._settings = process.settings.notifications
        settings: Settings = process.settings
        self._page_url = settings.notifications.page_url or settings.sign_in.public_url
        self._rules = rules_of(self._settings)
        self._store = RedisTurnStore(connections.redis, "notifications")
        self._inlet = SignalInlet(connections.publisher, source_of(settings.environment))
        self._reading: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger()
        self._reading_of_all = SharedReading(self._store.load, self._view)
        self._notifier: Notifier | None = None
        if self._settings.is_on:
            self._notifier = self._make_notifier(registry)

    def _make_notifier(self, registry: RolloutRegistry) -> Notifier:
        from controller.adapters.channels.types import make_channels  # not without a channel

        process = self._process
        settings = process.settings

        def owner_of(flag_key: str) -> str:
            rollout = registry.rollouts.get(flag_key)
            return "" if rollout is None else rollout.plan.owner

        return Notifier(
            self._store,
            KafkaNewsLog(settings.kafka, TOPICS),
            make_channels(self._settings.channels, process.clock),
            lambda: self._rules,
            Surroundings(
                replica=replica_name(),
                environment=settings.environment,
                page_url=self._page_url,
                owner_of=owner_of,
                clock=process.clock,
                faults=process.faults,
                count=lambda outcome: process.metrics.notifications.of(outcome).inc(),
            ),
        )

    @property
    def file(self) -> NotificationRules:
        """Everything that the rules file says."""
        return self._rules

    @property
    def loops(self) -> Sequence[Loop]:
        """What notifies; nothing where no channel is set."""
        return () if self._notifier is None else (("notifications", self._notifier.run),)

    @property
    def closers(self) -> Sequence[tuple[str, Callable[[], Awaitable[None]]]]:
        """What closes the channels."""
        return () if self._notifier is None else (("notifications", self._notifier.stop),)

    async def standing(self) -> NotificationsView:
        """Return how notifying stands, whichever replica does it. Raises StoreUnavailable."""
        return await self._reading_of_all.view()

    def _view(self, stored: Mapping[bytes, bytes]) -> NotificationsView:
        types = {name: one.type for name, one in self._settings.channels.items()}
        book = Book.read(without_histories(stored))
        return standing_of(book, self._rules, types, self._process.clock.now())

    async def ask(self, signal: Signal) -> None:
        """Store what somebody asks of notifications. Raises EventLogUnavailable."""
        await self._inlet.store([signal])

    def reload(self) -> None:
        """Read the rules again; those that cannot be used are told, and the known ones stay."""
        self._reading = asyncio.get_running_loop().create_task(
            self._reload(), name="notification_rules_reload"
        )

    async def _reload(self) -> None:
        faults = self._process.faults
        try:
            self._rules = await asyncio.to_thread(rules_of, self._settings)
        except ConfigInvalid as refused:
            self._logger.warning("notification_rules_refused", error=str(refused))
            why = f"the rules were not read again, and the ones before hold: {refused}"
            faults.report(Scope.DEPENDENCY, RULES, why, "fix the file, then send SIGHUP again")
        else:
            faults.clear(Scope.DEPENDENCY, RULES)
            faults.clear(Scope.DEPENDENCY, TEMPLATES)
            self._logger.info("notification_rules_read", routes=len(self._rules.routes))
