"""One flag's worker with a store, a publisher and a clock in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from controller.adapters.memory import MemoryAdvisor, MemoryPublisher, MemoryReports, MemoryRollouts
from controller.core.effects import AskAdvice
from controller.core.evidence import ArmTotals, Evidence, VisitTotals
from controller.core.judging.judgement import Advice
from controller.core.plan import AdvisorPolicy, Plan
from controller.core.rollout import Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.flag_inbox import NewTotals
from controller.deciding.flag.flag_worker import FlagWorker
from controller.deciding.raise_guard import RaiseGuard
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults
from controller.ports import OutboxEntry
from controller.telemetry import Metrics
from schemas.terms import AdvisorMode, CommandVerb
from tests.builders import (
    MINUTE,
    T0,
    make_command,
    make_evidence,
    make_guardrail,
    make_plan,
    make_progress,
    make_stages,
    make_totals,
)
from tests.virtual_time import LoopClock, settled

FLAG = "new-checkout"


PLAN = make_plan(stages=make_stages(10, 50, 100), blind=True, guardrails=())


#: Real statistics on few contexts: a limit that ten times the errors breach.
WATCHED = make_plan(
    stages=make_stages(10, 50, 100), guardrails=(make_guardrail(limit=0.05, margin=None),)
)


CAN_HOLD = AdvisorPolicy(
    mode=AdvisorMode.CAN_HOLD, deadline=timedelta(seconds=30), hold_rounds=2, hold_for=5 * MINUTE
)


class Doubts(RaiseGuard):
    """Why nothing may be raised, as a test says; nothing by default."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)

    def why_not(self) -> str | None:
        """Return the first reason."""
        return self.reasons[0] if self.reasons else None


class WorldRegistry(RolloutRegistry):
    """The documents that others decided, and a note of what the worker decides."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def newest(self, flag_key: str) -> Rollout | None:
        """Return the state topic's document."""
        return self._world.newest

    def update_own(self, rollout: Rollout) -> None:
        """Note a transition."""
        self._world.transitions.append(rollout)


class World:
    """What surrounds one worker, and survives it."""

    def __init__(self, *, advisor: Any = None, newest: Rollout | None = None) -> None:
        self.clock = LoopClock()
        self.rollouts = MemoryRollouts()
        self.publisher = MemoryPublisher()
        self.advisor = advisor or MemoryAdvisor()
        self.reports = MemoryReports()
        self.transitions: list[Rollout] = []
        self.newest = newest
        self.contexts = 1000
        self.metrics = Metrics(version="test")
        self.faults = Faults(self.clock.now)

    def dependencies(self, **overrides: Any) -> WorkerDependencies:
        """Return what the worker is given."""
        fields: dict[str, Any] = {
            "rollouts": self.rollouts,
            "reports": self.reports,
            "publisher": self.publisher,
            "advisor": self.advisor,
            "clock": self.clock,
            "metrics": self.metrics,
            "faults": self.faults,
            "registry": WorldRegistry(self),
            "guard": Doubts(),
        }
        return WorkerDependencies(**{**fields, **overrides})

    @asynccontextmanager
    async def worker(self, **overrides: Any) -> AsyncIterator[FlagWorker]:
        """Run a worker; leaving is a crash: nothing is drained."""
        worker = FlagWorker(FLAG, self.dependencies(**overrides))
        task = asyncio.create_task(worker.run())
        await settled()
        try:
            yield worker
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def evidence(self, rollout: Rollout, *, errors: int = 10) -> Evidence:
        """Return fresh evidence of the present visit: `errors` of a thousand contexts failed.

        Some more at every look.
        """
        now = self.clock.now()
        self.contexts += 10
        others = round(self.contexts * (100 - rollout.percent) / rollout.percent)
        totals = VisitTotals(
            treatment=arm(self.contexts, errors), control=arm(others, others // 100)
        )
        progress = make_progress(freshest=now, reported_at=now)
        return make_evidence(at=now, visits={rollout.visit_index: totals}, partitions=(progress,))

    def results(self) -> list[dict[str, Any]]:
        """Return the data of every result published, repeats included."""
        return [
            json.loads(entry.value)["data"]
            for entry in self.publisher.published
            if entry.topic == "results"
        ]

    def published(self, topic: str) -> list[OutboxEntry]:
        """Return each record of a topic once."""
        return self.publisher.distinct(topic)

    async def stored(self) -> Rollout:
        """Return the stored document."""
        stored = await self.rollouts.load(FLAG)
        assert stored.rollout is not None
        return stored.rollout

    async def unpublished(self) -> Sequence[OutboxEntry]:
        """Return what is saved and not settled."""
        return (await self.rollouts.load(FLAG)).outbox


def arm(contexts: int, errors: int) -> ArmTotals:
    """Return an arm of so many contexts, one request each."""
    return make_totals(
        evaluations=contexts,
        exposures=contexts,
        outcomes=contexts,
        errors=errors,
        at_risk=contexts,
        first_errors=errors,
        latency={198: contexts},
    )


def start(plan: Plan = PLAN, **overrides: Any) -> Any:
    """Return a start command."""
    return make_command(CommandVerb.START, **{"command_id": "start-1", "plan": plan, **overrides})


def order(
    verb: CommandVerb, command_id: str, *, after: timedelta = timedelta(0), **overrides: Any
) -> Any:
    """Return a command issued so long after `T0`."""
    at = T0 + after
    return make_command(verb, command_id=command_id, **{"issued_at": at, **overrides})


async def look(world: World, worker: FlagWorker, *, errors: int = 10) -> None:
    """Show the worker fresh evidence, and let it decide."""
    assert worker.rollout is not None
    totals = NewTotals(worker.rollout.rollout_id, world.evidence(worker.rollout, errors=errors))
    worker.inbox.put_totals(totals)
    await settled()


_VERBS = st.sampled_from(
    [
        CommandVerb.START,
        CommandVerb.PROMOTE,
        CommandVerb.PAUSE,
        CommandVerb.RESUME,
        CommandVerb.ROLL_BACK,
        CommandVerb.RESTART,
    ]
)


class HangingAdvisor:
    """Never answers."""

    def __init__(self) -> None:
        self.asked: list[AskAdvice] = []

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        self.asked.append(question)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")
