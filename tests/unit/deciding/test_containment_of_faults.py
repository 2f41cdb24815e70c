"""A fault of one worker, document or run stops nothing else, and nobody's flag stays unwatched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from controller.adapters.memory import MemoryPublisher, MemoryRollouts
from controller.bootstrap import Daemon
from controller.core.effects import RaiseAlert
from controller.core.judging.quiet import LONGEST_YOUNG
from controller.core.rollout import Rollout
from controller.errors import (
    BrokenInvariant,
    EventLogUnavailable,
    StoreUnavailable,
)
from controller.health import Faults, Scope
from controller.running.holders import Holder
from controller.running.state_follower import StateFollower
from controller.running.visibility import View, Visibility
from controller.settings import Settings
from controller.telemetry import Metrics
from schemas.terms import Severity
from tests.builders import make_plan, make_rollout
from tests.unit.deciding.cluster import FLAGS, Cluster, Replica
from tests.unit.deciding.containment_helpers import Poison
from tests.unit.running.test_visibility import Alerts
from tests.virtual_time import in_virtual_time

# --- what is over with a flag that went, or with a run ---


@in_virtual_time
async def test_a_flag_that_is_handed_over_leaves_no_fault() -> None:
    """Its blind guardrails and its broken rules are reported by who runs it.

    Not by who ran it, for ever.
    """
    cluster, blind, wrong, late = Cluster(), FLAGS[0], FLAGS[1], FLAGS[2]
    async with cluster.replica() as replica:
        for flag in (blind, wrong, late):
            cluster.order("start", flag)
        await cluster.passes(3)
        reading = asyncio.Event()

        async def read(keys: Sequence[str], wanted: Mapping[str, Any]) -> Any:
            if late in wanted and len(wanted) == 1:
                reading.set()
                await asyncio.sleep(2)  # it is handed over meanwhile
            raise BrokenInvariant("totals cannot be read")

        cluster.totals.read = read  # type: ignore[method-assign, assignment]
        replica.faults.report(
            Scope.FLAG, wrong, "a decision would break invariant I1", reporter="invariants"
        )
        replica.totals._known.doubt([blind, wrong, late])
        await cluster.passes(5)
        reading.clear()
        await reading.wait()
        assert {fault.name for fault in replica.faults.current} >= {blind, wrong}
        await replica.log.reassign(frozenset())
        await cluster.passes(10)
        assert replica.pool.rollouts == {}
        assert replica.faults.current == ()


@in_virtual_time
async def test_a_run_begins_without_the_faults_of_the_run_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The part is restarted while a worker is broken.

    When that works again, nothing says that it does not.
    """
    cluster, flag = Cluster(), FLAGS[0]
    replica = Replica(cluster)
    await replica.log.start()
    task = asyncio.create_task(replica.deciding.run())
    await cluster.passes(2)
    cluster.order("start", flag)
    await cluster.passes(3)
    poison = Poison(monkeypatch, flag)
    cluster.order("freeze", flag)
    await cluster.passes(2)
    assert set(replica.pool.broken) == {flag}
    replica.totals._unread.add("flag-gone")
    task.cancel()
    await asyncio.wait([task])
    poison.is_on = False
    task = asyncio.create_task(replica.deciding.run())
    await cluster.passes(0)
    assert replica.pool.broken == {}
    assert replica.totals._unread == set()
    assert replica.faults.current == ()
    await cluster.passes(5)
    assert cluster.results()["c2"] == "accepted"
    task.cancel()
    await asyncio.wait([task])
    await replica.log.stop()


@in_virtual_time
async def test_a_commit_that_fails_is_tried_again() -> None:
    """What is done stays done: the next commit tells the brokers, though nothing else happens."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        real_commit = replica.log.commit

        async def commit(offsets: Mapping[Any, int]) -> None:
            del offsets
            raise EventLogUnavailable("no broker answers")

        replica.log.commit = commit  # type: ignore[method-assign]
        cluster.order("freeze", flag)
        await cluster.passes(3)
        assert cluster.committed(flag) == 1
        replica.log.commit = real_commit  # type: ignore[method-assign]
        await cluster.passes(5)
        assert cluster.committed(flag) == 2


async def test_damage_found_at_start_up_is_over_on_replicas_that_do_not_run_the_flag() -> None:
    """Whoever runs it has repaired it.

    The state topic brings a newer document, or the store is asked again.
    """
    daemon = Daemon(Settings.model_validate({}))
    rollouts, damaged = MemoryRollouts(), daemon.connections.damaged
    follower = StateFollower(
        daemon.connections, daemon.registry, daemon.state_plane, daemon.health, daemon.faults
    )

    def faults() -> list[tuple[str, str]]:
        return [(fault.name, fault.reporter) for fault in daemon.faults.current]

    for flag in FLAGS.values():
        rollouts.damage(flag, "schema_version 99")
        damaged.add(flag, "schema_version 99")
    daemon.faults.report(Scope.FLAG, FLAGS[1], "its worker stopped", reporter="worker")
    await damaged.recheck(rollouts)
    assert len(faults()) == len(FLAGS) + 1
    follower.update(make_rollout(plan=make_plan(flag_key=FLAGS[0])))
    assert (FLAGS[0], "start-up") not in faults()
    await rollouts.discard(FLAGS[1])
    await damaged.recheck(rollouts)
    assert (FLAGS[1], "start-up") not in faults()
    assert (FLAGS[1], "worker") in faults()
    assert len(faults()) == len(FLAGS) - 1


@in_virtual_time
async def test_a_stopped_worker_takes_no_other_part_s_fault_away() -> None:
    """It runs again and its own fault is over; what ingest found is there as before."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        replica.faults.report(
            Scope.FLAG, flag, "its contexts fill the partition", reporter="budget"
        )
        worker = replica.pool.worker(flag)
        assert worker is not None
        decider: Any = worker._decider
        real, decider.decide = decider.decide, None
        await cluster.passes(LONGEST_YOUNG.total_seconds() + 5)  # nothing new is counted
        assert {fault.reporter for fault in replica.faults.current} == {"budget", "worker"}
        decider.decide = real
        await cluster.passes(60)
        assert {fault.reporter for fault in replica.faults.current} == {"budget"}


