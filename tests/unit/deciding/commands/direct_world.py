"""Replicas that are asked over HTTP, in memory: two share a store, one runs the flag."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from controller.adapters.memory import MemoryAdvisor, MemoryPublisher, MemoryReports, MemoryRollouts
from controller.codec.waiting_commands import WaitingCommand
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve
from controller.deciding.commands.direct_commands import (
    DirectCommands,
)
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.registry import RolloutRegistry
from controller.deciding.worker_pool import WorkerPool
from controller.errors import StoreUnavailable
from controller.health import Faults
from controller.running.decision_relay import DecisionRelay
from controller.telemetry import Metrics
from schemas.command import Command
from schemas.terms import CommandVerb
from tests.builders import T0
from tests.unit.deciding.worker_world import FLAG, Doubts, start
from tests.virtual_time import LoopClock, settled


class MemoryRelay:
    """The relay's hash in memory."""

    def __init__(self, rollouts: MemoryRollouts) -> None:
        self.revisions: dict[str, int] = {}
        self._rollouts = rollouts

    def _check(self) -> None:
        if self._rollouts.outage.is_down:
            raise StoreUnavailable("gone")

    async def write(self, revisions: Mapping[str, int]) -> None:
        """Write some."""
        self._check()
        self.revisions |= revisions

    async def read(self) -> Mapping[str, int]:
        """Return all."""
        self._check()
        return dict(self.revisions)

    async def drop(self, flag_keys: Sequence[str]) -> None:
        """Delete some."""
        self._check()
        for flag_key in flag_keys:
            del self.revisions[flag_key]


class Disk:
    """A file of commands that wait, which outlives its replica."""

    def __init__(self, *commands: Command) -> None:
        self.commands: Sequence[WaitingCommand] = [WaitingCommand(each) for each in commands]

    async def read(self) -> Sequence[WaitingCommand]:
        """Return them."""
        return self.commands

    async def write(self, commands: Sequence[WaitingCommand]) -> None:
        """Replace them."""
        self.commands = commands

    async def set_aside(self) -> str:
        """Rename nothing."""
        return "aside"


class Shared:
    """What the replicas share: Redis and Kafka."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.rollouts = MemoryRollouts()
        self.relay = MemoryRelay(self.rollouts)
        self.publisher = MemoryPublisher()
        self.brokers_answer = False  # although they take nothing

    def kafka_goes(self) -> None:
        """Take Kafka away."""
        self.publisher.outage.is_down = True

    @property
    def silent_seconds(self) -> float:
        """For how long brokers have not answered."""
        return 100.0 if self.publisher.outage.is_down and not self.brokers_answer else 0.0


class Own:
    """Collects what flag planes are told to serve."""

    def __init__(self, rollouts: list[Rollout]) -> None:
        self._rollouts = rollouts

    def request(self, rollout: Rollout) -> None:
        """Collect one."""
        self._rollouts.append(rollout)

    def drop(self, flag_keys: Sequence[str]) -> None:
        """Do nothing."""


class Replica:
    """One replica: its registry, its workers, and what it serves."""

    def __init__(self, shared: Shared, kept: Disk | None = None) -> None:
        self.shared = shared
        self.remembered: Rollout | None = None
        self.registry = RolloutRegistry()
        self.faults = Faults(shared.clock.now)
        self.served: list[Rollout] = []
        self.registry.subscribe(self.served.append)
        dependencies = WorkerDependencies(
            rollouts=shared.rollouts,
            reports=MemoryReports(),
            publisher=shared.publisher,
            advisor=MemoryAdvisor(),
            clock=shared.clock,
            metrics=Metrics(version="test"),
            faults=self.faults,
            registry=self.registry,
            guard=Doubts(),
        )
        self.not_ours: str | None = None
        self.identity_trouble: StoreUnavailable | None = None
        self.pool = WorkerPool(dependencies)
        self.direct = DirectCommands(
            self.pool,
            dependencies,
            why_not_ours=self._why_not_ours,
            unsaved=self,
            served=lambda _: self.remembered,
            kept=kept,
        )
        self.relay = DecisionRelay(
            shared.clock,
            shared.relay,
            shared.rollouts,
            self.registry,
            self.faults,
            silent_seconds=lambda: shared.silent_seconds,
            stuck_seconds=lambda: self.pool.outbox_seconds,
            why_not_ours=self._why_not_ours,
        )
        self.registry.subscribe(self.direct.follow)
        self.registry.subscribe_own(self.relay)

    def lower_unsaved(self, rollout: Rollout) -> None:
        """Serve what is not saved."""
        self.served.append(rollout)
        if self.remembered is not None:
            self.remembered = rollout

    def end_unsaved(self, flag_key: str, decided: Rollout | None) -> None:
        """Serve what was decided."""
        if decided is not None and self.served[-1] is not decided:
            self.served.append(decided)

    def remember(self, rollout: Rollout) -> None:
        """Serve what a file remembers, as the commands that wait leave it."""
        self.remembered = self.direct.lowered(rollout)
        self.served.append(self.remembered)

    async def _why_not_ours(self) -> str | None:
        if self.identity_trouble is not None:
            raise self.identity_trouble
        return self.not_ours

    @property
    def percent(self) -> float:
        """What is served here."""
        return percent_to_serve(self.served[-1])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Replica]:
        """Run it; leaving is a crash."""

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                self.pool.begin(group)
                group.create_task(self.direct.run())
                group.create_task(self.relay.run())

        task = asyncio.create_task(run())
        await settled()
        try:
            yield self
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def start_flag(self) -> None:
        """Run the flag here, at its first stage."""
        await self.pool.start(FLAG).worker.submit(start())


def order(verb: CommandVerb = CommandVerb.ROLL_BACK, **fields: object) -> Command:
    """Return a command as HTTP gives it."""
    given = {
        "id": "http-1",
        "flag": FLAG,
        "verb": verb,
        "issuer": "ann",
        "reason": "5xx",
        "issued_at": T0,
    }
    return Command.model_validate(given | fields)


@asynccontextmanager
async def two_replicas() -> AsyncIterator[tuple[Shared, Replica, Replica]]:
    """Give an owner with the flag at 10 %, another replica that serves it, and no Kafka."""
    shared = Shared()
    owner, asked = Replica(shared), Replica(shared)
    async with owner.running(), asked.running():
        await owner.start_flag()
        await settled()
        asked.registry.update(owner.served[-1])
        shared.kafka_goes()
        assert (owner.percent, asked.percent) == (10, 10)
        yield shared, owner, asked
