"""The page as HTML: what each screen says first, and that hostile text stays text."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from controller.core.rollout import Baking, RolledBack
from controller.health import Scope
from controller.ports import PlaneStanding
from controller.settings.http import HttpSettings
from controller.web.page.fleet import ROWS
from tests.builders import make_advice
from tests.pages import PageWorld, filled, judgement_at, plan_of, rollout_in

NOW = datetime(2026, 11, 23, 9, 0, 7, tzinfo=UTC)
BROWSER = {"accept": "text/html,application/xhtml+xml"}
HOSTILE = "</td><script>alert(1)</script>\u202e\u2066 😀 <hx-partial id=main>" + "x" * 10_000


@pytest.fixture
async def world() -> PageWorld:
    """A replica with a rollout in every state."""
    return await filled(PageWorld(lambda: NOW))


@pytest.fixture
async def browser(world: PageWorld) -> AsyncIterator[httpx.AsyncClient]:
    """A client that accepts HTML, as browsers do."""
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=BROWSER
    ) as client:
        yield client


def words(html: str) -> str:
    """Return what a page says, without its markup."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


class Tags(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))


async def test_the_first_line_says_whether_anybody_is_needed(browser: httpx.AsyncClient) -> None:
    """Then comes what needs a person, with why; each rollout has one line."""
    page = (await browser.get("/")).text
    assert "<h1>" in page
    said = words(page)
    assert "3 rollouts need you." in said
    assert "rolled back: error_rate 4.1 % against 0.93 %" in said
    assert "waiting for approval: every gate has passed" in said
    assert "baking, 43 % of the evidence needed" in said
    keys = re.findall(r'<tr id="row-([^"]+)"', page)
    assert keys[:3] == ["new-checkout", "recommendations", "search-v3"]
    assert keys[-1] == "dark-mode"


async def test_a_quiet_fleet_says_that_nothing_waits() -> None:
    """One rollout that moves needs nobody."""
    world = PageWorld(lambda: NOW)
    world.show(rollout_in(lambda _: Baking(1, NOW + timedelta(minutes=5)), "calm", 1, NOW))
    said = words(await page_of(world, "/"))
    assert "Nothing is wrong, and nothing waits for you." in said
    assert "Page 1 of 1, 1 rollout " in said


async def test_a_replica_in_trouble_does_not_say_that_nothing_is_wrong() -> None:
    """Its faults stand below, and the first line says so."""
    world = PageWorld(lambda: NOW)
    world.show(rollout_in(lambda _: Baking(1, NOW + timedelta(minutes=5)), "calm", 1, NOW))
    world.faults.report(Scope.DEPENDENCY, "redis", "it does not answer", "start Redis")
    said = words(await page_of(world, "/"))
    assert "This replica is in trouble." in said
    assert "1 trouble of this replica, with what helps" in said
    assert "Nothing is wrong" not in said


async def test_without_a_rollout_the_page_says_how_to_start_one() -> None:
    """The empty state is a way on, not an empty table."""
    world = PageWorld(lambda: NOW)
    world.show()
    said = words(await page_of(world, "/"))
    assert "No flag has a rollout yet." in said
    assert "rolloutctl start plan.yaml" in said


async def page_of(world: PageWorld, path: str) -> str:
    """Return a page of a replica."""
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=BROWSER
    ) as client:
        return (await client.get(path)).text


async def test_before_anything_is_known_the_page_does_not_say_none() -> None:
    """Not known is not zero."""
    world = PageWorld(lambda: NOW)
    said = words(await page_of(world, "/"))
    assert "It is not known yet which rollouts there are." in said
    assert "No flag" not in said
    assert "not known yet" in words(await page_of(world, "/ui/rollouts/pricing-api"))
    world.faults.report(Scope.DEPENDENCY, "kafka", "no broker answers", "start Kafka at k:9092")
    page = await page_of(world, "/")
    said = words(page)
    assert "dependency kafka : no broker answers To fix it: start Kafka at k:9092" in said
    plain = " ".join(re.sub("<[^>]*>", "", page).split())
    assert "start Kafka at k:9092 since" in plain, "a browser puts no space between elements"


