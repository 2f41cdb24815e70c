"""Who runs which flag, and what reaches it: on the twins in memory, in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from controller.codec.commands import to_command_received
from controller.core.judging.quiet import LONGEST_YOUNG
from controller.core.rollout import Baking, RolledBack
from controller.deciding.commands import command_follower, command_partition
from controller.deciding.flag.command_answers import digest_of, read_answer
from controller.deciding.flag.flag_inbox import NewTotals
from controller.errors import CommandRefused
from schemas.command import Command
from tests.unit.deciding.cluster import FLAGS, PLAN, TOPIC, Cluster, Replica
from tests.unit.deciding.containment_helpers import actions
from tests.virtual_time import in_virtual_time

# --- commands ---


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
async def test_a_refused_plan_is_answered_under_what_the_command_requests() -> None:
    """Its sender, who knows the request alone, recognizes the stored answer as its own."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(2)
        stages = [{"percent": 50, "bake": "1h"}, {"percent": 10, "bake": "1h"}]
        plan = {**PLAN, "flag": flag, "stages": stages}
        record = cluster.order("apply", flag, plan=plan)
        await cluster.passes(2)
        assert cluster.results()["c2"] == "rejected"
        stored = await cluster.rollouts.answer_to(flag, "c2")
    assert stored is not None
    assert record.value is not None
    sent = to_command_received(Command.model_validate_json(record.value))
    assert read_answer(stored).is_of(sent, digest_of(sent))


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


# --- lanes ---


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
            assert len(first.deciding.follower.owned) == len(second.deciding.follower.owned) == 2
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


# --- totals ---


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
        replica.totals.totals_saved()
        await cluster.passes(0.15)
        after = await cluster.stored(flag)
        assert after is not None
        assert isinstance(after.phase, RolledBack)


@in_virtual_time
async def test_totals_are_looked_at_without_news_too() -> None:
    """Silence is looked at as often as the plan's times for it need; Redis away only delays that.

    Whatever else changes is looked at within a second, and so is what a worker has not handled.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(90)  # the first stage bakes
        worker = replica.pool.worker(flag)
        assert worker is not None
        assert worker.rollout is not None
        every = LONGEST_YOUNG.total_seconds()
        looks: list[float] = []
        inbox: Any = worker.inbox
        real = inbox.put_totals

        def look(totals: NewTotals) -> None:
            looks.append(asyncio.get_running_loop().time())
            real(totals)

        inbox.put_totals = look
        await cluster.passes(2.5 * every)
        assert 3 <= len(looks) <= 5
        assert worker.rollout.told_gaps  # they lasted all the time for which nothing changed
        before = len(looks)
        cluster.totals.outage.is_down = True
        await cluster.passes(every)
        assert len(looks) <= before + 1
        cluster.totals.outage.is_down = False
        await cluster.passes(every / 2)
        looks.clear()
        views: Any = replica.totals
        views._actuation = SimpleNamespace(drift=lambda _: "one plane serves 5 %")
        views._note(flag)
        await cluster.passes(1.2)
        assert len(looks) == 1
        looks.clear()
        inbox.put_totals = lambda _: looks.append(0)  # the worker hangs
        await cluster.passes(every + 5)
        assert len(looks) >= 5


# --- our own mistakes ---


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
    task = asyncio.create_task(replica.deciding.run())
    await cluster.passes(2)
    cluster.order("start", FLAGS[0])
    await cluster.passes(2)
    task.cancel()
    await asyncio.wait([task])
    task = asyncio.create_task(replica.deciding.run())
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
    # Nothing was lost, and whoever reads of it has something to check.
    assert [action.split()[0] for action in actions(cluster, "flag_broken")] == ["check"]
