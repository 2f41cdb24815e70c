"""What the notifier knows: what waits to be sent, incidents, mutes, conversations, dead letters.

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
MOST_ENDED: Final = 500
MOST_MUTES: Final = 200
THREADS_KEPT: Final = timedelta(days=30)
DEAD_KEPT: Final = timedelta(days=7)
ENDED_KEPT: Final = timedelta(days=1)
GONE: Final = b""

EntryT = TypeVar("EntryT", bound=msgspec.Struct)

log = structlog.get_logger(__name__)


class Purpose(StrEnum):
    """Why a channel gets a message."""

    NEWS = "news"
    NOTE = "note"  # news that opens no incident, so that nobody will hear that it is over
    REPEAT = "repeat"  # nobody has taken it yet
    ESCALATED = "escalated"  # nobody has taken it, and this channel is the next
    TAKEN = "taken"  # somebody has taken it
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
    by: str = ""  # who has taken it
    only: tuple[str, ...] = ()  # recipients of the channel; empty: all of them
    again_at: datetime | None = None  # not before


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
    held: tuple[str, ...] = ()  # routes that are muted, and are told when their mute ends
    reached: dict[str, datetime] = {}  # channels that have a message of it, and since when


class Ended(msgspec.Struct, frozen=True):
    """An incident that is over."""

    key: str
    incident: Incident
    at: datetime
    why: str


class Mute(msgspec.Struct, frozen=True):
    """News that somebody has muted by command."""

    number: int
    about: str  # a route, or a pattern of flags
    is_route: bool
    by: str
    reason: str
    at: datetime
    until: datetime
    is_critical_too: bool = False


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
    "ended": Ended,
    "mute": Mute,
}
_CURSOR: Final = "cursor"
_NUMBER: Final = "number"
#: What nobody is shown, and most of what is stored: what was told of each flag and where.
_HISTORIES: Final = tuple(f"{kind}|".encode() for kind in ("flag", "thread", _CURSOR))


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
        self.ended: dict[str, Ended] = {}  # by when it was opened, and key
        self.mutes: dict[int, Mute] = {}
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
            except (ValueError, RecursionError) as error:
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
            elif kind == "mute":
                self.mutes[int(name)] = entry
            else:
                entries: dict[str, dict[str, Any]] = {
                    "incident": self.incidents,
                    "flag": self.flags,
                    "channel": self.channels,
                    "ended": self.ended,
                }
                entries[kind][name] = entry

    def changes(self) -> dict[str, bytes]:
        """Return every field that has changed since the last call; an empty value: it is gone.

        In the order in which they are safe to store, as a crash may leave out those at the end.
        """
        changed, self._changes = self._changes, {}
        return dict(sorted(changed.items(), key=_place))

    def fields(self) -> dict[str, bytes]:
        """Return every field, in the order in which they are safe to store."""
        named: list[tuple[str, msgspec.Struct]] = [
            *(
                (f"delivery|{one.number}", one)
                for each in self.queues.values()
                for one in each.values()
            ),
            *((f"incident|{name}", one) for name, one in self.incidents.items()),
            *((f"thread|{channel}|{name}", one) for (channel, name), one in self.threads.items()),
            *((f"dead|{number}", one) for number, one in self.dead.items()),
            *((f"mute|{number}", one) for number, one in self.mutes.items()),
            *((f"flag|{name}", one) for name, one in self.flags.items()),
            *((f"channel|{name}", one) for name, one in self.channels.items()),
            *((f"ended|{name}", one) for name, one in self.ended.items()),
        ]
        found = {name: msgspec.json.encode(one) for name, one in named}
        found[f"{_NUMBER}|"] = str(self.number).encode()
        found |= {f"{_CURSOR}|{place}": b"%d" % at for place, at in self.cursor.items()}
        return dict(sorted(found.items(), key=_place))

    # --- changes ---

    def read_to(self, place: str, offset: int) -> None:
        """Note the next offset of a partition."""
        self.cursor[place] = offset
        self._changes[f"{_CURSOR}|{place}"] = str(offset).encode()

    def add(
        self,
        channel: str,
        news: News,
        purpose: Purpose,
        at: datetime,
        route: str = "",
        by: str = "",
    ) -> Delivery:
        """Let a channel get a message."""
        return self._put(Delivery(self._next_number(), channel, news, purpose, at, route, by))

    def _put(self, made: Delivery) -> Delivery:
        self.queues.setdefault(made.channel, {})[made.number] = made
        self._note("delivery", str(made.number), made)
        return made

    def put_off(self, delivery: Delivery, only: tuple[str, ...], until: datetime) -> None:
        """Let some recipients get a message later, behind all others."""
        self.sent(delivery)
        number = self._next_number()
        self._put(msgspec.structs.replace(delivery, number=number, only=only, again_at=until))

    def _next_number(self) -> int:
        self.number += 1
        self._changes[_NUMBER + "|"] = str(self.number).encode()
        return self.number

    def reached(self, delivery: Delivery, at: datetime) -> None:
        """Note that a channel has a message, for those who ask who knows of an incident."""
        incident = self.incidents.get(delivery.news.key)
        if incident is not None and delivery.purpose is not Purpose.REFRESH:
            reached = {**incident.reached, delivery.channel: at}
            self.open(delivery.news.key, msgspec.structs.replace(incident, reached=reached))

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
        self._put(msgspec.structs.replace(dead, number=self._next_number(), at=at, again_at=None))

    def forget_dead(self, number: int) -> None:
        """Forget a dead message."""
        if self.dead.pop(number, None) is not None:
            self._changes[f"dead|{number}"] = GONE

    def open(self, key: str, incident: Incident) -> None:
        """Note an incident, or what has changed about it."""
        self.incidents[key] = incident
        self._note("incident", key, incident)

    def close(self, key: str, at: datetime, why: str) -> None:
        """Note that an incident is over, and keep it for those who look who was told of it."""
        incident = self.incidents.pop(key, None)
        if incident is None:
            return
        self._changes[f"incident|{key}"] = GONE
        name = f"{incident.opened_at.timestamp():.6f} {key}"
        self.ended[name] = Ended(key, incident, at, why)
        self._note("ended", name, self.ended[name])

    def mute(
        self,
        about: str,
        by: str,
        reason: str,
        at: datetime,
        until: datetime,
        *,
        is_route: bool,
        is_critical_too: bool,
    ) -> Mute:
        """Note that somebody mutes a route or flags."""
        number = self._next_number()
        made = Mute(number, about, is_route, by, reason, at, until, is_critical_too)
        self.mutes[number] = made
        self._note("mute", str(number), made)
        return made

    def unmute(self, number: int) -> None:
        """Forget a mute."""
        if self.mutes.pop(number, None) is not None:
            self._changes[f"mute|{number}"] = GONE

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
        for number, mute in list(self.mutes.items()):
            if mute.until <= now:
                self.unmute(number)
        for ended, _ in _oldest(self.ended, MOST_ENDED, now - ENDED_KEPT):
            del self.ended[ended]
            self._changes[f"ended|{ended}"] = GONE
        for name, _ in _oldest(self.threads, MOST_THREADS, now - THREADS_KEPT):
            del self.threads[name]
            self._changes[f"thread|{name[0]}|{name[1]}"] = GONE
        for flag, _ in _oldest(self.flags, MOST_FLAGS, now - THREADS_KEPT):
            del self.flags[flag]
            self._changes[f"flag|{flag}"] = GONE

    def _note(self, kind: str, name: str, entry: msgspec.Struct) -> None:
        self._changes[f"{kind}|{name}"] = msgspec.json.encode(entry)


def _place(change: tuple[str, bytes]) -> int:
    """Return where a change stands among those that are stored together.

    What is owed comes first. What says that it is done, or was read, must never be stored without
    it: the record would be read again, taken for known, and never told. So an incident follows its
    messages, the ids of news follow the incidents, and how far was read is last.
    """
    field, value = change
    kind = field.partition("|")[0]
    if kind in ("flag", _CURSOR):
        return 3 if kind == "flag" else 4
    if kind == "incident":
        return 1
    return 0 if value else 2


def without_histories(stored: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Return of what is stored the fields that anything shown is made of."""
    return {name: value for name, value in stored.items() if not name.startswith(_HISTORIES)}


def _oldest(
    entries: Mapping[Any, Thread | FlagNews | Ended], most: int, limit: datetime
) -> list[tuple[Any, datetime]]:
    """Return the entries that are older than `limit` or beyond `most`, with their times."""
    if len(entries) <= most:  # nearly always: sorting thousands at each look would be for nothing
        return [(name, one.at) for name, one in entries.items() if one.at < limit]
    by_age = sorted(((name, one.at) for name, one in entries.items()), key=lambda pair: pair[1])
    beyond = len(by_age) - most
    return by_age[:beyond] + [pair for pair in by_age[beyond:] if pair[1] < limit]