async def test_the_list_is_searched_narrowed_and_paged(browser: httpx.AsyncClient) -> None:
    """By part of flag, plan or owner; a wrong state is explained."""
    keys = re.compile(r'<tr id="row-([^"]+)"')
    assert keys.findall((await browser.get("/?q=PRICING")).text) == ["pricing-api"]
    assert keys.findall((await browser.get("/?owner=web")).text) == ["dark-mode"]
    assert len(keys.findall((await browser.get("/?state=attention")).text)) == 3
    assert "No rollout fits." in (await browser.get("/?q=nothing-like-it")).text
    wrong = await browser.get("/?state=x")
    assert (wrong.status_code, "attention, active, ended" in wrong.text) == (400, True)
    assert (await browser.get("/?page=0")).status_code == 400


async def test_a_long_list_is_shown_by_the_page() -> None:
    """Forty lines a page, and a page beyond the last shows the last."""
    world = PageWorld(lambda: NOW)
    plan = plan_of("flag", "team")
    world.show(
        *(
            rollout_in(
                lambda _: Baking(1, NOW + timedelta(minutes=5)),
                f"flag-{number:03}",
                1,
                NOW,
                plan=replace(plan, flag_key=f"flag-{number:03}"),
            )
            for number in range(ROWS + 5)
        )
    )
    first = await page_of(world, "/")
    assert first.count("<tr id=") == ROWS
    assert "Page 1 of 2, 45 rollouts" in words(first)
    assert 'rel="next"' in first
    assert (await page_of(world, "/?page=99")).count("<tr id=") == 5
    assert len(first.encode()) < 45_000


async def test_one_rollout_says_its_state_in_one_sentence(browser: httpx.AsyncClient) -> None:
    """Then stages, the gate in its order, both answers of each metric, and what can be done."""
    page = (await browser.get("/ui/rollouts/pricing-api")).text
    said = words(page)
    assert "Serving 10 %, stage 2 of 5, and gathering evidence." in said
    assert "No harm found in 1,548 users of the new version." in said
    order = [said.index(name) for name in ("health passed", "statistics open", "advice ahead")]
    assert order == sorted(order)
    assert "1 of 3 proven safe" in said
    assert "61 % of the evidence" in said
    assert "rolloutctl promote pricing-api --expected-revision 11 --reason &#34;WHY&#34;" in page
    assert "nothing is paused" in said  # why resume does not fit
    assert page.count('<svg class="interval"') == 3
    assert page.count('<svg class="chart"') == 6
    assert re.search("unleash 25 % ?, decided 10 %: serves 25 %", said)
    assert 'aria-current="step"' in page


async def test_a_plane_is_not_called_right_before_it_was_asked(world: PageWorld) -> None:
    """Its report is of what was decided before."""
    at = world.now()
    rollout = rollout_in(lambda _: Baking(2, at), "quick", 2, at)
    world.show(rollout)
    await world.judged(
        rollout,
        judgement_at(at, 10, visit=2),
        PlaneStanding("ofrep", True, 10.0, 10.0, None, None, at),
    )
    said = words(await page_of(world, "/ui/rollouts/quick"))
    assert re.search("◐ ofrep 10 % ?, not asked yet since 25 % was decided", said)


async def test_a_breach_is_the_first_thing_said(browser: httpx.AsyncClient) -> None:
    """With its numbers, and the alert's advice."""
    said = words((await browser.get("/ui/rollouts/new-checkout")).text)
    assert (
        "Rolled back: error_rate 4.1 % against 0.93 %: worse than allowed; 0 % is served." in said
    )
    assert "What to do: find the cause, fix it, then restart the rollout" in said


async def test_what_waits_for_approval_shows_the_command(browser: httpx.AsyncClient) -> None:
    """The model's advice and its reasons stand beside it."""
    said = words((await browser.get("/ui/rollouts/search-v3")).text)
    assert "rolloutctl approve search-v3 --expected-revision 11" in said
    assert "proceed at 25%" in said
    assert "error rates are alike" in said


