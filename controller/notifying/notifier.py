"""Reads what happens, lets channels hear of it, and keeps what waits in Redis.

One replica at a time does it (`turns.py`). Offsets are stored with what was read, so nothing is
lost; a crash between a channel's answer and the store sends that one message again, and one between
the parts of a large write plans what was read again.

Belongs here: the loops of a turn. Does not belong here: what is told to whom
(`planner.py`), and how a channel gets it (`sending.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from controller.cancellation import task_group
from controller.errors import EventLogUnavailable, OperatingTrouble
from controller.health import Faults, Scope
from controller.notifying.book import Book, Delivery
from controller.notifying.intake import Intake
from controller.notifying.planner import Planner, Told
from controller.notifying.rules import NotificationRules
from controller.notifying.sending import Channel, Sender, faults_of
from controller.notifying.templates import in_own_words
from controller.notifying.words import Message, plain_message
from controller.ports import Clock
from controller.turns import USUAL, Pulse, TurnLost, Turns, TurnStore, first_of

PART: Final = "notifications"
TEMPLATES: Final = "notification_templates"
_READING: Final = "reading"  # reports apart from whose turn it is
RETRY_SECONDS: Final = 1.0
_FIX: Final = (
    "see that Redis and Kafka answer, and that their users have the rights, see ops/security.md: "
    "until then notifications wait, and none is lost"
)

log = structlog.get_logger(__name__)


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
        store: TurnStore,
        log_: NewsLog,
        channels: Sequence[Channel],
        rules: Callable[[], NotificationRules],
        process: Surroundings,
        pulse: Pulse = USUAL,
    ) -> None:
        self._turns = Turns(store, PART, process.replica, process.clock, pulse)
        self._log = log_
        self._channels = channels
        self._rules = rules
        self._process = process
        self._book = Book()
        self._senders: Sequence[Sender] = ()

    async def run(self) -> None:
        """Take turns until cancelled."""
        faults = self._process.faults
        while True:
            try:
                stored = await self._turns.wait(self._clear_faults, self._book.fields)
                self._book = Book.read(stored)
                faults.clear(Scope.DEPENDENCY, PART)
                await self._notify()
            except* TurnLost:
                log.info("notifications_elsewhere")
            except* OperatingTrouble as troubles:
                why = f"notifications wait: {first_of(troubles)}"
                faults.report(Scope.DEPENDENCY, PART, why, _FIX)
                log.warning("notifications_wait", error=str(first_of(troubles)))
            await asyncio.sleep(RETRY_SECONDS)

    async def stop(self) -> None:
        """Let another replica go on at once, and drop the connections of all channels."""
        await asyncio.gather(*(one.close() for one in self._channels))

    def _clear_faults(self) -> None:
        """Report nothing of a turn that another replica has: what is wrong there, it reports."""
        faults = self._process.faults
        for name in (PART, TEMPLATES, *(one for each in self._channels for one in faults_of(each))):
            faults.clear(Scope.DEPENDENCY, name)
        faults.clear(Scope.DEPENDENCY, PART, reporter=_READING)

    # --- a turn ---

    async def _notify(self) -> None:
        """Read, do what is due and send, until the turn is lost or something fails."""
        planner = Planner(self._book, self._rules(), self._told)
        planner.drop_unknown_channels(self._process.clock.now())
        self._senders = [self._sender(one) for one in self._channels]
        names = [one.name for one in self._channels]
        intake = Intake(planner, self._process.owner_of, names, self._process.faults)
        try:
            async with task_group() as group:
                group.create_task(self._read(intake), name="notifications: read")
                group.create_task(self._do_due(planner), name="notifications: due")
                for channel, sender in zip(self._channels, self._senders, strict=True):
                    group.create_task(sender.run(), name=f"notifications: {channel.name}")
        except asyncio.CancelledError:
            await self._turns.give_back(self._book.changes())
            raise

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
            process.faults.report(Scope.DEPENDENCY, TEMPLATES, why, fix)

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

    async def _do_due(self, planner: Planner) -> None:
        """Do what is due, and say again and again that it is this replica's turn."""
        while True:
            planner.rules = self._rules()
            planner.do_due(self._process.clock.now())
            await self._save(is_beat=True)
            self._wake()
            await asyncio.sleep(self._turns.pulse.beat)

    def _wake(self) -> None:
        for channel, sender in zip(self._channels, self._senders, strict=True):
            if self._book.queues.get(channel.name):
                sender.news.set()

    async def _save(self, *, is_beat: bool = False) -> None:
        """Store what has changed. Raises TurnLost, StoreUnavailable."""
        changes = self._book.changes()
        if changes or is_beat:
            await self._turns.save(changes)
