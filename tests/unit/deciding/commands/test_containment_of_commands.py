"""Commands: topics that grow, unknown flags, floods, and offsets beyond the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from controller.core.machine.commands import NOTHING_TO_LOWER
from controller.deciding.commands import command_follower, command_partition
from controller.deciding.commands.command_inbox import ParsedCommand
from controller.errors import (
    CommandRefused,
    CommandUnreadable,
)
from controller.health import Scope
from tests.unit.deciding.cluster import FLAGS, TOPIC, Cluster, Replica, partition_of
from tests.unit.deciding.containment_helpers import percent_of
from tests.virtual_time import in_virtual_time

#: A record of a known flag that is no command.
BAD_ID = json.dumps({"verb": "freeze", "id": "no id!"}).encode()


def reasons(cluster: Cluster) -> list[str]:
    """Return why each command was answered as it was."""
    return [
        json.loads(entry.value)["data"]["reason"] for entry in cluster.publisher.distinct("results")
    ]


# --- B1: the command topic grows ---


async def grow(cluster: Cluster, replicas: Sequence[Replica], partitions: int) -> None:
    """Give the command topic more partitions.

    As the brokers and then each replica's view of them.
    """
    await cluster.broker.grow(TOPIC, partitions)
    cluster.partitions = partitions
    del replicas


@in_virtual_time
async def test_roll_back_works_throughout_when_the_command_topic_grows() -> None:
    """From 4 to 6 partitions flags move.

    Commands to the old and the new one are obeyed, and none goes round in circles.
    """
    cluster = Cluster()
    flags = [f"flag-{number}" for number in range(12)]
    async with cluster.replica() as first, cluster.replica() as second:
        for flag in flags:
            cluster.order("start", flag)
        await cluster.passes(5)
        before = {flag: cluster.partition_of(flag) for flag in flags}
        await grow(cluster, [first, second], 6)
        moved = [flag for flag in flags if cluster.partition_of(flag) != before[flag]]
        assert len(moved) > 3
        for number, flag in enumerate(flags):  # half of the senders have not heard of it
            cluster.order("roll_back", flag, partition=before[flag] if number % 2 else None)
        await cluster.passes(5)
        assert {await percent_of(cluster, flag) for flag in flags} == {0.0}
        assert set(cluster.results().values()) == {"accepted"}
        assert len(cluster.broker.records(TOPIC)) <= 3 * len(flags)
        await cluster.passes(5)
        running = [*first.pool.rollouts, *second.pool.rollouts]
        assert sorted(running) == sorted(flags)
        for replica in (first, second):
            numbers = {number for _, number in replica.deciding.follower.owned}
            assert all(cluster.partition_of(flag) in numbers for flag in replica.pool.rollouts)


@in_virtual_time
async def test_a_command_is_forwarded_once_at_most() -> None:
    """The forwarder believes in another number of partitions than the broker.

    The copy is carried out where it arrives.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        replica.topic.home_of = lambda _: 3  # never where a copy arrives
        real_forward, forwarded = replica.inbox.forward, [0]

        async def forward(command: ParsedCommand) -> None:
            forwarded[0] += 1
            if forwarded[0] < 10:  # for ever, else
                await real_forward(command)

        replica.inbox.forward = forward
        cluster.order("roll_back", flag)
        await cluster.passes(10)
        assert await percent_of(cluster, flag) == 0
        assert len(cluster.broker.records(TOPIC)) == 3
        assert cluster.results()["c2"] == "accepted"


