"""The page over the listener's own TLS in a real Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.oidc import make_provider
from controller.settings.sign_in import SignInSettings
from controller.web.tls import Certificate
from tests.admission import KEY, NotedDesk, admission
from tests.brokers import free_port
from tests.browser.conftest import Seen, Site
from tests.browser.test_steering import ACCESS, FLAG, ONE, PATIENCE, sign_in
from tests.certificates import write_certificate
from tests.oidc_server import SECRET, oidc_provider
from tests.pages import PageWorld, filled


@pytest.fixture
async def secure_site(tmp_path: Path) -> AsyncIterator[Site]:
    """A replica that speaks TLS, and that nobody may read who is not signed in."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    write_certificate(certificate, key)
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    async with oidc_provider(f"{url}/ui/sign-in/callback") as issuer:
        oidc = {"issuer": issuer, "client_id": "rolloutd", "client_secret": SECRET}
        fields: dict[str, Any] = {"public_url": url, "session_key": KEY, "oidc": oidc}
        provider = make_provider(SignInSettings.model_validate({**fields, "access_file": "x"}))
        assert provider is not None
        world = PageWorld(
            admit=lambda board: admission(
                tmp_path, ACCESS, board, NotedDesk(), provider=provider, **fields
            ),
            why_not_shown="rollouts are not shown",
        )
        site = Site(await filled(world), port, Certificate(certificate, key, "http"))
        await site.start()
        yield site
        await site.stop()
        await provider.close()


async def test_a_person_signs_in_and_watches_over_tls(browser: Any, secure_site: Site) -> None:
    """The session's cookie travels over TLS alone, and the open page follows what is decided."""
    context = await browser.new_context(ignore_https_errors=True)
    page = await context.new_page()
    await sign_in(page, secure_site.url)
    assert page.url == secure_site.url + ONE
    seen = Seen()
    await seen.watch(page)  # not before, as the provider's page loads fonts from elsewhere
    await page.reload(timeout=PATIENCE)
    ours = [one for one in await context.cookies() if "rolloutd" in one["name"]]
    (session,) = ours  # those of the provider have other names
    assert session["name"] == "__Host-rolloutd-session"
    assert (session["secure"], session["httpOnly"], session["sameSite"]) == (True, True, "Lax")
    board = secure_site.world.board
    rollout = board.rollout(FLAG)
    assert rollout is not None
    board.update(replace(rollout, percent=37.0, revision=rollout.revision + 1))
    await page.wait_for_selector("text=37", timeout=PATIENCE)
    assert not seen.complaints
    await context.close()
