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
from controller.notifying.book import MOST_MUTES, Purpose
from controller.notifying.news import TEST, News, read_event
from controller.notifying.planner import Planner
from controller.text import one_line
from schemas.signal import TYPE as SIGNAL
from schemas.signal import Signal
from schemas.terms import NotificationRequest, Severity

#: The endpoint of what people ask for with `rolloutctl`.
OPERATOR_HOOK: Final = "rolloutctl/cli"
#: Of what they ask for on the page, and what programs ask for over the API. No source is called so.
HTTP_HOOK: Final = "rolloutd/http"
#: Topics that are read, by their logical names.
TOPICS: Final = ("decisions", "alerts", "signals")
#: Characters of a foreign event's id that are told.
_LONGEST_ID: Final = 200

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
        event: Any = None
        try:
            event = msgspec.json.decode(value or b"{}")
            if not isinstance(event, dict):
                return
            if event.get("type") == SIGNAL:
                self._ask(Signal.model_validate(event.get("data")), now)
                return
            news, step = read_event(event, self._owner_of)
        except (ValueError, RecursionError, ValidationError) as error:
            log.warning("news_unreadable", error=str(error)[:500])
            return
        except Exception:  # ours, in reading; as below
            self._note_mistake(event)
            return
        try:
            self._planner.take(news, step, now)
        except Exception:  # ours: the records behind it must be taken
            self._note_mistake(event)

    def _note_mistake(self, event: Any) -> None:
        """Report a record that was not taken because of a mistake of ours."""
        name = str(event.get("id"))[:_LONGEST_ID] if isinstance(event, dict) else "a record"
        log.exception("news_failed", event_id=name)
        why = f"a mistake of rolloutd on {one_line(name)}, of which nobody is told"
        self._faults.report(Scope.PART, "notifications", why, "please report it")

    def _ask(self, signal: Signal, now: datetime) -> None:
        """Do what somebody asks of the notifications."""
        about, who = signal.request_about, signal.issuer or signal.hook
        if signal.request is NotificationRequest.ACKNOWLEDGE:
            is_person = signal.hook in (OPERATOR_HOOK, HTTP_HOOK)
            seen = signal.started_at if signal.hook == HTTP_HOOK else None
            keys = self._planner.acknowledge(about, who, now, is_person=is_person, opened_at=seen)
            log.info("incident_acknowledged", about=about, by=who, incidents=keys)
        elif signal.request is NotificationRequest.TEST:
            self._test(signal, who, now)
        elif signal.request is NotificationRequest.RETRY:
            book = self._planner.book
            for number, dead in list(book.dead.items()):
                if about in ("", "*", dead.delivery.channel, str(number)):
                    book.revive(number, now)
        elif signal.request is NotificationRequest.MUTE:
            self._mute(signal, who, now)
        elif signal.request is NotificationRequest.UNMUTE:
            for number, mute in list(self._planner.book.mutes.items()):
                if about in (str(number), mute.about):
                    self._planner.book.unmute(number)
                    log.info("notifications_unmuted", about=mute.about, by=who)

    def _mute(self, signal: Signal, who: str, now: datetime) -> None:
        """Mute a route, or flags."""
        asked, about, book = signal.mute, signal.request_about, self._planner.book
        if asked is None or not about or asked.until <= now:
            log.warning("mute_refused", about=about, by=who, reason="it says no time ahead")
            return
        if len(book.mutes) >= MOST_MUTES:
            log.warning("mute_refused", about=about, by=who, reason=f"there are {MOST_MUTES}")
            return
        is_route = any(one.name == about for one in self._planner.rules.routes)
        made = book.mute(
            about,
            who,
            asked.reason,
            now,
            asked.until,
            is_route=is_route and not asked.is_flag,
            is_critical_too=asked.is_critical_too,
        )
        log.info(
            "notifications_muted",
            about=about,
            is_route=made.is_route,
            is_critical_too=made.is_critical_too,
            until=asked.until.isoformat(),
            by=who,
            reason=asked.reason,
        )

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