@in_virtual_time
async def test_a_flag_that_another_replica_started_is_taken_up() -> None:
    """The state topic tells of a flag of ours after its partition was taken over.

    Its guardrails are watched at once.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    cluster.transitions.clear()
    async with cluster.replica() as replica:
        await cluster.passes(2)
        assert replica.pool.rollouts == {}
        cluster.newest[flag] = rollout
        await cluster.passes(2)
        assert set(replica.pool.rollouts) == {flag}


# --- B4: committed beyond the end ---


@in_virtual_time
async def test_a_committed_offset_beyond_the_end_reads_the_log_from_its_start() -> None:
    """The topic was truncated under its committed offset.

    Every command in it is obeyed, once, and flags stay here.
    """
    cluster, flag = Cluster(), FLAGS[0]
    cluster.broker.committed("deciders")[TOPIC, 0] = 500
    cluster.order("start", flag)
    async with cluster.replica() as replica:
        await cluster.passes(3)
        assert cluster.results() == {"c1": "accepted"}
        (fault,) = replica.faults.current
        assert (fault.scope, fault.name) == (Scope.PARTITION, f"{TOPIC}/0")
        assert "500" in fault.why
        cluster.order("roll_back", flag)
        await cluster.passes(30)
        assert await percent_of(cluster, flag) == 0
        assert replica.released == []
    assert cluster.committed(flag) == 2


# --- D4: flags that do not exist ---


@in_virtual_time
async def test_commands_of_flags_that_do_not_exist_leave_nothing() -> None:
    """No worker, nothing stored.

    Each is answered from its record alone, and the same again when it is read again.
    """
    cluster = Cluster()
    for _ in range(2):
        async with cluster.replica() as replica:
            for number in range(500):
                cluster.order("roll_back", f"nobody-{number}")
            cluster.order("start", "too-late", expected_revision=7)
            cluster.order("start", FLAGS[2])
            await cluster.passes(5)
            assert set(replica.pool.flag_keys) == {FLAGS[2]}
            assert list(await cluster.rollouts.flag_keys()) == [FLAGS[2]]
            reasons = {str(fault) for _, fault in replica.refused}
            assert len(replica.refused) == 501
            assert NOTHING_TO_LOWER in reasons
            lanes = replica.deciding.follower.partitions
            assert not any(lane.open or lane.unknown or lane.queued for lane in lanes)
            assert not len(replica.deciding.commands)


@in_virtual_time
async def test_commands_of_one_flag_keep_their_order_whether_it_exists_or_not() -> None:
    """`start, roll_back` of a flag never heard of, among a flood of others, ends at 0 %.

    `roll_back, start` does not.
    """
    cluster, first, second = Cluster(), FLAGS[0], FLAGS[1]
    async with cluster.replica():
        for number in range(300):
            cluster.order("roll_back", f"nobody-{number}")
        for flag, verbs in ((first, ("start", "roll_back")), (second, ("roll_back", "start"))):
            for verb in verbs:
                cluster.order(verb, flag)
        await cluster.passes(5)
        assert await percent_of(cluster, first) == 0
        assert await percent_of(cluster, second) == 10


@in_virtual_time
async def test_an_honest_order_does_not_wait_behind_a_flood() -> None:
    """A rollback is carried out before any number of commands for unknown flags."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        refused_at: list[int] = []

        read_before: list[int] = []

        async def refuse(refused: Sequence[Any]) -> None:
            read_before.append(sum(len(lane.open) for lane in replica.deciding.follower.partitions))
            refused_at.extend(record.offset for record, _ in refused)
            await asyncio.sleep(0.05)  # Kafka takes its time

        replica.inbox.refuse = refuse
        for number in range(5000):
            cluster.order("roll_back", f"nobody-{number}", partition=0)
        cluster.order("roll_back", flag)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if await percent_of(cluster, flag) == 0:
                break
        assert await percent_of(cluster, flag) == 0
        assert len(refused_at) < 500
        assert min(read_before) >= 5000  # all is read before the first of them is answered
        await cluster.passes(30)
        assert len(refused_at) == 5000
    assert cluster.committed(flag) == 5002


@in_virtual_time
async def test_strangers_wait_for_the_store_and_hold_up_nobody() -> None:
    """Whether a flag exists cannot be asked while Redis is away.

    Nothing is committed, nothing is refused wrongly.
    """
    cluster = Cluster()
    async with cluster.replica() as replica:
        cluster.rollouts.outage.is_down = True
        cluster.order("roll_back", FLAGS[0])
        await cluster.passes(30)
        assert replica.refused == []
        assert cluster.committed(FLAGS[0]) is None
        cluster.rollouts.outage.is_down = False
        await cluster.passes(5)
        assert [
            fault.flag_key for _, fault in replica.refused if isinstance(fault, CommandRefused)
        ] == [FLAGS[0]]
    assert cluster.committed(FLAGS[0]) == 1


@in_virtual_time
async def test_a_flag_that_only_the_store_knows_is_no_stranger() -> None:
    """A rollout that no topic told us of is stored all the same: its roll back is carried out."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
    cluster.transitions.clear()
    async with cluster.replica():
        cluster.order("roll_back", flag)
        await cluster.passes(5)
        assert await percent_of(cluster, flag) == 0


@in_virtual_time
async def test_of_one_flag_only_so_many_commands_wait() -> None:
    """While Redis is away, the hundred first commands of a flag wait.

    Others are refused, those that lower are not.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        real_save = cluster.rollouts.save
        gate = asyncio.Event()

        async def save(*args: Any, **kwargs: Any) -> bool:
            await gate.wait()
            return await real_save(*args, **kwargs)

        cluster.rollouts.save = save  # type: ignore[method-assign]
        for _ in range(150):
            cluster.order("promote", flag)
        cluster.order("roll_back", flag)
        await cluster.passes(10)
        assert len(cluster.results()) == 1
        gate.set()
        await cluster.passes(10)
        assert await percent_of(cluster, flag) == 0
        assert len(cluster.results()) == 152
        assert sum("send it again" in reason for reason in reasons(cluster)) == 50
        assert replica.refused == []
    assert cluster.committed(flag) == 152


