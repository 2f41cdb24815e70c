"""The notifier over a real Redis: nothing lost, one conversation, order, turns of replicas."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from controller.adapters.channels.types import make_channels
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.turns import RedisTurnStore
from controller.clock import SystemClock
from controller.codec.alerts import alert_event
from controller.core.effects import RaiseAlert
from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from controller.notifying.book import Book
from controller.notifying.notifier import Notifier, Seen, Surroundings
from controller.notifying.rules import NotificationRules, default_rules
from controller.settings import ChannelSettings
from controller.turns import Pulse
from schemas.terms import AlertKind, Severity
from tests.builders import T0, make_rollout
from tests.integration.test_mail_channel import mail_settings
from tests.mail_server import MailServer
from tests.notification_services import (
    PagerDuty,
    Receiver,
    Service,
    Slack,
    failing,
    hanging,
    lossy,
    running,
    settings_of,
    too_many,
)

CLOCK = SystemClock()


class ListedNews:
    """A log in memory: records in order, and reading from a cursor, as Kafka does."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.read_from: list[int] = []
        self.is_away = False
        self.begins_at_end = False  # with an empty cursor, as Kafka's does

    def add(self, number: int, flag: str = "checkout", **told: Any) -> None:
        """Add an alert."""
        kind = told.pop("kind", AlertKind.ROLLED_BACK)
        severity = told.pop("severity", Severity.CRITICAL)
        key = told.pop("key", f"{flag}/{number}")
        effect = RaiseAlert(kind, severity, f"{flag} number {number}", "look", key)
        rollout = make_rollout(flag_key=flag, revision=number)
        self.records.append(alert_event(effect, rollout, f"{flag}/{number}/0", T0))

    async def follow(self, cursor: Mapping[str, int]) -> AsyncGenerator[Sequence[Seen], None]:
        """Yield what is there, and wait for more."""
        at = cursor.get("alerts/0", len(self.records) if self.begins_at_end else 0)
        self.read_from.append(at)
        while True:
            if self.is_away:
                raise EventLogUnavailable("no broker answers")
            batch = self.records[at : at + 200]
            yield [Seen("alerts/0", at + place, value) for place, value in enumerate(batch)]
            at += len(batch)
            if not batch:
                await asyncio.sleep(0.02)


class World:
    """Notifiers over one Redis, each a replica of its own."""

    def __init__(self, connection: RedisConnection) -> None:
        self.store = RedisTurnStore(connection, "notifications")
        self.news = ListedNews()
        self.channels: dict[str, ChannelSettings] = {}
        self.rules: NotificationRules | None = None
        self.faults = Faults(CLOCK.now)
        self.pulse = Pulse(beat=0.2, free_after=0.8)
        self._replicas = itertools.count(1)

    def channel(self, name: str, kind: str, service: Service, **values: Any) -> None:
        """Let a channel lead to a service."""
        made = {**settings_of(kind, service.url), "per_minute": 6_000, **values}
        self.channels[name] = ChannelSettings.model_validate(made)

    def mail_channel(self, name: str, server: MailServer, **values: Any) -> None:
        """Let a channel lead to a mail server."""
        made = {**mail_settings(server.port), "per_minute": 6_000, **values}
        self.channels[name] = ChannelSettings.model_validate(made)

    @contextlib.asynccontextmanager
    async def replica(self) -> AsyncIterator[asyncio.Task[None]]:
        """Run a replica; at the end it is stopped."""
        surroundings = Surroundings(
            replica=f"replica-{next(self._replicas)}",
            environment="production",
            page_url=None,
            owner_of=lambda _flag: "payments",
            clock=CLOCK,
            faults=self.faults,
            count=lambda _outcome: None,
        )
        rules = self.rules or default_rules(self.channels)
        notifier = Notifier(
            self.store,
            self.news,
            make_channels(self.channels, CLOCK),
            lambda: rules,
            surroundings,
            self.pulse,
        )
        task = asyncio.create_task(notifier.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})
            await notifier.stop()

    async def book(self) -> Book:
        """Return what is stored."""
        return Book.read(await self.store.load())

    async def all_noted(self, channel: str) -> None:
        """Wait until it is stored that everything has arrived: what is not is sent again."""
        async with asyncio.timeout(30):
            while (await self.book()).queues.get(channel):
                await asyncio.sleep(0.01)


@pytest.fixture
async def world(store: RedisConnection) -> World:
    """An empty one."""
    return World(store)


async def seize(store: RedisTurnStore) -> None:
    """Take the turn, however often the one that holds it writes in between."""
    async with asyncio.timeout(30):
        turn = await store.turn()
        while await store.save("stranger", turn.version, {}) is None:
            turn = await store.turn()


