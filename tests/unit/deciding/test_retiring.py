"""Letting go of retired flags: on the twins in memory, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta
from typing import Any, cast

import pytest

from controller.adapters.memory import (
    MemoryAdvisor,
    MemoryPublisher,
    MemoryReports,
    MemoryRollouts,
)
from controller.core.effects import RaiseAlert
from controller.core.events import CommandReceived
from controller.core.rollout import Completed, Retired, Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.flag_worker import FlagWorker
from controller.deciding.registry import RolloutRegistry
from controller.deciding.retiring import LettingGo, Placing, Retiring
from controller.errors import FlagPlaneUnavailable
from controller.health import Faults, Scope
from controller.telemetry import Metrics
from schemas.terms import CommandVerb
from tests.builders import make_command, make_plan, make_stages
from tests.unit.deciding.cluster import Trusting
from tests.virtual_time import LoopClock, in_virtual_time, settled

PLAN = make_plan(stages=make_stages(100), blind=True, guardrails=())
FLAG = PLAN.flag_key


class Pool:
    """The part of `WorkerPool` that is used, with real workers."""

    def __init__(self, dependencies: WorkerDependencies) -> None:
        self.dependencies = dependencies
        self.workers: dict[str, tuple[FlagWorker, Any]] = {}

    def __contains__(self, flag_key: str) -> bool:
        return flag_key in self.workers

    @property
    def flag_keys(self) -> list[str]:
        """The flags that run."""
        return list(self.workers)

    def worker(self, flag_key: str) -> FlagWorker | None:
        """Return a flag's worker."""
        return self.workers[flag_key][0] if flag_key in self.workers else None

    async def start(self, flag_key: str) -> FlagWorker:
        """Run a worker."""
        worker = FlagWorker(flag_key, self.dependencies)
        self.workers[flag_key] = worker, asyncio.create_task(worker.run())
        await settled()
        return worker

    async def stop(self, flag_key: str) -> None:
        """End a worker, as by a crash."""
        worker, task = self.workers.pop(flag_key)
        task.cancel()
        await asyncio.wait([task])
        worker.abandon()
        self.dependencies.registry.release(flag_key)

    def alert(self, flag_key: str, alert: RaiseAlert) -> None:
        """Take no alert."""


class Plane:
    """A flag plane that is told."""

    name = "plane"

    def __init__(self) -> None:
        self.is_down = False
        self.has_mistake = False
        self.retired: list[tuple[str, int]] = []

    async def retire(self, flag_key: str, revision: int) -> None:
        """Take note."""
        if self.is_down:
            raise FlagPlaneUnavailable("it is away")
        if self.has_mistake:
            raise IndexError("a mistake of ours")
        self.retired.append((flag_key, revision))

    async def serve(self, rollout: Rollout) -> None:
        """Serve nothing."""

    async def look(self, rollout: Rollout) -> Any:
        """Say nothing."""


