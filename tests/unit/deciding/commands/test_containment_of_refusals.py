"""Refusals that Kafka does not take, and commands that are read a second time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import structlog

from controller.codec.command_records import read_command
from controller.codec.commands import command_event
from controller.core.rollout import Baking
from controller.deciding.commands import (
    command_follower,
    command_partition,
    command_refusals,
    unknown_flags,
)
from controller.health import Scope
from controller.ports import OF_NO_FLAG
from tests.unit.deciding.cluster import FLAGS, TOPIC, Cluster, partition_of
from tests.unit.deciding.containment_helpers import percent_of
from tests.virtual_time import in_virtual_time

# --- refusals that Kafka does not take ---


def make_limits_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fifty commands wait, sixty refusals, and a hundred commits."""
    monkeypatch.setattr(command_partition, "UNKNOWN_LIMIT", 50)
    monkeypatch.setattr(command_refusals, "REFUSALS_LIMIT", 60)
    monkeypatch.setattr(command_partition, "UNCOMMITTED_LIMIT", 100)
    monkeypatch.setattr(command_follower, "UNCOMMITTED_LIMIT", 100)


async def never(_refused: Sequence[Any]) -> None:
    """Refuse as while Kafka takes nothing."""
    await asyncio.Event().wait()


@in_virtual_time
async def test_records_that_cannot_be_set_aside_keep_no_roll_back_waiting() -> None:
    """The quarantine is away.

    220 roll backs of a flag without a proper id wait for it, an honest one is obeyed.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        real_refuse, replica.inbox.refuse = replica.inbox.refuse, never
        for number in range(220):
            value = json.dumps({"verb": "roll_back", "id": f"bad id {number}!"}).encode()
            cluster.broker.append(TOPIC, value, key=flag.encode(), partition=0)
        await cluster.passes(3)
        cluster.order("roll_back", flag)
        await cluster.passes(1)
        assert await percent_of(cluster, flag) == 0
        assert cluster.results() == {"c1": "accepted", "c2": "accepted"}
        assert not len(replica.deciding.commands)
        assert cluster.committed(flag) == 1
        replica.inbox.refuse = real_refuse
    async with cluster.replica() as replica:
        await cluster.passes(5)
        assert len(replica.refused) == 220
    assert cluster.committed(flag) == 222


@in_virtual_time
async def test_answers_that_kafka_does_not_take_keep_no_roll_back_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many refusals wait.

    The oldest are given up, loudly, before commands are read no more.
    """
    make_limits_small(monkeypatch)
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        replica.inbox.refuse = never
        for number in range(500):
            cluster.order("promote", f"nobody-{number}", partition=0)
        cluster.order("roll_back", flag)
        await cluster.passes(20)
        assert await percent_of(cluster, flag) == 0
        fault = replica.faults.of(Scope.PARTITION, f"{TOPIC}/0")
        assert fault is not None
        assert "got no answer" in fault.why


