from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.memory import MemoryRollouts, MemoryTotals
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.totals import RedisTotals
from controller.ports import OutboxEntry, Rollouts, Totals
from schemas.terms import Arm
from schemas.totals import ArmCounts, PartitionCounts, arm_field, encode_arm, encode_progress

KEYS = ("e/0/1", "e/1/1")
FIELDS = (
    arm_field("f", "r", 0, Arm.TREATMENT),
    arm_field("f", "r", 0, Arm.CONTROL),
    "f|r|0|exposed.0",
)
WANTED = {"f": ("r", [0, 1])}

Call = Callable[[Any], Coroutine[Any, Any, Any]]

offsets = st.integers(0, 4)
arms = st.integers(0, 3).map(lambda n: encode_arm(ArmCounts(exposures=n, latency={n: n + 1})))


@st.composite
def totals_calls(draw: st.DrawFn) -> Call:
    """One call of the Totals port; offsets are few, so that fences meet often."""
    key = draw(st.sampled_from(KEYS))
    kind = draw(st.sampled_from(("save", "save", "save", "load", "read", "drop")))
    if kind == "save":
        expected = draw(st.none() | offsets)
        after = (expected or 0) + draw(st.integers(0, 2))
        progress = encode_progress(
            PartitionCounts(end=after, counted=after, reported_at_ms=draw(st.integers(0, 1)))
        )
        changed = draw(st.dictionaries(st.sampled_from(FIELDS), arms, max_size=3))
        return lambda totals: totals.save(
            key, expected=expected, next_offset=after, fields={**progress, **changed}
        )
    if kind == "drop":
        names = draw(st.lists(st.sampled_from(FIELDS), max_size=2))
        return lambda totals: totals.drop(key, names)
    if kind == "read":
        return lambda totals: totals.read(KEYS, WANTED)
    return lambda totals: totals.load(key)


@st.composite
def rollouts_calls(draw: st.DrawFn) -> Call:
    """One call of the Rollouts port."""
    flag = draw(st.sampled_from(("a", "b")))
    kind = draw(
        st.sampled_from(("save", "save", "save", "load", "remove_effects", "answer", "flags"))
    )
    if kind == "save":
        token = draw(st.integers(0, 3))
        tests = draw(st.none() | st.binary(max_size=2))
        numbers = draw(st.lists(st.integers(0, 11), max_size=2, unique=True))
        outbox = [
            OutboxEntry(f"outbox:{n}", f"{flag}/1/{n}", "alerts", flag, draw(st.binary(max_size=3)))
            for n in numbers
        ]
        answer = draw(st.none() | st.tuples(st.sampled_from(("c1", "c2")), st.binary(max_size=2)))
        return lambda rollouts: rollouts.save(
            flag, expected_token=token, tests=tests, outbox=outbox, answer=answer
        )
    if kind == "remove_effects":
        names = [f"outbox:{n}" for n in draw(st.lists(st.integers(0, 11), max_size=3))]
        return lambda rollouts: rollouts.remove_effects(flag, names)
    if kind == "answer":
        command_id = draw(st.sampled_from(("c1", "c2")))
        return lambda rollouts: rollouts.answer_to(flag, command_id)
    if kind == "flags":
        return lambda rollouts: rollouts.flag_keys()
    return lambda rollouts: rollouts.load(flag)


async def answers_of(adapter: Totals | Rollouts, calls: list[Call]) -> list[Any]:
    """Return what each call answered."""
    return [await call(adapter) for call in calls]


async def answers_of_redis(
    url: str, kind: type[RedisTotals] | type[RedisRollouts], calls: list[Call]
) -> list[Any]:
    """Return what each call answered, on an empty prefix of a real server."""
    store = RedisConnection.connect(url, prefix=f"d{uuid.uuid4().hex}:")
    try:
        return await answers_of(kind(store), calls)
    finally:
        await store.close()


@given(calls=st.lists(totals_calls(), max_size=25))
def test_memory_and_redis_totals_answer_alike(redis_url: str, calls: list[Call]) -> None:
    """Any sequence of calls gets the same answers from the memory adapter and a real server."""
    assert asyncio.run(answers_of_redis(redis_url, RedisTotals, calls)) == asyncio.run(
        answers_of(MemoryTotals(), calls)
    )


@given(calls=st.lists(rollouts_calls(), max_size=25))
def test_memory_and_redis_rollouts_answer_alike(redis_url: str, calls: list[Call]) -> None:
    """Any sequence of calls gets the same answers from the memory adapter and a real server."""
    assert asyncio.run(answers_of_redis(redis_url, RedisRollouts, calls)) == asyncio.run(
        answers_of(MemoryRollouts(), calls)
    )