async def test_a_gap_is_unknown_and_not_zero(browser: httpx.AsyncClient) -> None:
    """Users are counted, but nothing is concluded from them."""
    said = words((await browser.get("/ui/rollouts/eu-tax")).text)
    assert "the evidence cannot be judged: no outcomes" in said.lower()
    assert "health blocks" in said


async def test_without_redis_the_page_says_what_is_missing(world: PageWorld) -> None:
    """And shows the rest."""
    world.store.outage.is_down = True
    for path in ("/", "/ui/rollouts/pricing-api"):
        page = await page_of(world, path)
        assert "Redis is away" in page
        assert "pricing-api" in page
        assert path == "/" or "not measured" in page


async def test_a_stale_replica_says_since_when(world: PageWorld) -> None:
    """Another replica may have decided something."""
    world.board.note_silence(120)
    for path in ("/", "/ui/rollouts/pricing-api"):
        said = words(await page_of(world, path))
        assert "This may be out of date: no broker has said since" in said


async def test_its_plan_is_shown_whole(browser: httpx.AsyncClient) -> None:
    """As YAML that `plan lint` reads."""
    page = (await browser.get("/ui/rollouts/pricing-api/plan")).text
    assert "flag: pricing-api" in page
    assert "latency_p99" in page


async def test_an_unknown_flag_is_told_so(browser: httpx.AsyncClient) -> None:
    """With what to do."""
    answer = await browser.get("/ui/rollouts/nobody-knows")
    assert answer.status_code == 404
    assert "This flag has no rollout" in answer.text


@pytest.mark.parametrize("path", ["/ui/nope", "/ui/rollouts/nobody-knows", "/nope", "/api/v1/nope"])
async def test_an_address_that_leads_nowhere_has_a_page(
    browser: httpx.AsyncClient, path: str
) -> None:
    """With the way back; programs get JSON."""
    answer = await browser.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert '<a href="/">All rollouts</a>' in answer.text
    if "nobody" not in path:
        assert f"Nothing is shown at {path}." in words(answer.text)
        answer = await browser.get(path, headers={"accept": "application/json"})
        assert answer.json() == {"error": "Not Found"}


async def test_a_wrong_method_has_a_page(browser: httpx.AsyncClient) -> None:
    """It names the methods that are right, in the header too."""
    answer = await browser.post("/ui/flags")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    said = words(answer.text)
    assert "This address does not take that" in said
    assert "and this was POST." in said


async def test_a_hostile_address_stays_text(browser: httpx.AsyncClient) -> None:
    """Escaped, cut, and without characters that turn the text around."""
    for place in ("/ui/", "/ui/rollouts/"):
        answer = await browser.get(place + quote(HOSTILE, safe=""))
        assert answer.status_code == 404
        assert "<script>alert" not in answer.text
        assert "<hx-partial id=main>" not in answer.text
        assert not {"\u202e", "\u2066"} & set(answer.text)
        assert "x" * 200 not in answer.text


async def test_programs_still_get_the_list_of_paths(browser: httpx.AsyncClient) -> None:
    """Only who accepts HTML by name gets a page."""
    answer = await browser.get("/", headers={"accept": "*/*"})
    assert answer.json()["server"] == "rolloutd"
    assert "accept" in (await browser.get("/")).headers["vary"]


@pytest.mark.parametrize("path", ["/", "/ui/rollouts/pricing-api", "/ui/plan"])
async def test_a_page_loads_nothing_from_elsewhere(browser: httpx.AsyncClient, path: str) -> None:
    """A strict policy, no inline script or style, and below 100 kB with everything it loads."""
    answer = await browser.get(path)
    policy = answer.headers["content-security-policy"]
    assert answer.headers.get_list("content-security-policy") == [policy]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    size, tags = len(answer.content), Tags(answer.text).found
    for tag, attributes in tags:
        assert "style" not in attributes, tag
        assert not any(name.startswith("on") for name in attributes), tag
        if tag == "script":
            assert attributes["src"]
        for name in ("src", "href", "action"):
            assert not (attributes.get(name) or "").startswith(("http", "//")), attributes
    for tag, attributes in tags:
        address = attributes.get("src") or (attributes.get("href") if tag == "link" else None)
        if address:
            found = await browser.get(address)
            assert found.status_code == 200
            assert "immutable" in found.headers["cache-control"]
            size += len(found.content)
    assert size < 100_000


