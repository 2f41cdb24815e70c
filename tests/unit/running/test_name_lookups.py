"""A name server that does not answer holds up nobody but who asks it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from controller.running.name_lookups import MOST_LOOKUPS, LookupLoop

#: Bytes of a thread's stack with which none can be started.
_NO_MACHINE_HAS = 1 << 46
ADDRESS = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))


class NameServer:
    """Names below `hang.test` have no answer until `answer` is called, `missing.test` is none."""

    def __init__(self) -> None:
        self._answered = threading.Event()
        self.asked: list[str] = []

    def answer(self) -> None:
        """Answer all that hang."""
        self._answered.set()

    def look_up(self, host: str, *_how: object) -> list[Any]:
        """Stand in for socket.getaddrinfo."""
        self.asked.append(host)
        if host == "missing.test":
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        if host.endswith("hang.test"):
            self._answered.wait(60)
        return [ADDRESS]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """The name server that lookups ask."""
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.look_up)
    yield server
    server.answer()


def run(work: Callable[[LookupLoop], Awaitable[None]]) -> None:
    """Run on a loop as the daemon's."""

    async def on_it() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LookupLoop)
        async with asyncio.timeout(30):
            await work(loop)

    with asyncio.Runner(loop_factory=LookupLoop) as runner:
        runner.run(on_it())


async def unanswered(loop: LookupLoop, host: str) -> None:
    """Ask, and give up."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await loop.getaddrinfo(host, 443)


def test_lookups_that_hang_take_no_thread_of_others(names: NameServer) -> None:
    """They took all of the threads that write files, and nothing called them off."""

    async def work(loop: LookupLoop) -> None:
        hosts = [f"{number}.hang.test" for number in range(60)]
        await asyncio.gather(*(unanswered(loop, host) for host in hosts))
        assert await asyncio.to_thread(lambda: "written") == "written"
        assert await loop.getaddrinfo("well.test", 443) == [ADDRESS]

    run(work)
    assert len(names.asked) == 61


def test_a_name_is_looked_up_once_for_all_who_ask_meanwhile(names: NameServer) -> None:
    """So that retries of one address do not pile up."""

    async def work(loop: LookupLoop) -> None:
        for _ in range(3):
            await unanswered(loop, "a.hang.test")
        waiting = [asyncio.create_task(loop.getaddrinfo("a.hang.test", 443)) for _ in range(2)]
        await asyncio.sleep(0)
        names.answer()
        assert await asyncio.gather(*waiting) == [[ADDRESS], [ADDRESS]]
        assert names.asked == ["a.hang.test"]
        await loop.getaddrinfo("a.hang.test", 443)
        assert len(names.asked) == 2, "an answer is not kept"

    run(work)


def test_a_name_that_is_none_is_an_error_for_each_who_asks(names: NameServer) -> None:
    """As asyncio has it."""

    async def work(loop: LookupLoop) -> None:
        asked = [loop.getaddrinfo("missing.test", 443) for _ in range(2)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in found] == [socket.gaierror] * 2

    run(work)
    assert names.asked == ["missing.test"]


def test_there_are_never_too_many_threads(names: NameServer) -> None:
    """Beyond the limit, a lookup fails at once."""

    async def work(loop: LookupLoop) -> None:
        hosts = [f"{number}.hang.test" for number in range(MOST_LOOKUPS)]
        waiting = [asyncio.create_task(loop.getaddrinfo(host, 443)) for host in hosts]
        await asyncio.sleep(0)
        with pytest.raises(socket.gaierror, match="256 lookups of other names have no answer"):
            await loop.getaddrinfo("well.test", 443)
        names.answer()
        await asyncio.gather(*waiting)
        assert await loop.getaddrinfo("well.test", 443) == [ADDRESS]

    run(work)


def test_a_lookup_that_hangs_does_not_outlive_its_loop(names: NameServer) -> None:
    """The thread is one that the process does not wait for, and its answer reaches nobody."""

    async def work(loop: LookupLoop) -> None:
        await unanswered(loop, "a.hang.test")

    run(work)
    threads = [one for one in threading.enumerate() if one.name == "name lookup"]
    assert threads
    assert all(one.daemon for one in threads)
    names.answer()
    for one in threads:
        one.join(30)
        assert not one.is_alive()


def test_a_name_is_looked_up_again_after_a_moment_without_threads(names: NameServer) -> None:
    """A machine at its limit of processes costs the lookup of that moment, and none later."""

    async def at_the_limit(loop: LookupLoop) -> None:
        before = threading.stack_size(_NO_MACHINE_HAS)
        try:
            with pytest.raises(socket.gaierror, match="no thread looks it up"):
                await asyncio.wait_for(loop.getaddrinfo("kafka.test", 9092), 5)
        finally:
            threading.stack_size(before)
        assert await asyncio.wait_for(loop.getaddrinfo("kafka.test", 9092), 5) == [ADDRESS]

    run(at_the_limit)
