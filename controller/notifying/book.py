"""What the notifier knows: what waits to be sent, open incidents, conversations, dead letters.

Every change is noted under the name of a field, so that the store writes what has changed and no
more. Values only, in memory; a field that is gone is noted as an empty one, because an emptied
field can be written together with the others, and a deletion cannot.

Belongs here: what is known, and its form in the store. Does not belong here: what follows from it
(`planner.py`), sending (`sending.py`), Redis (`adapters/redis/turns.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec
import structlog

from controller.notifying.news import News

#: News of a flag that is known by id, so that a record read again is not told again.
MOST_RECENT: Final = 64
#: Messages that wait, of all channels. The oldest of the least urgent make room.
MOST_WAITING: Final = 20_000
MOST_DEAD: Final = 1_000
MOST_THREADS: Final = 5_000
MOST_INCIDENTS: Final = 5_000
MOST_FLAGS: Final = 20_000
THREADS_KEPT: Final = timedelta(days=30)
DEAD_KEPT: Final = timedelta(days=7)
GONE: Final = b""

EntryT = TypeVar("EntryT", bound=msgspec.Struct)

log = structlog.get_logger(__name__)


class Purpose(StrEnum):
    """Why a channel gets a message."""

    NEWS = "news"
    NOTE = "note"  # news that opens no incident, so that nobody will hear that it is over
    REPEAT = "repeat"  # nobody has taken it yet
    ESCALATED = "escalated"  # nobody has taken it, and this channel is the next
    OVER = "over"  # what the channel was told of is over
    REFRESH = "refresh"  # the channel forgets what it does not hear again
    TEST = "test"


class Delivery(msgspec.Struct, frozen=True):
    """A message that a channel is to get."""

    number: int  # messages of a channel are sent in this order
    channel: str
    news: News
    purpose: Purpose
    at: datetime  # when it was due
    route: str = ""


class Incident(msgspec.Struct, frozen=True):
    """Something that people were told of and that is not over."""

    news: News  # the newest of its key
    opened_at: datetime
    told: tuple[str, ...]  # channels
    told_at: datetime  # last time
    route: str = ""
    escalation: str = ""
    steps_done: int = 0
    escalated_to: tuple[str, ...] = ()  # of `told` those that the route does not name
    taken_by: str = ""
    taken_at: datetime | None = None
    muted_until: datetime | None = None  # nobody was told yet


class Thread(msgspec.Struct, frozen=True):
    """A rollout's conversation in a channel."""

    handle: str  # what the channel knows it by
    at: datetime
    place: str = ""  # where in the channel's system


class Dead(msgspec.Struct, frozen=True):
    """A message that its channel will never take."""

    delivery: Delivery
    why: str
    at: datetime


class ChannelState(msgspec.Struct, frozen=True):
    """How a channel does."""

    sent: int = 0  # messages that it has taken
    sent_at: datetime | None = None
    trouble: str = ""  # why the last one was not taken; empty: it was
    since: datetime | None = None  # of the trouble


class FlagNews(msgspec.Struct, frozen=True):
    """What was read of a flag."""

    at: datetime
    recent: tuple[str, ...] = ()  # ids of news, oldest first
    rollout: str = ""  # the newest one, by its id
    moved: int = 0  # revision of the newest decision by which that rollout went on


_KINDS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "delivery": Delivery,
    "incident": Incident,
    "thread": Thread,
    "dead": Dead,
    "flag": FlagNews,
    "channel": ChannelState,
}
_CURSOR: Final = "cursor"
_NUMBER: Final = "number"


