"""The page of incidents in a real Chromium: who is told, who is next, and taking one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.admission import NotedDesk, admission
from tests.browser.conftest import SCREENSHOTS, Seen, Site, settled
from tests.incidents import NotedIncidents
from tests.incidents import filled as with_incidents
from tests.pages import PageWorld, filled

PATIENCE = 30_000
PATH = "/ui/incidents"
ACCESS = """\
grants:
  - {role: operator, people: [ada@example.org]}
  - {role: viewer, people: [vic@example.org]}
"""
PROXY = {"addresses": ["127.0.0.1"], "user_header": "x-forwarded-user"}


@dataclass
class Watch:
    """A replica with open incidents, behind a proxy that knows people."""

    url: str
    incidents: NotedIncidents


@pytest.fixture
async def watch(tmp_path: Path) -> AsyncIterator[Watch]:
    """Incidents in every state, and rollouts that they are about."""
    incidents = with_incidents(NotedIncidents())
    world = PageWorld(
        admit=lambda board: admission(tmp_path, ACCESS, board, NotedDesk(), proxy=PROXY),
        notifications=incidents,
    )
    site = Site(await filled(world))
    await site.start()
    yield Watch(site.url, incidents)
    await site.stop()


async def look(browser: Any, who: str | None, **context: Any) -> Any:
    """Return a page of somebody; None: of a stranger."""
    headers = {} if who is None else {"x-forwarded-user": who}
    made = await browser.new_context(extra_http_headers=headers, **context)
    made.set_default_timeout(120_000)
    return await made.new_page()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (360, "dark")])
async def test_everybody_can_use_the_incidents(
    browser: Any, watch: Watch, axe: str, width: int, scheme: Any
) -> None:
    """Nothing shuts anybody out, the policy is kept, and nothing is wider than the window."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    seen = Seen()
    view = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    for who, path, name in (
        ("ada@example.org", PATH, "incidents"),
        ("vic@example.org", PATH, "incidents-viewer"),
        ("ada@example.org", "/", "fleet-incidents"),
        ("ada@example.org", "/ui/rollouts/new-checkout", "rollout-incidents"),
    ):
        page = await look(browser, who, **view)
        await seen.watch(page)
        await page.goto(watch.url + path, timeout=PATIENCE)
        await settled(page)
        await page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
        await page.evaluate(axe)
        found = await page.evaluate("axe.run()")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == [], name
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, name
        await page.context.close()
    assert seen.complaints == []


async def test_times_of_another_day_fit_on_a_phone(browser: Any, watch: Watch) -> None:
    """Those are told with their date, which makes them the longest."""
    for path in (PATH, "/", "/ui/rollouts/new-checkout"):
        page = await look(browser, "ada@example.org", viewport={"width": 360, "height": 900})
        await page.clock.set_system_time(datetime.now(UTC) + timedelta(days=3))
        await page.goto(watch.url + path, timeout=PATIENCE)
        await settled(page)
        assert " d ago)" in await page.locator("time").first.inner_text()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360, path
        await page.context.close()


@pytest.mark.parametrize("has_script", [True, False])
async def test_one_press_takes_it(browser: Any, watch: Watch, has_script: bool) -> None:
    """With and without script; it is shown as taken, and another open page follows by itself."""
    page = await look(browser, "ada@example.org", java_script_enabled=has_script)
    other, seen = await look(browser, "vic@example.org"), Seen()
    await seen.watch(other)
    for one in (page, other):
        await one.goto(watch.url + PATH)
    await settled(other)
    assert await page.locator("h1").inner_text() == (
        "▲ 2 incidents wait for somebody to take them."
    )
    first = page.locator("#open li").first
    assert "new-checkout" in await first.inner_text()
    assert await other.locator("button:has-text('Take it')").count() == 0
    assert "needs the role operator" in await other.locator("#open li").first.inner_text()
    await first.locator("button:has-text('Take it')").click()
    await page.get_by_text("One incident waits for somebody").wait_for(timeout=PATIENCE)
    assert page.url == watch.url + PATH
    (asked,) = watch.incidents.asked
    assert (asked.issuer, asked.request_about) == (
        "ada@example.org",
        "new-checkout/r1/rolled_back",
    )
    await other.get_by_text("One incident waits for somebody").wait_for(timeout=PATIENCE)
    taken = other.locator("#open li", has_text="new-checkout")
    assert "ada@example.org" in await taken.inner_text()
    assert seen.complaints == []
    await page.context.close()
    await other.context.close()


async def test_a_new_incident_appears_where_people_look(browser: Any, watch: Watch) -> None:
    """On the incidents, the list of rollouts and the rollout, without a reload."""
    pages = [await look(browser, "ada@example.org") for _ in range(3)]
    for page, path in zip(pages, (PATH, "/", "/ui/rollouts/pricing-api"), strict=True):
        await page.goto(watch.url + path)
        await settled(page)
    said = "pricing-api is not watched: the evidence is late"
    watch.incidents.tell("pricing-api", datetime.now(UTC), kind="unwatched", summary=said)
    await pages[0].get_by_text(said).wait_for(timeout=PATIENCE)
    await pages[1].get_by_text("3 incidents wait for somebody").wait_for(timeout=PATIENCE)
    await pages[2].locator("#incidents").get_by_text(said).wait_for(timeout=PATIENCE)
    button = pages[0].locator("#open li", has_text=said).locator("button")
    await button.click()  # also one that came by the stream belongs to the form
    taken = pages[0].locator("#open li", has_text=said)
    await taken.get_by_text("Taken by").wait_for(timeout=PATIENCE)
    for page in pages:
        await page.context.close()


async def test_what_got_worse_since_it_was_seen_is_not_taken(browser: Any, watch: Watch) -> None:
    """Whoever pressed has not seen it; and what somebody else took stays theirs."""
    page = await look(browser, "ada@example.org", java_script_enabled=False)
    other = await page.context.new_page()
    for one in (page, other):
        await one.goto(watch.url + PATH)
    watch.incidents.tell(
        "search-v3", datetime.now(UTC), kind="approval_needed", summary="search-v3 is on fire"
    )
    watch.incidents.planner.acknowledge("new-checkout", "bob", datetime.now(UTC))
    await page.locator("#open li", has_text="search-v3").locator("button").click()
    assert "may have got worse: look again" in await page.locator("main").inner_text()
    await other.locator("#open li", has_text="new-checkout").locator("button").click()
    assert "bob has taken it at" in await other.locator("main").inner_text()
    assert watch.incidents.asked == []
    await page.context.close()
