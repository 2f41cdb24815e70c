"""Takes records of our topics: news, what ends incidents, and what people ask of notifications.

Belongs here: which record means what. Does not belong here: what follows from it (`planner.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Final

import msgspec
import structlog
from pydantic import ValidationError

from controller.health import Faults, Scope
from controller.notifying.book import Purpose
from controller.notifying.news import TEST, News, read_event
from controller.notifying.planner import Planner
from schemas.signal import TYPE as SIGNAL
from schemas.signal import Signal
from schemas.terms import NotificationRequest, Severity

#: The endpoint of what people ask for with `rolloutctl`.
OPERATOR_HOOK: Final = "rolloutctl/cli"
#: Topics that are read, by their logical names.
TOPICS: Final = ("decisions", "alerts", "signals")

log = structlog.get_logger(__name__)


class Intake:
    """Hands each record to the planner."""

    def __init__(
        self,
        planner: Planner,
        owner_of: Callable[[str], str],
        channels: Collection[str],
        faults: Faults,
    ) -> None:
        self._planner = planner
        self._owner_of = owner_of
        self._channels = channels
        self._faults = faults

    def take(self, value: bytes, now: datetime) -> None:
        """Take one record. One that cannot be read is logged, and those behind it are taken."""
        try:
            event: Any = msgspec.json.decode(value or b"{}")
            if not isinstance(event, dict):
                return
            if event.get("type") == SIGNAL:
                self._ask(Signal.model_validate(event.get("data")), now)
                return
            news, step = read_event(event, self._owner_of)
        except (ValueError, RecursionError, ValidationError) as error:
            log.warning("news_unreadable", error=str(error)[:500])
            return
        try:
            self._planner.take(news, step, now)
        except Exception:  # ours: the records behind it must be taken
            log.exception("news_failed", event_id=event.get("id"))
            why = f"a mistake of rolloutd on {event.get('id')}, of which nobody is told"
            self._faults.report(Scope.PART, "notifications", why, "please report it")

    def _ask(self, signal: Signal, now: datetime) -> None:
        """Do what somebody asks of the notifications."""
        about, who = signal.request_about, signal.issuer or signal.hook
        if signal.request is NotificationRequest.ACKNOWLEDGE:
            is_person = signal.hook == OPERATOR_HOOK
            keys = self._planner.acknowledge(about, who, now, is_person=is_person)
            log.info("incident_acknowledged", about=about, by=who, incidents=keys)
        elif signal.request is NotificationRequest.TEST:
            self._test(signal, who, now)
        elif signal.request is NotificationRequest.RETRY:
            book = self._planner.book
            for number, dead in list(book.dead.items()):
                if about in ("", "*", dead.delivery.channel, str(number)):
                    book.revive(number, now)

    def _test(self, signal: Signal, who: str, now: datetime) -> None:
        """Let the channels of a route, or one channel, get a test message."""
        name = signal.request_about
        routes = [one for one in self._planner.rules.routes if one.name == name]
        channels = list(routes[0].to) if routes else [one for one in self._channels if one == name]
        news = News(
            id=f"test/{signal.id}",
            kind=TEST,
            severity=Severity.INFO,
            flag=TEST,
            rollout_id=signal.id,
            revision=0,
            at=now,
            key=f"test/{signal.id}",
            summary=f"{who} tries {name}: nothing has happened",
            action="",
            phase="",
            percent=0.0,
        )
        for channel in channels:
            self._planner.book.add(channel, news, Purpose.TEST, now, name if routes else "")
        log.info("notifications_tested", about=name, by=who, channels=channels)
