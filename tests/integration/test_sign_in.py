"""Signing in against a certified OpenID Connect provider, on real sockets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from controller.adapters.oidc import make_provider
from controller.settings.sign_in import SignInSettings
from controller.web.server import HttpServer
from tests.admission import KEY, NotedDesk, admission
from tests.brokers import free_port
from tests.oidc_server import SECRET, oidc_provider, sign_in_as
from tests.pages import PageWorld, filled

pytestmark = pytest.mark.one_worker

ACCESS = """\
grants:
  - {role: approver, groups: [release-managers]}
  - {role: operator, people: [otto@example.org], flags: ["pricing-*"]}
"""
ONE = "/ui/rollouts/pricing-api"


@dataclass
class Site:
    """A replica, the provider that it asks, and what takes its commands."""

    url: str
    issuer: str
    desk: NotedDesk

    @asynccontextmanager
    async def browser(self) -> AsyncIterator[httpx.AsyncClient]:
        """A browser with cookies of its own."""
        headers = {"accept": "text/html"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30) as browser:
            yield browser


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A replica that nobody may read who is not signed in."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with oidc_provider(f"{url}/ui/sign-in/callback") as issuer:
        desk = NotedDesk()
        oidc = {"issuer": issuer, "client_id": "rolloutd", "client_secret": SECRET}
        fields: dict[str, Any] = {"public_url": url, "session_key": KEY, "oidc": oidc}
        given = {**fields, "access_file": "x"}
        provider = make_provider(SignInSettings.model_validate(given))
        assert provider is not None
        world = PageWorld(
            admit=lambda board: admission(
                tmp_path, ACCESS, board, desk, provider=provider, **fields
            ),
            why_not_shown="rollouts are not shown",
        )
        server = HttpServer((await filled(world)).app, port=port)
        await server.start()
        yield Site(url, issuer, desk)
        world.app.state.live_pages.end()
        await server.stop(2)
        await provider.close()


async def test_a_person_signs_in_steers_and_signs_out(site: Site) -> None:
    """Where they wanted to go, with the role of their group, in their own name."""
    async with site.browser() as browser:
        seen = await sign_in_as(browser, "rita", ONE)
        assert (seen.status_code, seen.url.path) == (200, ONE)
        assert "rita@example.org" in seen.text
        asked = await browser.get(f"{ONE}/give/pause")
        form = dict(re.findall(r'name="(\w+)" value="([^"]*)"', asked.text))
        same = {"sec-fetch-site": "same-origin"}
        given = await browser.post(f"{ONE}/give/pause", data=form, headers=same)
        assert given.status_code == 200, given.text
        assert site.desk.commands[0].issuer == "rita@example.org"
        out = await browser.post("/ui/sign-out", data=form, headers=same)
        assert "You are signed out" in out.text
        again = await browser.get(ONE)
        assert again.headers["location"] == "/ui/sign-in?to=%2Fui%2Frollouts%2Fpricing-api"


async def test_an_open_page_shows_nothing_more_after_signing_out(site: Site) -> None:
    """It is told to load again, which leads to signing in, and its stream ends."""
    async with site.browser() as browser:
        await sign_in_as(browser, "rita", ONE)
        asked = await browser.get(f"{ONE}/give/pause")
        form = dict(re.findall(r'name="(\w+)" value="([^"]*)"', asked.text))
        async with browser.stream("GET", "/ui/live/rollouts/pricing-api") as live:
            lines = live.aiter_lines()
            async with asyncio.timeout(30):
                while await anext(lines) != "event: beat":
                    pass
            same = {"sec-fetch-site": "same-origin"}
            assert (await browser.post("/ui/sign-out", data=form, headers=same)).is_success
            async with asyncio.timeout(30):
                rest = [line async for line in lines]
        assert [line for line in rest if line.startswith("event:")][-1] == "event: reload"
        assert not any("hx-partial" in line for line in rest)


async def test_a_session_that_has_ended_is_said(site: Site) -> None:
    """A form that was open for too long sends nothing, and says what to do."""
    async with site.browser() as browser:
        await sign_in_as(browser, "rita", ONE)
        asked = await browser.get(f"{ONE}/give/pause")
        form = dict(re.findall(r'name="(\w+)" value="([^"]*)"', asked.text))
        browser.cookies.clear()
        same = {"sec-fetch-site": "same-origin"}
        lost = await browser.post(f"{ONE}/give/pause", data=form, headers=same)
        assert lost.status_code == 401
        assert "your session has ended, and nothing was sent" in lost.text
        assert 'href="/ui/sign-in?to=%2Fui%2Frollouts%2Fpricing-api%2Fgive%2Fpause"' in lost.text
        assert site.desk.commands == []


async def test_a_role_is_for_its_flags(site: Site) -> None:
    """Whoever may steer one flag sees the others, and cannot steer them."""
    async with site.browser() as browser:
        await sign_in_as(browser, "otto", ONE)
        assert (await browser.get(f"{ONE}/give/pause")).status_code == 200
        other = await browser.get("/ui/rollouts/search-v3/give/pause")
        assert other.status_code == 403
        assert "otto@example.org has no role for search-v3" in other.text


async def test_who_has_no_role_sees_nothing(site: Site) -> None:
    """Though the provider knows them."""
    async with site.browser() as browser:
        seen = await sign_in_as(browser, "mallory", ONE)
        assert seen.status_code == 403
        assert "mallory@example.org has no role here" in seen.text
        form = re.findall(r'name="form" value="([^"]*)"', seen.text)
        same = {"sec-fetch-site": "same-origin"}  # to come back as somebody else
        out = await browser.post("/ui/sign-out", data={"form": form[0]}, headers=same)
        assert "You are signed out" in out.text


async def test_an_address_that_is_not_verified_proves_nothing(site: Site) -> None:
    """Anybody could have typed it."""
    async with site.browser() as browser:
        seen = await sign_in_as(browser, "eve", ONE)
        assert seen.status_code == 403
        assert "does not say that it has verified this e-mail address" in seen.text
        assert (await browser.get(ONE)).status_code == 303


async def code_for(browser: httpx.AsyncClient, name: str) -> str:
    """Sign in at the provider, and return the address with the code without going there."""
    answer = await browser.get("/ui/sign-in")
    stopped = httpx.Response(500)

    async def stop(request: httpx.Request) -> None:
        if request.url.path == "/ui/sign-in/callback":
            raise Stopped(str(request.url))

    browser.event_hooks["request"] = [stop]
    try:
        stopped = await sign_in_as(browser, name, answer.headers["location"])
    except Stopped as there:
        return str(there)
    finally:
        browser.event_hooks["request"] = []
    raise AssertionError(stopped.text)


class Stopped(Exception):
    """The provider has sent somebody back."""


async def test_a_code_is_worth_nothing_elsewhere_or_twice(site: Site) -> None:
    """Not in another browser, not with another state, not a second time."""
    async with site.browser() as rita, site.browser() as eve:
        address = await code_for(rita, "rita")
        stolen = await eve.get(address)
        assert stolen.status_code == 400
        await eve.get("/ui/sign-in")  # a sign-in of her own has another state
        assert (await eve.get(address)).status_code == 400
        code, state = (parse_qs(urlsplit(address).query)[name][0] for name in ("code", "state"))
        swapped = await rita.get(f"/ui/sign-in/callback?code={code}&state=x{state}")
        assert swapped.status_code == 400
        kept = {
            one.name: one.value or "" for one in rita.cookies.jar if one.name.startswith("rolloutd")
        }
        assert (await rita.get(address)).headers["location"] == "/"
        again = await rita.get(address)
        assert (again.status_code, again.headers["location"]) == (303, "/")  # signed in already
        assert "set-cookie" not in again.headers
        async with site.browser() as thief:  # not even with the cookie of that sign-in
            thief.cookies.update(kept)
            assert (await thief.get(address)).status_code == 403
            assert (await thief.get(ONE)).status_code == 303


async def test_who_comes_back_after_another_tab_has_signed_in_goes_on(site: Site) -> None:
    """Two tabs that were restored together: the later one has replaced the sign-in of the first."""
    async with site.browser() as rita:
        first = await code_for(rita, "rita")
        second = await code_for(rita, "rita")
        early = await rita.get(first)
        assert early.status_code == 400
        assert "another one was begun since" in early.text
        assert (await rita.get(second)).status_code == 303
        assert (await rita.get(first)).headers["location"] == "/"
        assert (await rita.get(ONE)).status_code == 200


async def test_a_code_begun_with_another_verifier_is_refused(site: Site) -> None:
    """PKCE: whoever begins with their own sign-in cannot end with somebody else's code."""
    async with site.browser() as rita, site.browser() as eve:
        address = await code_for(rita, "rita")
        code = parse_qs(urlsplit(address).query)["code"][0]
        begun = await eve.get("/ui/sign-in")
        state = parse_qs(urlsplit(begun.headers["location"]).query)["state"][0]
        injected = await eve.get(f"/ui/sign-in/callback?code={code}&state={state}")
        assert injected.status_code == 403
        assert "the provider refused it (invalid_grant)" in injected.text


