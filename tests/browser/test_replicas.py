"""The page of real daemons in a real Chromium: one of them is killed, and people go on."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.terms import CommandStatus, CommandVerb
from tests.admission import KEY
from tests.browser.conftest import Seen, settled
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.oidc_server import SECRET, oidc_provider
from tests.patience import SLACK
from tests.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.real_kafka, pytest.mark.one_worker]

FLAG = "new-checkout"
ONE = f"/ui/rollouts/{FLAG}"
#: Milliseconds that a browser on a busy machine may take.
PATIENCE = 60_000
#: Only who has a session can end it.
SIGN_OUT = "<button>Sign out</button>"
ACCESS = "grants: [{role: approver, groups: [release-managers]}]\n"


@dataclass
class Replicas:
    """Daemons of one group; people open the page at `url`, which leads to one of them."""

    daemons: list[DaemonProcess]
    client: Client
    proxy: TcpProxy

    @property
    def url(self) -> str:
        """Where people open the page."""
        return f"http://127.0.0.1:{self.proxy.port}"

    async def start_rollout(self) -> tuple[DaemonProcess, list[DaemonProcess]]:
        """Start a rollout that stays at 50 %; return who runs it, and the others."""
        stage = {"percent": 50, "bake": "3h", "settle": "0s", "max_bake": "4h"}
        answer = await self.client.command(
            CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=[stage])
        )
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        async with asyncio.timeout(60):  # a thread of its own writes the log
            while not (deciding := [one for one in self.daemons if one.log_lines("decision_made")]):
                await asyncio.sleep(0.1)
        (runner,) = deciding
        others = [one for one in self.daemons if one is not runner]
        for daemon in self.daemons:
            await daemon.until(FLAG, lambda one: one["percent"] == 50)
        return runner, others


@asynccontextmanager
async def replicas_of(
    count: int, bootstrap: str, redis_url: str, prefix: str, directory: Path, **environ: str
) -> AsyncIterator[Replicas]:
    """Start daemons, each with a directory of its own, and a proxy in front of the first."""
    async with AsyncExitStack() as stack:
        daemons = []
        for number in range(count):
            (own := directory / f"replica-{number}").mkdir()
            daemon = DaemonProcess(bootstrap, redis_url, own, prefix=prefix, **environ)
            daemons.append(await stack.enter_async_context(daemon))
        proxy = stack.enter_context(TcpProxy(daemons[0].port))
        client = await stack.enter_async_context(Client(bootstrap, prefix))
        yield Replicas(daemons, client, proxy)


async def users_shown(page: Any) -> int:
    """Return how many users of the new version the page says; 0 while it says nothing."""
    text = await page.locator("main").inner_text()
    found = re.search(r"in ([\d,]+) users of the new version", text)
    return 0 if found is None else int(found[1].replace(",", ""))


async def until_more(page: Any, than: int) -> int:
    """Return what the page shows once it is more, without a reload."""
    deadline = time.monotonic() + PATIENCE / 1000
    while (shown := await users_shown(page)) <= than:
        assert time.monotonic() < deadline, await page.locator("main").inner_text()
        await asyncio.sleep(0.2)
    assert await page.evaluate("window.wasOpened") is True, "it was loaded again"
    return shown


@pytest.mark.rare
async def test_an_open_page_goes_on_when_its_replica_is_killed(
    browser: Any, kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Both pages: that of the killed replica, which ran the flag, and that of another one."""
    async with replicas_of(3, kafka, redis_url, topic_prefix, tmp_path) as replicas:
        runner, others = await replicas.start_rollout()
        replicas.proxy.pass_to(runner.port)
        async with Traffic(replicas.client, others[0], FLAG):
            shown = {}
            for url in (replicas.url, others[1].url):
                page = await browser.new_page()
                await page.goto(url + ONE, timeout=PATIENCE)
                await settled(page)
                await page.evaluate("window.wasOpened = true")
                shown[page] = await until_more(page, 0)
            runner.kill9()
            replicas.proxy.pass_to(others[0].port)
            for page, users in shown.items():
                await until_more(page, users + 100)


