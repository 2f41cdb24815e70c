"""A flag is lowered on any replica while Kafka is away; in memory, in virtual time.

Two replicas share a store. One runs the flag, the other is asked.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from controller.core.audience import Audience, Condition
from controller.core.rollout import Paused, RolledBack, Rollout
from controller.deciding.commands.direct_commands import (
    MOST_OPEN,
    NOTHING_CHANGED,
    SERVED_HERE,
    UNSAVED,
)
from controller.errors import OperatingTrouble, StoreUnavailable
from controller.health import Scope
from schemas.result import Result
from schemas.terms import CommandStatus, CommandVerb, Operator
from tests.builders import HOUR, T0, make_plan, make_rollout, make_stages
from tests.unit.deciding.commands.direct_world import (
    Own,
    Replica,
    Shared,
    order,
    two_replicas,
)
from tests.unit.deciding.worker_world import FLAG
from tests.virtual_time import in_virtual_time, settled


@in_virtual_time
async def test_the_replica_that_runs_the_flag_lowers_it() -> None:
    """Saved and served at once; published with its answer when Kafka is back."""
    async with two_replicas() as (shared, owner, _):
        answer = await owner.direct.carry_out(order())
        assert isinstance(answer, Result)
        assert answer.status is CommandStatus.ACCEPTED
        assert owner.percent == 0
        before = len(shared.publisher.distinct("decisions"))
        shared.publisher.outage.is_down = False
        await asyncio.sleep(30)
        assert len(shared.publisher.distinct("decisions")) == before + 1
        results = [json.loads(one.value)["data"] for one in shared.publisher.distinct("results")]
        assert [one["status"] for one in results if one["command_id"] == "http-1"] == ["accepted"]


@in_virtual_time
@pytest.mark.parametrize("is_owner", [True, False])
async def test_a_repeat_gets_the_first_answer_and_a_new_id_hears_that_it_is_so(
    is_owner: bool,
) -> None:
    """Each request over HTTP has a time of its own; the id is what it repeats."""
    async with two_replicas() as (_, owner, asked):
        replica = owner if is_owner else asked
        first = await replica.direct.carry_out(order())
        await asyncio.sleep(2)
        again = await replica.direct.carry_out(order(issued_at=T0 + timedelta(seconds=2)))
        assert isinstance(first, Result)
        assert again == first
        other = await replica.direct.carry_out(order(id="http-2"))
        assert isinstance(other, Result)
        assert (other.status, other.reason) == (CommandStatus.ACCEPTED, "0 % is served already")
        assert other.revision == first.revision


@in_virtual_time
async def test_any_other_replica_lowers_it_and_the_owner_follows() -> None:
    """Both serve 0 % within two seconds, and the owner's worker goes on from there."""
    async with two_replicas() as (shared, owner, asked):
        answer = await asked.direct.carry_out(order())
        assert isinstance(answer, Result)
        assert answer.revision == 2
        assert asked.percent == 0
        await asyncio.sleep(2)
        assert owner.percent == 0
        worker = owner.pool.worker(FLAG)
        assert worker is not None
        assert worker.rollout is not None
        assert isinstance(worker.rollout.phase, RolledBack)
        assert FLAG not in asked.pool
        shared.publisher.outage.is_down = False
        await asyncio.sleep(30)
        stored = await shared.rollouts.load(FLAG)
        assert not stored.outbox
        assert len(shared.publisher.distinct("decisions")) == 2
        # The guest has gone, and the entry of the relay goes too.
        assert asked.direct._guests == {}
        await asyncio.sleep(400)
        assert shared.relay.revisions == {}


@in_virtual_time
async def test_two_replicas_may_publish_one_effect_and_it_is_the_same_record() -> None:
    """At least once: whoever reads drops repeats by their id, and loses nothing by that."""
    async with two_replicas() as (shared, _, asked):
        await asked.direct.carry_out(order())
        await asyncio.sleep(2)
        shared.publisher.outage.is_down = False
        await asyncio.sleep(30)
    records: dict[str, set[bytes]] = {}
    for entry in shared.publisher.published:
        records.setdefault(entry.effect_id, set()).add(entry.value)
    assert len(records) < len(shared.publisher.published)
    assert all(len(values) == 1 for values in records.values())