async def until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "trouble",
    [too_many(3), failing(3), failing(2, "403 Forbidden"), hanging(1), lossy(0.3)],
    ids=["429", "503", "403", "hang", "loss"],
)
async def test_every_alert_arrives_in_order_through_any_trouble(world: World, trouble: Any) -> None:
    """Of each rollout, in one conversation."""
    service = Slack()
    async with running(service):
        world.channel("chat", "slack", service, timeout_seconds=1)
        for number in range(1, 11):
            world.news.add(number, f"flag-{number % 2}")
        service.trouble = trouble
        async with world.replica():
            await until(lambda: sum(map(len, service.replies().values())) >= 10, 60)
    heads = [made for made in service.shown if "thread_ts" not in made]
    assert {made["ts"] for made in heads if made["method"] == "chat.postMessage"} == set(
        service.replies()
    )
    for texts in service.replies().values():
        numbers = [int(text.split("number ")[1].split()[0]) for text in texts]
        assert sorted(set(numbers)) == list(dict.fromkeys(numbers))
    assert len(service.replies()) >= 2


async def test_a_slow_channel_delays_no_other(world: World) -> None:
    """And a refused message delays none behind it."""
    slow, fast, picky = Slack(), Receiver(), Slack()

    async def refuse(exchange: Any) -> bool:
        if b"number 2" not in exchange.request.body:
            return False
        await exchange.answer("invalid_blocks", status="400 Bad Request")
        return True

    async with running(slow, fast, picky):
        slow.trouble, picky.trouble = hanging(100), refuse
        world.channel("slow", "slack", slow)
        world.channel("fast", "webhook", fast)
        world.channel("picky", "slack_webhook", picky)
        for number in range(1, 6):
            world.news.add(number)
        async with world.replica():
            await until(lambda: len(fast.shown) == 5)
            await until(lambda: len(picky.shown) == 4)
            book = await world.book()
            assert slow.shown == []
            assert len(book.queues["slow"]) == 5
            assert book.channels["fast"].sent == 5


async def test_what_a_channel_refuses_is_kept_and_can_be_sent_again(world: World) -> None:
    """It is a fault until then."""
    service = PagerDuty()
    async with running(service):
        world.channel("pager", "pagerduty", service)
        refused = partial(world.faults.of, Scope.DEPENDENCY, "dead_letters/pager")
        service.trouble = failing(1, "400 Bad Request")
        world.news.add(1)
        world.news.add(2)
        async with world.replica():
            await until(lambda: len(service.shown) == 1)
            await until(lambda: refused() is not None)
            (number,) = (await world.book()).dead
            world.news.records.append(request("retry", str(number)))
            await until(lambda: len(service.shown) == 2)
            await until(lambda: refused() is None)
            assert (await world.book()).dead == {}


def request(what: str, about: str) -> bytes:
    """Return what somebody asks of the notifications, as `rolloutctl notify` does."""
    data = {
        "id": f"{what}-1",
        "hook": "rolloutctl/cli",
        "status": "note",
        "condition": "x",
        "title": "x",
        "received_at": T0.isoformat(),
        "request": what,
        "request_about": about,
        "issuer": "ada",
    }
    return json.dumps({"type": "io.rolloutd.signal.v1", "id": "1", "data": data}).encode()


async def test_somebody_takes_it_and_a_route_is_tried(world: World) -> None:
    """By records on the topic of signals."""
    service = Receiver()
    async with running(service):
        world.channel("mine", "webhook", service)
        world.news.add(1)
        world.news.records += [request("acknowledge", "checkout"), request("test", "everything")]
        async with world.replica():
            await until(lambda: len(service.shown) == 3)
            book = await world.book()
    assert [one.taken_by for one in book.incidents.values()] == ["ada"]
    assert [one["data"]["purpose"] for one in service.shown] == ["news", "taken", "test"]
    assert service.shown[1]["data"]["taken_by"] == "ada"


async def test_without_kafka_what_waits_is_sent(world: World) -> None:
    """And what happened meanwhile, once it is back."""
    service = Receiver()
    async with running(service):
        world.channel("mine", "webhook", service)
        service.trouble = failing(2)
        world.news.add(1)
        async with world.replica():
            await until(lambda: len(service.server.requests) == 1)
            world.news.is_away = True
            await until(lambda: len(service.shown) == 1)
            why = partial(world.faults.of, Scope.DEPENDENCY, "notifications")
            await until(lambda: why() is not None)
            world.news.add(2)
            world.news.is_away = False
            await until(lambda: len(service.shown) == 2)
            await until(lambda: why() is None)


