"""What becomes of a message that only some recipients of a channel have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest

from controller.errors import ChannelUnavailable, RecipientsMissed
from controller.health import Faults
from controller.notifying.book import Book, Purpose, Thread
from controller.notifying.sending import GIVEN_UP, Limits, Sender
from controller.notifying.words import Message, plain_message
from tests.builders import MINUTE, T0
from tests.unit.notifying.news_of import news


class Clock:
    """Stands still until it is set."""

    at = T0

    def now(self) -> datetime:
        """Return the moment."""
        return self.at

    def monotonic(self) -> float:
        """Return seconds."""
        return (self.at - T0).total_seconds()


class Mail:
    """A channel with two recipients, one of whom the server does not take."""

    name = "mail"
    limits = Limits(60, 5, 50)
    tracks = False
    forgets = False

    def __init__(self) -> None:
        self.later: tuple[str, ...] = ("boss",)
        self.never: tuple[str, ...] = ()
        self.got: list[tuple[tuple[str, ...], tuple[int, ...]]] = []  # recipients, revisions

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Take one message."""
        await self.send_group([message])

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Take several."""
        to = messages[0].only or ("ada", "boss")
        assert all(one.only == messages[0].only for one in messages)
        missing = {one for one in to if one in (*self.later, *self.never)}
        if having := tuple(one for one in to if one not in missing):
            self.got.append((having, tuple(one.news.revision for one in messages)))
        if missing:
            later = [one for one in self.later if one in missing]
            never = [one for one in self.never if one in missing]
            raise RecipientsMissed("no", later=later, never=never)

    async def close(self) -> None:
        """Nothing is open."""


class Desk:
    """A sender and what it works with."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.faults = Faults(self.clock.now)
        self.book = Book()
        self.mail = Mail()
        self.sender = Sender(
            self.mail,
            self.book,
            lambda one: plain_message(one, "production", None),
            self._save,
            self.clock,
            self.faults,
        )

    async def _save(self) -> None:
        """Keep nothing."""

    def add(self, number: int) -> None:
        """Let the channel get a message."""
        self.book.add("mail", news(number), Purpose.NEWS, self.clock.at)

    async def send_due(self) -> None:
        """Send what is due by now, as the sender's loop does."""
        while due := self.sender._next():
            assert await self.sender._send(due) == 0.0

    @property
    def fault_names(self) -> list[str]:
        """Faults that there are now."""
        return [one.name for one in self.faults.current]


async def test_who_was_missed_gets_it_later_and_holds_up_nobody() -> None:
    """Also after another replica has taken the turn, as it is stored."""
    desk = Desk()
    for number in range(1, 4):
        desk.add(number)
    await desk.send_due()
    assert desk.mail.got == [(("ada",), (number,)) for number in (1, 2, 3)]
    desk.clock.at += 3 * MINUTE
    await desk.send_due()
    assert desk.fault_names == ["recipients/mail"]
    desk.add(4)
    await desk.send_due()
    assert desk.mail.got[3:] == [(("ada",), (4,))]
    stored = {name.encode(): value for name, value in desk.book.changes().items()}
    assert [one.only for one in Book.read(stored).waiting("mail")] == [("boss",)] * 4
    desk.mail.later = ()
    desk.clock.at += 3 * MINUTE
    await desk.send_due()
    assert desk.mail.got[4:] == [(("boss",), (number,)) for number in (1, 2, 3, 4)]
    assert desk.fault_names == []
    assert desk.book.waits == 0
    assert not desk.book.dead


async def test_groups_are_for_the_same_recipients() -> None:
    """Some wait for one recipient, others for all."""
    desk = Desk()
    for number in range(12):
        desk.add(number)
    await desk.send_due()
    desk.mail.later = ()
    desk.clock.at += 3 * MINUTE
    for number in range(12, 24):
        desk.add(number)
    await desk.send_due()
    first, second = tuple(range(12)), tuple(range(12, 24))
    assert desk.mail.got == [(("ada",), first), (("boss",), first), (("ada", "boss"), second)]


async def test_who_is_refused_for_good_is_told_of_and_can_be_tried_again() -> None:
    """By `notify retry`, which sends to him alone."""
    desk = Desk()
    desk.mail.later, desk.mail.never = (), ("boss",)
    desk.add(1)
    await desk.send_due()
    assert desk.book.waits == 0
    assert desk.fault_names == ["dead_letters/mail"]
    (number,) = desk.book.dead
    desk.mail.never = ()
    desk.book.revive(number, desk.clock.at)
    await desk.send_due()
    assert desk.mail.got == [(("ada",), (1,)), (("boss",), (1,))]
    assert desk.fault_names == []


async def test_who_is_missed_for_days_is_given_up() -> None:
    """As any message that cannot be sent."""
    desk = Desk()
    desk.add(1)
    await desk.send_due()
    desk.clock.at += GIVEN_UP + timedelta(hours=1)
    await desk.send_due()
    assert desk.book.waits == 0
    assert [one.delivery.only for one in desk.book.dead.values()] == [("boss",)]


@pytest.mark.parametrize(
    "failure", [None, ChannelUnavailable("gone", 600.0)], ids=["sent", "failed"]
)
async def test_a_cancellation_that_a_library_loses_ends_the_sender_all_the_same(
    failure: ChannelUnavailable | None,
) -> None:
    """`asyncio.wait_for` of Python 3.11 does: the turn's end, and a stop, waited for ever."""
    desk = Desk()

    class Losing(Mail):
        """Answers or fails as it is cancelled, and says nothing of it."""

        async def send_group(self, messages: Sequence[Message]) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            if failure is not None:
                raise failure

    desk.sender._channel = Losing()
    desk.add(1)
    sending = asyncio.create_task(desk.sender.run())
    await asyncio.sleep(0.01)
    sending.cancel()
    done, _ = await asyncio.wait([sending], timeout=5)
    assert done
    assert sending.cancelled()