@in_virtual_time
async def test_kafka_answers_and_does_not_take_the_state_record() -> None:
    """A record that is too large, say: the other replica follows within five seconds."""
    async with two_replicas() as (shared, owner, asked):
        shared.brokers_answer = True
        await owner.direct.carry_out(order())
        await asyncio.sleep(5)
        assert (owner.percent, asked.percent) == (0, 0)


@in_virtual_time
async def test_the_owner_follows_whichever_way_the_decision_came() -> None:
    """Not by the relay alone: the comparison with Redis may be the first to read of it."""
    async with two_replicas() as (_, owner, asked):
        owner.not_ours = "its relay is not read"
        await asked.direct.carry_out(order())
        await asyncio.sleep(2)
        assert owner.percent == 10
        own: list[Rollout] = []
        owner.registry.subscribe_own(Own(own))
        owner.registry.update(asked.served[-1])
        await settled()
        worker = owner.pool.worker(FLAG)
        assert worker is not None
        assert worker.rollout is not None
        assert isinstance(worker.rollout.phase, RolledBack)
        assert [one.percent for one in own] == [0], "the planes are told"


@in_virtual_time
async def test_the_owner_is_dead() -> None:
    """The asked replica publishes what it decided, although it never owns the flag."""
    shared = Shared()
    owner, asked = Replica(shared), Replica(shared)
    async with asked.running():
        async with owner.running():
            await owner.start_flag()
            await settled()
            asked.registry.update(owner.served[-1])
        shared.kafka_goes()
        await asked.direct.carry_out(order())
        assert asked.percent == 0
        shared.publisher.outage.is_down = False
        await asyncio.sleep(30)
        assert len(shared.publisher.distinct("decisions")) == 2


@in_virtual_time
async def test_a_replica_that_knows_nothing_asks_redis() -> None:
    """Started while Kafka was away, it finds the flag in Redis, if that is its environment's."""
    async with two_replicas() as (shared, _, _):
        fresh = Replica(shared)
        async with fresh.running():
            fresh.not_ours = "Redis names staging"
            with pytest.raises(OperatingTrouble, match="staging"):
                await fresh.direct.carry_out(order())
            fresh.not_ours = None
            answer = await fresh.direct.carry_out(order())
            assert isinstance(answer, Result)
            assert fresh.percent == 0


@in_virtual_time
async def test_a_repeat_is_the_same_command() -> None:
    """The same id, whatever its time: one decision, one answer, on whichever replica."""
    async with two_replicas() as (_, owner, asked):
        first = await asked.direct.carry_out(order())
        await asyncio.sleep(2)
        again = await owner.direct.carry_out(order())
        assert again == first
        later = await owner.direct.carry_out(order(issued_at=owner.shared.clock.now()))
        assert later == first


@in_virtual_time
async def test_pause_stops_it_where_it_is() -> None:
    """The percentage stays, on both replicas."""
    async with two_replicas() as (_, owner, asked):
        answer = await asked.direct.carry_out(order(CommandVerb.PAUSE))
        await asyncio.sleep(2)
        assert isinstance(answer, Result)
        assert (owner.percent, asked.percent) == (10, 10)
        assert isinstance(owner.served[-1].phase, Paused)


@in_virtual_time
async def test_unknown_flags_are_refused_and_leave_nothing() -> None:
    """No worker, and nothing in Redis: names could be sent for ever."""
    async with two_replicas() as (shared, _, asked):
        answer = await asked.direct.carry_out(order(flag="no-such-flag"))
        assert isinstance(answer, Result)
        assert answer.status is CommandStatus.REJECTED
        assert "no rollout" in answer.reason
        assert list(await shared.rollouts.flag_keys()) == [FLAG]
        assert asked.direct._guests == {}


@in_virtual_time
async def test_without_redis_this_replica_alone_serves_0_percent() -> None:
    """Said as a fault, saved when Redis is back, and then known to all."""
    async with two_replicas() as (shared, owner, asked):
        shared.rollouts.outage.is_down = True
        answer = await asked.direct.carry_out(order())
        assert isinstance(answer, str)
        assert SERVED_HERE in answer
        assert "away or refuses writes" in answer  # it answers where it has no memory left
        assert (owner.percent, asked.percent) == (10, 0)
        fault = asked.faults.of(Scope.FLAG, FLAG, reporter=UNSAVED)
        assert fault is not None
        assert "only this replica" in fault.why
        repeated = await asked.direct.carry_out(order())
        assert repeated == answer
        shared.rollouts.outage.is_down = False
        await asyncio.sleep(20)
        assert asked.faults.of(Scope.FLAG, FLAG, reporter=UNSAVED) is None
        assert owner.percent == 0
        saved = await asked.direct.carry_out(order())
        assert isinstance(saved, Result)
        assert saved.revision == 2


