"""How notifying stands is read for all who ask, while decisions go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import pytest

from controller.errors import StoreUnavailable
from controller.notifying.book import Book, FlagNews, Purpose, Thread, without_histories
from controller.notifying.rules import NotificationRules
from controller.notifying.standing import SharedReading, standing_of
from schemas.notifications import NotificationsView
from tests.builders import T0
from tests.unit.notifying.news_of import news


def shown(stored: Mapping[bytes, bytes]) -> NotificationsView:
    """Return what is shown of it."""
    return standing_of(Book.read(stored), NotificationRules(), {"chat": "slack"}, T0)


async def test_who_asks_meanwhile_shares_the_next_reading_and_gets_nothing_older() -> None:
    """Pages, scripts and those who take an incident ask ten times a second."""
    may_go_on, threads, loads = asyncio.Event(), [], 0

    async def load() -> Mapping[bytes, bytes]:
        nonlocal loads
        loads += 1
        await may_go_on.wait()
        return {}

    def view(stored: Mapping[bytes, bytes]) -> NotificationsView:
        threads.append(threading.current_thread())
        return shown(stored)

    reading = SharedReading(load, view)
    first = asyncio.create_task(reading.view())
    while not loads:
        await asyncio.sleep(0)
    later = [asyncio.create_task(reading.view()) for _ in range(20)]
    await asyncio.sleep(0)
    may_go_on.set()
    found = await asyncio.gather(first, *later)
    assert loads == 2
    assert len({id(one) for one in found[1:]}) == 1
    assert found[1] is not found[0]
    await reading.view()
    assert loads == 3
    assert threading.main_thread() not in threads


async def test_trouble_is_shared_too_and_the_next_who_asks_tries_again() -> None:
    """Otherwise a hundred requests would each wait for Redis, one after the other."""
    loads = 0

    async def load() -> Mapping[bytes, bytes]:
        nonlocal loads
        loads += 1
        if loads == 1:
            return {}
        await asyncio.sleep(0)
        raise StoreUnavailable("Redis is away")

    reading = SharedReading(load, shown)
    await reading.view()
    asked = [asyncio.create_task(reading.view()) for _ in range(20)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert {str(one) for one in found} == {"Redis is away"}
    assert loads <= 3
    with pytest.raises(StoreUnavailable):
        await reading.view()


def test_histories_are_not_read_and_nothing_shown_is_missing() -> None:
    """What a flag has had is most of a book."""
    book = Book()
    book.add("chat", news(), Purpose.NEWS, T0)
    book.bury(book.add("chat", news(2), Purpose.NEWS, T0), "no", T0)
    book.of_flag("checkout", FlagNews(T0, ("a", "b")))
    book.converse("chat", "checkout/r1", Thread("1", T0))
    book.read_to("alerts/0", 5)
    stored = {name.encode(): value for name, value in book.changes().items()}
    kept = without_histories(stored)
    assert len(stored) - len(kept) == 3
    assert shown(kept) == shown(stored)
    assert shown(kept).channels[0].waiting == 1
