"""Open pages are kept current: each change is rendered once for all of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from controller.core.rollout import Baking, RolledBack, Rollout
from controller.telemetry import Metrics
from controller.web.page.live import LivePages, LiveScreen, changed_sections
from controller.web.page.rendering import ScreenSection, digest
from tests.pages import PageWorld, rollout_in
from tests.unit.web.test_event_stream import Client

NOW = datetime(2026, 11, 23, 9, 0, 7, tzinfo=UTC)
BEAT = b"event: beat\ndata: 1\n\n"


def baking(flag_key: str = "new-checkout") -> Rollout:
    """Return a rollout at 10 %."""
    return rollout_in(lambda _: Baking(1, NOW + timedelta(minutes=5)), flag_key, 1, NOW)


def rolled_back(rollout: Rollout) -> Rollout:
    """Return it after a breach."""
    phase = RolledBack(NOW, "error_rate 4.1 %")
    return replace(rollout, phase=phase, percent=0.0, revision=12, updated_at=NOW)


@pytest.fixture
def world() -> PageWorld:
    """A replica with one rollout at 10 %."""
    made = PageWorld(lambda: NOW)
    made.show(baking())
    return made


@asynccontextmanager
async def opened(app: Any, path: str, client: Client, seen: str = "x.y") -> AsyncIterator[None]:
    """Open a page's stream."""
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": f"seen={seen}".encode(),
        "headers": [(b"host", b"localhost")],
        "extensions": {"rolloutd.abort": {"call": client.abort}},
    }
    task = asyncio.ensure_future(app(scope, client.receive, client.send))
    try:
        yield
    finally:
        client.leave()
        await asyncio.wait([task], timeout=5)
        assert task.done()


async def swapped(client: Client) -> str:
    """Return the next parts of a page that are sent, signs of life left out."""
    async with asyncio.timeout(30):
        while b"hx-partial" not in (body := await client.next()):
            pass
    return body.decode()


async def older_page(world: PageWorld, page: str) -> tuple[str, str]:
    """Return a page's stream, and what a page would have seen that shows older content."""
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        html = (await client.get(page, headers={"accept": "text/html"})).text
    found = re.search(r'hx-sse:connect="([^"?]+)\?seen=(\w+)\.(\w+)"', html)
    assert found is not None
    return found[1], f"{found[2]}.older"


@pytest.mark.parametrize("page", ["/", "/ui/rollouts/new-checkout"])
async def test_a_decision_is_shown_in_open_pages_at_once(world: PageWorld, page: str) -> None:
    """The stream begins with what the page lacks; then only what changed is sent."""
    client = Client()
    path, seen = await older_page(world, page)
    async with opened(world.app, path, client, seen):
        first = await swapped(client)
        assert "10 %" in first
        world.board.update(rolled_back(baking()))
        second = await swapped(client)
        assert "error_rate 4.1 %" in second
        if page == "/":
            assert 'id="filter"' in first
            assert 'id="filter"' not in second  # it did not change


