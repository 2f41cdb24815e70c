"""Who runs which flag, and what reaches it: on the twins in memory, in virtual time."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import structlog

from controller.adapters.memory import (
    ManualClock,
    MemoryAdvisor,
    MemoryBroker,
    MemoryEventLog,
    MemoryPublisher,
    MemoryRollouts,
    MemoryTotals,
)
from controller.codec.commands import command_event
from controller.codec.plans import from_core_plan
from controller.core.rollout import Baking, RolledBack, Rollout
from controller.deciding import command_follower, command_partition
from controller.deciding.command_inbox import ReadCommand
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.event_partitions import EventPartitions
from controller.deciding.flag_workers import FlagWorkers
from controller.deciding.raise_guard import RaiseGuard
from controller.deciding.registry import RolloutRegistry
from controller.deciding.totals_reader import TotalsReader
from controller.deciding.worker_pool import WorkerPool
from controller.errors import BadInput, CommandRefused
from controller.health import Faults
from controller.metrics import Metrics
from controller.ports import Record
from schemas.quarantine import Refusal
from schemas.terms import Arm
from schemas.totals import ArmCounts, PartitionCounts, arm_field, encode_arm, encode_progress
from tests.builders import T0, make_guardrail, make_plan, make_stages
from tests.virtual_time import LoopClock, in_virtual_time, settled

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


class NoRecords:
    """Takes refused records, and keeps none."""

    def add(self, topic: str, partition: int, refusals: Sequence[Refusal]) -> None:
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
            clock=cluster.clock,
            faults=self.faults,
        )
        self.workers = FlagWorkers(dependencies, self.totals, self.log, self.topology, NoRecords())
        self.inbox: Any = self.workers.inbox
        self.topic: Any = self.workers.topic
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
        task = asyncio.create_task(replica.workers.run())
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

    async def forward(self, command: ReadCommand) -> None:
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

        Control as decided.
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
                evaluations=contexts,
                exposures=contexts,
                outcomes=contexts,
                errors=failed,
                at_risk=contexts,
                first_errors=failed,
                latency={198: contexts},
                latency_all={198: contexts},
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


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep tracebacks of mistakes made on purpose out of the report.

    Drawing them takes longer than the tests.
    """
    with structlog.testing.capture_logs():
        yield


# --- commands
# --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_command_starts_a_worker_and_is_committed_when_it_is_answered() -> None:
    """A flag never heard of begins with its first command."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(2)
        rollout = await cluster.stored(flag)
        assert rollout is not None
        assert isinstance(rollout.phase, Baking)
        assert replica.pool.rollouts == {flag: rollout}
        assert cluster.results() == {"c1": "accepted"}
        assert cluster.committed(flag) == 1


@in_virtual_time
async def test_commits_never_pass_an_open_command() -> None:
    """While the first of three commands waits for Redis, nothing is committed."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.rollouts.outage.is_down = True
        cluster.order("start", flag)
        cluster.broker.append(TOPIC, b"not a command", key=flag.encode(), partition=0)
        cluster.order("pause", flag)
        await cluster.passes(60)
        assert cluster.committed(flag) is None
        cluster.rollouts.outage.is_down = False
        await cluster.passes(20)
        assert cluster.committed(flag) == 3
    assert cluster.results() == {"c1": "accepted", "c2": "accepted"}


@in_virtual_time
async def test_a_command_read_and_not_answered_is_read_again_by_the_next_replica() -> None:
    """A crash between reading and answering loses no command."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.rollouts.outage.is_down = True
        cluster.order("start", flag)
        await cluster.passes(5)
    cluster.rollouts.outage.is_down = False
    async with cluster.replica():
        await cluster.passes(5)
        assert cluster.results() == {"c1": "accepted"}


@in_virtual_time
async def test_a_foreign_partition_s_command_is_forwarded() -> None:
    """A producer that keys in its own way is understood.

    The command goes to its flag's partition, and is answered once.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag, partition=2)
        await cluster.passes(5)
        assert cluster.results() == {"c1": "accepted"}
    assert [record.partition for record in cluster.broker.records(TOPIC)] == [0, 2]