async def test_what_the_provider_refuses_is_said(site: Site) -> None:
    """A person who cancels there comes back to a clear sentence, with hostile text inert."""
    async with site.browser() as browser:
        begun = await browser.get("/ui/sign-in")
        state = parse_qs(urlsplit(begun.headers["location"]).query)["state"][0]
        error = "%3Cscript%3Ealert(1)%3C/script%3E"
        back = await browser.get(f"/ui/sign-in/callback?error={error}&state={state}")
        assert back.status_code == 403
        assert "<script>alert" not in back.text
        assert "Begin again" in back.text


@pytest.mark.parametrize("to", ["https://evil.example", "//evil.example", "/\\evil.example", "x"])
async def test_signing_in_leads_to_no_other_site(site: Site, to: str) -> None:
    """Whatever the link says."""
    async with site.browser() as browser:
        begun = await browser.get("/ui/sign-in", params={"to": to})
        address = begun.headers["location"]
        assert address.startswith(site.issuer)
        seen = await sign_in_as(browser, "rita", address)
        assert str(seen.url) == f"{site.url}/"


async def test_too_many_sign_ins_of_one_address_are_refused(site: Site) -> None:
    """Each that comes back costs the provider requests. Others from that address still sign in."""
    async with site.browser() as stranger:
        begun = await stranger.get("/ui/sign-in")
        state = parse_qs(urlsplit(begun.headers["location"]).query)["state"][0]
        noise = [stranger.get("/ui/sign-in/callback", params={"state": "s"}) for _ in range(40)]
        assert {answer.status_code for answer in await asyncio.gather(*noise)} == {400}
        for _ in range(20):
            await stranger.get("/ui/sign-in")
        async with site.browser() as browser:
            seen = await sign_in_as(browser, "rita", ONE)
            assert seen.status_code == 200
        tried = [
            stranger.get(
                "/ui/sign-in/callback",
                params={"state": state, "code": "c"},
                headers={"cookie": begun.headers["set-cookie"].partition(";")[0]},
            )
            for _ in range(40)
        ]
        assert {answer.status_code for answer in await asyncio.gather(*tried)} >= {429}
