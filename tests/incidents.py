"""Incidents for tests of the page and the API: the real planner, over a book in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controller.codec.signals import signal_event
from controller.errors import EventLogUnavailable, StoreUnavailable
from controller.health import Faults
from controller.notifying.book import Book, ChannelState
from controller.notifying.intake import Intake
from controller.notifying.news import News
from controller.notifying.planner import Planner, Told
from controller.notifying.rules import NotificationRules
from controller.notifying.standing import standing_of
from schemas.notifications import NotificationsView
from schemas.signal import MuteRequest, Signal
from schemas.terms import NotificationRequest, Severity, SignalStatus
from tests.unit.notifying.news_of import news, step

TYPES: Final[Mapping[str, str]] = {
    "team-slack": "slack",
    "pager": "pagerduty",
    "boss-mail": "email",
}
RULES: Final[Mapping[str, Any]] = {
    "routes": [{"name": "payments", "to": ["team-slack"], "escalation": "on-call"}],
    "escalations": [
        {
            "name": "on-call",
            "severity": "warning",
            "repeat": "1h",
            "steps": [{"after": "10m", "to": "pager"}, {"after": "30m", "to": ["boss-mail"]}],
        }
    ],
    "mutes": [],
}


class NotedIncidents:
    """Implements `controller.web.incidents.NotificationSource`; all it is asked is done at once."""

    def __init__(
        self,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        rules: Mapping[str, Any] = RULES,
    ) -> None:
        self.now = now
        self.book = Book()
        self.rules = NotificationRules.model_validate(rules)
        self.planner = Planner(
            self.book, self.rules, Told(frozenset(TYPES), tracking=frozenset({"pager"}))
        )
        self.asked: list[Signal] = []
        self.reads = 0
        self.is_deaf = False  # what is asked is stored, and nobody reads it
        self.is_kafka_away = False
        self.is_redis_away = False
        self._numbers = iter(range(1, 10_000))

    async def standing(self) -> NotificationsView:
        """Return what the book has."""
        self.reads += 1
        if self.is_redis_away:
            raise StoreUnavailable("no answer of Redis within 0.5 s")
        return standing_of(self.book, self.rules, TYPES, self.now())

    async def ask(self, signal: Signal) -> None:
        """Do what is asked, as the notifier does that reads it."""
        if self.is_kafka_away:
            raise EventLogUnavailable("no acknowledgement within 0.8 s")
        self.asked.append(signal)
        if not self.is_deaf:
            intake = Intake(self.planner, lambda _flag: "payments", TYPES, Faults(self.now))
            intake.take(signal_event(signal, "/test"), self.now())

    def tell(self, flag: str, at: datetime, **told: Any) -> News:
        """Let something happen, and let its channels hear of it at once."""
        number = next(self._numbers)
        fields = {"key": f"{flag}/r1/{told.get('kind', 'rolled_back')}", "flag": flag, "at": at}
        made = news(number, **{"id": f"{flag}/{number}", **fields, **told})
        self.planner.take(made, None, at)
        self.deliver(at)
        return made

    def deliver(self, at: datetime, *, but: str = "") -> None:
        """Let the channels have what waits; all of them but one."""
        for name, queue in list(self.book.queues.items()):
            for one in [] if name == but else list(queue.values()):
                self.book.sent(one)
                self.book.reached(one, at)
                state = self.book.channels.get(name, ChannelState())
                self.book.channel_is(name, ChannelState(state.sent + 1, at))

    def mute(self, about: str, at: datetime, **asked: Any) -> None:
        """Mute something by command."""
        request = MuteRequest.model_validate({"until": at + timedelta(hours=2), **asked})
        signal = Signal(
            id=f"mute-{next(self._numbers)}",
            hook="rolloutctl/cli",
            status=SignalStatus.NOTE,
            condition="notifications/mute",
            title="x",
            received_at=at,
            request=NotificationRequest.MUTE,
            request_about=about,
            issuer="bob",
            mute=request,
        )
        intake = Intake(self.planner, lambda _flag: "payments", TYPES, Faults(self.now))
        intake.take(signal_event(signal, "/test"), at)


def filled(made: NotedIncidents) -> NotedIncidents:
    """Let there be one incident in each state that people tell apart."""
    now, minute = made.now(), timedelta(minutes=1)
    made.mute("payments-*", now - 20 * minute, reason="the payments database moves")
    made.tell(
        "dark-mode", now - 300 * minute, kind="unwatched", summary="dark-mode is not watched: lag"
    )
    made.planner.acknowledge("dark-mode", "ada@example.org", now - 290 * minute)
    made.tell(
        "dark-mode",
        now - 240 * minute,
        kind="unwatched",
        severity=Severity.INFO,
        summary="dark-mode is watched again",
    )
    made.tell("old-flag", now - 90 * minute, summary="old-flag is at 0 %: latency_p99 900 ms")
    made.planner.take(None, step_of("old-flag"), now - 60 * minute)
    made.tell(
        "recommendations",
        now - 25 * minute,
        kind="paused",
        severity=Severity.WARNING,
        summary="recommendations is paused at 50 %: a person paused it",
        action="resume it, or roll it back",
    )
    made.planner.acknowledge("recommendations", "bob@example.org", now - 20 * minute)
    made.tell(
        "search-v3",
        now - 8 * minute,
        kind="approval_needed",
        severity=Severity.WARNING,
        summary="search-v3 waits at 25 % for somebody to approve 50 %",
        action="approve or reject it",
    )
    made.tell(
        "payments-api",
        now - 5 * minute,
        kind="not_actuated",
        severity=Severity.WARNING,
        summary="payments-api: unleash serves 25 %, decided is 10 %",
    )
    made.tell(
        "new-checkout",
        now - 12 * minute,
        summary="new-checkout was rolled back from 10 % to 0 %: error_rate 4.1 % against 0.93 %",
        action="find the cause, fix it, then restart the rollout",
    )
    made.planner.do_due(now - minute)
    made.deliver(now - minute, but="pager")
    made.book.channel_is(
        "pager", ChannelState(3, now - 500 * minute, "no answer within 10 s", now - minute)
    )
    return made


def step_of(flag: str) -> Any:
    """Return that the rollout of a flag went on."""
    made = step(9_999)
    return type(made)(flag, made.rollout_id, made.revision, is_new_chapter=False)