@in_virtual_time
async def test_what_cannot_be_read_is_refused_and_work_goes_on() -> None:
    """A record that is no command is refused with a reason, and the next one is obeyed."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.broker.append(TOPIC, b"{", key=flag.encode(), partition=0)
        cluster.order("start", flag)
        await cluster.passes(3)
        assert [record.offset for record, _ in replica.refused] == [0]
        assert cluster.results() == {"c1": "accepted"}
        assert cluster.committed(flag) == 2


@in_virtual_time
async def test_no_more_commands_are_read_than_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """While Redis is away the backlog waits in the topic; afterwards all of it is answered."""
    monkeypatch.setattr(command_partition, "OPEN_COMMANDS_LIMIT", 5)
    monkeypatch.setattr(command_follower, "COMMANDS_PER_FETCH", 5)
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        cluster.rollouts.outage.is_down = True
        for _ in range(40):
            cluster.order("pause", flag)
        await cluster.passes(30)
        worker = replica.pool.worker(flag)
        assert worker is not None
        assert len(worker.inbox) <= 10
        cluster.rollouts.outage.is_down = False
        await cluster.passes(60)
    assert len(cluster.results()) == 41


@in_virtual_time
async def test_kafka_away_and_back() -> None:
    """While Kafka is away nothing is read; when it is back, reading goes on where it was."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.broker.outage.is_down = True
        cluster.order("start", flag)
        await cluster.passes(60)
        assert await cluster.stored(flag) is None
        cluster.broker.outage.is_down = False
        await cluster.passes(3)
        assert cluster.results() == {"c1": "accepted"}


# --- lanes
# --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_two_replicas_share_the_flags_and_a_third_takes_over() -> None:
    """Every partition has one owner; whose replica ends is taken over by another, where it was."""
    cluster = Cluster()
    async with cluster.replica() as first:
        for flag in FLAGS.values():
            cluster.order("start", flag)
        await cluster.passes(3)
        async with cluster.replica() as second:
            await cluster.passes(3)
            assert len(first.workers.follower.owned) == len(second.workers.follower.owned) == 2
            assert set(first.pool.rollouts) | set(second.pool.rollouts) == set(FLAGS.values())
            assert set(first.pool.rollouts) & set(second.pool.rollouts) == set()
            assert set(first.released) == set(second.pool.rollouts)
        await cluster.passes(3)
        assert set(first.pool.rollouts) == set(FLAGS.values())
        for flag in FLAGS.values():
            cluster.order("roll_back", flag)
        await cluster.passes(3)
    assert [
        rollout.percent for flag in FLAGS.values() if (rollout := await cluster.stored(flag))
    ] == [0, 0, 0, 0]
    assert len(cluster.results()) == 8


@in_virtual_time
async def test_a_lost_lane_s_open_command_is_answered_by_its_new_owner_alone() -> None:
    """A command that waits here when its flag moves away is let go here.

    And answered there, once.
    """
    cluster = Cluster()
    async with cluster.replica():
        cluster.rollouts.outage.is_down = True
        for flag in FLAGS.values():
            cluster.order("start", flag)
        await cluster.passes(3)
        async with cluster.replica():
            await cluster.passes(3)
            cluster.rollouts.outage.is_down = False
            await cluster.passes(20)
            assert set(cluster.results().values()) == {"accepted"}
            assert len(cluster.results()) == 4
            assert len(cluster.publisher.published) == len(
                {entry.effect_id for entry in cluster.publisher.published}
            )


