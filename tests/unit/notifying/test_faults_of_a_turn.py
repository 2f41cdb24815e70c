"""Faults of notifying belong to the replica whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from controller.health import Faults, Scope
from controller.notifying.book import Purpose
from controller.notifying.notifier import Notifier, Seen, Surroundings
from controller.notifying.rules import default_rules
from controller.notifying.sending import faults_of
from controller.turns import Pulse, Turn
from tests.builders import T0
from tests.unit.notifying.news_of import news
from tests.unit.notifying.test_crashes_while_storing import Store
from tests.unit.notifying.test_recipients import Desk, Mail

DEPENDENCY = Scope.DEPENDENCY


class OtherGoesOn(Store):
    """The turn is another replica's, which writes whenever one looks."""

    def __init__(self) -> None:
        super().__init__()
        self.version, self.owner, self.is_going = 1, "other", False

    async def turn(self) -> Turn:
        """Return who wrote last."""
        if self.is_going:
            assert self.version is not None
            self.version += 1
        return await super().turn()


class Nothing:
    """Nothing happens."""

    async def follow(self, cursor: Mapping[str, int]) -> AsyncGenerator[Sequence[Seen], None]:
        """Yield nothing."""
        await asyncio.Event().wait()
        yield ()


class Now:
    """The time."""

    def now(self) -> datetime:
        """Return UTC time."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds."""
        return asyncio.get_running_loop().time()


async def test_they_end_here_when_another_replica_goes_on() -> None:
    """A day later this one still said that a message waits, which the other had long sent."""
    store, mail, faults = OtherGoesOn(), Mail(), Faults(Now().now)
    for name in ("notifications", "notification_templates", *faults_of(mail)):
        faults.report(DEPENDENCY, name, "something is wrong")
    faults.report(DEPENDENCY, "notifications", "Kafka is away", reporter="reading")
    faults.report(DEPENDENCY, "redis", "another part's")
    process = Surroundings("me", "production", None, lambda _: "", Now(), faults, lambda _: None)
    pulse = Pulse(beat=0.01, free_after=3600.0)
    made = Notifier(store, Nothing(), [mail], lambda: default_rules(["mail"]), process, pulse)
    running = asyncio.create_task(made.run())
    try:
        await asyncio.sleep(0.1)
        assert len(faults.current) == 7  # nobody is seen to go on
        store.is_going = True
        async with asyncio.timeout(30):
            while len(faults.current) > 1:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    assert [one.name for one in faults.current] == ["redis"]


@pytest.mark.parametrize("channel", ["mail", "chat"])
async def test_dead_letters_are_told_by_whoever_goes_on(channel: str) -> None:
    """They are in the book, whoever was there when they were refused."""
    desk = Desk()
    one = desk.book.add(channel, news(), Purpose.NEWS, T0)
    desk.book.bury(one, "no such channel", T0)
    running = asyncio.create_task(desk.sender.run())
    await asyncio.sleep(0.01)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert desk.fault_names == (["dead_letters/mail"] if channel == "mail" else [])
