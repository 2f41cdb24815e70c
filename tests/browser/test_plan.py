"""The form that checks and simulates a plan, in a real Chromium, on narrow and wide screens."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from controller.web.page.trials import PlanTrials
from tests.browser.conftest import SCREENSHOTS, Seen, Site, settled
from tests.browser.test_page import PATIENCE

PLAN = """name: checkout-canary
flag: new-checkout
owner: payments
stages:
  - {percent: 10%, bake: 30m, min_sample: 500}
  - {percent: 100%, bake: 30m, min_sample: 2000}
guardrails:
  - error_rate < 5% and < control + 10%
active: [{days: [mon, tue, wed, thu, fri], from: "09:00", to: "17:00", timezone: Europe/Berlin}]
"""
#: Seconds that a simulation may take here: it has the lowest priority, and tests run beside it.
LONGEST_TRIAL = 400.0
#: Milliseconds until its page is there.
LONGEST = 410_000


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let simulations take longer than on a page that people wait for."""
    trials = partial(PlanTrials, deadline_seconds=LONGEST_TRIAL)
    monkeypatch.setattr("controller.web.page.plans.PlanTrials", trials)


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_plan_is_simulated_on_every_screen(
    browser: Any, site: Site, axe: str, width: int, scheme: Any
) -> None:
    """Typed and read by everybody: axe finds nothing, the policy is kept, nothing is too wide."""
    context = await browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page, seen = await context.new_page(), Seen()
    await seen.watch(page)
    await page.goto(site.url + "/ui/plan", timeout=PATIENCE)
    await page.fill("textarea", PLAN)
    await page.get_by_label("Traffic, both arms together").fill("500/s")
    await page.get_by_label("What the release does worse").fill("errors=x3@stage2")
    await page.get_by_role("button", name="Check and simulate").click(timeout=LONGEST)
    await page.get_by_role("heading", name="Simulated: 50 virtual rollouts each").wait_for(
        timeout=LONGEST
    )
    await settled(page)
    trial = page.locator("#trial")
    assert await trial.locator("h3").all_inner_texts() == [
        "treatment as good as control",
        "with errors=x3@stage2",
    ]
    assert await trial.locator("tbody tr").count() == 4
    words = await trial.inner_text()
    for name in ("completed", "harm found", "false alarm", "undecided", "assumed"):
        assert name in words
    assert await page.locator("textarea").input_value() == PLAN
    assert await page.get_by_label("Traffic, both arms together").input_value() == "500/s"
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"simulated-{width}-{scheme}.png", full_page=True)
    await page.evaluate(axe)
    found = await page.evaluate("axe.run()")
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.complaints == []
    await context.close()


async def test_what_cannot_be_simulated_is_said_without_script(browser: Any, site: Site) -> None:
    """The plan stays in the form, with why."""
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(site.url + "/ui/plan")
    await page.fill("textarea", PLAN)
    await page.get_by_label("Traffic, both arms together").fill("much")
    await page.get_by_role("button", name="Check and simulate").click(timeout=LONGEST)
    assert "'much' is not a rate" in await page.locator("#trial").inner_text()
    assert await page.locator("textarea").input_value() == PLAN
    await context.close()
