"""How notifying stands: channels, open incidents and dead letters, as the API tells it.

Belongs here: what is shown of the book. Does not belong here: what follows from it (`planner.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from controller.notifying.book import Book, ChannelState
from controller.notifying.planner import Planner, Told
from controller.notifying.rules import NotificationRules
from schemas.api import ChannelEntry, DeadLetter, IncidentEntry, NotificationsView


def standing_of(
    book: Book, rules: NotificationRules, types: Mapping[str, str], at: datetime
) -> NotificationsView:
    """Return what is shown; `types` are those of the channels by name."""
    planner = Planner(book, rules, Told(frozenset(types)))
    incidents = sorted(book.incidents.items(), key=lambda pair: pair[1].opened_at, reverse=True)
    return NotificationsView(
        at=at,
        channels=[_channel(book, name, kind) for name, kind in types.items()],
        incidents=[
            IncidentEntry(
                key=key,
                flag=one.news.flag,
                kind=one.news.kind,
                severity=one.news.severity,
                summary=one.news.summary,
                action=one.news.action,
                opened_at=one.opened_at,
                told=list(one.told),
                taken_by=one.taken_by,
                taken_at=one.taken_at,
                next_at=planner.next_look(one),
                muted_until=one.muted_until,
            )
            for key, one in incidents
        ],
        dead_letters=[
            DeadLetter(
                number=number,
                channel=one.delivery.channel,
                flag=one.delivery.news.flag,
                summary=one.delivery.news.summary,
                why=one.why,
                at=one.at,
            )
            for number, one in reversed(book.dead.items())
        ],
    )


def _channel(book: Book, name: str, kind: str) -> ChannelEntry:
    state = book.channels.get(name, ChannelState())
    return ChannelEntry(
        name=name,
        type=kind,
        waiting=len(book.queues.get(name, {})),
        sent=state.sent,
        sent_at=state.sent_at,
        trouble=state.trouble,
        since=state.since,
    )
