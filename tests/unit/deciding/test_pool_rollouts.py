"""The map of rollouts that the worker pool keeps, while workers come and go."""

from __future__ import annotations

import asyncio

from tests.unit.deciding.cluster import FLAGS, Cluster
from tests.virtual_time import in_virtual_time


@in_virtual_time
async def test_a_worker_that_is_being_stopped_is_asked_nothing_any_more() -> None:
    """Its end is waited for; until then loops that ask several times a second must find no trace.

    What it saves as it ends puts nothing back.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(5)
        pool = replica.pool
        rollout = pool.rollouts[flag]
        pool._at_gates_with_webhooks.add(flag)
        assert flag in pool.judged_gates
        stopping = asyncio.create_task(pool.stop(flag))
        while not stopping.done():
            await asyncio.sleep(0)
            assert pool.judged_gates == {}
            assert flag not in pool.rollouts
            pool._follow(flag, rollout)
        assert flag not in pool.rollouts
        pool.start(flag)
        await cluster.passes(2)
        assert pool.rollouts[flag].rollout_id == rollout.rollout_id
