"""Reads what happens, lets channels hear of it, and keeps what waits in Redis.

One replica at a time does it: whoever wrote the store last, as long as that changes. Every write
says which version it follows, so that a replica which was held up writes nothing over another's
work, and stops. Offsets are stored with what was read, so nothing is lost and nothing is planned
twice; a crash between a channel's answer and the store sends that one message again.

Belongs here: whose turn it is, and the loops. Does not belong here: what is told to whom
(`planner.py`), and how a channel gets it (`sending.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from controller.errors import EventLogUnavailable, OperatingTrouble
from controller.health import Faults, Scope
from controller.notifying.book import Book, Delivery
from controller.notifying.intake import Intake
from controller.notifying.planner import Planner, Told
from controller.notifying.rules import NotificationRules
from controller.notifying.sending import Channel, Sender
from controller.notifying.templates import in_own_words
from controller.notifying.words import Message, plain_message
from controller.ports import Clock

PART: Final = "notifications"
_READING: Final = "reading"  # reports apart from whose turn it is
RETRY_SECONDS: Final = 1.0
#: Fields of one write.
_MOST_FIELDS: Final = 1_500
_FIX: Final = (
    "see that Redis and Kafka answer, and that their users have the rights, see ops/security.md: "
    "until then notifications wait, and none is lost"
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """Who wrote last."""

    version: int | None  # None: nobody has ever
    owner: str


@dataclass(frozen=True, slots=True)
class Pulse:
    """How fast turns change, in seconds."""

    #: How often the one whose turn it is says so, and looks what is due.
    beat: float = 2.0
    #: A store that nobody has written for so long is free.
    free_after: float = 8.0


class TurnLost(OperatingTrouble):
    """Another replica goes on."""


class NotificationStore(Protocol):
    """The book in Redis: `adapters/redis/notifications.py`. Each call raises StoreUnavailable."""

    async def turn(self) -> Turn:
        """Return who wrote last."""

    async def load(self) -> Mapping[bytes, bytes]:
        """Return every field of the book."""

    async def save(
        self, owner: str, expected: int | None, fields: Mapping[str, bytes]
    ) -> int | None:
        """Write fields after version `expected`; return the new version.

        None: somebody else has written since.
        """

    async def forget(self, fields: Sequence[str]) -> None:
        """Delete fields that were emptied."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record, or that there is none."""

    place: str  # `topic/partition`
    offset: int
    value: bytes


