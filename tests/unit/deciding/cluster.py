"""Replicas of the deciding part that share a log, a store and a clock in memory."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from controller.adapters.memory import (
    ManualClock,
    MemoryAdvisor,
    MemoryBroker,
    MemoryEventLog,
    MemoryPublisher,
    MemoryReports,
    MemoryRollouts,
    MemoryTotals,
)
from controller.codec.commands import command_event
from controller.codec.plans import from_core_plan
from controller.core.rollout import Rollout
from controller.deciding.commands.command_inbox import ParsedCommand
from controller.deciding.deciding import Deciding
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.event_partitions import EventPartitions
from controller.deciding.raise_guard import RaiseGuard
from controller.deciding.registry import RolloutRegistry
from controller.deciding.totals_reader import TotalsReader
from controller.deciding.worker_pool import WorkerPool
from controller.errors import BadInput
from controller.health import Faults
from controller.ports import Record
from controller.telemetry import Metrics
from schemas.quarantine import WrittenRefusals
from schemas.terms import Arm
from schemas.totals import ArmCounts, PartitionCounts, arm_field, encode_arm, encode_progress
from tests.builders import T0, make_guardrail, make_plan, make_stages
from tests.gate_webhooks import Webhooks
from tests.monitoring import Monitoring
from tests.virtual_time import LoopClock, settled

TOPIC = "rollout.commands"


EVENTS = "flag.evaluations/0/1"


PARTITIONS = 4


def partition_of(flag_key: str) -> int:
    """Return the partition of a flag, as the broker in memory keys it."""
    return zlib.crc32(flag_key.encode()) % PARTITIONS


#: One flag for each partition.
FLAGS = {partition_of(name): name for name in (f"flag-{number}" for number in range(40))}


class Topics:
    """The command topic as a cluster has it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def partitions(self, logical: str) -> int:
        """Return how many partitions it has."""
        return self.cluster.partitions

    def topic_id(self, logical: str) -> str | None:
        """Return nothing: brokers do not say."""
        return None


class OneEventPartition(EventPartitions):
    """One partition of evaluations."""

    def __init__(self) -> None:
        pass

    @property
    def keys(self) -> Sequence[str]:
        """Its key."""
        return [EVENTS]


class NoDrift:
    """Planes that serve what was decided."""

    def drift(self, rollout: Rollout) -> str | None:
        """Return none."""
        return None

    def on_change(self, listener: object) -> None:
        """Take a listener: nothing ever changes."""


class NoRecords:
    """Takes refused records, and keeps none."""

    def add(self, topic: str, partition: int, refusals: Sequence[WrittenRefusals]) -> None:
        """Take refusals."""

    async def flushed(self, seconds: float) -> None:
        """Return at once."""


class ClusterRegistry(RolloutRegistry):
    """The state topic of a cluster, and a note of what workers decide."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster

    def newest(self, flag_key: str) -> Rollout | None:
        """Return the state topic's document."""
        return self._cluster.newest.get(flag_key)

    @property
    def flag_keys(self) -> Sequence[str]:
        """Every flag that was ever decided about."""
        decided = (rollout.flag_key for rollout in self._cluster.transitions)
        return sorted({*self._cluster.newest, *decided})

    @property
    def flags_version(self) -> int:
        """A number for each set of flags: the topic of a cluster is written from outside."""
        return hash(tuple(self.flag_keys))

    def update_own(self, rollout: Rollout) -> None:
        """Note a transition."""
        self._cluster.transitions.append(rollout)


class Trusting(RaiseGuard):
    """Nothing is in doubt."""

    def __init__(self) -> None:
        pass

    def why_not(self) -> str | None:
        """Return none."""
        return None


