"""Looks for harm alone, between two full judgements of a flag."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controller.core.plan import Plan
from controller.core.rollout import AwaitingApproval, Gating, Phase, RolledBack
from schemas.terms import Approval
from tests.builders import make_stages
from tests.unit.deciding.worker_world import FLAG, WATCHED, World, look, start
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
async def test_with_thousands_of_flags_a_look_for_harm_alone_finds_harm_and_saves_nothing() -> None:
    """It is not judged in full before that is due, and its tests are saved with that."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        await look(world, worker)
        first, saved = worker.judgement, await world.rollouts.load(FLAG)
        await asyncio.sleep(30)
        await look(world, worker, errors=11, is_full_due=False)
        assert worker.judgement is first
        assert await world.rollouts.load(FLAG) == saved
        await asyncio.sleep(30)
        await look(world, worker, errors=12)
        assert worker.judgement is not first
        assert (await world.rollouts.load(FLAG)).tests != saved.tests
        await asyncio.sleep(30)
        world.contexts += 500
        await look(world, worker, errors=400, is_full_due=False)
        assert isinstance((await world.stored()).phase, RolledBack)


@pytest.mark.parametrize(
    ("plan", "phase"),
    [
        (WATCHED, Gating),
        (
            replace(
                WATCHED,
                stages=make_stages(10, 50, approval=Approval.REQUIRED),
                blind=True,
                guardrails=(),
            ),
            AwaitingApproval,
        ),
    ],
)
def test_what_waits_for_evidence_is_judged_in_full_at_every_look(
    plan: Plan, phase: type[Phase]
) -> None:
    """A gate, or a person who may approve, asks for more than harm."""

    @in_virtual_time
    async def run() -> None:
        world = World()
        async with world.worker() as worker:
            await worker.submit(start(plan))
            await asyncio.sleep(661)
            if phase is AwaitingApproval:
                await look(world, worker)
            assert isinstance((await world.stored()).phase, phase)
            before = worker.judgement
            await asyncio.sleep(2)
            await look(world, worker, is_full_due=False)
            assert worker.judgement is not before

    run()