@in_virtual_time
async def test_a_flood_for_one_flag_keeps_no_roll_back_of_another_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A script in a loop sends more than is read at once; each of its commands gets one answer."""
    for module in (command_partition, command_follower):
        monkeypatch.setattr(module, "UNCOMMITTED_LIMIT", 1000)
    monkeypatch.setattr(command_partition, "FLAG_COMMANDS_LIMIT", 10)
    monkeypatch.setattr(command_partition, "FLAG_LOWERING_LIMIT", 20)
    monkeypatch.setattr(command_partition, "STORED_REFUSALS_LIMIT", 20)
    cluster, flag = Cluster(), FLAGS[0]
    other = next(
        name
        for name in (f"other-{number}" for number in range(100))
        if partition_of(name) == partition_of(flag)
    )
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        cluster.order("start", other)
        await cluster.passes(3)
        real_save = cluster.rollouts.save

        async def save(*args: Any, **kwargs: Any) -> bool:
            await asyncio.sleep(0.02)
            return await real_save(*args, **kwargs)

        cluster.rollouts.save = save  # type: ignore[method-assign]
        for _ in range(2500):
            cluster.order("pause", flag)
            cluster.order("resume", flag)
        cluster.order("roll_back", other)
        await cluster.passes(30)
        assert await percent_of(cluster, other) == 0
        await cluster.passes(30)
        refused = [one.command_id for _, one in replica.refused if isinstance(one, CommandRefused)]
        answered = [*refused, *cluster.results()]
        assert sorted(answered) == sorted(f"c{number}" for number in range(1, 5004))
    assert cluster.committed(flag) == 5003


@in_virtual_time
async def test_a_command_refused_as_too_much_is_not_carried_out_by_the_next_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its refusal is kept as its answer.

    Read again behind an uncommitted record, it gets the same.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)

        async def refuse(refused: Sequence[Any]) -> None:
            if any(isinstance(fault, CommandUnreadable) for _, fault in refused):
                await asyncio.Event().wait()  # Kafka takes none of it
            replica.refused.extend(refused)

        replica.inbox.refuse = refuse
        real_save, gate = cluster.rollouts.save, asyncio.Event()

        async def save(*args: Any, **kwargs: Any) -> bool:
            await gate.wait()
            return await real_save(*args, **kwargs)

        cluster.rollouts.save = save  # type: ignore[method-assign]
        cluster.broker.append(TOPIC, BAD_ID, key=flag.encode(), partition=0)
        for _ in range(100):
            cluster.order("unfreeze", flag)
        cluster.order("promote", flag)  # c102
        await cluster.passes(10)
        gate.set()
        await cluster.passes(10)
        told = [
            fault.command_id for _, fault in replica.refused if isinstance(fault, CommandRefused)
        ]
        assert "c102" in told or cluster.results()["c102"] == "rejected"
        assert await percent_of(cluster, flag) == 10
        assert cluster.committed(flag) == 1
    cluster.publisher.published.clear()
    monkeypatch.setattr(command_follower, "COMMANDS_PER_FETCH", 20)  # fewer wait at once, there
    async with cluster.replica():
        await cluster.passes(10)
        assert await percent_of(cluster, flag) == 10
        assert cluster.results()["c102"] == "rejected"
    assert cluster.committed(flag) == 103


@in_virtual_time
async def test_a_command_refused_for_a_fault_is_not_carried_out_by_the_next_owner() -> None:
    """Nothing keeps that refusal, so it is told once the command is committed.

    Not behind an open one.
    """
    cluster, flag = Cluster(), FLAGS[0]
    open_flag = next(name for number in range(99) if partition_of(name := f"other-{number}") == 0)
    async with cluster.replica():
        cluster.order("start", flag)
        cluster.order("start", open_flag)
        await cluster.passes(3)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    cluster.rollouts.damage(flag, "no JSON")
    real_save, gate = cluster.rollouts.save, asyncio.Event()

    async def save(flag_key: str, **kwargs: Any) -> bool:
        if flag_key == open_flag and not gate.is_set():
            await asyncio.Event().wait()
        return await real_save(flag_key, **kwargs)

    cluster.rollouts.save = save  # type: ignore[method-assign]
    async with cluster.replica() as first:
        await cluster.passes(3)
        cluster.order("freeze", open_flag)  # stays open
        cluster.order("promote", flag)  # c4
        await cluster.passes(5)
        assert cluster.committed(flag) == 2
    gate.set()
    cluster.newest[flag] = rollout
    async with cluster.replica() as second:
        await cluster.passes(10)
        told = [
            fault.command_id
            for _, fault in (*first.refused, *second.refused)
            if isinstance(fault, CommandRefused)
        ]
        assert (cluster.results().get("c4"), told) == ("accepted", [])
    assert cluster.committed(flag) == 4