class Replica:
    """One process: its member of the group, its workers, and what they told."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.log = MemoryEventLog(cluster.broker, "deciders", [TOPIC])
        self.refused: list[tuple[Record, BadInput]] = []
        self.released: list[str] = []
        self.faults = Faults(cluster.clock.now)
        self.topology: Any = Topics(cluster)
        self.actuation: Any = NoDrift()
        dependencies = WorkerDependencies(
            rollouts=cluster.rollouts,
            reports=MemoryReports(),
            publisher=cluster.publisher,
            advisor=MemoryAdvisor(),
            clock=cluster.clock,
            metrics=Metrics(version="test"),
            faults=self.faults,
            registry=ClusterRegistry(cluster),
            guard=Trusting(),
        )
        self.pool = WorkerPool(dependencies)
        self.totals = TotalsReader(
            self.pool,
            cluster.totals,
            OneEventPartition(),
            self.actuation,
            Monitoring(),
            Webhooks(),
            clock=cluster.clock,
            faults=self.faults,
        )
        self.deciding = Deciding(dependencies, self.totals, self.log, self.topology, NoRecords())
        self.inbox: Any = self.deciding.inbox
        self.topic: Any = self.deciding.topic
        self.inbox.__dict__ |= {"refuse": self.refuse, "forward": cluster.forward}
        self.pool.on_stop(self.released.append)

    async def refuse(self, refused: Sequence[tuple[Record, BadInput]]) -> None:
        """Note what could not be read."""
        self.refused += refused


class Cluster:
    """What replicas share."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.broker = MemoryBroker(ManualClock(T0), {TOPIC: PARTITIONS})
        self.rollouts = MemoryRollouts()
        self.totals = MemoryTotals()
        self.publisher = MemoryPublisher()
        self.transitions: list[Rollout] = []
        self.newest: dict[str, Rollout] = {}  # the state topic
        self.partitions = PARTITIONS
        self._count = 0
        self._fence: int | None = None  # of the one event partition

    def partition_of(self, flag_key: str) -> int:
        """Return a flag's partition as the topic is now."""
        return zlib.crc32(flag_key.encode()) % self.partitions

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Replica]:
        """Run a replica; leaving hands its flags over."""
        replica = Replica(self)
        await replica.log.start()
        task = asyncio.create_task(replica.deciding.run())
        await self.passes(2)
        try:
            yield replica
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await replica.log.stop()

    def order(
        self, verb: str, flag_key: str, *, partition: int | None = None, **fields: Any
    ) -> Record:
        """Put a command into the topic, by default onto its flag's partition."""
        self._count += 1
        if verb == "start":
            fields["plan"] = PLAN | {"flag": flag_key}
        now = self.clock.now().isoformat()
        command = {
            "id": f"c{self._count}",
            "flag": flag_key,
            "verb": verb,
            "issuer": "ada",
            "reason": "because",
            **fields,
        }
        return self.broker.append(
            TOPIC,
            json.dumps({**command, "issued_at": now}).encode(),
            key=flag_key.encode(),
            partition=self.partition_of(flag_key) if partition is None else partition,
            timestamp_ms=round(self.clock.now().timestamp() * 1000),
        )

    async def forward(self, command: ParsedCommand) -> None:
        """Put a command onto its flag's own partition."""
        self.broker.append(
            TOPIC,
            command_event(command.document, hops=1),
            key=command.flag_key.encode(),
            partition=self.partition_of(command.flag_key),
            timestamp_ms=round(self.clock.now().timestamp() * 1000),
        )

    async def count(self, rollout: Rollout, *, errors: int) -> None:
        """Save totals as ingest does: 1000 contexts saw treatment, so many failed.

        Control as decided. Each time they were evaluated once more.
        """
        now_ms = round(self.clock.now().timestamp() * 1000)
        others = round(1000 * (100 - rollout.percent) / rollout.percent)
        fields = encode_progress(
            PartitionCounts(
                end=1 + (self._fence or 0), freshest_ms=now_ms, reported_at_ms=now_ms, counted=1
            )
        )
        for arm, contexts, failed in (
            (Arm.TREATMENT, 1000, errors),
            (Arm.CONTROL, others, others // 100),
        ):
            counts = ArmCounts(
                evaluations=contexts * (1 + (self._fence or 0)),
                exposures=contexts,
                outcomes=contexts,
                errors=failed,
                at_risk=contexts,
                first_errors=failed,
                latency={198: contexts},
            )
            fields[arm_field(rollout.flag_key, rollout.rollout_id, rollout.visit_index, arm)] = (
                encode_arm(counts)
            )
        expected, self._fence = self._fence, 1 if self._fence is None else self._fence + 1
        assert (
            await self.totals.save(
                EVENTS, expected=expected, next_offset=self._fence, fields=fields
            )
            is None
        )

    async def passes(self, seconds: float) -> None:
        """Let time go by."""
        await settled()
        await asyncio.sleep(seconds)
        await settled()

    async def stored(self, flag_key: str) -> Rollout | None:
        """Return a flag's stored document."""
        return (await self.rollouts.load(flag_key)).rollout

    def results(self) -> dict[str, str]:
        """Return the status of every command id answered."""
        answered = [json.loads(entry.value)["data"] for entry in self.publisher.distinct("results")]
        return {result["command_id"]: result["status"] for result in answered}

    def committed(self, flag_key: str) -> int | None:
        """Return what is committed of a flag's partition."""
        return self.broker.committed("deciders").get((TOPIC, partition_of(flag_key)))


def plan_document() -> dict[str, Any]:
    """Return the smallest plan of a command, watched by one limit."""
    core = make_plan(
        stages=make_stages(10, 50, 100), guardrails=(make_guardrail(limit=0.05, margin=None),)
    )
    return dict(from_core_plan(core).model_dump(mode="json", exclude_none=True))


PLAN = plan_document()
