"""A flag's worker and its plan's active windows, in virtual time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from controller.core.plan import Window
from controller.core.rollout import Baking, Completed, Paused, Phase, RolledBack
from controller.deciding.flag.flag_inbox import NewTotals
from schemas.terms import CommandVerb, OnBreach
from tests.builders import HOUR, MINUTE
from tests.unit.deciding import worker_world
from tests.unit.deciding.worker_world import PLAN, Doubts, World, look, order, start
from tests.virtual_time import in_virtual_time, settled

#: The first half of each hour, every day. A world begins at 09:00.
HALVES = tuple(Window(frozenset(range(1, 8)), 60 * hour, 30, "UTC") for hour in range(24))
SHORT = replace(PLAN, active=HALVES)
LONG = replace(SHORT, stages=tuple(replace(one, bake=10 * HOUR) for one in PLAN.stages))
WATCHED = replace(worker_world.WATCHED, active=HALVES, stages=LONG.stages)


@in_virtual_time
async def test_a_completed_rollout_closes_and_opens_by_itself() -> None:
    """The worker's own timer does it at each edge, and nothing else happens."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(SHORT))
        for _ in range(4 * 60):
            await asyncio.sleep(60)
            rollout = await world.stored()
            if rollout.stage_index is not None and rollout.closed_since is None:
                await look(world, worker)
        assert isinstance((await world.stored()).phase, Completed)
        await asyncio.sleep(60)
        for _ in range(4 * 30):
            await asyncio.sleep(120)
            stored, minute = await world.stored(), world.clock.now().minute
            assert stored.percent == (100 if minute < 30 else 0)
    kinds = [json.loads(one.value)["data"]["kind"] for one in world.published("decisions")]
    assert kinds[-6:] in (["close", "open"] * 3, ["open", "close"] * 3)


@in_virtual_time
async def test_a_restart_while_closed_changes_nothing() -> None:
    """What is stored says that it is closed; whoever runs it next opens it in time."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(LONG))
        await asyncio.sleep(35 * 60)
        closed = await world.stored()
        assert (closed.percent, closed.closed_since is not None) == (0, True)
    async with world.worker():
        await asyncio.sleep(24 * 60)
        assert await world.stored() == closed
        await asyncio.sleep(2 * 60)
        opened = await world.stored()
    assert (opened.percent, opened.revision) == (10, closed.revision + 1)
    assert isinstance(opened.phase, Baking)
    assert isinstance(closed.phase, Baking)
    stood_still = opened.phase.until - closed.phase.until
    assert 30 * MINUTE <= stood_still < 32 * MINUTE


@in_virtual_time
async def test_totals_of_a_closed_time_are_no_gap() -> None:
    """What was counted is judged and shown; that nothing more comes changes nothing."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(20 * 60)
        evidence = world.evidence(await world.stored())
        await asyncio.sleep(15 * 60)
        closed = await world.stored()
        for _ in range(10):
            await asyncio.sleep(60)
            worker.inbox.put_totals(NewTotals(closed.rollout_id, evidence))
            await settled()
        assert await world.stored() == closed
        assert worker.judgement is not None
        assert worker.judgement.gaps == ()
        assert worker.judgement.at == world.clock.now()


@in_virtual_time
@pytest.mark.parametrize(
    ("on_breach", "phase"), [(OnBreach.ROLL_BACK, RolledBack), (OnBreach.PAUSE, Paused)]
)
async def test_harm_that_is_counted_after_the_closing_never_opens(
    on_breach: OnBreach, phase: type[Phase]
) -> None:
    """Events of the last minutes come late. What they show is decided and told while closed."""
    world = World()
    guardrails = (replace(WATCHED.guardrails[0], on_breach=on_breach),)
    async with world.worker() as worker:
        await worker.submit(start(replace(WATCHED, guardrails=guardrails)))
        await asyncio.sleep(20 * 60)
        open_rollout = await world.stored()
        await look(world, worker)
        await asyncio.sleep(15 * 60)
        assert (await world.stored()).closed_since is not None
        world.contexts += 1000
        late = NewTotals(open_rollout.rollout_id, world.evidence(open_rollout, errors=310))
        worker.inbox.put_totals(late)
        await settled()
        assert isinstance((await world.stored()).phase, phase)
        assert any("while it was closed" in alert for alert in _alerts(world))
        await asyncio.sleep(60 * 60)
        assert (await world.stored()).percent == 0
    assert worker.judgement is not None
    assert worker.judgement.harm.failed_requests == 310


def _alerts(world: World) -> list[str]:
    return [json.loads(one.value)["data"]["summary"] for one in world.published("alerts")]


@in_virtual_time
async def test_a_replica_in_doubt_does_not_open() -> None:
    """An opening is a raise: it waits until this replica may raise again."""
    world, doubts = World(), Doubts()
    async with world.worker(guard=doubts) as worker:
        await worker.submit(start(LONG))
        await asyncio.sleep(35 * 60)
        doubts.reasons.append("the clock is wrong")
        await asyncio.sleep(30 * 60)
        assert (await world.stored()).percent == 0
        doubts.reasons.clear()
        await asyncio.sleep(120)
        assert (await world.stored()).percent == 10


@in_virtual_time
async def test_an_abort_while_closed_is_final() -> None:
    """Lowering works while closed, and the next window opens nothing."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(LONG))
        await asyncio.sleep(35 * 60)
        await worker.submit(order(CommandVerb.ABORT, "abort-1", after=35 * MINUTE))
        await asyncio.sleep(60 * 60)
        stored = await world.stored()
        assert (stored.percent, stored.has_ended, stored.closed_since) == (0, True, None)
