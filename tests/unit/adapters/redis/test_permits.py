"""Calls that wait for a connection to Redis: in order, while it answers, and never for nothing."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.permits import Permits
from controller.errors import StoreUnavailable
from tests.virtual_time import in_virtual_time

DEADLINE = 2.0


class BusyServer:
    """Answers each call after some time; knows how many are under way."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.under_way = self.most = 0
        self.order: list[int] = []

    async def answer(self, number: int) -> int:
        """Take the server's time."""
        self.order.append(number)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.under_way -= 1
        return number


def connection(connections: int = 2) -> RedisConnection:
    """Return a connection whose client is not used."""
    return RedisConnection(None, prefix="p:", deadline_seconds=DEADLINE, connections=connections)


@in_virtual_time
async def test_no_call_of_a_storm_fails_while_redis_answers() -> None:
    """All together take ten deadlines; each call takes a tenth of one."""
    store, server = connection(), BusyServer(DEADLINE / 10)
    calls = [store.call("ask", partial(server.answer, n)) for n in range(200)]
    assert await asyncio.gather(*calls) == list(range(200))
    assert server.order == list(range(200))
    assert server.most == 2


@in_virtual_time
async def test_a_silent_redis_fails_all_that_wait_within_one_deadline() -> None:
    """Whoever waits does not begin a deadline of its own after those before it."""
    store, server = connection(), BusyServer(3600)
    loop = asyncio.get_running_loop()
    began = loop.time()
    calls = [store.call("ask", partial(server.answer, n)) for n in range(100)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in found} == {StoreUnavailable}
    assert {str(one) for one in found} == {f"ask: Redis gave no answer within {DEADLINE:g} s"}
    assert loop.time() - began == DEADLINE  # one after the other they would take fifty
    server.seconds = 0
    assert await store.call("ask", lambda: server.answer(7)) == 7


@pytest.mark.parametrize("is_given", [False, True])
@in_virtual_time
async def test_a_canceled_call_keeps_no_permit(is_given: bool) -> None:
    """Whether it is canceled while it waits or in the moment in which its permit comes."""
    permits = Permits(1)

    async def wait() -> None:
        async with permits.one(60):
            pytest.fail("it was canceled before")

    async with permits.one(60):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        if not is_given:
            waiting.cancel()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5), permits.one(60):
        pass
