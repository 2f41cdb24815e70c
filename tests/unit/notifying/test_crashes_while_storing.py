"""What a crash of Redis or of this replica leaves of a large write, and what follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import count

import pytest

from controller.errors import StoreUnavailable
from controller.notifying.book import _KINDS as KINDS
from controller.notifying.book import Book, ChannelState, Purpose, Thread
from controller.notifying.news import News
from controller.notifying.planner import Planner, Told
from controller.notifying.rules import default_rules
from controller.turns import Pulse, Turn, Turns
from schemas.terms import Severity
from tests.builders import HOUR, T0
from tests.unit.notifying.news_of import news


class Store:
    """Keeps fields in memory, and goes away after so many writes."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.owner = ""
        self.fields: dict[bytes, bytes] = {}
        self.writes_left: int | None = None  # None: it stays
        self.forgets = True

    async def turn(self) -> Turn:
        """Return who wrote last."""
        return Turn(self.version, self.owner)

    async def load(self) -> Mapping[bytes, bytes]:
        """Return every field."""
        return dict(self.fields)

    async def save(
        self, owner: str, expected: int | None, fields: Mapping[str, bytes]
    ) -> int | None:
        """Write fields."""
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise StoreUnavailable("Redis went away")
            self.writes_left -= 1
        assert expected == self.version
        self.version, self.owner = (self.version or 0) + 1, owner
        self.fields |= {name.encode(): value for name, value in fields.items()}
        return self.version

    async def forget(self, fields: Sequence[str]) -> None:
        """Delete fields that are empty."""
        if not self.forgets:
            raise StoreUnavailable("no answer within 0.3 s")
        for name in fields:
            if not self.fields.get(name.encode()):
                self.fields.pop(name.encode(), None)


class Clock:
    """Stands still."""

    def now(self) -> datetime:
        """Return one moment."""
        return T0

    def monotonic(self) -> float:
        """Return one moment."""
        return 0.0


def turns(store: Store) -> Turns:
    """Return the turns of a replica."""
    return Turns(store, "notifications", "r", Clock(), Pulse())


def take(book: Book, batch: Sequence[News], told: Told) -> None:
    """Take records as a turn takes them."""
    planner = Planner(book, default_rules(sorted(told.known)), told)
    for offset, one in enumerate(batch, book.cursor.get("alerts/0", 0)):
        planner.take(one, None, T0)
        book.read_to("alerts/0", offset + 1)


def got(book: Book, channels: int) -> list[tuple[str, str]]:
    """Return flag and purpose of what every channel is to get at least once."""
    having: dict[tuple[str, str], set[str]] = {}
    for queue in book.queues.values():
        for one in queue.values():
            having.setdefault((one.news.flag, one.purpose.value), set()).add(one.channel)
    return sorted(what for what, names in having.items() if len(names) == channels)


def alerts(severity: Severity, first: int) -> list[News]:
    """Return one alert of each of 200 flags."""
    return [
        news(first + i, flag=f"f{i}", id=f"f{i}/{first}", key=f"f{i}/r1", severity=severity)
        for i in range(200)
    ]


async def after_each_crash(
    stored: Mapping[bytes, bytes], batch: Sequence[News], told: Told
) -> list[Book]:
    """Return what the next replica makes of a batch, for a crash at each write of the first one."""
    found = []
    for writes in count(0):
        store = Store()
        first = turns(store)
        store.fields = dict(await first.wait()) | dict(stored)
        book = Book.read(store.fields)
        take(book, batch, told)
        store.writes_left = writes
        try:
            await first.save(book.changes())
        except StoreUnavailable:
            store.writes_left = None
            again = Book.read(await turns(store).wait())
            take(again, batch[again.cursor.get("alerts/0", 0) :], told)
            found.append(again)
        else:
            return found
    raise AssertionError("it never ends")


@pytest.mark.parametrize("channels", [7, 8, 9, 12, 16])
async def test_a_crash_between_the_parts_of_a_write_loses_no_alert(channels: int) -> None:
    """The records are read again by the next replica, and what was not stored is told then."""
    names = frozenset(f"c{i}" for i in range(channels))
    told = Told(names, tracking=names)
    books = await after_each_crash({}, alerts(Severity.CRITICAL, 1), told)
    assert len(books) >= 2
    for again in books:
        assert len(got(again, channels)) == 200
        assert len(again.incidents) == 200


