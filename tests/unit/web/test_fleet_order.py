"""The one order of the fleet, which page and API share."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from controller.core.rollout import RolledBack, Rollout
from controller.reporting.views import Urgency
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from controller.web.fleet_order import FleetOrder, Question
from controller.web.inventory import FlagQuestion, Lists
from tests.builders import HOUR, T0, make_plan, make_rollout


class CountedBoard(FlagBoard):
    """Counts how often all rollouts are gone through."""

    passes = 0

    @property
    def rollouts(self) -> list[Rollout]:
        """Return them."""
        self.passes += 1
        return list(super().rollouts)


def make_fleet(
    count: int, now: Callable[[], datetime] = lambda: T0
) -> tuple[CountedBoard, FleetOrder]:
    """Return a board of so many flags, and its order."""
    board = CountedBoard(generation=Generation.V3, monotonic=lambda: 1.0)
    for number in range(count):
        board.update(rollout(f"flag-{number:04}"))
    board.trust()
    return board, FleetOrder(board, now)


def rollout(flag_key: str) -> Rollout:
    """Return one that bakes."""
    return make_rollout(plan=make_plan(flag_key=flag_key), flag_key=flag_key)


async def test_the_order_is_worked_out_once_per_change() -> None:
    """However many ask, with whatever question, also at once."""
    board, order = make_fleet(1_000)
    questions = [Question(), Question("flag-00"), Question(state=Urgency.ACTIVE)]
    answers = await asyncio.gather(*(order.listed(one) for one in questions * 20))
    assert [len(one.rollouts) for one in answers[:3]] == [1_000, 100, 1_000]
    assert board.passes == 1
    board.update(replace(rollout("flag-0007"), revision=2, phase=RolledBack(T0, "errors")))
    assert (await order.listed(Question())).rollouts[0].flag_key == "flag-0007"
    assert board.passes == 2


async def test_others_run_while_a_large_fleet_is_gone_through() -> None:
    """Ten thousand flags take many turns of the loop, so that evaluations are answered between."""
    _, order = make_fleet(10_000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await order.listed(Question("9"))
    counting.cancel()
    assert turns > 20


async def test_a_rollback_needs_a_person_for_a_day() -> None:
    """Although nothing changes when the day is over."""
    at = [T0]
    board, order = make_fleet(1, lambda: at[0])
    board.update(replace(rollout("flag-0000"), revision=2, phase=RolledBack(T0, "errors")))
    assert (await order.listed(Question())).counts[Urgency.ATTENTION] == 1
    at[0] = T0 + 24 * HOUR + timedelta(seconds=10)
    assert (await order.listed(Question())).counts[Urgency.ATTENTION] == 0


async def test_retired_flags_are_let_go_without_another_question() -> None:
    """Nobody may open the page for weeks; until then ten thousand of them would stay."""
    board, _ = make_fleet(3)
    lists = Lists.of(board, lambda: T0, None)
    assert len((await lists.fleet.listed(Question())).rollouts) == 3
    assert (await lists.inventory.found(FlagQuestion())).total == 3
    board.drop("flag-0002", 10**6)
    rollouts = [one for one in gc.get_objects() if isinstance(one, Rollout)]
    assert "flag-0002" not in {one.flag_key for one in rollouts}
    assert len((await lists.fleet.listed(Question())).rollouts) == 2
    assert (await lists.inventory.found(FlagQuestion())).total == 2


async def test_a_rollout_that_nobody_watches_needs_somebody() -> None:
    """It comes before all that go on by themselves, within ten seconds."""
    unwatched: set[str] = set()
    now = T0
    board, _ = make_fleet(3)
    order = FleetOrder(board, lambda: now, lambda one: one.flag_key in unwatched)
    assert (await order.listed(Question())).counts[Urgency.ATTENTION] == 0
    unwatched.add("flag-0002")
    now += timedelta(seconds=10)
    listed = await order.listed(Question())
    assert listed.counts[Urgency.ATTENTION] == 1
    assert listed.rollouts[0].flag_key == "flag-0002"
