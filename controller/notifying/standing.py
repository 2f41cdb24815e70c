"""How notifying stands: channels, incidents, mutes and dead letters, as the API tells it.

Belongs here: what is shown of the book. Does not belong here: what follows from it (`planner.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

from controller.errors import OperatingTrouble
from controller.notifying.book import ENDED_KEPT, Book, ChannelState, Incident
from controller.notifying.planner import Planner, Told
from controller.notifying.rules import NotificationRules
from schemas.notifications import (
    ChannelEntry,
    DeadLetter,
    EndedIncident,
    IncidentEntry,
    MuteEntry,
    Notice,
    NotificationsView,
    RouteEntry,
)


class SharedReading:
    """Reads how notifying stands, once for all who ask meanwhile.

    After a storm there are thousands of incidents, which take half a second: that is done in a
    thread, one at a time, so that no decision waits however often somebody asks.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[Mapping[bytes, bytes]]],
        view: Callable[[Mapping[bytes, bytes]], NotificationsView],
    ) -> None:
        """`load` returns what is stored, `view` makes of it what is shown."""
        self._load = load
        self._view = view
        self._lock = asyncio.Lock()
        self._found: NotificationsView | OperatingTrouble | None = None
        self._count = 0  # readings that have begun

    async def view(self) -> NotificationsView:
        """Return what was read since this was called. Raises what `load` raises."""
        before = self._count
        async with self._lock:
            if self._count == before or self._found is None:
                self._count += 1
                self._found = None
                try:
                    self._found = await asyncio.to_thread(self._view, await self._load())
                except OperatingTrouble as trouble:
                    self._found = trouble
            found = self._found
        if isinstance(found, OperatingTrouble):
            raise found
        return found


def standing_of(
    book: Book, rules: NotificationRules, types: Mapping[str, str], at: datetime
) -> NotificationsView:
    """Return what is shown; `types` are those of the channels by name."""
    planner = Planner(book, rules, Told(frozenset(types)))
    incidents = sorted(book.incidents.items(), key=lambda pair: pair[1].opened_at, reverse=True)
    ended = sorted(book.ended.values(), key=lambda one: one.at, reverse=True)
    return NotificationsView(
        at=at,
        channels=[_channel(book, name, kind) for name, kind in types.items()],
        routes=[RouteEntry(name=one.name, to=list(one.to)) for one in rules.routes],
        incidents=[_incident(key, one, planner.next_step(one)) for key, one in incidents],
        ended=[
            EndedIncident(incident=_incident(one.key, one.incident, None), at=one.at, why=one.why)
            for one in ended
            if at - one.at <= ENDED_KEPT
        ],
        mutes=_mutes(book, rules, at),
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


def _incident(
    key: str, one: Incident, step: tuple[datetime, Sequence[str]] | None
) -> IncidentEntry:
    return IncidentEntry(
        key=key,
        flag=one.news.flag,
        kind=one.news.kind,
        severity=one.news.severity,
        summary=one.news.summary,
        action=one.news.action,
        opened_at=one.opened_at,
        told=list(one.told),
        notices=[Notice(channel=name, at=one.reached.get(name)) for name in one.told],
        taken_by=one.taken_by,
        taken_at=one.taken_at,
        next_at=None if step is None else step[0],
        next_to=[] if step is None else list(step[1]),
        muted_until=one.muted_until,
    )


def _mutes(book: Book, rules: NotificationRules, at: datetime) -> list[MuteEntry]:
    """Return the mutes that hold or will: those by command first, then those of the file."""
    by_command = [
        MuteEntry(
            name=str(one.number),
            is_by_command=True,
            route=one.about if one.is_route else "",
            about=f"{'route' if one.is_route else 'flags'} {one.about}",
            by=one.by,
            reason=one.reason,
            start=None,
            until=one.until,
            is_critical_too=one.is_critical_too,
        )
        for one in reversed(book.mutes.values())
        if at < one.until
    ]
    by_file = [
        MuteEntry(
            name=one.name,
            is_by_command=False,
            route="",
            about=one.when.words,
            by="",
            reason=one.reason,
            start=one.start if one.start is not None and at < one.start else None,
            until=one.until,
            is_critical_too=True,
        )
        for one in rules.mutes
        if at < one.until
    ]
    return by_command + by_file


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