async def test_hostile_text_stays_text() -> None:
    """Script, directions, ten thousand characters: escaped, cut, and kept to itself."""
    world = PageWorld(lambda: NOW)
    plan = plan_of("bad", HOSTILE, description=HOSTILE)
    rolled = rollout_in(lambda _: RolledBack(NOW, HOSTILE), "bad", 1, NOW, plan=plan)
    baking = rollout_in(
        lambda _: Baking(1, NOW), "bad-too", 1, NOW, plan=replace(plan, flag_key="bad-too")
    )
    world.show(rolled, baking)
    await world.judged(baking, judgement_at(NOW, 10))
    await world.decided(rolled, NOW, reason=HOSTILE, issuer=HOSTILE)
    await world.alerted(rolled, NOW, summary=HOSTILE, action=HOSTILE)
    advice = make_advice(reasons=(HOSTILE,) * 5, model=HOSTILE)
    await world.decided(baking, NOW, gate_id="gate-1", advice=advice)
    for path in ("/", "/ui/rollouts/bad", "/ui/rollouts/bad-too", "/?q=" + "<script>"):
        page = await page_of(world, path)
        tags = Tags(page).found
        assert not [one for one in tags if one[0] == "script" and "src" not in one[1]], path
        assert "hx-partial" not in [tag for tag, _ in tags], path
        assert "\u202e" not in page
        assert "\u2066" not in page
        assert len(page) < 30_000, path
        assert page.count("<bdi>") == page.count("</bdi>") > 0


@pytest.mark.parametrize(
    ("readers", "host", "is_shown"),
    [
        ("loopback", "127.0.0.1", True),
        ("loopback", "::1", True),
        ("loopback", "0.0.0.0", False),
        ("anyone", "0.0.0.0", True),
        ("nobody", "127.0.0.1", False),
    ],
)
async def test_rollouts_are_shown_to_whom_the_setting_says(
    readers: Any, host: str, is_shown: bool
) -> None:
    """Beyond loopback nothing about a rollout is answered unless a setting says so."""
    settings = HttpSettings(readers=readers, host=host)
    world = PageWorld(lambda: NOW, why_not_shown=settings.why_not_shown)
    await filled(world)
    transport = httpx.ASGITransport(app=world.app)
    shown = (
        "/",
        "/ui/rollouts/pricing-api",
        "/ui/plan",
        "/ui/rollouts/pricing-api/plan",
        "/api/v1/rollouts",
        "/api/v1/rollouts/pricing-api",
        "/rollouts",
        "/rollouts/pricing-api",
        "/api/v1/rollouts/pricing-api/decisions",
        "/events",
    )
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=BROWSER
    ) as client:
        for path in shown:
            answer = await client.get(path)
            if is_shown:
                assert answer.status_code in (200, 404), path
            else:
                assert (answer.status_code, "http.readers" in answer.text) == (403, True), path
                assert answer.headers["content-type"].startswith("text/html"), path
                assert "rolloutctl status shows rollouts without HTTP" in answer.text
                style = answer.text.partition('rel="stylesheet" href="')[2].partition('"')[0]
                assert (await client.get(style)).status_code == 200
                assert "pricing-api" not in answer.text
        refused = await client.get("/api/v1/rollouts", headers={"accept": "*/*"})
        assert is_shown or "http.readers" in refused.json()["error"]
        for path in ("/healthz", "/flagd/flags.json", "/metrics"):
            assert (await client.get(path)).status_code == 200, path
        body = {"context": {"targetingKey": "user-1"}}
        evaluated = await client.post("/ofrep/v1/evaluate/flags/pricing-api", json=body)
        assert evaluated.status_code == 200
        paths = (await client.get("/", headers={"accept": "*/*"})).json()["paths"]
        each = [one["path"] for one in paths]
        assert sorted(set(each)) == sorted(each), "a path was listed twice"