class Book:
    """All of it. One owner at a time: the notifier."""

    def __init__(self) -> None:
        self.cursor: dict[str, int] = {}  # `topic/partition` to the next offset
        self.number = 0  # of the newest delivery
        self.queues: dict[str, dict[int, Delivery]] = {}  # by channel and number, in order
        self.incidents: dict[str, Incident] = {}  # by key
        self.threads: dict[tuple[str, str], Thread] = {}  # by channel and rollout
        self.dead: dict[int, Dead] = {}
        self.flags: dict[str, FlagNews] = {}
        self.channels: dict[str, ChannelState] = {}
        self._changes: dict[str, bytes] = {}

    @classmethod
    def read(cls, stored: Mapping[bytes, bytes]) -> Book:
        """Return what is stored. What cannot be read is left out, and logged."""
        book = cls()
        for field, value in stored.items():
            if not value:
                continue
            kind, _, name = field.decode(errors="replace").partition("|")
            try:
                book._take(kind, name, value)
            except (ValueError, msgspec.MsgspecError) as error:
                log.warning("notification_unreadable", field=f"{kind}|{name}", error=str(error))
        for channel, queue in book.queues.items():
            book.queues[channel] = dict(sorted(queue.items()))
        book.number = max([book.number, *(max(one) for one in book.queues.values())])
        return book

    def _take(self, kind: str, name: str, value: bytes) -> None:
        if kind == _CURSOR:
            self.cursor[name] = int(value)
        elif kind == _NUMBER:
            self.number = int(value)
        elif kind in _KINDS:
            entry: Any = msgspec.json.decode(value, type=_KINDS[kind])
            if kind == "thread":
                channel, _, rollout_id = name.partition("|")
                self.threads[channel, rollout_id] = entry
            elif kind == "delivery":
                self.queues.setdefault(entry.channel, {})[int(name)] = entry
            elif kind == "dead":
                self.dead[int(name)] = entry
            else:
                entries: dict[str, dict[str, Any]] = {
                    "incident": self.incidents,
                    "flag": self.flags,
                    "channel": self.channels,
                }
                entries[kind][name] = entry

    def changes(self) -> dict[str, bytes]:
        """Return every field that has changed since the last call; an empty value: it is gone."""
        changed, self._changes = self._changes, {}
        return changed

    # --- changes ---

    def read_to(self, place: str, offset: int) -> None:
        """Note the next offset of a partition."""
        self.cursor[place] = offset
        self._changes[f"{_CURSOR}|{place}"] = str(offset).encode()

    def add(
        self, channel: str, news: News, purpose: Purpose, at: datetime, route: str = ""
    ) -> Delivery:
        """Let a channel get a message."""
        self.number += 1
        self._changes[_NUMBER + "|"] = str(self.number).encode()
        made = Delivery(self.number, channel, news, purpose, at, route)
        self.queues.setdefault(channel, {})[made.number] = made
        self._note("delivery", str(made.number), made)
        return made

    def sent(self, delivery: Delivery) -> None:
        """Forget a message that its channel has."""
        if self.queues.get(delivery.channel, {}).pop(delivery.number, None) is not None:
            self._changes[f"delivery|{delivery.number}"] = GONE

    def bury(self, delivery: Delivery, why: str, at: datetime) -> None:
        """Keep a message as one that its channel will never take."""
        self.sent(delivery)
        self.dead[delivery.number] = Dead(delivery, why, at)
        self._note("dead", str(delivery.number), self.dead[delivery.number])
        while len(self.dead) > MOST_DEAD:
            self.forget_dead(next(iter(self.dead)))

    def revive(self, number: int, at: datetime) -> None:
        """Try a dead message again, as a new one."""
        dead = self.dead[number].delivery
        self.forget_dead(number)
        self.add(dead.channel, dead.news, dead.purpose, at, dead.route)

    def forget_dead(self, number: int) -> None:
        """Forget a dead message."""
        if self.dead.pop(number, None) is not None:
            self._changes[f"dead|{number}"] = GONE

    def open(self, key: str, incident: Incident) -> None:
        """Note an incident, or what has changed about it."""
        self.incidents[key] = incident
        self._note("incident", key, incident)

    def close(self, key: str) -> None:
        """Forget an incident."""
        if self.incidents.pop(key, None) is not None:
            self._changes[f"incident|{key}"] = GONE

    def converse(self, channel: str, rollout_id: str, thread: Thread) -> None:
        """Note a rollout's conversation in a channel."""
        self.threads[channel, rollout_id] = thread
        self._note("thread", f"{channel}|{rollout_id}", thread)

    def of_flag(self, flag: str, seen: FlagNews) -> None:
        """Note what was read of a flag."""
        self.flags[flag] = seen
        self._note("flag", flag, seen)

    def channel_is(self, channel: str, state: ChannelState) -> None:
        """Note how a channel does."""
        self.channels[channel] = state
        self._note("channel", channel, state)

    def put_back(self, changes: Mapping[str, bytes]) -> None:
        """Note changes again that could not be stored; what changed since is newer."""
        self._changes = {**changes, **self._changes}

    def waiting(self, channel: str) -> Iterator[Delivery]:
        """Yield what waits for a channel, in order."""
        return iter(self.queues.get(channel, {}).values())

    @property
    def waits(self) -> int:
        """How many messages wait, of all channels."""
        return sum(map(len, self.queues.values()))

    def tidy(self, now: datetime) -> None:
        """Forget what is old, and the oldest beyond the limits."""
        for number, dead in list(self.dead.items()):
            if now - dead.at > DEAD_KEPT:
                self.forget_dead(number)
        for name, _ in _oldest(self.threads, MOST_THREADS, now - THREADS_KEPT):
            del self.threads[name]
            self._changes[f"thread|{name[0]}|{name[1]}"] = GONE
        for flag, _ in _oldest(self.flags, MOST_FLAGS, now - THREADS_KEPT):
            del self.flags[flag]
            self._changes[f"flag|{flag}"] = GONE

    def _note(self, kind: str, name: str, entry: msgspec.Struct) -> None:
        self._changes[f"{kind}|{name}"] = msgspec.json.encode(entry)


def _oldest(
    entries: Mapping[Any, Thread | FlagNews], most: int, limit: datetime
) -> list[tuple[Any, datetime]]:
    """Return the entries that are older than `limit` or beyond `most`, with their times."""
    by_age = sorted(((name, one.at) for name, one in entries.items()), key=lambda pair: pair[1])
    beyond = max(0, len(by_age) - most)
    return by_age[:beyond] + [pair for pair in by_age[beyond:] if pair[1] < limit]
