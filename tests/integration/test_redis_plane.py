"""The Redis keys plane on a real server.

What simple readers find, late writers, edits by others, a server that is away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from controller.adapters.redis.plane import RedisPlane
from controller.core.audience import Audience, Condition
from controller.core.rollout import RolledBack, Rollout
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import FlagPlane, Served
from schemas.terms import Operator
from tests.brokers import RedisServer
from tests.builders import T0, make_plan, make_rollout, make_stage


@pytest.fixture
async def plane(redis_url: str, redis_client: redis.asyncio.Redis) -> AsyncIterator[RedisPlane]:
    """A plane on an empty Redis."""
    plane = RedisPlane(redis_url)
    yield plane
    await plane.close()


async def serve(plane: FlagPlane, rollout: Rollout) -> Served:
    """Do what actuation does: look, serve if need be, look again."""
    served = await plane.look(rollout)
    if served.difference is None:
        return served
    await plane.serve(rollout)
    return await plane.look(rollout)


async def found(client: redis.asyncio.Redis) -> list[bytes | str | None]:
    """Return what a simple reader gets."""
    return await client.mget(["flag:new-checkout", "flag:new-checkout:rollout"])


async def test_simple_readers_find_switch_and_share(
    plane: RedisPlane, redis_client: redis.asyncio.Redis
) -> None:
    """A flag that Redis has not seen is written at its percentage, raised.

    And switched off by a roll back.
    """
    assert await plane.look(make_rollout()) == Served(
        None, "does not know the flag, decided is 10 %"
    )
    assert await serve(plane, make_rollout(percent=33.33)) == Served(33.33, None)
    assert await found(redis_client) == [b"true", b"33.33"]
    assert await serve(plane, make_rollout(revision=2, percent=100.0)) == Served(100.0, None)
    assert await found(redis_client) == [b"true", b"100"]
    assert await serve(
        plane, make_rollout(revision=3, percent=10.0, phase=RolledBack(T0, "breach"))
    ) == Served(0.0, None)
    assert await found(redis_client) == [b"false", b"0"]


async def test_a_late_writer_changes_nothing(
    plane: RedisPlane, redis_client: redis.asyncio.Redis, redis_url: str
) -> None:
    """A replica that stood still since an older revision cannot raise a flag again.

    And learns why.
    """
    zombie = RedisPlane(redis_url)
    await serve(zombie, make_rollout(revision=7, percent=50.0))
    await serve(plane, make_rollout(revision=8, percent=0.0))
    await zombie.serve(make_rollout(revision=7, percent=50.0))
    assert await found(redis_client) == [b"false", b"0"]
    difference = (await zombie.look(make_rollout(revision=7, percent=50.0))).difference
    assert difference is not None
    assert difference.startswith("was written by revision 8, newer than ours, 7")
    await plane.serve(make_rollout(revision=8, percent=50.0))
    assert await found(redis_client) == [b"false", b"0"], (
        "of two documents of one revision the lower is served"
    )
    await zombie.close()


@pytest.mark.parametrize(
    ("edit", "percent"),
    [
        ({"flag:new-checkout": "false"}, 0.0),
        ({"flag:new-checkout:rollout": "5"}, 5.0),
        ({"flag:new-checkout:rollout": "80"}, 80.0),
        ({"flag:new-checkout:rollout": "many"}, None),
        ({"flag:new-checkout:rollout": b"\xff"}, None),
        ({"flag:new-checkout:rollout": "101"}, None),
    ],
)
async def test_an_edit_by_others_is_recognised_after_a_restart_too(
    plane: RedisPlane,
    redis_client: redis.asyncio.Redis,
    redis_url: str,
    edit: dict[str, str | bytes],
    percent: float | None,
) -> None:
    """What stands beside the marker tells our own write from somebody else's.

    Also to a process that never wrote.
    """
    await serve(plane, make_rollout())
    assert (await plane.look(make_rollout())).edited_by is None
    await redis_client.mset(edit)
    after_restart = RedisPlane(redis_url)
    served = await after_restart.look(make_rollout())
    assert (served.percent, served.edited_by) == (percent, "a client of Redis")
    await after_restart.serve(make_rollout())
    assert await after_restart.look(make_rollout()) == Served(10.0, None)
    await after_restart.close()


async def test_a_deleted_flag_is_off(plane: RedisPlane, redis_client: redis.asyncio.Redis) -> None:
    """Readers take a missing key for off: somebody who deletes it lowers the flag to 0 %.

    A switch alone is on for all.
    """
    await serve(plane, make_rollout())
    await redis_client.delete("flag:new-checkout", "flag:new-checkout:rollout")
    assert (await plane.look(make_rollout())).percent == 0.0
    await redis_client.set("flag:new-checkout", "true")
    assert (await plane.look(make_rollout())).percent == 100.0


async def test_a_lower_edit_between_look_and_write_stays(
    plane: RedisPlane, redis_client: redis.asyncio.Redis
) -> None:
    """Who lowers a flag in the very moment in which it is raised is not overrun.

    A lowering of ours is never kept back.
    """
    await serve(plane, make_rollout())
    await plane.look(make_rollout(revision=2, percent=50.0))
    await redis_client.set("flag:new-checkout:rollout", "5")
    await plane.serve(make_rollout(revision=2, percent=50.0))
    served = await plane.look(make_rollout(revision=2, percent=50.0))
    assert (served.percent, served.edited_by) == (5.0, "a client of Redis")
    await redis_client.set("flag:new-checkout:rollout", "6")
    await plane.serve(make_rollout(revision=3, percent=0.0))
    assert await found(redis_client) == [b"false", b"0"]


async def test_prefixes_and_flags_do_not_meet(
    plane: RedisPlane, redis_client: redis.asyncio.Redis, redis_url: str
) -> None:
    """Two environments share a Redis by prefix.

    And a flag whose name would be another's key is refused in words.
    """
    staging = RedisPlane(redis_url, key_prefix="staging:")
    await serve(plane, make_rollout())
    await serve(staging, make_rollout(percent=50.0))
    assert await found(redis_client) == [b"true", b"10"]
    clash = make_rollout(plan=make_plan(flag_key="new-checkout:rollout"))
    with pytest.raises(FlagPlaneUnavailable, match="rename the flag"):
        await plane.serve(clash)
    await staging.close()


async def test_a_redis_that_is_away_or_hangs_is_said_in_time(own_redis: RedisServer) -> None:
    """Frozen, dead and back again.

    Each call ends within its deadline, and the first after the return works.
    """
    plane = RedisPlane(own_redis.url, call_seconds=3.0)  # a busy machine answers within that
    await serve(plane, make_rollout())
    own_redis.pause()
    with pytest.raises(FlagPlaneUnavailable, match=r"no answer within 3 s|Timeout"):
        await plane.look(make_rollout())
    own_redis.resume()
    assert await plane.look(make_rollout()) == Served(10.0, None)
    own_redis.kill9()
    with pytest.raises(FlagPlaneUnavailable, match="Redis"):
        await plane.serve(make_rollout(revision=2, percent=50.0))
    own_redis.start()
    assert await serve(plane, make_rollout(revision=2, percent=50.0)) == Served(50.0, None)
    await plane.close()


def test_an_address_that_cannot_be_opened_is_refused_at_start() -> None:
    """What redis-py would only say at the first call is said by the settings."""
    with pytest.raises(ConfigInvalid, match=r"planes\.redis\.url"):
        RedisPlane("redis://127.0.0.1:notaport/0")


async def test_audiences_are_not_given_to_everybody(
    plane: RedisPlane, redis_client: redis.asyncio.Redis
) -> None:
    """What keys cannot say is served to nobody, and said in words.

    A roll back needs no such words.
    """
    staff = Audience("staff", ((Condition("email", Operator.ENDS_WITH, ("@corp.example",)),),))
    stages = (make_stage(percent=100.0, audience="staff"), make_stage(percent=100.0))
    rollout = make_rollout(plan=make_plan(stages=stages, audiences=(staff,)), percent=100.0)
    served = await serve(plane, rollout)
    assert served == Served(0.0, "cannot serve an audience; everybody else gets the decided 0 %")
    assert await found(redis_client) == [b"false", b"0"]
    ended = make_rollout(plan=rollout.plan, revision=2, phase=RolledBack(T0, "breach"))
    assert await serve(plane, ended) == Served(0.0, None)


async def test_a_retired_flag_has_no_keys_and_a_late_writer_changes_nothing(
    plane: RedisPlane, redis_client: redis.asyncio.Redis
) -> None:
    """Readers find no switch. A process that stood still must not switch it on again."""
    late = make_rollout(revision=4, percent=100.0)
    await serve(plane, late)
    await plane.retire(late.flag_key, 5)
    assert await found(redis_client) == [None, None]
    await plane.serve(late)
    assert await found(redis_client) == [None, None]
    assert 0 < await redis_client.ttl("flag:new-checkout:rolloutd") <= 25 * 3600
    started = make_rollout(revision=6, percent=10.0)
    served = await serve(plane, started)
    assert (served.percent, served.difference, served.edited_by) == (10.0, None, None)
    assert await redis_client.ttl("flag:new-checkout:rolloutd") == -1
    await plane.retire(late.flag_key, 5)  # late, too
    assert await plane.look(started) == served