class NewsLog(Protocol):
    """The topics that tell what happens: `adapters/kafka/news_log.py`."""

    def follow(self, cursor: Mapping[str, int]) -> AsyncGenerator[Sequence[Seen], None]:
        """Yield records from the cursor on, in order within each partition, and forever.

        A partition that is not in an empty cursor begins at its end: what happened before anybody
        was to be notified is not told. Raises EventLogUnavailable.
        """


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the notifier needs of the process."""

    replica: str
    environment: str
    page_url: str | None
    owner_of: Callable[[str], str]
    clock: Clock
    faults: Faults
    count: Callable[[str], object]  # what became of a message


class Notifier:
    """Notifies while it is this replica's turn."""

    def __init__(
        self,
        store: NotificationStore,
        log_: NewsLog,
        channels: Sequence[Channel],
        rules: Callable[[], NotificationRules],
        process: Surroundings,
        pulse: Pulse = Pulse(),  # frozen
    ) -> None:
        self._store = store
        self._log = log_
        self._channels = channels
        self._rules = rules
        self._process = process
        self._pulse = pulse
        self._version: int | None = None
        self._saving = asyncio.Lock()
        self._book = Book()
        self._senders: Sequence[Sender] = ()

    async def run(self) -> None:
        """Take turns until cancelled."""
        faults = self._process.faults
        while True:
            try:
                await self._wait_for_turn()
                faults.clear(Scope.DEPENDENCY, PART)
                await self._notify()
            except* TurnLost:
                log.info("notifications_elsewhere")
            except* OperatingTrouble as troubles:
                why = f"notifications wait: {_first(troubles)}"
                faults.report(Scope.DEPENDENCY, PART, why, _FIX)
                log.warning("notifications_wait", error=str(_first(troubles)))
            await asyncio.sleep(RETRY_SECONDS)

    async def stop(self) -> None:
        """Let another replica go on at once, and drop the connections of all channels."""
        await asyncio.gather(*(one.close() for one in self._channels))

    # --- whose turn it is ---

    async def _wait_for_turn(self) -> None:
        """Return when nobody else notifies."""
        seen: Turn | None = None
        changed_at = self._process.clock.monotonic()
        while True:
            turn = await self._store.turn()
            now = self._process.clock.monotonic()
            if turn.version is None or turn.owner in ("", self._process.replica):
                break
            if turn != seen:
                seen, changed_at = turn, now
            elif now - changed_at >= self._pulse.free_after:
                break
            await asyncio.sleep(self._pulse.beat)
        self._version = await self._store.save(self._process.replica, turn.version, {})
        if self._version is None:
            raise TurnLost("another replica was faster")
        log.info("notifications_here")

    async def _notify(self) -> None:
        """Read, look and send until it is no longer this replica's turn, or something fails."""
        self._book = Book.read(await self._store.load())
        planner = Planner(self._book, self._rules(), self._told)
        planner.drop_unknown_channels(self._process.clock.now())
        self._senders = [self._sender(one) for one in self._channels]
        names = [one.name for one in self._channels]
        intake = Intake(planner, self._process.owner_of, names, self._process.faults)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(intake), name="notifications: read")
                group.create_task(self._look(planner), name="notifications: look")
                for channel, sender in zip(self._channels, self._senders, strict=True):
                    group.create_task(sender.run(), name=f"notifications: {channel.name}")
        except asyncio.CancelledError:
            await self._give_turn_back()
            raise

    async def _give_turn_back(self) -> None:
        """Store what is done, and let another replica go on at once."""
        try:
            async with asyncio.timeout(1.0):
                await self._store.save("", self._version, self._book.changes())
        except (TimeoutError, OperatingTrouble) as trouble:
            log.info("notifications_not_given_back", error=str(trouble))

    @property
    def _told(self) -> Told:
        return Told(
            known=frozenset(one.name for one in self._channels),
            tracking=frozenset(one.name for one in self._channels if one.tracks),
            forgetful=frozenset(one.name for one in self._channels if one.forgets),
        )

    def _sender(self, channel: Channel) -> Sender:
        process = self._process
        return Sender(
            channel,
            self._book,
            self._words,
            self._save,
            process.clock,
            process.faults,
            process.count,
        )

    def _words(self, delivery: Delivery) -> Message:
        process = self._process
        message = plain_message(delivery, process.environment, process.page_url)

        def report(why: str) -> None:
            fix = "fix the template in notifications.rules_file, then send SIGHUP"
            process.faults.report(Scope.DEPENDENCY, "notification_templates", why, fix)

        return in_own_words(message, delivery, self._rules().templates, report)

    # --- the loops ---

    async def _read(self, intake: Intake) -> None:
        """Take what happens; while Kafka is away, what waits is sent all the same."""
        faults = self._process.faults
        while True:
            try:
                await self._follow(intake)
            except EventLogUnavailable as trouble:
                why = f"nobody hears of what happens now: {trouble}"
                faults.report(Scope.DEPENDENCY, PART, why, _FIX, reporter=_READING)
                log.warning("news_waits", error=str(trouble))
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, intake: Intake) -> None:
        """Take what happens, and store what follows from it with how far was read."""
        async with aclosing(self._log.follow(self._book.cursor)) as batches:
            async for records in batches:
                self._process.faults.clear(Scope.DEPENDENCY, PART, reporter=_READING)
                now = self._process.clock.now()
                for record in records:
                    intake.take(record.value, now)
                    self._book.read_to(record.place, record.offset + 1)
                if records:
                    await self._save()
                    self._wake()

    async def _look(self, planner: Planner) -> None:
        """Do what is due, and say again and again that it is this replica's turn."""
        while True:
            planner.rules = self._rules()
            planner.look(self._process.clock.now())
            await self._save(is_beat=True)
            self._wake()
            await asyncio.sleep(self._pulse.beat)

    def _wake(self) -> None:
        for channel, sender in zip(self._channels, self._senders, strict=True):
            if self._book.queues.get(channel.name):
                sender.news.set()

    async def _save(self, *, is_beat: bool = False) -> None:
        """Store what has changed. Raises TurnLost, StoreUnavailable."""
        async with self._saving:
            changes = self._book.changes()
            if not (changes or is_beat):
                return
            # How far was read comes last: what was read is stored by then.
            names = sorted(changes, key=lambda name: name.startswith("cursor|"))
            for start in range(0, max(len(names), 1), _MOST_FIELDS):
                part = {name: changes[name] for name in names[start : start + _MOST_FIELDS]}
                version = await self._store.save(self._process.replica, self._version, part)
                if version is None:
                    raise TurnLost("another replica has written")
                self._version = version
            if gone := [name for name, value in changes.items() if not value]:
                await self._store.forget(gone)


def _first(troubles: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first of the exceptions in a group."""
    found: BaseException = troubles
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