# --- a worker that is shown everything, and judges or saves nothing -------------------------------


class OwnViews:
    """The rollouts of one replica, alone in the world."""

    expected_partitions = 1
    store_trouble = None
    turn_seconds = 0.0

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def why_store_silent(self) -> str | None:
        """Return none."""
        return None

    def why_all_blind(self) -> str | None:
        """Return none."""
        return None

    def newest(self, flag_key: str) -> Rollout | None:
        """Return none."""
        return None

    def views(self) -> Sequence[View]:
        """Return what runs here."""
        return self._replica.totals.views()

    def holders(self) -> Sequence[Holder]:
        """Return nothing: nobody claims."""
        return ()


@asynccontextmanager
async def watched(cluster: Cluster, replica: Replica) -> AsyncIterator[list[RaiseAlert]]:
    """Watch the watching, as the daemon does."""
    metrics = Metrics(version="test")
    alerts = Alerts(MemoryPublisher(), cluster.clock, metrics)
    faults = Faults(cluster.clock.now)
    visibility = Visibility(cluster.clock, OwnViews(replica), alerts, metrics, faults)
    task = asyncio.create_task(visibility.run())
    try:
        yield alerts.raised
    finally:
        task.cancel()
        await asyncio.wait([task])


async def in_a_stage(cluster: Cluster, flag: str) -> Rollout:
    """Start a rollout, and go on until some are served the treatment."""
    cluster.order("start", flag)
    await cluster.passes(1)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    assert rollout.percent > 0
    return rollout


async def counting(cluster: Cluster, rollout: Rollout, seconds: int) -> None:
    """Count on for so long: the totals are saved and read as ever."""
    for second in range(seconds):
        await cluster.count(rollout, errors=10 + second % 2)
        await cluster.passes(1)


@in_virtual_time
@pytest.mark.parametrize("is_read", [True, False])
async def test_a_flag_that_cannot_be_saved_while_its_totals_are_is_unwatched(
    *, is_read: bool
) -> None:
    """Only the rollouts' hashes cannot be written: an alert, a fault and a reason."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica, watched(cluster, replica) as alerts:
        rollout = await in_a_stage(cluster, flag)
        await counting(cluster, rollout, 10)
        assert alerts == []
        assert replica.pool.unsaved == {}
        real_save = cluster.rollouts.save

        async def save(*_: Any, **__: Any) -> bool:
            raise StoreUnavailable("no permission")

        if is_read:
            cluster.rollouts.save = save  # type: ignore[method-assign]
        else:
            cluster.rollouts.outage.is_down = True
        await counting(cluster, rollout, 12)
        (alert,) = alerts
        assert alert.severity is Severity.CRITICAL
        assert "its state has not been" in alert.summary
        fault = replica.faults.of(Scope.FLAG, flag, reporter="saving")
        assert fault is not None
        assert replica.faults.degrading
        assert "its state has not been saved for" in replica.pool.unsaved[flag]
        cluster.rollouts.save = real_save  # type: ignore[method-assign]
        cluster.rollouts.outage.is_down = False
        await counting(cluster, rollout, 12)
        assert [alert.severity for alert in alerts] == [Severity.CRITICAL, Severity.INFO]
        assert replica.faults.current == ()
        assert replica.pool.unsaved == {}


@in_virtual_time
async def test_a_save_that_fails_for_a_moment_is_no_fault() -> None:
    """A second of an outage is nothing that anybody has to know."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica, watched(cluster, replica) as alerts:
        rollout = await in_a_stage(cluster, flag)
        await counting(cluster, rollout, 5)
        cluster.rollouts.outage.is_down = True
        await counting(cluster, rollout, 1)
        cluster.rollouts.outage.is_down = False
        await counting(cluster, rollout, 20)
        assert alerts == []
        assert replica.faults.reported[Scope.FLAG] == 0


@in_virtual_time
async def test_a_rollout_whose_worker_is_dead_for_two_minutes_is_unwatched() -> None:
    """It is shown its totals, and nobody judges them; a failing restart ends no alert."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica, watched(cluster, replica) as alerts:
        rollout = await in_a_stage(cluster, flag)
        await counting(cluster, rollout, 5)
        worker = replica.pool.worker(flag)
        assert worker is not None
        judge: Any = worker._judge
        real, judge.judge = judge.judge, None
        await counting(cluster, rollout, 10)
        (alert,) = alerts
        assert alert.severity is Severity.CRITICAL
        assert "its worker stopped" in alert.summary
        await counting(cluster, rollout, 110)
        assert len(alerts) == 1
        judge.judge = real
        await counting(cluster, rollout, 90)
        assert [alert.severity for alert in alerts] == [Severity.CRITICAL, Severity.INFO]


@in_virtual_time
async def test_a_rollout_whose_worker_hangs_is_unwatched() -> None:
    """It waits for something that never comes, and nothing fails."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica, watched(cluster, replica) as alerts:
        rollout = await in_a_stage(cluster, flag)
        await counting(cluster, rollout, 5)
        worker = replica.pool.worker(flag)
        assert worker is not None

        async def hang() -> None:
            await asyncio.Event().wait()

        worker._correct_times = hang  # type: ignore[method-assign]
        await counting(cluster, rollout, 10)
        (alert,) = alerts
        assert "its worker has handled no totals for" in alert.summary
