"""A real Chromium, and a replica on a real socket for it to open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.web.server import HttpServer
from controller.web.status_page import PublicNames
from controller.web.tls import Certificate
from tests.chromium import HOW, NOT_TRIED, chromium
from tests.npm_packages import installed_package
from tests.pages import PageWorld, filled

AXE = "axe-core@4.14.1"


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    """A Chromium without a window; skips the test where there is none."""
    path = chromium()
    if path is None:
        pytest.skip(f"{NOT_TRIED}: no chromium on PATH ({HOW})")
    api = pytest.importorskip("playwright.async_api", reason=f"{NOT_TRIED}: no playwright")
    async with api.async_playwright() as started:
        # In a container there is no user to drop to, so the browser's own sandbox cannot work.
        launched = await started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        await launched.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which finds what shuts people out."""
    directory = installed_package(AXE, "accessibility is not tried")
    return (directory / "node_modules" / "axe-core" / "axe.min.js").read_text()


class Site:
    """A replica in this process, which a browser opens."""

    def __init__(
        self, world: PageWorld, port: int = 0, certificate: Certificate | None = None
    ) -> None:
        self.world = world
        self._scheme = "http" if certificate is None else "https"
        self._server = HttpServer(world.app, port=port, certificate=certificate)

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self._scheme}://127.0.0.1:{self._server.port}"

    @property
    def port(self) -> int:
        """Its port."""
        return self._server.port

    async def start(self) -> None:
        """Listen."""
        await self._server.start()

    async def stop(self) -> None:
        """End every stream, and listen no more."""
        self.world.app.state.live_pages.end()
        await self._server.stop(2)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A replica with a rollout in every state."""
    public = PublicNames({"pricing-api": "Prices", "new-checkout": "New checkout"}, "Releases", 1)
    made = Site(await filled(PageWorld(public=public)))
    await made.start()
    yield made
    await made.stop()


class Seen:
    """What a browser complained about while it showed pages."""

    def __init__(self) -> None:
        self.complaints: list[str] = []

    async def watch(self, page: Any) -> None:
        """Note errors, violations of the policy, and requests to anywhere else."""
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("console", self._note)
        page.on("request", self._check)
        await page.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            "(e) => console.error('policy: ' + e.violatedDirective + ' ' + e.blockedURI));"
            "for (const name of ['htmx:sse:error', 'htmx:error']) document.addEventListener(name,"
            "(e) => console.error(name + ' ' + e.detail?.error))"
        )

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _check(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "https://127.0.0.1:", "data:")):
            self.complaints.append(f"request to {request.url}")


SCREENSHOTS = Path(__file__).parents[2] / ".cache" / "screenshots"


async def settled(page: Any) -> None:
    """Return once the page's script has run and its stream has begun."""
    await page.wait_for_selector("html.js")
    await asyncio.sleep(0)