@in_virtual_time
async def test_a_command_fetched_as_its_lane_goes_away_starts_nothing_here() -> None:
    """Records that arrive with the fetch of a revocation are left to the new owner."""
    cluster = Cluster()
    async with cluster.replica() as replica:
        cluster.order("start", FLAGS[1])
        await cluster.passes(5)
        committed = cluster.committed(FLAGS[1])
        real_fetch = replica.log.fetch

        async def fetch(max_records: int, timeout_seconds: float) -> Any:
            found = await real_fetch(max_records, timeout_seconds)
            if found:
                await replica.log.reassign(frozenset())
            return found

        replica.log.fetch = fetch  # type: ignore[method-assign]
        await cluster.passes(2)  # a fetch that is under way has no part in it
        cluster.rollouts.outage.is_down = (
            True  # whoever began with it is still at it when the lane goes
        )
        cluster.order("freeze", FLAGS[1])
        await cluster.passes(5)
        assert replica.pool.worker(FLAGS[1]) is None
        assert "c2" not in cluster.results()
    assert cluster.committed(FLAGS[1]) == committed == 1


# --- totals
# --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_totals_that_show_a_breach_roll_back_within_a_tenth_of_a_second() -> None:
    """New totals are looked at when ingest says so.

    The flag is at 0 % before anybody looks at a clock.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(90)
        rollout = await cluster.stored(flag)
        assert rollout is not None
        await cluster.count(rollout, errors=300)
        replica.totals.totals_saved(frozenset({flag}))
        await cluster.passes(0.15)
        after = await cluster.stored(flag)
        assert after is not None
        assert isinstance(after.phase, RolledBack)


@in_virtual_time
async def test_totals_are_looked_at_every_second_without_news() -> None:
    """Silence is looked at too: nothing new for long is itself a finding.

    Redis away delays it and stops nothing.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(2)
        worker = replica.pool.worker(flag)
        assert worker is not None
        looks: list[float] = []
        inbox: Any = worker.inbox
        inbox.put_totals = lambda _: looks.append(asyncio.get_running_loop().time())
        await cluster.passes(10)
        assert 9 <= len(looks) <= 11
        cluster.totals.outage.is_down = True
        await cluster.passes(10)
        assert len(looks) <= 11
        cluster.totals.outage.is_down = False
        await cluster.passes(10)
        assert len(looks) >= 18


# --- our own mistakes
# --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_worker_that_breaks_is_red_and_begun_anew() -> None:
    """A mistake of ours in one flag is visible, hurts no other.

    And the flag is taken up again; its command is answered.
    """
    cluster, flag, other = Cluster(), FLAGS[0], FLAGS[1]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        cluster.order("start", other)
        await cluster.passes(2)
        real_save, failures = cluster.rollouts.save, [1]

        async def save(flag_key: str, **kwargs: Any) -> bool:
            if flag_key == flag and failures:
                failures.pop()
                raise ZeroDivisionError("a mistake of ours")
            return await real_save(flag_key, **kwargs)

        cluster.rollouts.save = save  # type: ignore[method-assign]
        cluster.order("freeze", flag)
        cluster.order("pause", other)
        await cluster.passes(1)
        assert set(replica.pool.broken) == {flag}
        assert cluster.results()["c4"] == "accepted"
        await cluster.passes(10)
        assert replica.pool.broken == {}
        assert cluster.results()["c3"] == "accepted"
        assert cluster.committed(flag) == 2


