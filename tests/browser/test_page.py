"""The page in a real Chromium: everybody can use it, it stays current, and it keeps its policy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from controller.core.rollout import RolledBack
from tests.browser.conftest import SCREENSHOTS, Seen, Site, settled
from tests.pages import PageWorld, filled, plan_of, rollout_in

PAGES = {
    "fleet": "/",
    "healthy": "/ui/rollouts/pricing-api",
    "breached": "/ui/rollouts/new-checkout",
    "waiting": "/ui/rollouts/search-v3",
    "gap": "/ui/rollouts/eu-tax",
    "plan": "/ui/rollouts/pricing-api/plan",
    "check": "/ui/plan",
    "flags": "/ui/flags",
    "status": "/status",
}
#: Milliseconds that a browser on a busy machine may take.
PATIENCE = 30_000


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1440, "light"),
        (360, "dark"),
        pytest.param(1440, "dark", marks=pytest.mark.rare),
        pytest.param(360, "light", marks=pytest.mark.rare),
        pytest.param(1920, "light", marks=pytest.mark.rare),
    ],
)
async def test_everybody_can_use_every_screen(
    browser: Any, site: Site, axe: str, width: int, scheme: Any
) -> None:
    """Axe finds nothing, the policy is kept, and nothing is wider than the window."""
    context = await browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    seen = Seen()
    for name, path in PAGES.items():
        page = await context.new_page()
        await seen.watch(page)
        await page.goto(site.url + path, timeout=PATIENCE)
        await settled(page)
        await page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
        await page.evaluate(axe)
        found = await page.evaluate("axe.run()")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == [], name
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, name
        await page.close()
    assert seen.complaints == []
    await context.close()


async def test_a_decision_appears_in_an_open_page(browser: Any, site: Site) -> None:
    """Without reloading, in the list and in the rollout; what a reader opened stays open."""
    board, seen = site.world.board, Seen()
    fleet, one = await browser.new_page(), await browser.new_page()
    for page, path in ((fleet, "/"), (one, "/ui/rollouts/pricing-api")):
        await seen.watch(page)
        await page.goto(site.url + path)
        await settled(page)
    await one.click("#metrics summary")
    baking = board.rollout("pricing-api")
    assert baking is not None
    now = datetime.now(UTC)
    phase = RolledBack(now, "error_rate 9.9 % against 0.9 %")
    back = replace(baking, phase=phase, percent=0.0, revision=12, updated_at=now)
    board.update(back)
    for page in (fleet, one):
        await page.get_by_text("error_rate 9.9 % against 0.9 %").first.wait_for(timeout=PATIENCE)
    assert await fleet.locator("h1").inner_text() == "◆ 4 rollouts need you."
    assert await one.locator("#metrics details").evaluate("(one) => one.open")
    assert seen.complaints == []


async def test_a_page_that_is_cut_off_says_so(browser: Any, site: Site) -> None:
    """It turns gray with the time of its numbers, and goes on when the replica is back."""
    page = await browser.new_page()
    await page.goto(site.url)
    await settled(page)
    assert not await page.locator("#cut").is_visible()
    await site.stop()
    await page.wait_for_selector("body.cut #cut:visible", timeout=PATIENCE)
    assert "Live updates stopped at" in await page.locator("#cut").inner_text()
    again = Site(await filled(PageWorld()), port=site.port)
    await again.start()
    await page.wait_for_selector("body:not(.cut)", timeout=PATIENCE)
    assert not await page.locator("#cut").is_visible()
    await again.stop()


async def test_everything_can_be_read_without_script(browser: Any, site: Site) -> None:
    """The list, a rollout, and the form that checks a plan."""
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(site.url)
    await page.fill("input[name=q]", "pricing")
    await page.click("#filter button")
    assert await page.locator("table.fleet tbody tr").count() == 1
    await page.click("table.fleet a >> nth=0")
    assert "No harm found in 1,548 users" in await page.locator("#state").inner_text()
    assert not await page.locator(".copy button").first.is_visible()
    await page.goto(site.url + "/ui/plan")
    await page.fill("textarea", "flag: x\nstages: many\n")
    await page.click("#form button")
    assert "It cannot be started" in await page.locator("h1").inner_text()
    assert await page.locator("li.marked").count() >= 1
    await context.close()


async def test_a_keyboard_is_enough(browser: Any, site: Site) -> None:
    """From the address to the rollout that needs a person, and to the command to copy."""
    page = await browser.new_page()
    await page.goto(site.url)
    await settled(page)
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await page.keyboard.press("Enter")
    for _ in range(3):
        await page.keyboard.press("Tab")
        if "/ui/rollouts/" in str(await page.evaluate("document.activeElement.href || ''")):
            break
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/ui/rollouts/new-checkout", timeout=PATIENCE)
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.matches('.copy button')"):
            break
    assert await page.evaluate("document.activeElement.textContent") == "Copy"


async def test_a_chart_has_the_times_of_the_page(browser: Any, site: Site) -> None:
    """In the reader's zone, as all others; else one moment has two times side by side."""
    context = await browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB")
    page = await context.new_page()
    await page.goto(f"{site.url}/ui/rollouts/pricing-api")
    await settled(page)
    end = page.locator("svg.chart text[data-at]").last
    at = datetime.fromisoformat(await end.get_attribute("data-at"))
    assert at.tzinfo is not None
    assert f"{at.astimezone(ZoneInfo('Asia/Tokyo')):%H:%M:%S}" in await end.text_content()
    await context.close()


async def test_hostile_text_does_nothing_in_a_browser(browser: Any) -> None:
    """It is neither run nor loaded, also where it comes by the stream."""
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e" + "😀" * 5_000
    now = datetime.now(UTC)
    back = rollout_in(
        lambda _: RolledBack(now, hostile), "bad", 1, now, plan=plan_of("bad", hostile)
    )
    world = PageWorld()
    world.show(back)
    site = Site(world)
    await site.start()
    seen = Seen()
    page = await browser.new_page(viewport={"width": 360, "height": 900})
    await seen.watch(page)
    for path in ("/", "/ui/rollouts/bad"):
        await page.goto(site.url + path)
        await settled(page)
        again = replace(back, phase=RolledBack(now, "second " + hostile), revision=20)
        world.board.update(again)
        await page.get_by_text("second <img src=x").first.wait_for(timeout=PATIENCE)
        assert await page.locator("img").count() == 0
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    assert seen.complaints == []
    await site.stop()


async def test_a_page_that_was_opened_too_early_fills_by_itself(browser: Any) -> None:
    """Not known becomes known without anybody's doing; what has gone is not shown for ever."""
    world = PageWorld()
    site = Site(world)
    await site.start()
    page = await browser.new_page()
    await page.goto(site.url)
    assert "not known yet" in await page.locator("h1").inner_text()
    await filled(world)
    await page.locator("table.fleet tbody tr").first.wait_for(timeout=PATIENCE)
    await site.stop()