@pytest.mark.parametrize("channels", [7, 8, 9, 12, 16])
async def test_a_crash_between_the_parts_of_a_write_leaves_no_incident_open(channels: int) -> None:
    """Every channel that was told of an incident hears that it is over."""
    names = frozenset(f"c{i}" for i in range(channels))
    told = Told(names, tracking=names)
    book = Book()
    take(book, alerts(Severity.CRITICAL, 1), told)
    for queue in list(book.queues.values()):
        for one in list(queue.values()):
            book.sent(one)
    book.cursor = {}
    stored = {
        name.encode(): value
        for name, value in book.changes().items()
        if not name.startswith("cursor|")
    }
    books = await after_each_crash(stored, alerts(Severity.INFO, 1_000), told)
    assert len(books) >= 2
    for again in books:
        over = {flag for flag, purpose in got(again, channels) if purpose == Purpose.OVER.value}
        assert len(over) == 200
        assert not again.incidents


async def test_nothing_is_stored_that_relies_on_a_write_that_failed() -> None:
    """Several parts write, one after the other: the one behind a failure must not go on."""
    store = Store()
    made = turns(store)
    await made.wait()
    store.writes_left = 0
    first = asyncio.create_task(made.save({"delivery|1": b"owed"}))
    second = asyncio.create_task(made.save({"cursor|alerts/0": b"1"}))
    with pytest.raises(StoreUnavailable):
        await first
    store.writes_left = None
    with pytest.raises(StoreUnavailable):
        await second
    await made.give_back({"cursor|alerts/0": b"1"})
    assert store.fields == {}
    assert store.owner == ""
    await made.wait()
    await made.save({"cursor|alerts/0": b"1"})
    assert store.fields == {b"cursor|alerts/0": b"1"}


async def test_a_deletion_that_fails_ends_no_turn() -> None:
    """What is empty is gone for every reader; it is deleted later, by this turn or the next."""
    store = Store()
    first = turns(store)
    await first.wait()
    store.forgets = False
    await first.save({"delivery|1": b"{}", "delivery|2": b"{}"})
    await first.save({"delivery|1": b"", "delivery|2": b""})
    await first.save({"delivery|2": b"again"})
    store.forgets = True
    await first.save({"delivery|3": b"{}"})
    assert set(store.fields) == {b"delivery|2", b"delivery|3"}
    store.forgets = False
    await first.save({"delivery|3": b""})
    store.forgets = True
    other = turns(store)
    await other.wait()
    await other.save({})
    assert set(store.fields) == {b"delivery|2"}


def test_all_fields_of_a_book_are_what_its_changes_come_to() -> None:
    """Of every kind that is stored; what was emptied is not among them."""
    told = Told(frozenset({"a", "b"}), tracking=frozenset({"a"}))
    book, stored = Book(), dict[str, bytes]()
    take(book, alerts(Severity.CRITICAL, 1)[:5], told)
    take(book, alerts(Severity.INFO, 1_000)[:3], told)
    waiting = list(book.waiting("b"))
    book.sent(waiting[0])
    book.bury(waiting[1], "refused", T0)
    book.converse("a", "r1", Thread("t1", T0))
    book.channel_is("a", ChannelState(1, T0))
    book.mute("f*", "ada", "sale", T0, T0 + HOUR, is_route=False, is_critical_too=False)
    stored |= {name: value for name, value in book.changes().items() if value}
    assert book.fields() == stored
    assert {name.partition("|")[0] for name in stored} == {*KINDS, "cursor", "number"}
    assert list(book.fields())[-1].startswith("cursor|"), "last, so that a crash repeats"
    again = Book.read({name.encode(): value for name, value in stored.items()})
    assert again.fields() == stored


async def test_a_crash_while_an_emptied_store_is_filled_begins_it_again() -> None:
    """What it has by then is a part, which must not be taken for all."""
    store = Store()
    made = turns(store)
    await made.wait()
    known = {f"delivery|{number}": b"owed" for number in range(4_000)}
    await made.save(known)
    store.version, store.owner, store.fields = None, "", {}
    store.writes_left = 2  # its turn, and the first of three parts
    with pytest.raises(StoreUnavailable):
        await made.wait(known=lambda: known)
    store.writes_left = None
    assert len(await made.wait(known=lambda: known)) == 4_000
    assert len(store.fields) == 4_000
    assert len(await turns(store).wait(known=dict)) == 4_000
