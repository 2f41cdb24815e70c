"""The public page: chosen names, our words, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from controller.core.rollout import (
    Aborted,
    Baking,
    Completed,
    Paused,
    Phase,
    RolledBack,
    Scheduled,
)
from controller.errors import ConfigInvalid
from controller.settings import Settings
from controller.settings.status_page import StatusPageSettings
from controller.web.status_page import PublicNames, Release, state_of
from schemas.terms import HoldReason
from tests.pages import PageWorld, filled, judgement_at, rollout_in

NOW = datetime(2026, 11, 23, 9, 0, 7, tzinfo=UTC)
SOON = NOW + timedelta(minutes=5)
NAMES = {"new-checkout": "New <checkout>", "search-v3": "Search", "not-started": "Later"}
SECRETS = ("new-checkout", "search-v3", "payments", "pricing-api", "canary", "error_rate")


class Time:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def time() -> Time:
    """The replica's time."""
    return Time()


@pytest.fixture
async def world(time: Time) -> PageWorld:
    """A replica with a rollout in every state, of which three may be shown."""
    return await filled(PageWorld(time, public=PublicNames(NAMES, "Our releases", 15)))


@pytest.fixture
async def public(world: PageWorld) -> AsyncIterator[httpx.AsyncClient]:
    """A client that nobody knows."""
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_only_what_is_named_is_shown(public: httpx.AsyncClient) -> None:
    """No key, plan, owner or reason, in neither form; hostile names are text."""
    page, document = await public.get("/status"), await public.get("/status.json")
    assert page.status_code == document.status_code == 200
    for answer in (page.text, document.text):
        assert not [one for one in SECRETS if one in answer]
    assert "New &lt;checkout&gt;" in page.text
    assert {one["name"] for one in document.json()["releases"]} == {"New <checkout>", "Search"}
    assert "Later" not in page.text  # it has no rollout


async def test_a_cache_may_keep_it_and_ask_again(public: httpx.AsyncClient) -> None:
    """For as long as the setting says, and a known version is not sent again."""
    first = await public.get("/status")
    assert first.headers["cache-control"] == "public, max-age=15"
    assert "script-src 'self'" in first.headers["content-security-policy"]
    again = await public.get("/status", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_it_is_made_once_for_all_who_ask(
    public: httpx.AsyncClient, world: PageWorld, time: Time
) -> None:
    """A change is shown once the last answer is too old."""
    before = await public.get("/status.json")
    ended = rollout_in(lambda _: RolledBack(NOW, "secret"), "search-v3", 1, NOW, revision=99)
    world.show(ended)
    assert (await public.get("/status.json")).content == before.content
    time.now = NOW + timedelta(seconds=16)
    after = (await public.get("/status.json")).json()
    found = {one["name"]: one for one in after["releases"]}["Search"]
    assert (found["state"], found["percent"]) == ("withdrawn", 0.0)
    assert "secret" not in json.dumps(after)


async def test_harm_is_called_a_problem(time: Time) -> None:
    """And the first sentence names it."""
    world = PageWorld(time, public=PublicNames({"a": "Alpha", "b": "Beta"}, "Releases", 1))
    bad = rollout_in(lambda _: RolledBack(NOW, "x"), "a", 1, NOW)
    good = rollout_in(lambda at: Baking(1, at + timedelta(minutes=10)), "b", 1, NOW)
    world.show(bad, good)
    await world.judged(good, judgement_at(NOW, 500))
    await world.judged(bad, judgement_at(NOW, 500, is_harmful=True))
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        said = (await client.get("/status.json")).json()
    assert said["summary"] == "A problem was found: Alpha."
    assert [one["health"] for one in said["releases"]] == [
        "a problem was found",
        "no problem found",
    ]


async def test_what_people_took_back_is_no_problem(time: Time) -> None:
    """A flag that somebody switched off is withdrawn, and nobody is told of a fault."""
    world = PageWorld(time, public=PublicNames({"a": "Alpha"}, "Releases", 1))
    off = rollout_in(lambda _: RolledBack(NOW, "switched off"), "a", 1, NOW)
    world.show(off)
    await world.judged(off, judgement_at(NOW, 5_000))
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        said = (await client.get("/status.json")).json()
    assert said["summary"] == "No problem found in any release."
    (release,) = said["releases"]
    assert (release["state"], release["health"]) == ("withdrawn", "not served")


async def test_what_may_be_out_of_date_says_so(time: Time) -> None:
    """A replica that knows nothing yet does not call everything well."""
    world = PageWorld(time, public=PublicNames({"a": "Alpha"}, "Releases", 1))
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        said = (await client.get("/status.json")).json()
        page = (await client.get("/status")).text
    assert said["stale_since"] is not None
    assert "out of date" in said["summary"]
    assert "newer decisions may be missing" in page


async def test_reports_that_hang_cost_their_time_once(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once per flag: the page is there all the same, from the state alone."""
    names = {f"flag-{number}": f"Release {number}" for number in range(20)}
    world = PageWorld(time, public=PublicNames(names, "Releases", 1))
    world.show(*(rollout_in(lambda at: Baking(1, SOON), key, 1, NOW) for key in names))
    asked: set[str] = set()

    async def hang(key: str) -> bytes | None:
        asked.add(key)
        await asyncio.sleep(3_600)
        return None

    monkeypatch.setattr(world.store, "read", hang)
    monkeypatch.setattr("controller.web.status_page._REPORT_SECONDS", 0.2)
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        said = (await client.get("/status.json")).json()
    assert len(said["releases"]) == len(asked) == 20


async def test_there_is_no_page_unless_it_is_set(time: Time) -> None:
    """Off by default."""
    world = await filled(PageWorld(time))
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/status")).status_code == 404
    assert Settings().status_page.flags == {}


async def test_it_is_shown_where_rollouts_are_not(time: Time) -> None:
    """With its files, although nobody may read about rollouts."""
    public = PublicNames(NAMES, "Our releases", 15)
    world = await filled(PageWorld(time, public=public, why_not_shown="nobody may"))
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        page = await client.get("/status")
        assert page.status_code == 200
        style = page.text.partition('rel="stylesheet" href="')[2].partition('"')[0]
        assert (await client.get(style)).status_code == 200
        assert (await client.get("/api/v1/rollouts")).status_code == 403


PHASES: list[tuple[Callable[[datetime], Phase], Release]] = [
    (lambda _: Scheduled(SOON), Release.PLANNED),
    (lambda _: Baking(1, SOON), Release.ROLLING_OUT),
    (lambda at: Paused(at, HoldReason.OPERATOR, Baking(1, SOON)), Release.PAUSED),
    (Completed, Release.RELEASED),
    (lambda at: RolledBack(at, "x"), Release.WITHDRAWN),
    (lambda at: Aborted(at, "x"), Release.WITHDRAWN),
]


@pytest.mark.parametrize(("phase", "state"), PHASES)
def test_every_phase_has_a_word(phase: Callable[[datetime], Phase], state: Release) -> None:
    """In the public's language."""
    assert state_of(rollout_in(phase, "flag", 1, NOW)) is state


@pytest.mark.parametrize(
    "bad",
    [{"flags": {"a b\n": "x"}}, {"flags": {"a": ""}}, {"flags": {"a": "x\x1b[2J"}}, {"flags": 7}],
)
def test_a_wrong_setting_is_refused(bad: dict[str, Any]) -> None:
    """Keys are keys, and names are readable."""
    with pytest.raises((ValueError, ConfigInvalid)):
        StatusPageSettings(**bad)