@in_virtual_time
@pytest.mark.parametrize("limit", ["REFUSALS_LIMIT", "REFUSALS_BYTES"])
async def test_refusals_that_wait_are_bounded_and_keep_no_frames(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """A flood that Kafka is slow to answer costs what waits, by number and bytes, and no frames."""
    unreadable = json.dumps({"filler": "x" * 1000}).encode()
    most = 60 if limit == "REFUSALS_LIMIT" else 60 * len(unreadable)
    monkeypatch.setattr(command_refusals, limit, most)
    cluster = Cluster()
    async with cluster.replica() as replica:
        handed: list[Any] = []

        async def refuse(refused: Sequence[Any]) -> None:
            handed.extend(refused)
            await asyncio.sleep(2)

        replica.inbox.refuse = refuse
        for _ in range(500):
            cluster.broker.append(TOPIC, unreadable, key=b"nobody", partition=0)
        await cluster.passes(1)
        waiting = replica.deciding._refusals._waiting
        assert 60 <= len(waiting) <= 60 + unknown_flags.ANSWERED_AT_ONCE
        for fault in [one.fault for one in waiting] + [fault for _, fault in handed]:
            assert (fault.__traceback__, fault.__cause__, fault.__context__) == (None, None, None)
        await cluster.passes(60)
        assert len(handed) == 500
        assert replica.deciding._refusals._waiting_bytes == 0


@in_virtual_time
async def test_while_kafka_takes_its_time_no_refusal_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slow is not away: what is refused waits, and each gets its answer."""
    make_limits_small(monkeypatch)
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:

        async def refuse(refused: Sequence[Any]) -> None:
            await asyncio.sleep(2)
            replica.refused.extend(refused)

        replica.inbox.refuse = refuse
        for number in range(500):
            cluster.order("promote", f"nobody-{number}", partition=0)
        await cluster.passes(60)
        assert len(replica.refused) == 500
    assert cluster.committed(flag) == 500


# --- B7: what is read a second time ---


@in_virtual_time
async def test_last_week_s_roll_back_does_not_lower_this_week_s_rollout() -> None:
    """Redis and the group's offsets are lost together.

    The old order is read again, and is one for an earlier rollout.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
        cluster.order("roll_back", flag)
        await cluster.passes(timedelta(hours=2).total_seconds())
        cluster.order("start", flag)
        await cluster.passes(5)
        assert await percent_of(cluster, flag) == 10
        rollout = await cluster.stored(flag)
        assert rollout is not None
    cluster.newest[flag] = rollout
    cluster.rollouts._flags.clear()
    cluster.broker.committed("deciders").clear()
    cluster.publisher.published.clear()
    async with cluster.replica():
        await cluster.passes(5)
        assert await percent_of(cluster, flag) == 10
        assert cluster.results()["c2"] == "rejected"
        cluster.order("roll_back", flag)
        await cluster.passes(3)
        assert await percent_of(cluster, flag) == 0


@in_virtual_time
async def test_an_operator_with_a_slow_clock_is_obeyed() -> None:
    """An order that arrives now was meant now.

    An hour that a laptop is behind keeps nothing at 10 %.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(30)
        command = command_event(
            read_command(
                json.dumps({"verb": "roll_back", "issuer": "ada", "id": "late"}).encode(),
                (),
                flag.encode(),
                round((cluster.clock.now() - timedelta(hours=1)).timestamp() * 1000),
            )
        )
        now = round(cluster.clock.now().timestamp() * 1000)
        cluster.broker.append(
            TOPIC, command, key=flag.encode(), partition=partition_of(flag), timestamp_ms=now
        )
        await cluster.passes(3)
        assert cluster.results()["late"] == "accepted"
        assert await percent_of(cluster, flag) == 0


# --- the loops themselves ---


@in_virtual_time
async def test_a_mistake_in_following_commands_is_a_fault_and_not_the_end() -> None:
    """Whatever fails around reading, commands go on being read, and the fault ends with it."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        real_count = replica.topology.partitions

        def count() -> int:
            raise KeyError("commands")

        replica.topology.partitions = count
        await cluster.passes(5)
        assert [(fault.scope, fault.name) for fault in replica.faults.current] == [
            (Scope.PART, "commands")
        ]
        replica.topology.partitions = real_count
        cluster.order("start", flag)
        await cluster.passes(5)
        assert isinstance(
            (await cluster.stored(flag) or replace(cluster.transitions[0])).phase, Baking
        )
        assert replica.faults.current == ()


@in_virtual_time
async def test_refusals_are_logged_and_shown_and_a_flood_of_them_is_counted() -> None:
    """Who published them may read no result; twenty a minute are enough to see what is wrong."""
    cluster = Cluster()
    async with cluster.replica() as replica:
        with structlog.testing.capture_logs() as lines:
            for number in range(50):
                value = b'{"verb": "roll_back"}' if number % 2 else b"no JSON"
                cluster.broker.append(TOPIC, value, key=b"nobody", partition=0)
            await cluster.passes(70)
            cluster.broker.append(TOPIC, b'{"verb": "roll_back"}', key=b"nobody", partition=0)
            await cluster.passes(5)
        events = await replica.deciding.dependencies.reports.news(OF_NO_FLAG, "results")
    told = [line for line in lines if line["event"] == "command_refused"]
    assert len(told) == command_refusals.LOGGED_IN_A_MINUTE + 1
    assert told[-1]["flag_key"] == "nobody"
    (more,) = [line["more"] for line in lines if line["event"] == "commands_refused"]
    assert more == 50 - command_refusals.LOGGED_IN_A_MINUTE
    assert len(events) == 51
    newest = json.loads(events[0])["data"]
    assert (newest["flag"], newest["verb"], newest["status"]) == ("nobody", "roll_back", "rejected")
