"""What a stopped worker leaves in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from structlog.testing import capture_logs

from controller.adapters.memory import MemoryAdvisor, MemoryPublisher, MemoryReports, MemoryRollouts
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.registry import RolloutRegistry
from controller.deciding.worker_pool import WorkerPool
from controller.health import Faults
from controller.ports import StoredRollout
from controller.telemetry import Metrics
from tests.unit.deciding.cluster import Trusting
from tests.virtual_time import LoopClock, in_virtual_time, settled


class UnreadableRollouts(MemoryRollouts):
    """Of which each worker fails."""

    async def load(self, flag_key: str) -> StoredRollout:
        """Raise what no worker expects."""
        raise RuntimeError(f"no way to read {flag_key}")


@pytest.mark.parametrize("rollouts", [MemoryRollouts, UnreadableRollouts])
@in_virtual_time
async def test_a_stopped_worker_needs_no_garbage_collector(rollouts: type[MemoryRollouts]) -> None:
    """What lives long is frozen, and a cycle in it would stay for ever: 3 kB for each flag.

    Of a worker that has failed, and waits to be started again, it would be 18 kB.
    """
    clock = LoopClock()
    pool = WorkerPool(
        WorkerDependencies(
            rollouts=rollouts(),
            reports=MemoryReports(),
            publisher=MemoryPublisher(),
            advisor=MemoryAdvisor(),
            clock=clock,
            metrics=Metrics(version="test"),
            faults=Faults(clock.now),
            registry=RolloutRegistry(),
            guard=Trusting(),
        )
    )
    async with asyncio.TaskGroup() as group:
        pool.begin(group)
        worker = weakref.ref(pool.start("flag").worker)
        with capture_logs() as lines:
            await settled()
        lines.clear()  # they have the exceptions
        gc.disable()
        try:
            await pool.stop("flag")
            await settled()
            assert worker() is None
        finally:
            gc.enable()