async def test_a_decision_waits_for_no_pace(world: PageWorld) -> None:
    """Evidence is shown about once a second; what is decided, at once."""
    live = LivePages(world.board, Metrics(version="0"), 10, pace_seconds=3_600)

    async def render() -> list[ScreenSection]:
        return [ScreenSection("a", f"<p>{len(world.board.rollouts)}</p>")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        screen = LiveScreen("key", render, lambda: True)
        await live.serve(scope, receive, send, screen, digest([ScreenSection("a", "")]))

    client = Client()
    async with opened(app, "/x", client):
        assert "<p>1</p>" in await swapped(client)
        world.board.update(baking("another"))
        assert "<p>2</p>" in await swapped(client)


async def test_a_page_with_other_parts_is_loaded_again(world: PageWorld) -> None:
    """A new release shows more, what has gone is not shown for ever, and unknown becomes known."""
    sections = [ScreenSection("a", "<p>1</p>")]
    live = LivePages(world.board, Metrics(version="0"), 10)

    async def render() -> list[ScreenSection]:
        return sections

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen = scope["query_string"].decode().partition("=")[2]
        await live.serve(scope, receive, send, LiveScreen("key", render, lambda: True), seen)

    async def told_to_reload(client: Client) -> None:
        async with asyncio.timeout(30):
            while b"event: reload" not in (body := await client.next()):
                assert b"hx-partial" not in body

    old, new = Client(), Client()
    async with opened(app, "/x", old, digest([])), opened(app, "/x", new, digest(sections)):
        await told_to_reload(old)
        sections = []
        world.board.update(baking("another"))
        await told_to_reload(new)


async def test_a_page_that_shows_the_newest_is_sent_nothing_twice(world: PageWorld) -> None:
    """The digest in the stream's address says what the page has."""
    sections = [ScreenSection("a", "<p>1</p>")]
    older = digest([ScreenSection("a", "<p>0</p>")])
    live = LivePages(world.board, Metrics(version="0"), 10)

    async def render() -> list[ScreenSection]:
        return sections

    screen = LiveScreen("key", render, lambda: True)
    client, late = Client(), Client()
    sent = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen = scope["query_string"].decode().partition("=")[2]
        await live.serve(scope, receive, send, screen, seen)

    async with opened(app, "/x", client, digest(sections)), opened(app, "/x", late, older):
        assert "<p>1</p>" in await swapped(late)
        sections = [ScreenSection("a", "<p>2</p>")]
        world.board.update(rolled_back(baking()))
        assert "<p>2</p>" in await swapped(late)
        while b"<p>2</p>" not in (body := await client.next()):
            sent.append(body)
    assert not any(b"<p>1</p>" in one for one in sent)


async def test_a_change_is_rendered_once_for_all_pages(world: PageWorld) -> None:
    """Fifty pages of one screen cost one rendering; a screen that nobody has open costs none."""
    rendered = 0
    live = LivePages(world.board, Metrics(version="0"), 100)

    async def render() -> list[ScreenSection]:
        nonlocal rendered
        rendered += 1
        return [ScreenSection("a", f"<p>{len(world.board.rollouts)}</p>")]

    screen = LiveScreen("key", render, lambda: True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await live.serve(scope, receive, send, screen, digest([ScreenSection("a", "")]))

    clients = [Client() for _ in range(50)]
    tasks = [
        asyncio.ensure_future(app({"method": "GET"}, one.receive, one.send)) for one in clients
    ]
    for one in clients:
        await swapped(one)
    before = rendered
    world.board.update(baking("another"))
    for one in clients:
        assert "<p>2</p>" in await swapped(one)
    assert rendered - before <= 3  # one for the change, and the clock's
    live.end()
    await asyncio.wait(tasks, timeout=5)
    assert all(task.done() for task in tasks)


async def test_a_page_hears_something_at_least_every_few_seconds(world: PageWorld) -> None:
    """So it can say that it is cut off; a fault of one screen does not silence it."""
    live = LivePages(world.board, Metrics(version="0"), 10)

    async def render() -> list[ScreenSection]:
        raise ValueError("a defect")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await live.serve(scope, receive, send, LiveScreen("key", render, lambda: True), "")

    client = Client()
    async with opened(app, "/x", client):
        beats = 0
        async with asyncio.timeout(30):
            while beats < 3:
                beats += BEAT in await client.next()


async def test_a_page_whose_reader_may_no_longer_see_it_is_loaded_again(world: PageWorld) -> None:
    """What changes then is not sent any more."""
    shown, may = ["1"], [True]
    pages = LivePages(world.board, Metrics(version="1"), most_streams=10, pace_seconds=0.01)

    async def render() -> list[ScreenSection]:
        return [ScreenSection("head", f"<p id=head>{shown[0]}</p>")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        screen = LiveScreen("one", render, lambda: True)
        seen = digest([ScreenSection("head", "<p id=head>0</p>")])
        await pages.serve(scope, receive, send, screen, seen, lambda: may[0])

    client = Client()
    async with opened(app, "/", client):
        assert "1" in await swapped(client)
        may[0], shown[0] = False, "2"
        async with asyncio.timeout(30):
            while (body := await client.next()) != b"event: reload\ndata: 1\n\n":
                assert b"hx-partial" not in body


async def test_a_page_that_takes_nothing_is_dropped(world: PageWorld) -> None:
    """What waits for it stays bounded meanwhile."""
    metrics = Metrics(version="0")
    live = LivePages(world.board, metrics, 10, slow_seconds=0.05)
    number = 0

    async def render() -> list[ScreenSection]:
        nonlocal number
        number += 1
        return [ScreenSection("a", f"<p>{number}</p>")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        screen = LiveScreen("key", render, lambda: True)
        await live.serve(scope, receive, send, screen, digest([ScreenSection("a", "")]))

    client = Client()
    scope = {"method": "GET", "extensions": {"rolloutd.abort": {"call": client.abort}}}
    task = asyncio.ensure_future(app(scope, client.receive, client.send))
    await swapped(client)
    client.is_reading = False
    world.board.update(baking("another"))
    await asyncio.wait([task], timeout=20)
    assert task.done()
    assert client.aborted
    assert counted(metrics, "page_streams_ended_total", why="slow") == 1


async def test_open_pages_are_counted(world: PageWorld) -> None:
    """How many are open, how many were refused, and how many changes they were sent."""
    metrics = Metrics(version="0")
    live = LivePages(world.board, metrics, 1)

    async def render() -> list[ScreenSection]:
        return [ScreenSection("a", f"<p>{len(world.board.rollouts)}</p>")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        screen = LiveScreen("key", render, lambda: True)
        await live.serve(scope, receive, send, screen, digest([ScreenSection("a", "")]))

    one, other = Client(), Client()
    async with opened(app, "/", one):
        await swapped(one)
        world.board.update(baking("another"))
        await swapped(one)
        assert counted(metrics, "page_streams") == 1
        async with opened(app, "/", other):
            assert (await other.sent.get())["status"] == 503
        assert counted(metrics, "page_streams_ended_total", why="refused") == 1
    assert counted(metrics, "page_streams") == 0
    assert counted(metrics, "page_events_total") == 2  # beats are not among them


def counted(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return the value of a metric."""
    return metrics.registry.get_sample_value(f"rolloutd_{name}", labels)


async def test_more_pages_than_allowed_are_refused() -> None:
    """Each open page is a connection."""
    world = PageWorld(lambda: NOW, page_streams=1)
    world.show(baking())
    one, other = Client(), Client()
    path, seen = await older_page(world, "/")
    async with opened(world.app, path, one, seen):
        await swapped(one)
        async with opened(world.app, "/ui/live/fleet", other):
            assert (await other.sent.get())["status"] == 503


def test_only_what_changed_is_sent() -> None:
    """A list whose lines are the same ones is sent by the line; otherwise it is sent whole."""
    before = [ScreenSection("s", "1"), ScreenSection("list", "ab", {"a": "a", "b": "b"})]
    assert changed_sections(before, before) == {}
    after = [ScreenSection("s", "1"), ScreenSection("list", "aB", {"a": "a", "b": "B"})]
    assert changed_sections(before, after) == {"b": "B"}
    moved = [ScreenSection("s", "1"), ScreenSection("list", "ba", {"b": "b", "a": "a"})]
    assert changed_sections(before, moved) == {"list": "ba"}
    assert changed_sections([], before) == {"s": "1", "list": "ab"}