@in_virtual_time
async def test_a_replica_that_started_without_redis_lowers_what_it_serves() -> None:
    """Whose Redis it is cannot be asked either: nothing is saved before that is known."""
    async with two_replicas() as (shared, owner, asked):
        shared.rollouts.outage.is_down = True
        asked.identity_trouble = StoreUnavailable("Redis gave no answer")
        answer = await asked.direct.carry_out(order())
        assert isinstance(answer, str)
        assert SERVED_HERE in answer
        assert asked.percent == 0
        shared.rollouts.outage.is_down = False
        await asyncio.sleep(20)
        assert owner.percent == 10, "saved before Redis was known to be ours"
        asked.identity_trouble = None
        await asyncio.sleep(20)
        assert owner.percent == 0


@in_virtual_time
async def test_without_redis_a_refused_command_serves_nothing_else_and_says_so() -> None:
    """At 50 % of an audience everybody else gets 0 %, which is not what was asked for."""
    async with two_replicas() as (shared, _, asked):
        stages = make_stages(50, audience="beta")
        condition = Condition("plan", Operator.IN, ("beta",))
        plan = make_plan(stages=stages, audiences=(Audience("beta", ((condition,),)),))
        asked.registry.update(make_rollout(plan=plan, percent=50.0, revision=9))
        shared.rollouts.outage.is_down = True
        answer = await asked.direct.carry_out(order(issued_at=T0 - 48 * HOUR))
        assert isinstance(answer, str)
        assert NOTHING_CHANGED in answer
        assert asked.faults.of(Scope.FLAG, FLAG, reporter=UNSAVED) is None


@in_virtual_time
async def test_a_lowering_that_is_refused_after_all_lowers_nothing() -> None:
    """It grew too old while Redis was away. Else this replica would serve less than all others."""
    async with two_replicas() as (shared, _, asked):
        rollout = asked.registry.newest(FLAG)
        assert rollout is not None
        shared.rollouts.outage.is_down = True
        almost_too_old = shared.clock.now() - 24 * HOUR + timedelta(seconds=5)
        await asked.direct.carry_out(order(issued_at=almost_too_old))
        assert asked.percent == 0
        await asyncio.sleep(20)
        shared.rollouts.outage.is_down = False
        await asyncio.sleep(20)
        assert asked.served[-1] is asked.registry.newest(FLAG)
        assert asked.percent == rollout.percent


@in_virtual_time
async def test_without_redis_a_pause_waits_and_says_so() -> None:
    """Nothing that is served would change, so nothing is served before it is saved."""
    async with two_replicas() as (shared, _, asked):
        shared.rollouts.outage.is_down = True
        served = list(asked.served)
        answer = await asked.direct.carry_out(order(CommandVerb.PAUSE))
        assert isinstance(answer, str)
        assert NOTHING_CHANGED in answer
        assert asked.served == served


@in_virtual_time
async def test_what_waits_for_redis_is_bounded() -> None:
    """Beyond the limit a command is not taken, and its issuer is told."""
    async with two_replicas() as (shared, _, asked):
        shared.rollouts.outage.is_down = True
        orders = [order(id=f"http-{number}") for number in range(MOST_OPEN)]
        await asyncio.gather(*map(asked.direct.carry_out, orders))
        with pytest.raises(OperatingTrouble, match="wait for Redis"):
            await asked.direct.carry_out(order(id="one-more"))
        shared.rollouts.outage.is_down = False
        await asyncio.sleep(60)
        assert asked.direct._open == {}


@in_virtual_time
async def test_what_is_decided_without_a_command_is_relayed_too() -> None:
    """The owner's own decision in an outage reaches the other replica."""
    async with two_replicas() as (_, owner, asked):
        worker = owner.pool.worker(FLAG)
        assert worker is not None
        assert worker.rollout is not None
        revision = worker.rollout.revision
        while worker.rollout.revision == revision:  # its bake ends
            await asyncio.sleep(60)
        await asyncio.sleep(2)
        assert asked.served[-1].revision == worker.rollout.revision
