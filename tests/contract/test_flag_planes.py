"""What every flag plane promises that can be told and read back.

The same tests on the memory plane, Redis keys and files.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.adapters.file_plane import FilePlane
from controller.adapters.memory import MemoryFlagPlane
from controller.adapters.redis.plane import RedisPlane
from controller.core.rollout import Rollout
from controller.errors import FlagPlaneUnavailable
from controller.ports import FlagPlane, Served
from controller.settings.planes import FilePlaneSettings
from tests.builders import make_rollout

#: Gives two planes that write to one place, as two replicas do.
Pair = Callable[[], AbstractAsyncContextManager[tuple[FlagPlane, FlagPlane]]]


@asynccontextmanager
async def in_memory() -> AsyncIterator[tuple[FlagPlane, FlagPlane]]:
    """One plane twice: it has no other place."""
    plane = MemoryFlagPlane()
    yield plane, plane


def in_file(form: str, name: str) -> Pair:
    """Two planes on one file."""

    @asynccontextmanager
    async def pair() -> AsyncIterator[tuple[FlagPlane, FlagPlane]]:
        with tempfile.TemporaryDirectory() as directory:
            file = FilePlaneSettings.model_validate(
                {"path": Path(directory) / name, "format": form}
            )
            yield FilePlane("one", file), FilePlane("other", file)

    return pair


def in_redis(url: str) -> Pair:
    """Two planes on keys that nobody else has."""

    @asynccontextmanager
    async def pair() -> AsyncIterator[tuple[FlagPlane, FlagPlane]]:
        prefix = f"{uuid.uuid4().hex[:10]}:"
        planes = RedisPlane(url, key_prefix=prefix), RedisPlane(url, key_prefix=prefix)
        yield planes
        for plane in planes:
            await plane.close()

    return pair


@pytest.fixture(scope="module", params=["memory", "flagd", "go-feature-flag", "redis"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each kind of plane."""
    if request.param == "memory":
        return in_memory
    if request.param == "redis":
        return in_redis(request.getfixturevalue("redis_url"))
    return in_file(request.param, "flags.json" if request.param == "flagd" else "flags.yaml")


percents = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)
writes = st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=1, max_size=8)


@settings(max_examples=25)
@given(writes=writes, decided=st.lists(percents, min_size=5, max_size=5))
def test_the_newest_revision_stands_whoever_wrote_last(
    pair: Pair, writes: list[tuple[bool, int]], decided: list[float]
) -> None:
    """Two replicas write decisions in any order, late ones too.

    What stands is the newest, and both read it alike.
    """

    def rollout(revision: int) -> Rollout:
        return make_rollout(revision=revision, percent=decided[revision - 1])

    async def run() -> None:
        async with pair() as planes:
            newest = 0
            for is_other, revision in writes:
                plane = planes[is_other]
                before = await plane.look(rollout(revision))
                await plane.serve(rollout(revision))
                newest = max(newest, revision)
                assert before.edited_by is None, (
                    "one replica took the other's writing for a stranger's"
                )
                for reader in planes:
                    assert await reader.look(rollout(newest)) == Served(decided[newest - 1], None)

    asyncio.run(run())


async def test_a_flag_that_was_never_served_is_unknown(pair: Pair) -> None:
    """It is no edit of anybody's, and says what was decided."""
    async with pair() as (plane, _):
        assert await plane.look(make_rollout()) == Served(
            None, "does not know the flag, decided is 10 %"
        )


async def test_serving_again_changes_nothing(pair: Pair) -> None:
    """A repeat after a lost answer is harmless."""
    async with pair() as (plane, other):
        for _ in range(3):
            await plane.serve(make_rollout())
            await other.serve(make_rollout())
        assert await other.look(make_rollout()) == Served(10.0, None)


async def serve_in_the_end(plane: FlagPlane, rollout: Rollout) -> None:
    """Serve as the reconciler does: a plane that is taken by another writer is tried again."""
    for is_last in [False] * 20 + [True]:
        try:
            await plane.serve(rollout)
        except FlagPlaneUnavailable:
            if is_last:
                raise
            await asyncio.sleep(0.05)
        else:
            return


async def test_flags_do_not_touch_each_other(pair: Pair) -> None:
    """Served at once, each keeps its own percentage."""
    async with pair() as (plane, other):
        rollouts = [
            make_rollout(flag_key=f"flag-{number}", percent=float(number)) for number in range(10)
        ]
        await asyncio.gather(
            *(
                serve_in_the_end(plane if number % 2 else other, each)
                for number, each in enumerate(rollouts)
            )
        )
        assert [(await plane.look(each)).percent for each in rollouts] == [
            float(number) for number in range(10)
        ]
        assert [(await other.look(each)).difference for each in rollouts] == [None] * 10
