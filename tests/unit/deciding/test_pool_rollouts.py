"""The map of rollouts that the worker pool keeps, while workers come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.deciding.worker_pool import WorkerPool
from schemas.terms import AlertKind, Severity
from tests.builders import make_external
from tests.unit.deciding.cluster import FLAGS, Cluster
from tests.virtual_time import in_virtual_time


@asynccontextmanager
async def pool_with_a_rollout() -> AsyncIterator[tuple[Cluster, WorkerPool, Rollout]]:
    """Run a replica, and start a rollout there."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(5)
        yield cluster, replica.pool, replica.pool.rollouts[flag]


@in_virtual_time
async def test_a_worker_that_is_being_stopped_is_asked_nothing_any_more() -> None:
    """Its end is waited for; until then loops that ask several times a second must find no trace.

    What it saves as it ends puts nothing back.
    """
    async with pool_with_a_rollout() as (cluster, pool, rollout):
        flag = rollout.flag_key
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


@in_virtual_time
async def test_effects_that_wait_for_kafka_are_counted_until_they_are_published() -> None:
    """Those of each flag, for as long as the oldest of them has waited."""
    cluster = Cluster()
    async with cluster.replica() as replica:
        for flag in FLAGS.values():
            cluster.order("start", flag)
        await cluster.passes(5)
        pool = replica.pool
        assert (pool.pending_effects, pool.outbox_seconds) == (0, 0.0)
        cluster.publisher.outage.is_down = True
        alert = RaiseAlert(AlertKind.FLAG_BROKEN, Severity.WARNING, "a test", "nothing", "key")
        for flag in FLAGS.values():
            pool.alert(flag, alert)
        await cluster.passes(5)
        assert pool.pending_effects == len(FLAGS)
        assert pool.outbox_seconds >= 5
        cluster.publisher.outage.is_down = False
        await cluster.passes(40)
        assert (pool.pending_effects, pool.outbox_seconds) == (0, 0.0)


@in_virtual_time
async def test_rollouts_with_external_metrics_are_known_without_a_search() -> None:
    """They are looked for twice a second, and most plans have none."""
    async with pool_with_a_rollout() as (_, pool, rollout):
        flag = rollout.flag_key
        assert pool.with_external_metrics == {}
        measured = replace(rollout, plan=replace(rollout.plan, external=(make_external(),)))
        pool._follow(flag, measured)
        assert pool.with_external_metrics == {flag: measured}
        pool._follow(flag, rollout)
        assert pool.with_external_metrics == {}
        pool._follow(flag, measured)
        await pool.stop(flag)
        assert pool.with_external_metrics == {}


@in_virtual_time
async def test_flags_are_placed_again_only_when_flags_or_workers_have_changed() -> None:
    """Ten thousand flags are not sorted twice a second for nothing."""
    cluster, first, second = Cluster(), FLAGS[0], FLAGS[1]
    async with cluster.replica() as replica:
        follower: Any = replica.deciding.follower
        placed: list[float] = []
        start_own = follower._start_own

        async def noted(*arguments: Any) -> int:
            placed.append(cluster.clock.monotonic())
            started: int = await start_own(*arguments)
            return started

        follower._start_own = noted
        cluster.order("start", first)
        await cluster.passes(5)
        rounds = len(placed)
        await cluster.passes(60)
        assert len(placed) == rounds
        cluster.order("start", second)
        await cluster.passes(5)
        assert len(placed) > rounds
        assert set(replica.pool.rollouts) == {first, second}
        rounds = len(placed)
        await replica.pool.stop(first)  # as if it had been retired, which it was not
        await cluster.passes(5)
        assert len(placed) > rounds
        assert set(replica.pool.rollouts) == {first, second}


@in_virtual_time
async def test_a_flag_that_comes_as_a_guest_while_flags_are_placed_is_let_go() -> None:
    """A forwarded command starts a worker here at any moment; its flag runs on another replica."""
    cluster = Cluster()
    async with cluster.replica() as one, cluster.replica():
        await cluster.passes(5)
        follower: Any = one.deciding.follower
        own = {number for _, number in follower.owned}
        foreign = next(flag for number, flag in FLAGS.items() if number not in own)
        stop_foreign, came = follower._stop_foreign, asyncio.Event()

        async def while_a_guest_comes(numbers: Any) -> int:
            stopped: int = await stop_foreign(numbers)
            if not came.is_set():
                came.set()
                one.pool.start(foreign)
            return stopped

        follower._stop_foreign = while_a_guest_comes
        cluster.order("start", next(flag for number, flag in FLAGS.items() if number in own))
        await cluster.passes(5)
        assert came.is_set()
        assert foreign not in one.pool
