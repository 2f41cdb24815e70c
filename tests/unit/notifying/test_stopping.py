"""A notifier that is stopped ends, whatever goes wrong at that moment, and no other one does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from controller.errors import StoreUnavailable
from controller.health import Faults
from controller.notifying.notifier import Notifier, Surroundings
from controller.notifying.rules import default_rules
from controller.turns import Pulse
from tests.unit.notifying.test_crashes_while_storing import Store
from tests.unit.notifying.test_faults_of_a_turn import Nothing, Now
from tests.unit.notifying.test_recipients import Mail


class CutOff(Store):
    """Whoever is cancelled as it writes hears that the connection is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.is_slow = False
        self.is_asked = asyncio.Event()

    async def save(
        self, owner: str, expected: int | None, fields: Mapping[str, bytes]
    ) -> int | None:
        """Write fields, or wait for ever."""
        if owner and self.is_slow:
            self.is_asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise StoreUnavailable("the connection is gone") from None
        return await super().save(owner, expected, fields)


class Away(Store):
    """It can be away."""

    is_away = False

    async def save(
        self, owner: str, expected: int | None, fields: Mapping[str, bytes]
    ) -> int | None:
        """Write fields."""
        if self.is_away:
            raise StoreUnavailable("Redis is away")
        return await super().save(owner, expected, fields)


def notifier_of(store: Store) -> Notifier:
    """Return a notifier with mail, whose turn comes at once."""
    process = Surroundings(
        "me", "production", None, lambda _: "", Now(), Faults(Now().now), lambda _: None
    )
    pulse = Pulse(beat=0.01, free_after=3600.0)
    return Notifier(store, Nothing(), [Mail()], lambda: default_rules(["mail"]), process, pulse)


async def test_one_whose_redis_was_away_goes_on() -> None:
    """It was taken for stopped, and nobody was notified any more."""
    store = Away()
    running = asyncio.create_task(notifier_of(store).run())
    try:
        async with asyncio.timeout(30):
            while store.owner != "me":
                await asyncio.sleep(0.01)
            store.is_away = True
            await asyncio.sleep(0.1)  # ten beats
            store.is_away, before = False, store.version
            while store.version == before and not running.done():
                await asyncio.sleep(0.01)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_one_that_cannot_write_at_that_moment_ends() -> None:
    """Its turn began again, and what had stopped it waited for ever. Another replica goes on."""
    store = CutOff()
    running = asyncio.create_task(notifier_of(store).run())
    async with asyncio.timeout(30):
        while store.owner != "me":
            await asyncio.sleep(0.01)
        store.is_slow = True
        await store.is_asked.wait()
    running.cancel()
    _, unfinished = await asyncio.wait({running}, timeout=5)
    running.cancel()  # else a failed test would not end
    assert not unfinished
    assert store.owner == ""