@pytest.mark.rare
async def test_a_person_steers_real_daemons_and_stays_signed_in(
    browser: Any, kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Sign in at a real provider, pause; the replica is killed; resume through the other one.

    When they sign out there, a copy of their cookie is void on the first one, too.
    """
    access = tmp_path / "access.yaml"
    access.write_text(ACCESS)
    async with AsyncExitStack() as stack:
        proxy = TcpProxy(1)  # the provider must know the address before there is a daemon
        url = f"http://127.0.0.1:{proxy.port}"
        issuer = await stack.enter_async_context(oidc_provider(f"{url}/ui/sign-in/callback"))
        environ = {
            "ROLLOUTD_SIGN_IN__ACCESS_FILE": str(access),
            "ROLLOUTD_SIGN_IN__PUBLIC_URL": url,
            "ROLLOUTD_SIGN_IN__SESSION_KEY": KEY,
            "ROLLOUTD_SIGN_IN__OIDC__ISSUER": issuer,
            "ROLLOUTD_SIGN_IN__OIDC__CLIENT_ID": "rolloutd",
            "ROLLOUTD_SIGN_IN__OIDC__CLIENT_SECRET": SECRET,
        }
        replicas = await stack.enter_async_context(
            replicas_of(2, kafka, redis_url, topic_prefix, tmp_path, **environ)
        )
        stack.enter_context(proxy)
        runner, (other,) = await replicas.start_rollout()
        proxy.pass_to(runner.port)
        page, seen = await browser.new_page(), Seen()
        await page.goto(url + ONE, timeout=PATIENCE)
        await page.click("text=Sign in")
        await page.fill("input[name=login]", "rita")
        await page.fill("input[name=password]", "any")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("text=Continue", timeout=PATIENCE)
        await page.click("button[type=submit]")
        await page.wait_for_url(f"**{ONE}", timeout=PATIENCE)
        await seen.watch(page)  # from here: the provider's own page is not ours
        await give(page, "Pause", "a look at the logs")
        runner.kill9()
        proxy.pass_to(other.port)
        await page.goto(url + ONE, timeout=PATIENCE)
        await give(page, "Resume", "all is well")
        await page.click("text=See the rollout as it is now")
        await page.locator("#state:not(:has-text('paused'))").wait_for(timeout=PATIENCE)
        await other.until(FLAG, lambda one: one["phase"]["name"] == "baking")
        decisions = await replicas.client.until_read(
            "rollout.decisions", lambda found: any(one["kind"] == "resume" for one in found)
        )
        given = {one["kind"]: one["issuer"] for one in decisions}
        assert given["pause"] == given["resume"] == "rita@example.org"
        assert [one for one in seen.complaints if "ERR_" not in one] == []  # of the killed replica
        await runner.start()
        cookies = await page.context.cookies()
        copied = {"cookie": "; ".join(f"{one['name']}={one['value']}" for one in cookies)}
        assert SIGN_OUT in (await runner.get(ONE, headers=copied)).text
        await page.click("text=Sign out")
        await page.wait_for_selector("text=You are signed out", timeout=PATIENCE)
        deadline = time.monotonic() + 10 * SLACK
        while SIGN_OUT in (await runner.get(ONE, headers=copied)).text:
            assert time.monotonic() < deadline, "the copied cookie is still a session there"
            await asyncio.sleep(0.2)


async def give(page: Any, verb: str, reason: str) -> None:
    """Press a button of the rollout, confirm, and wait for the answer.

    Right after a kill it says that the command waits for the replica that takes over.
    """
    await page.click(f"#state a.button:has-text('{verb}')", timeout=PATIENCE)
    await page.fill("textarea", reason)
    await page.click("main button:not([type])", timeout=PATIENCE)
    answer = page.get_by_text(re.compile(f"{verb}: (done|not done yet)"))
    await answer.first.wait_for(timeout=PATIENCE)