class World:
    """One replica's retiring, its worker and its stores."""

    def __init__(self, *, after: timedelta | None = None) -> None:
        self.clock = LoopClock()
        self.rollouts, self.reports = MemoryRollouts(), MemoryReports()
        self.publisher, self.plane = MemoryPublisher(), Plane()
        self.faults = Faults(self.clock.now)
        self.after = after
        self.ids = itertools.count()
        self.restart()

    def restart(self) -> None:
        """Begin as a new process does, with what is stored."""
        self.registry = RolloutRegistry()
        self.dependencies = WorkerDependencies(
            rollouts=self.rollouts,
            reports=self.reports,
            publisher=self.publisher,
            advisor=MemoryAdvisor(),
            clock=self.clock,
            metrics=Metrics(version="test"),
            faults=self.faults,
            registry=self.registry,
            guard=Trusting(),
        )
        self.pool = pool = cast("Any", Pool(self.dependencies))
        placing = Placing(lambda _: True, lambda _: False)
        letting_go = LettingGo([self.plane], self.after)
        self.retiring = Retiring(self.dependencies, pool, placing, letting_go)
        self.registry.subscribe_own(self.retiring)

    async def beat(self) -> None:
        """Let go of what can be, once everything that was on its way has arrived."""
        await asyncio.sleep(6)
        await self.retiring.beat()

    async def ended(self, verb: CommandVerb = CommandVerb.ABORT) -> FlagWorker:
        """Return a worker whose rollout has ended."""
        worker: FlagWorker = await self.pool.start(FLAG)
        await worker.submit(self.command(CommandVerb.START, plan=PLAN))
        await worker.submit(self.command(verb))
        await settled()
        return worker

    def command(self, verb: CommandVerb, **fields: Any) -> CommandReceived:
        """Return a command of now."""
        return make_command(
            verb,
            command_id=f"c{next(self.ids)}",
            issued_at=self.clock.now(),
            **fields,
        )

    async def retired(self) -> FlagWorker:
        """Return a worker that has retired its flag and told everybody."""
        worker = await self.ended()
        await worker.submit(self.command(CommandVerb.RETIRE))
        await settled()
        return worker

    def topics(self) -> list[str]:
        """Return the topics that were written to, the state topic's tombstones as `tombstone`."""
        return [one.topic if one.value else "tombstone" for one in self.publisher.published]


@in_virtual_time
async def test_a_retired_flag_leaves_nothing_but_its_answers() -> None:
    """Worker, hash and registry let go; planes are told; the tombstone is the last document."""
    world = World()
    worker = await world.retired()
    revision = worker.rollout.revision if worker.rollout else 0
    await world.beat()
    assert FLAG not in world.pool
    assert await world.rollouts.flag_keys() == []
    assert world.registry.flag_keys == []
    assert world.plane.retired == [(FLAG, revision)]
    assert [one for one in world.topics() if one in ("state", "tombstone")][-1] == "tombstone"
    assert await world.rollouts.answer_to(FLAG, "no-such-command") is None


@in_virtual_time
async def test_a_repeated_retire_gets_its_answer_and_a_start_a_new_revision() -> None:
    """Answers outlive the flag; revisions never fall over all its rollouts."""
    world = World()
    worker = await world.ended()
    retire = world.command(CommandVerb.RETIRE)
    await worker.submit(retire)
    await settled()
    revision = worker.rollout.revision if worker.rollout else 0
    await world.beat()
    worker = await world.pool.start(FLAG)
    published = len(world.publisher.published)
    await worker.submit(retire)
    await settled()
    again = world.publisher.published[published:]
    assert [one.topic for one in again] == ["results"]
    await worker.submit(world.command(CommandVerb.START, plan=PLAN))
    assert worker.rollout is not None
    assert worker.rollout.revision == revision + 1
    assert world.registry.newest(FLAG) is worker.rollout
    await world.pool.stop(FLAG)


@pytest.mark.parametrize("is_published", [True, False])
@in_virtual_time
async def test_a_crash_after_the_decision_lets_go_all_the_same(*, is_published: bool) -> None:
    """Before and after the tombstone is written: the next process goes on."""
    world = World()
    worker = await world.ended()
    world.publisher.outage.is_down = not is_published
    await worker.submit(world.command(CommandVerb.RETIRE))
    await settled()
    await world.beat()
    if not is_published:
        assert FLAG in world.pool  # the tombstone comes first
        await world.pool.stop(FLAG)
    world.publisher.outage.is_down = False
    world.restart()
    await world.pool.start(FLAG)
    await settled()
    await world.beat()
    await world.retiring.sweep()
    assert FLAG not in world.pool
    assert await world.rollouts.flag_keys() == []
    assert "tombstone" in world.topics()


@in_virtual_time
async def test_a_plane_that_is_away_delays_the_end_and_is_a_fault() -> None:
    """What apps get is decided already; the rest waits for the plane, and is tried again."""
    world = World()
    await world.retired()
    world.plane.is_down = True
    await world.beat()
    assert FLAG in world.pool
    assert any(fault.name == FLAG for fault in world.faults.current if fault.scope is Scope.FLAG)
    world.plane.is_down = False
    world.retiring._retired[FLAG] = 0.0
    await world.beat()
    assert FLAG not in world.pool
    assert not world.faults.current


