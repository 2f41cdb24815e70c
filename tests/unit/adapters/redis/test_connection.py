from __future__ import annotations

import asyncio

import pytest
import redis.exceptions

from controller.adapters.redis.connection import RedisConnection
from controller.errors import StoreUnavailable


async def test_a_call_that_swallows_its_cancellation_is_cancelled_all_the_same() -> None:
    """Whoever is cancelled in the midst of a call ends there, even if the client library.

    As asyncio.wait_for may, goes on.
    """
    store = RedisConnection(None, prefix="rolloutd:", deadline_seconds=5)
    is_under_way = asyncio.Event()

    async def swallow() -> str:
        is_under_way.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        raise AssertionError("never")

    task = asyncio.create_task(store.call("test", swallow))
    await is_under_way.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_deadline_that_is_swallowed_is_a_call_of_unknown_outcome() -> None:
    """A call past its deadline says so, and leaves its caller able to go on."""
    store = RedisConnection(None, prefix="rolloutd:", deadline_seconds=0.01)

    async def swallow() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        raise AssertionError("never")

    with pytest.raises(StoreUnavailable):
        await store.call("test", swallow)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            "Error -2 connecting to cache:6379. Name or service not known.",
            "no connection to cache:6379: Name or service not known",
        ),
        (
            (
                "Error Multiple exceptions: [Errno 111] Connect call failed ('::1', 6379, 0, 0), "
                "[Errno 113] Connect call failed ('127.0.0.1', 6379) connecting to localhost:6379."
            ),
            "no connection to localhost:6379: connection refused, no route to host",
        ),
        ("Error connecting to cache:6379.", "no connection to cache:6379: no reason is given"),
        ("Connection closed by server.", "Connection closed by server"),
    ],
)
async def test_what_a_client_library_says_is_told_in_plain_words(told: str, words: str) -> None:
    """Whatever it says of a connection that failed; other errors as they are."""
    store = RedisConnection(None, prefix="rolloutd:", deadline_seconds=0.01)

    async def fail() -> None:
        raise redis.exceptions.ConnectionError(told)

    with pytest.raises(StoreUnavailable) as raised:
        await store.call("test", fail)
    assert str(raised.value) == f"test: tried for 0.01 s: {words}"
