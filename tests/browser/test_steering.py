"""A person's whole path in a real Chromium: sign in, watch, approve, roll back, sign out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.oidc import make_provider
from controller.core.rollout import Baking, RolledBack, Rollout
from controller.settings.sign_in import SignInSettings
from schemas.command import Command
from schemas.result import Result
from schemas.terms import CommandStatus, CommandVerb
from tests.admission import KEY, NotedDesk, admission, answered
from tests.brokers import free_port
from tests.browser.conftest import SCREENSHOTS, Seen, Site, settled
from tests.oidc_server import SECRET, oidc_provider
from tests.pages import PageWorld, filled

PATIENCE = 30_000
FLAG = "search-v3"
ONE = f"/ui/rollouts/{FLAG}"
ACCESS = "grants: [{role: approver, groups: [release-managers]}]\n"


class Deciding(NotedDesk):
    """Decides as the machine would about these commands, and shows it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.world: PageWorld | None = None
        self.answer = self.decide

    def decide(self, command: Command) -> Result | str:
        """Carry out an approval or a roll back of the revision that was seen."""
        assert self.world is not None
        rollout = self.world.board.rollout(command.flag)
        assert rollout is not None
        if command.verb is CommandVerb.APPROVE and command.expected_revision != rollout.revision:
            why = f"stale: revision {command.expected_revision} was expected, it is another"
            return answered(command, CommandStatus.REJECTED, why)
        self.world.board.update(_after(rollout, command.verb))
        return answered(command, CommandStatus.ACCEPTED, "done")


def _after(rollout: Rollout, verb: CommandVerb) -> Rollout:
    now = datetime.now(UTC)
    changed: dict[str, Any] = {"revision": rollout.revision + 1, "updated_at": now, "hold": None}
    if verb is CommandVerb.APPROVE:
        phase = Baking(3, now + timedelta(minutes=10))
        return replace(rollout, phase=phase, percent=50.0, **changed)
    return replace(rollout, phase=RolledBack(now, "by rita"), percent=0.0, **changed)


@dataclass
class Office:
    """A site that nobody may read who is not signed in."""

    url: str
    desk: Deciding


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """A replica on a real socket, and a real provider that knows people."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with oidc_provider(f"{url}/ui/sign-in/callback") as issuer:
        oidc = {"issuer": issuer, "client_id": "rolloutd", "client_secret": SECRET}
        fields: dict[str, Any] = {"public_url": url, "session_key": KEY, "oidc": oidc}
        provider = make_provider(SignInSettings.model_validate({**fields, "access_file": "x"}))
        assert provider is not None
        desk = Deciding()
        desk.world = await filled(
            PageWorld(
                admit=lambda board: admission(
                    tmp_path, ACCESS, board, desk, provider=provider, **fields
                ),
                why_not_shown="rollouts are not shown",
            )
        )
        site = Site(desk.world, port=port)
        await site.start()
        yield Office(site.url, desk)
        await site.stop()
        await provider.close()


async def sign_in(page: Any, url: str) -> None:
    """Open a rollout, which leads to the provider and back."""
    await page.goto(url + ONE, timeout=PATIENCE)
    await page.fill("input[name=login]", "rita")
    await page.fill("input[name=password]", "any")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("text=Continue", timeout=PATIENCE)
    await page.click("button[type=submit]")
    await page.wait_for_url(f"**{ONE}", timeout=PATIENCE)


async def check(page: Any, axe: str, name: str) -> None:
    """Find nothing that shuts people out, and keep a picture."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    await page.evaluate(axe)
    found = await page.evaluate("axe.run()")
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == [], name


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (360, "dark")])
async def test_a_persons_whole_path(
    browser: Any, office: Office, axe: str, width: int, scheme: Any
) -> None:
    """Sign in, watch it change, approve, be told that somebody was quicker, roll back, sign out."""
    context = await browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page, other, seen = await context.new_page(), await context.new_page(), Seen()
    await sign_in(page, office.url)
    await seen.watch(page)
    await page.reload()
    await settled(page)
    await check(page, axe, f"steering-{width}-{scheme}")
    for tab in (page, other):
        await tab.goto(office.url + ONE)
        await tab.click("#state a.button:has-text('Approve')")
        assert await tab.locator("h1").inner_text() == f"Approve {FLAG}?"
    await check(page, axe, f"confirm-{width}-{scheme}")
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    await page.fill("textarea", "looks good")
    await page.click("button.go")
    await page.get_by_text("Approve: done").wait_for(timeout=PATIENCE)
    await check(page, axe, f"done-{width}-{scheme}")
    await other.click("button.go")
    await other.get_by_text("Nothing was done twice").wait_for(timeout=PATIENCE)
    await page.click("text=See the rollout as it is now")
    await settled(page)
    assert "50 %" in await page.locator("#state").inner_text()
    await other.goto(office.url + f"{ONE}/give/roll-back")
    await other.click("button.danger")
    await other.get_by_text("Roll back: done").wait_for(timeout=PATIENCE)
    await page.get_by_text("by rita").first.wait_for(timeout=PATIENCE)  # without a reload
    assert [one.verb for one in office.desk.commands] == ["approve", "approve", "roll_back"]
    assert {one.issuer for one in office.desk.commands} == {"rita@example.org"}
    assert office.desk.commands[0].reason == "looks good"
    await page.click("text=Sign out")
    await page.get_by_text("You are signed out").first.wait_for(timeout=PATIENCE)
    # The answer to the second approval is a conflict, which the browser's console mentions.
    assert [one for one in seen.complaints if "409" not in one] == []
    await context.close()


async def press_tab_until(page: Any, text: str) -> None:
    """Go through the page with the keyboard until something has the focus."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        focused = await page.evaluate("document.activeElement.textContent.trim()")
        if focused.startswith(text):
            style = "getComputedStyle(document.activeElement).outlineStyle"
            assert await page.evaluate(style) == "solid"
            return
    raise AssertionError(f"{text} cannot be reached")


@pytest.mark.parametrize("has_script", [True, False])
async def test_steering_needs_no_mouse_and_no_script(
    browser: Any, office: Office, has_script: bool
) -> None:
    """By keyboard alone, from the rollout to the command that is carried out."""
    context = await browser.new_context(java_script_enabled=True)
    page = await context.new_page()
    await sign_in(page, office.url)
    if not has_script:
        state = await context.storage_state()
        context = await browser.new_context(java_script_enabled=False, storage_state=state)
        page = await context.new_page()
        await page.goto(office.url + ONE)
        await page.click("#state a.button:has-text('Roll back')")
        await page.click("button.danger")
    else:
        await press_tab_until(page, "Roll back…")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/give/roll-back", timeout=PATIENCE)
        await press_tab_until(page, "Roll back as")
        await page.keyboard.press("Enter")
    await page.get_by_text("Roll back: done").first.wait_for(timeout=PATIENCE)
    (command,) = office.desk.commands
    assert (command.verb, command.issuer) == ("roll_back", "rita@example.org")
    await context.close()