@in_virtual_time
async def test_a_mistake_of_one_flag_is_its_fault_and_ends_no_round() -> None:
    """The round goes on to the flags behind it, and the flag is tried again."""
    world = World()
    await world.retired()
    world.plane.has_mistake = True
    await world.beat()
    assert [fault.name for fault in world.faults.current if "IndexError" in fault.why] == [FLAG]
    world.plane.has_mistake = False
    world.retiring._retired[FLAG] = 0.0
    await world.beat()
    assert FLAG not in world.pool
    assert not world.faults.current


@in_virtual_time
async def test_a_start_before_the_end_keeps_the_flag() -> None:
    """A command that comes between the decision and the cleaning wins."""
    world = World()
    worker = await world.retired()
    await worker.submit(world.command(CommandVerb.START, plan=PLAN))
    await world.beat()
    assert FLAG in world.pool
    assert world.registry.newest(FLAG) is worker.rollout
    assert (await world.rollouts.load(FLAG)).rollout == worker.rollout
    await world.pool.stop(FLAG)


@in_virtual_time
async def test_redis_that_fell_back_does_not_bring_a_flag_back() -> None:
    """The state topic says that it is retired; an older document in Redis is void."""
    world = World()
    worker = await world.ended()
    snapshot = world.rollouts.snapshot()
    await worker.submit(world.command(CommandVerb.RETIRE))
    await settled()
    revision = worker.rollout.revision if worker.rollout else 0
    await world.pool.stop(FLAG)
    world.restart()
    world.rollouts.restore(snapshot)
    world.registry.retire(FLAG, revision)  # as the tombstone says
    worker = await world.pool.start(FLAG)
    await settled()
    assert worker.rollout is not None
    assert isinstance(worker.rollout.phase, Retired)
    assert world.registry.newest(FLAG) is None
    await world.pool.stop(FLAG)


@in_virtual_time
async def test_an_old_document_behind_the_tombstone_is_buried_again() -> None:
    """A process that stood still for long may write one: then the tombstone is written again."""
    world = World()
    worker = await world.ended()
    old = worker.rollout
    assert old is not None
    await worker.submit(world.command(CommandVerb.RETIRE))
    await settled()
    await world.beat()
    world.restart()
    world.registry.on_overtaken(world.retiring.republish)
    world.registry.update(old)  # all that the topic has
    await world.pool.start(FLAG)
    published = len(world.publisher.published)
    await world.beat()
    await world.retiring.sweep()
    assert world.topics()[published:] == ["tombstone"]
    assert world.registry.newest(FLAG) is None
    assert FLAG not in world.pool


@in_virtual_time
async def test_only_what_serves_nothing_is_retired_by_age() -> None:
    """A completed rollout stays for ever, because people are served treatment by it."""
    world = World(after=timedelta(minutes=30))
    worker = await world.ended()
    await world.retiring.sweep()
    await settled()
    assert worker.rollout is not None
    assert not isinstance(worker.rollout.phase, Retired)
    await asyncio.sleep(31 * 60)
    await world.retiring.sweep()
    await settled()
    assert isinstance(worker.rollout.phase, Retired)
    await world.pool.stop(FLAG)


@in_virtual_time
async def test_a_completed_rollout_is_not_retired_by_age() -> None:
    """It serves 100 %."""
    world = World(after=timedelta(minutes=30))
    worker = await world.ended(CommandVerb.PROMOTE_FULL)
    assert worker.rollout is not None
    assert isinstance(worker.rollout.phase, Completed)
    await asyncio.sleep(40 * 60)
    await world.retiring.sweep()
    await settled()
    assert isinstance(worker.rollout.phase, Completed)
    await world.pool.stop(FLAG)