@in_virtual_time
async def test_a_command_that_breaks_the_worker_twice_is_refused() -> None:
    """A poisonous command is answered as refused, and the ones after it are obeyed."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(2)
        real_answer_to = cluster.rollouts.answer_to

        async def answer_to(flag_key: str, command_id: str) -> bytes | None:
            if command_id == "c2":
                raise ZeroDivisionError("a mistake of ours")
            return await real_answer_to(flag_key, command_id)

        cluster.rollouts.answer_to = answer_to  # type: ignore[method-assign]
        cluster.order("pause", flag)
        cluster.order("abort", flag)
        await cluster.passes(30)
        ((_, fault),) = replica.refused
        assert isinstance(fault, CommandRefused)
        assert fault.command_id == "c2"
        assert cluster.results()["c3"] == "accepted"
        assert cluster.committed(flag) == 3


@in_virtual_time
async def test_a_publisher_that_breaks_costs_no_command_its_answer() -> None:
    """When the outbox's task fails, a command under way is not committed unanswered."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(2)
        real_publish, failures = cluster.publisher.publish, [1]

        async def publish(entries: Any) -> None:
            if failures:
                failures.pop()
                await asyncio.sleep(2)
                raise ZeroDivisionError("a mistake of ours")
            await real_publish(entries)

        cluster.publisher.publish = publish  # type: ignore[method-assign]
        cluster.order("freeze", flag)
        await cluster.passes(1)
        cluster.rollouts.outage.is_down = True
        cluster.order("pause", flag)
        await cluster.passes(3)
        assert cluster.committed(flag) == 2
        cluster.rollouts.outage.is_down = False
        await cluster.passes(20)
        assert cluster.results() == {"c1": "accepted", "c2": "accepted", "c3": "accepted"}
        assert cluster.committed(flag) == 3


@in_virtual_time
async def test_workers_that_were_cut_short_can_be_run_again() -> None:
    """Started again after they ended in the middle.

    The workers take up their flags and obey what comes.
    """
    cluster = Cluster()
    replica = Replica(cluster)
    await replica.log.start()
    task = asyncio.create_task(replica.workers.run())
    await cluster.passes(2)
    cluster.order("start", FLAGS[0])
    await cluster.passes(2)
    task.cancel()
    await asyncio.wait([task])
    task = asyncio.create_task(replica.workers.run())
    await cluster.passes(3)
    assert set(replica.pool.rollouts) == {FLAGS[0]}
    assert replica.released == [FLAGS[0]]
    cluster.order("roll_back", FLAGS[0])
    await cluster.passes(3)
    rollout = await cluster.stored(FLAGS[0])
    assert rollout is not None
    assert rollout.percent == 0
    task.cancel()
    await asyncio.wait([task])
    await replica.log.stop()


async def test_a_roll_back_overtakes_a_flood_of_pauses() -> None:
    """However many orders of its flag wait, a roll back is neither refused nor kept waiting."""
    cluster = Cluster()
    async with cluster.replica():
        cluster.order("start", FLAGS[0])
        await cluster.passes(2)
        for _ in range(250):
            cluster.order("pause", FLAGS[0])
        cluster.order("roll_back", FLAGS[0])
        await cluster.passes(1)
        rollout = await cluster.stored(FLAGS[0])
        assert rollout is not None
        assert rollout.percent == 0
        assert cluster.results()["c252"] == "accepted"


async def test_a_roll_back_does_not_overtake_the_start_before_it() -> None:
    """`start, roll_back` means 0 %: the order of these two is kept."""
    cluster = Cluster()
    async with cluster.replica():
        cluster.order("start", FLAGS[0])
        cluster.order("pause", FLAGS[0])
        cluster.order("roll_back", FLAGS[0])
        await cluster.passes(2)
        rollout = await cluster.stored(FLAGS[0])
        assert rollout is not None
        assert rollout.percent == 0
        assert rollout.rollout_id == "c1"


async def test_a_roll_back_beats_a_strangers_document_in_the_state_topic() -> None:
    """A higher revision that no worker decided is served by all.

    The roll back gets a higher one still.
    """
    cluster = Cluster()
    async with cluster.replica():
        cluster.order("start", FLAGS[0])
        await cluster.passes(2)
        ours = await cluster.stored(FLAGS[0])
        assert ours is not None
        cluster.newest[FLAGS[0]] = replace(ours, revision=1_000, percent=100.0)
        cluster.order("roll_back", FLAGS[0])
        await cluster.passes(2)
        rollout = await cluster.stored(FLAGS[0])
        assert rollout is not None
        assert (rollout.percent, rollout.revision) == (0.0, 1_001)
