"""What concerns many flags is read and written together; each flag's trouble stays its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.gathered_calls import (
    CALLERS_PER_TRIP,
    SETTLED_PER_TURN,
    GatheredCalls,
)
from controller.adapters.redis.reports import RedisReports
from controller.adapters.redis.rollouts import RedisRollouts
from controller.errors import BrokenInvariant, StoreUnavailable
from controller.ports import CourseKey
from tests.brokers import RedisServer
from tests.builders import make_plan, make_rollout

T = TypeVar("T")
FLAGS = [f"flag-{number:03}" for number in range(3 * CALLERS_PER_TRIP)]


class CountingConnection(RedisConnection):
    """Notes the purpose of each call, and can be told to hold all calls back."""

    def __init__(self, store: RedisConnection) -> None:
        """Call as `store` does."""
        super().__init__(store.client, prefix=store.prefix, deadline_seconds=5)
        self.purposes: list[str] = []
        self.may_call = asyncio.Event()
        self.may_call.set()

    async def call(self, purpose: str, make: Callable[[], Awaitable[T]], **options: Any) -> T:
        """Note a call, and make it."""
        self.purposes.append(purpose)
        await self.may_call.wait()
        return await super().call(purpose, make, **options)


async def fill(store: RedisConnection) -> None:
    """Save one rollout for each flag."""
    rollouts = RedisRollouts(store)
    for flag_key in FLAGS:
        plan = make_plan(flag_key=flag_key)
        assert await rollouts.save(flag_key, expected_token=0, rollout=make_rollout(plan=plan))


async def test_flags_that_are_loaded_at_once_take_few_calls(store: RedisConnection) -> None:
    """A replica that takes over ten thousand flags does not call ten thousand times."""
    await fill(store)
    connection = CountingConnection(store)
    stored = await asyncio.gather(*map(RedisRollouts(connection).load, FLAGS))
    assert [one.rollout.flag_key for one in stored if one.rollout is not None] == FLAGS
    assert connection.purposes == [
        f"load flag-{number:03} and 19 more calls" for number in (0, 20, 40)
    ]


async def test_all_documents_are_compared_in_few_calls(store: RedisConnection) -> None:
    """A start reads every document twice; those that are known are not even decoded."""
    await fill(store)
    connection = CountingConnection(store)
    known = dict.fromkeys(FLAGS[1:], 1)
    newer = await RedisRollouts(connection).newer_than(known)
    assert [rollout.flag_key for rollout in newer] == FLAGS[:1]
    assert connection.purposes == ["list the flags", "read the documents of 60 flags"]


async def test_a_key_of_another_kind_concerns_its_flag_alone(store: RedisConnection) -> None:
    """The flags that were read with it are loaded."""
    await fill(store)
    await store.client.set("rolloutd:ro:{strange}", "no hash")
    rollouts = RedisRollouts(store)
    first, strange, last = await asyncio.gather(
        *map(rollouts.load, (FLAGS[0], "strange", FLAGS[1])), return_exceptions=True
    )
    assert isinstance(strange, BrokenInvariant)
    assert "load strange: WRONGTYPE" in str(strange)
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)


async def test_a_caller_that_leaves_does_not_hold_up_the_others(store: RedisConnection) -> None:
    """Its worker was stopped while it waited."""
    await fill(store)
    connection = CountingConnection(store)
    connection.may_call.clear()
    rollouts = RedisRollouts(connection)
    loads = [asyncio.create_task(rollouts.load(flag_key)) for flag_key in FLAGS[:3]]
    while not connection.purposes:
        await asyncio.sleep(0)
    loads[0].cancel()
    connection.may_call.set()
    done = await asyncio.gather(*loads, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert [one.token for one in done[1:] if not isinstance(one, BaseException)] == [1, 1]


async def test_a_read_that_was_asked_for_later_sees_what_was_saved_before(
    store: RedisConnection,
) -> None:
    """It does not get the answer to a read that is under way."""
    await fill(store)
    connection = CountingConnection(store)
    connection.may_call.clear()
    rollouts = RedisRollouts(connection)
    early = asyncio.create_task(rollouts.load(FLAGS[0]))
    while not connection.purposes:
        await asyncio.sleep(0)
    assert await RedisRollouts(store).save(FLAGS[0], expected_token=1, tests=b"new")
    late = asyncio.create_task(rollouts.load(FLAGS[0]))
    connection.may_call.set()
    await early
    assert (await late).token == 2
    assert connection.purposes == [f"load {FLAGS[0]}"] * 2


async def test_each_learns_that_redis_is_away(own_redis: RedisServer) -> None:
    """Each worker waits by itself, and tries again."""
    connection = RedisConnection.connect(own_redis.url, deadline_seconds=0.3, try_seconds=0.1)
    own_redis.terminate()
    rollouts = RedisRollouts(connection)
    done = await asyncio.gather(*map(rollouts.load, FLAGS), return_exceptions=True)
    assert {type(one) for one in done} == {StoreUnavailable}
    assert len({id(one) for one in done}) == len(FLAGS)
    own_redis.start()
    connection.why_refused = "it is another environment's"
    with pytest.raises(StoreUnavailable, match="load strange: "):
        await rollouts.load("strange")
    await connection.close()


async def test_reports_of_many_flags_are_written_together(store: RedisConnection) -> None:
    """Each with its course, and one whose key somebody else wrote stops no other."""
    connection = CountingConnection(store)
    reports = RedisReports(connection, keep_seconds=60)
    await store.client.set("rolloutd:live:{strange}", "no hash")
    flag_keys = ["strange", "a", "b"]
    course = CourseKey("start-1", 0)
    done = await asyncio.gather(
        *(reports.write(flag_key, flag_key.encode(), course, {7: b"p"}) for flag_key in flag_keys),
        return_exceptions=True,
    )
    assert [type(one) for one in done] == [BrokenInvariant, type(None), type(None)]
    assert "report on strange: WRONGTYPE" in str(done[0])
    assert [await reports.read(flag_key) for flag_key in "ab"] == [b"a", b"b"]
    connection.purposes.clear()
    courses = await asyncio.gather(*(reports.course(flag_key, course) for flag_key in "ab"))
    assert courses == [{7: b"p"}, {7: b"p"}]
    assert connection.purposes == ["read the course of a and 1 more call"]


async def test_a_caller_is_not_cancelled_with_its_round_trip(store: RedisConnection) -> None:
    """A worker that is would end without a word, and its flag would be watched by nobody."""
    connection = CountingConnection(store)
    connection.may_call.clear()
    calls = GatheredCalls(connection)
    caller = asyncio.create_task(calls.call("load a", ("HGETALL", "a")))
    while not connection.purposes:
        await asyncio.sleep(0)
    for trip in calls._trips:
        trip.cancel()
    with pytest.raises(StoreUnavailable, match="load a: the call was given up"):
        await caller


async def test_few_learn_of_trouble_in_one_turn_of_the_loop(store: RedisConnection) -> None:
    """Ten thousand workers that log and wait at once would hold the loop for seconds.

    That is longer than the next calls may take: they would fail while Redis is well.
    """
    store.why_refused = "it is another environment's"
    rollouts, turns, ended = RedisRollouts(store), Counter[int](), asyncio.Event()
    turn = 0

    async def count_turns() -> None:
        nonlocal turn
        while not ended.is_set():
            turn += 1
            await asyncio.sleep(0)

    async def load(flag_key: str) -> None:
        with pytest.raises(StoreUnavailable, match="another environment"):
            await rollouts.load(flag_key)
        turns[turn] += 1

    counting = asyncio.create_task(count_turns())
    await asyncio.gather(*map(load, FLAGS))
    ended.set()
    await counting
    assert turns.total() == len(FLAGS)
    assert max(turns.values()) <= SETTLED_PER_TURN
