"""One flag's worker when its plan is changed, and when its plan ends by itself."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.core.judging.carried_tests import identity_of
from controller.core.rollout import Aborted, Completed
from controller.deciding.flag.flag_worker import FlagWorker
from schemas.terms import CommandVerb
from tests.builders import HOUR, MINUTE, T0, make_guardrail, make_plan, make_stages
from tests.unit.deciding.worker_world import FLAG, WATCHED, World, look, order, start
from tests.virtual_time import in_virtual_time, settled

LATENCY = make_guardrail(metric="latency_p99", limit=500.0, margin=None)


def published(world: World, topic: str) -> list[dict[str, Any]]:
    """Return the data of everything published on a topic."""
    return [json.loads(entry.value)["data"] for entry in world.published(topic)]


@in_virtual_time
async def test_a_changed_plan_is_saved_with_its_evidence_and_published_with_the_old_one() -> None:
    """The tests go on under the new plan, also after a restart; the audit log has both plans."""
    world = World()
    more = replace(WATCHED, guardrails=(*WATCHED.guardrails, LATENCY), version="e" * 16)
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        await look(world, worker)
        before = worker.judgement
        assert before is not None
        after = timedelta(seconds=90)
        await worker.submit(order(CommandVerb.APPLY, "apply-1", after=after, plan=more, reason=""))
        assert worker.rollout is not None
        assert [one.metric for one in worker.rollout.plan.guardrails][-1] == "latency_p99"
        assert len(worker.rollout.visits) == 1
        await settled()
    assert world.results()[-1]["status"] == "accepted"
    decision = published(world, "decisions")[-1]
    counts = [len(decision["applied"][plan]["guardrails"]) for plan in ("before", "after")]
    assert (decision["kind"], counts) == ("apply", [1, 2])
    async with world.worker() as again:
        await look(world, again)
        assert again.judgement is not None
        kept = pytest.approx(before.metrics[0].e_value, rel=0.01)
        assert again.judgement.metrics[0].e_value == kept
        assert again.judgement.batches >= before.batches
        assert again.rollout is not None
        assert again._state.tests.identity == identity_of(again.rollout)


async def _to_the_end(worker: FlagWorker) -> None:
    await worker.submit(order(CommandVerb.PROMOTE, "promote-1", after=timedelta(0)))
    assert worker.rollout is not None
    assert isinstance(worker.rollout.phase, Completed)


@in_virtual_time
async def test_a_completed_rollout_ends_when_its_plan_says() -> None:
    """By itself, with a decision and an alert that needs nobody."""
    world = World()
    plan = make_plan(flag_key=FLAG, stages=make_stages(100), ends_at=T0 + HOUR)
    async with world.worker() as worker:
        await worker.submit(start(plan))
        await _to_the_end(worker)
        await asyncio.sleep(59 * 60)
        assert isinstance(worker.rollout.phase, Completed)  # type: ignore[union-attr]
        await asyncio.sleep(2 * 60)
        await settled()
        assert worker.rollout is not None
        assert isinstance(worker.rollout.phase, Aborted)
        assert worker.rollout.percent == 0
        assert worker.rollout.phase.at - (T0 + HOUR) < MINUTE
    assert published(world, "decisions")[-1]["kind"] == "end"
    alert = published(world, "alerts")[-1]
    assert (alert["kind"], alert["severity"]) == ("ended", "info")


@in_virtual_time
async def test_an_end_that_came_while_nobody_ran_is_acted_on_at_once() -> None:
    """The next worker of the flag serves 0 % before it does anything else."""
    world = World()
    plan = make_plan(flag_key=FLAG, stages=make_stages(10, 100), ends_at=T0 + HOUR)
    async with world.worker() as worker:
        await worker.submit(start(plan))
    await asyncio.sleep(3 * 60 * 60)
    async with world.worker() as again:
        await asyncio.sleep(1)
        assert again.rollout is not None
        assert isinstance(again.rollout.phase, Aborted)
        assert again.rollout.percent == 0
