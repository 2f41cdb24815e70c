"""How often a flag is judged in full, and what every look in between finds all the same."""

from __future__ import annotations

import asyncio

from controller.core.rollout import Paused, RolledBack
from tests.unit.deciding.worker_world import WATCHED, World, look, start
from tests.virtual_time import in_virtual_time


@in_virtual_time
async def test_between_two_full_judgements_every_look_asks_for_harm() -> None:
    """While a stage bakes, gaps and words are told once a second.

    A breach in between is found at the look that shows it.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        await look(world, worker)
        first = worker.judgement
        assert first is not None
        await asyncio.sleep(0.5)
        await look(world, worker, errors=11)
        assert worker.judgement is first
        await asyncio.sleep(0.5)
        await look(world, worker, errors=12)
        assert worker.judgement is not first
        await asyncio.sleep(0.1)
        world.contexts += 500
        await look(world, worker, errors=400)
        assert isinstance((await world.stored()).phase, RolledBack)


@in_virtual_time
async def test_where_looks_are_seldom_each_third_is_a_full_judgement() -> None:
    """With thousands of flags all would be: a breach in between is found at its look as ever.

    However seldom the looks are, each flag is judged twice a minute.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        judged = []
        for number in range(7):
            await look(world, worker, errors=10 + number, turn_seconds=4.0)
            judged.append(worker.judgement)
            await asyncio.sleep(4)
        assert [judged.index(one) for one in judged] == [0, 0, 0, 3, 3, 3, 6]
        await asyncio.sleep(20)
        await look(world, worker, errors=20, turn_seconds=24.0)
        assert worker.judgement is judged[6]
        await asyncio.sleep(10)
        await look(world, worker, errors=21, turn_seconds=30.0)
        assert worker.judgement is not judged[6]
        await asyncio.sleep(5)
        world.contexts += 500
        await look(world, worker, errors=400, turn_seconds=30.0)
        assert isinstance((await world.stored()).phase, RolledBack)


@in_virtual_time
async def test_a_broken_split_is_found_at_the_look_that_shows_it() -> None:
    """It needs no time to last, so it acts between two full judgements, too."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        await look(world, worker, turn_seconds=4.0)
        first = worker.judgement
        await asyncio.sleep(4)
        await look(world, worker, turn_seconds=4.0)
        assert worker.judgement is first
        await asyncio.sleep(4)
        world.control_share = 0.5
        world.contexts += 500
        await look(world, worker, turn_seconds=4.0)
        assert isinstance((await world.stored()).phase, Paused)
