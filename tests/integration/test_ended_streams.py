"""Open streams of the page, over HTTP, whose reader may no longer see what they show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from controller.web.admission import Admission
from controller.web.flags import FlagBoard
from controller.web.server import HttpServer
from tests.admission import NotedDesk, admission, bearer, token_line
from tests.pages import PageWorld, filled

#: A stream is asked every two seconds whether it may go on; the rest is for a busy machine.
SOON_SECONDS = 10.0
GRANT = "grants:\n  - {{role: {role}, people: [rita@example.org], tokens: [{token}]}}\ntokens:\n"
FLAG_STREAM, FLEET_STREAM = "/ui/live/rollouts/pricing-api", "/ui/live/fleet"


def granting(role: str, token: str) -> str:
    """Return an access file in which a person and a machine have a role."""
    return GRANT.format(role=role, token=token) + token_line(token)


@dataclass
class Site:
    """A replica, its clock, and who may do what there."""

    path: Path
    passed: timedelta = timedelta(0)
    admitted: list[Admission] = field(default_factory=list)
    url: str = ""

    def now(self) -> datetime:
        """Return the time of sessions and tokens."""
        return datetime.now(UTC) + self.passed

    async def allow(self, text: str) -> None:
        """Write the access file again and read it, as SIGHUP does."""
        (self.path / "access.yaml").write_text(text)
        await self.admitted[0].reload()

    def session(self) -> dict[str, str]:
        """Return the header of a person with a new session."""
        cookie = self.admitted[0].guardian.sessions.begin("rita@example.org", frozenset())
        return {"cookie": cookie.decode().partition(";")[0]}

    @asynccontextmanager
    async def watching(self, path: str, headers: dict[str, str]) -> AsyncIterator[list[str]]:
        """Open a stream; what happens inside must end it soon. Yield its lines so far."""
        lines: list[str] = []
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=60) as client,
            client.stream("GET", path, headers=headers) as live,
        ):
            assert live.status_code == 200
            came = live.aiter_lines()
            async with asyncio.timeout(30):
                while "event: beat" not in lines:
                    lines.append(await anext(came))
            before = len(lines)
            yield lines
            async with asyncio.timeout(SOON_SECONDS):
                lines.extend([line async for line in came])
            last = [line for line in lines[before:] if line.startswith("event:")][-1]
            assert last == "event: reload"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A replica that shows nothing to who is not known."""
    made = Site(tmp_path)
    text = granting("operator", "robot")

    def admit(board: FlagBoard) -> Admission:
        made.admitted.append(admission(tmp_path, text, board, NotedDesk(), now=made.now))
        return made.admitted[0]

    world = PageWorld(admit=admit, why_not_shown="rollouts are not shown")
    server = HttpServer((await filled(world)).app, port=0)
    await server.start()
    made.url = f"http://127.0.0.1:{server.port}"
    yield made
    world.app.state.live_pages.end()
    await server.stop(2)


@pytest.mark.parametrize("path", [FLAG_STREAM, FLEET_STREAM])
async def test_a_token_that_is_removed_ends_its_streams(site: Site, path: str) -> None:
    """The access file is read again, and names it no more."""
    async with site.watching(path, bearer("robot")):
        await site.allow(granting("operator", "other"))


@pytest.mark.parametrize("path", [FLAG_STREAM, FLEET_STREAM])
async def test_a_session_that_expires_ends_its_streams(site: Site, path: str) -> None:
    """Nobody need do anything for it."""
    async with site.watching(path, site.session()):
        site.passed += timedelta(hours=9)


async def test_a_role_that_changes_loads_the_page_again(site: Site) -> None:
    """It would go on to show the buttons of the role before."""
    async with site.watching(FLAG_STREAM, site.session()):
        await site.allow(granting("viewer", "robot"))


@pytest.mark.parametrize("path", [FLAG_STREAM, FLEET_STREAM])
async def test_a_person_who_has_no_role_any_more_sees_nothing_more(site: Site, path: str) -> None:
    """Their session goes on, and their grant does not."""
    async with site.watching(path, site.session()):
        await site.allow("grants: [{role: viewer, people: [otto@example.org]}]\n")
