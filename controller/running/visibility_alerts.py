"""Publishes the alerts of `visibility.py` and `event_watch.py`, in order, through Kafka alone.

While Kafka takes none they wait in memory, bounded: what they say is said again while it lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import structlog

from controller.codec.outbox import outbox_entry
from controller.core.rollout import RaiseAlert, Rollout
from controller.deciding.flag.news import NewsKeeper
from controller.errors import OperatingTrouble
from controller.ports import Clock, OutboxEntry, Publisher
from controller.telemetry import Metrics
from schemas.terms import Severity

WAITING_LIMIT: Final = 500
RETRY_SECONDS: Final = 1.0
_SENT_AT_ONCE: Final = 50

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WaitingAlert:
    """An alert on its way to Kafka."""

    rollout: Rollout
    alert: RaiseAlert
    at: datetime = field(compare=False)

    def entry(self, source: str) -> OutboxEntry:
        """Return the alert as it is published."""
        effect_id = f"{self.alert.dedup_key}/{self.at.timestamp():.3f}"
        flag_key = self.rollout.flag_key
        return outbox_entry(self.alert, flag_key, self.rollout, effect_id, self.at, source=source)


class VisibilityAlerts:
    """Alerts that wait for Kafka."""

    def __init__(
        self,
        publisher: Publisher,
        clock: Clock,
        metrics: Metrics,
        source: str,
        news: NewsKeeper | None = None,
    ) -> None:
        """`news` keeps what was published where every replica shows it; None: nothing does."""
        self._publisher = publisher
        self._news = news
        self._clock = clock
        self._metrics = metrics
        self._source = source
        self._waiting: list[WaitingAlert] = []
        self._sending: Sequence[WaitingAlert] = ()
        self._arrived = asyncio.Event()
        self._published = asyncio.Event()  # another one after each that was

    def __len__(self) -> int:
        """Return how many alerts wait."""
        return len(self._waiting)

    def add(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Publish an alert, as soon as Kafka takes it. Returns at once."""
        if alert.severity is Severity.CRITICAL:
            # An alert replaces an earlier one that still waits: both would arrive together.
            sending = {id(each) for each in self._sending}
            self._waiting = [
                each
                for each in self._waiting
                if each.alert.dedup_key != alert.dedup_key or id(each) in sending
            ]
        self._waiting.append(WaitingAlert(rollout, alert, self._clock.now()))
        del self._waiting[:-WAITING_LIMIT]
        self._metrics.alerts.of(alert.kind, alert.severity).inc()
        self._arrived.set()

    async def flush(self, seconds: float) -> bool:
        """Wait until all that wait now are published, so long at most; return whether they are."""
        wanted = list(self._waiting)
        try:
            async with asyncio.timeout(seconds):
                while any(one is each for one in wanted for each in self._waiting):
                    await self._published.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            if not self._waiting:
                self._arrived.clear()
                if self._news is not None:
                    await self._news.keep_until(self._arrived)
                await self._arrived.wait()
            batch = self._sending = self._waiting[:_SENT_AT_ONCE]
            entries = [each.entry(self._source) for each in batch]
            try:
                await self._publisher.publish(entries)
            except OperatingTrouble as trouble:
                log.warning("visibility_alerts_wait", error=str(trouble), alerts=len(self))
                self._sending = ()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                sent = {id(each) for each in batch}
                self._waiting = [each for each in self._waiting if id(each) not in sent]
                self._published.set()
                self._published = asyncio.Event()
                if self._news is not None:
                    self._news.add(entries)
            finally:
                self._sending = ()
