"""Publishes the alerts of `visibility.py` and `event_watch.py`, in order, through Kafka alone.

While Kafka takes none they wait in memory, bounded: what they say is said again while it lasts.
That something is over is said once, so the bound is above what any environment has of flags.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Final

import structlog

from controller.codec.outbox import outbox_entry
from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.deciding.flag.news import NewsKeeper
from controller.errors import OperatingTrouble
from controller.ports import Clock, OutboxEntry, Publisher
from controller.telemetry import Metrics
from schemas.terms import Severity

#: One outage may concern every flag: a check alerts of ten thousand, and another that it is over.
WAITING_LIMIT: Final = 20_000
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
        self._waiting: dict[int, WaitingAlert] = {}  # by number, in order
        self._numbers: dict[str, set[int]] = {}  # of those that wait, by dedup key
        self._sending: Collection[int] = ()
        self._next_number = 0
        self._arrived = asyncio.Event()
        self._published = asyncio.Event()  # another one after each that was

    def __len__(self) -> int:
        """Return how many alerts wait."""
        return len(self._waiting)

    def add(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Publish an alert, as soon as Kafka takes it. Returns at once."""
        if alert.severity is Severity.CRITICAL:
            # An alert replaces an earlier one that still waits: both would arrive together.
            earlier = self._numbers.get(alert.dedup_key, set())
            self._forget([number for number in earlier if number not in self._sending])
        self._waiting[self._next_number] = WaitingAlert(rollout, alert, self._clock.now())
        self._numbers.setdefault(alert.dedup_key, set()).add(self._next_number)
        self._next_number += 1
        if len(self._waiting) > WAITING_LIMIT:
            self._forget([next(iter(self._waiting))])
        self._metrics.alerts.of(alert.kind, alert.severity).inc()
        self._arrived.set()

    def _forget(self, numbers: Collection[int]) -> None:
        for number in numbers:
            waiting = self._waiting.pop(number, None)
            if waiting is None:
                continue
            key = waiting.alert.dedup_key
            self._numbers[key].discard(number)
            if not self._numbers[key]:
                del self._numbers[key]

    async def flush(self, seconds: float) -> bool:
        """Wait until all that wait now are published, so long at most; return whether they are."""
        wanted = set(self._waiting)
        try:
            async with asyncio.timeout(seconds):
                while not wanted.isdisjoint(self._waiting):
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
            batch = dict(islice(self._waiting.items(), _SENT_AT_ONCE))
            self._sending = batch.keys()
            entries = [each.entry(self._source) for each in batch.values()]
            try:
                await self._publisher.publish(entries)
            except OperatingTrouble as trouble:
                log.warning("visibility_alerts_wait", error=str(trouble), alerts=len(self))
                self._sending = ()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._forget(batch.keys())
                self._published.set()
                self._published = asyncio.Event()
                if self._news is not None:
                    self._news.add(entries)
            finally:
                self._sending = ()
