"""How flags are used is kept the same in memory and in Redis."""

from __future__ import annotations

import pytest

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.flag_uses import HOUR_KEPT_SECONDS, RedisFlagUses
from controller.errors import BrokenInvariant
from controller.ports import FlagUseStore, Use
from schemas.terms import UseKind

HOUR = 490_000
ON, OFF = Use(UseKind.TREATMENT, "a|ä"), Use(UseKind.CONTROL, "a|ä")


async def test_what_nobody_wrote_is_empty(flag_uses: FlagUseStore) -> None:
    """Nothing is no error."""
    assert await flag_uses.hour(HOUR) == {}
    assert await flag_uses.notes() == {}
    await flag_uses.write_notes({})
    await flag_uses.drop_notes([ON])


async def test_the_counts_of_all_writers_add_up(flag_uses: FlagUseStore) -> None:
    """Each hour has its own."""
    await flag_uses.add(HOUR, {ON: 2, OFF: 1}, writer="one", number=1)
    await flag_uses.add(HOUR, {ON: 3}, writer="two", number=1)
    await flag_uses.add(HOUR + 1, {ON: 10**12}, writer="one", number=2)
    assert await flag_uses.hour(HOUR) == {ON: 5, OFF: 1}
    assert await flag_uses.hour(HOUR + 1) == {ON: 10**12}


async def test_a_call_that_is_repeated_counts_once(flag_uses: FlagUseStore) -> None:
    """A writer does not know whether a call without an answer was done."""
    for _ in range(3):
        await flag_uses.add(HOUR, {ON: 2}, writer="one", number=7)
    await flag_uses.add(HOUR, {ON: 2}, writer="one", number=6)
    assert await flag_uses.hour(HOUR) == {ON: 2}
    await flag_uses.add(HOUR, {ON: 2}, writer="one", number=8)
    assert await flag_uses.hour(HOUR) == {ON: 4}


async def test_notes_stay_until_they_are_dropped(flag_uses: FlagUseStore) -> None:
    """Each replaces the one before."""
    await flag_uses.write_notes({ON: b"1", OFF: b"2"})
    await flag_uses.write_notes({ON: b"3"})
    assert await flag_uses.notes() == {ON: b"3", OFF: b"2"}
    await flag_uses.drop_notes([ON])
    assert await flag_uses.notes() == {OFF: b"2"}


@pytest.fixture
def in_redis(redis_store: RedisConnection) -> RedisFlagUses:
    """The uses in Redis alone."""
    return RedisFlagUses(redis_store)


async def test_hours_in_redis_expire(redis_store: RedisConnection, in_redis: RedisFlagUses) -> None:
    """Nobody else deletes them."""
    await in_redis.add(HOUR, {ON: 1}, writer="one", number=1)
    (key,) = await redis_store.client.keys(f"{redis_store.prefix}*")
    assert HOUR_KEPT_SECONDS - 60 < await redis_store.client.ttl(key) <= HOUR_KEPT_SECONDS


async def test_many_flags_are_read_in_slices(in_redis: RedisFlagUses) -> None:
    """Each of them once."""
    many = {Use(UseKind.TREATMENT, f"flag-{number}"): number for number in range(1, 1900)}
    await in_redis.add(HOUR, many, writer="one", number=1)
    assert await in_redis.hour(HOUR) == many


async def test_strangers_fields_are_left_out(
    redis_store: RedisConnection, in_redis: RedisFlagUses
) -> None:
    """Whatever else somebody puts there."""
    await in_redis.add(HOUR, {ON: 1}, writer="one", number=1)
    (key,) = await redis_store.client.keys(f"{redis_store.prefix}*")
    strange = {"x": "1", "treatment|b": "no", "control|b": "9" * 30, b"\xff|": "1"}
    await redis_store.client.hset(key, mapping=strange)
    assert await in_redis.hour(HOUR) == {ON: 1}


async def test_a_key_of_another_type_is_a_mistake_and_no_outage(
    redis_store: RedisConnection, in_redis: RedisFlagUses
) -> None:
    """It is not tried again for a second: nobody repairs it that fast."""
    await redis_store.client.set(f"{redis_store.prefix}uses", "junk")
    await redis_store.client.set(f"{redis_store.prefix}uses:{{{HOUR}}}", "junk")
    with pytest.raises(BrokenInvariant, match="WRONGTYPE"):
        await in_redis.notes()
    with pytest.raises(BrokenInvariant, match="WRONGTYPE"):
        await in_redis.add(HOUR, {ON: 1}, writer="one", number=1)