async def test_another_replica_goes_on_where_one_stopped(world: World) -> None:
    """At once where it stopped in order; nothing is read or sent twice."""
    service = Receiver()
    async with running(service):
        world.channel("mine", "webhook", service)
        for number in range(1, 4):
            world.news.add(number)
        async with world.replica():
            await until(lambda: len(service.shown) == 3)
            await world.all_noted("mine")
        world.news.add(4)
        async with world.replica():
            await until(lambda: len(service.shown) == 4)
    assert world.news.read_from == [0, 3]
    assert len(service.server.requests) == 4


async def test_one_that_was_held_up_writes_nothing_over_the_others_work(world: World) -> None:
    """Of two, one notifies; after it is gone without a word the other does, within seconds."""
    service = Receiver()
    async with running(service):
        world.channel("mine", "webhook", service)
        async with world.replica(), world.replica():
            world.news.add(1)
            await until(lambda: len(service.shown) == 1)
            assert len(world.news.read_from) == 1
            # As if a third had taken its turn while it was held up.
            await seize(world.store)
            world.news.add(2)
            await until(lambda: len(service.shown) == 2, 60)
    assert len(world.news.read_from) == 2


@pytest.mark.parametrize("at", range(1, 9))
async def test_a_crash_at_any_moment_loses_none(world: World, at: int) -> None:
    """Each arrives, those on their way perhaps twice: a receiver drops them by their id."""
    service = Receiver()
    async with running(service):
        world.channel("mine", "webhook", service)
        for number in range(1, 21):
            world.news.add(number)
        save, calls = world.store.save, itertools.count(1)

        async def crash(owner: str, expected: int | None, fields: Mapping[str, bytes]) -> Any:
            if next(calls) == at:
                raise SystemError("killed")
            return await save(owner, expected, fields)

        world.store.save = crash  # type: ignore[method-assign]
        with contextlib.suppress(BaseException):
            async with asyncio.timeout(20), world.replica() as task:
                await asyncio.wait({task}, timeout=2)
        world.store.save = save  # type: ignore[method-assign]
        async with world.replica():
            await until(lambda: len(service.shown) == 20, 60)
    numbers = [int(made["data"]["summary"].split()[-1]) for made in service.shown]
    assert numbers == list(range(1, 21))


async def test_only_what_is_empty_still_is_deleted(world: World) -> None:
    """A deletion that comes late takes nothing that was written again since."""
    turn = await world.store.turn()
    fields = {"delivery|1": b"", "delivery|2": b"again", "delivery|3": b""}
    assert await world.store.save("r", turn.version, fields) is not None
    await world.store.forget(["delivery|1", "delivery|2", "delivery|4"])
    assert await world.store.load() == {b"delivery|2": b"again", b"delivery|3": b""}


async def empty(connection: RedisConnection) -> None:
    """Lose everything, as FLUSHDB does or a restart without a file."""
    await connection.client.flushdb()


async def set_back(connection: RedisConnection) -> None:
    """Put the copy back that `keep_copy` made."""
    key = f"{connection.prefix}notifications"
    await connection.client.copy("copy", key, replace=True)


async def keep_copy(connection: RedisConnection) -> None:
    """Keep a copy of the book, as a backup does."""
    await connection.client.copy(f"{connection.prefix}notifications", "copy", replace=True)


@pytest.mark.parametrize("lose", [empty, set_back])
@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_redis_that_lost_the_book_gets_it_from_the_one_that_notifies(
    world: World, store: RedisConnection, lose: Any, replicas: int
) -> None:
    """What waits is sent, news of that moment too, nothing twice, and an incident has its end."""
    pager, mine = PagerDuty(), Receiver()
    world.news.begins_at_end = True
    world.pulse = Pulse(beat=0.2, free_after=4.0)  # longer than an owner waits before its next turn
    async with running(pager, mine), contextlib.AsyncExitStack() as stack:
        world.channel("pager", "pagerduty", pager)
        world.channel("mine", "webhook", mine)
        pager.trouble = failing(1_000)
        for _ in range(replicas):
            await stack.enter_async_context(world.replica())
        await until(lambda: bool(world.news.read_from))
        world.news.add(1)
        await until(lambda: len(mine.shown) == 1)
        await keep_copy(store)
        world.news.add(2, "search", key="search/2")
        await until(lambda: len(mine.shown) == 2)
        await lose(store)
        world.news.add(3, "basket")
        world.news.add(4, "search", key="search/2", severity=Severity.INFO)
        await until(lambda: len(mine.shown) >= 4)
        pager.trouble = None
        await until(lambda: len(pager.shown) >= 4)
        book = await world.book()
    assert [made["data"]["flag"] for made in mine.shown] == [
        "checkout",
        "search",
        "basket",
        "search",
    ]
    assert sorted(one.news.flag for one in book.incidents.values()) == ["basket", "checkout"]
    assert [one["event_action"] for one in pager.shown].count("resolve") == 1
