"""An escalation while the notifier crashes again and again, at any write to a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from controller.adapters.redis.connection import RedisConnection
from controller.notifying.rules import NotificationRules
from schemas.terms import Severity
from tests.integration.test_notifier import World, request, until
from tests.notification_services import PagerDuty, Receiver, running
from tests.patience import SLACK

RULES = NotificationRules.model_validate(
    {
        "routes": [{"name": "all", "to": ["mine"], "escalation": "on-call"}],
        "escalations": [
            {"name": "on-call", "repeat": "2s", "steps": [{"after": "1s", "to": ["pager"]}]}
        ],
    }
)


class Mortal:
    """A world whose notifier dies at a share of its writes: before one, or right after it."""

    def __init__(self, world: World, share: float, seed: int) -> None:
        self._world = world
        self._dice = random.Random(seed)
        self._share = share
        self._save = world.store.save
        self.deaths = 0
        world.store.save = self._dying_save  # type: ignore[method-assign]

    async def _dying_save(
        self, owner: str, expected: int | None, fields: Mapping[str, bytes]
    ) -> Any:
        chance = self._dice.random()
        if chance < self._share / 2:
            raise SystemError("killed before the write")
        made = await self._save(owner, expected, fields)
        if chance < self._share:
            raise SystemError("killed after the write")
        return made

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run a replica, and the next one when it has died."""

        async def live_on() -> None:
            while True:
                async with self._world.replica() as task:
                    await asyncio.wait({task})
                    self.deaths += 1
                with contextlib.suppress(BaseException):
                    task.result()

        life = asyncio.create_task(live_on())
        try:
            yield
        finally:
            life.cancel()
            await asyncio.wait({life})


def purposes(mine: Receiver, flag: str) -> Counter[str]:
    """Return what was told of a flag, with how often."""
    return Counter(one["data"]["purpose"] for one in mine.shown if one["data"]["flag"] == flag)


@pytest.mark.parametrize("seed", range(4))
async def test_an_escalation_goes_on_through_any_crash(store: RedisConnection, seed: int) -> None:
    """Told, repeated, escalated, taken and ended as configured; nobody is forgotten."""
    world, mine, pager = World(store), Receiver(), PagerDuty()
    world.rules = RULES
    async with running(mine, pager):
        world.channel("mine", "webhook", mine)
        world.channel("pager", "pagerduty", pager)
        for flag in ("early", "late", "over", "open"):
            world.news.add(1, flag)
        world.news.records.append(request("acknowledge", "early"))
        mortal = Mortal(world, 0.3, seed)
        async with mortal.running():
            await until(lambda: len(pager.incidents) == 3, 30 * SLACK)
            world.news.records.append(request("acknowledge", "late"))
            world.news.add(2, "over", key="over/1", severity=Severity.INFO)
            await until(lambda: pager.acknowledged != [] and pager.resolved != [], 30 * SLACK)
            await until(lambda: purposes(mine, "late")["taken"] == 1, 30 * SLACK)
            await until(lambda: purposes(mine, "over")["over"] == 1, 30 * SLACK)
            before = {flag: purposes(mine, flag) for flag in ("early", "late", "over", "open")}
            wanted = before["open"]["repeat"] + 3
            await until(lambda: purposes(mine, "open")["repeat"] >= wanted, 30 * SLACK)
        world.store.save = mortal._save  # type: ignore[method-assign]
        book = await world.book()
    assert mortal.deaths > 0
    assert set(pager.acknowledged) == {"late/1"}
    assert set(pager.resolved) == {"over/1"}
    assert pager.incidents.keys() == {"late/1", "open/1"}
    assert purposes(mine, "early") == {"news": 1, "taken": 1}
    for flag, last in (("late", "taken"), ("over", "over")):
        assert purposes(mine, flag) == before[flag]
        assert before[flag]["news"] == before[flag][last] == 1
    assert {key: one.taken_by for key, one in book.incidents.items()} == {
        "early/1": "ada",
        "late/1": "ada",
        "open/1": "",
    }
