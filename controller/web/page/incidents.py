"""The addresses of the screen of incidents: what it shows, its stream, and its button.

Belongs here: reading requests. Does not belong here: what the screen shows (`incident_screen.py`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Final
from urllib.parse import parse_qs

from pydantic import ValidationError
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controller.web.access.identity import Identity, IdentityRefused
from controller.web.access.reading import identity_of, may_go_on
from controller.web.answers import BodyRefused, read_body, send_bytes
from controller.web.commands import NotTaken, PerhapsTaken
from controller.web.page.incident_screen import IncidentScreen
from controller.web.page.live import LiveScreen
from controller.web.page.pages import Pages
from controller.web.page.rendering import ScreenSection
from schemas.notifications import Acknowledgement, IncidentEntry

PATH: Final = "/ui/incidents"
TAKE: Final = f"{PATH}/take"
LIVE: Final = "/ui/live/incidents"
_LONGEST_FORM: Final = 8_192
_NOT_TAKEN: Final = "Not taken"


class ShowIncidents:
    """GET /ui/incidents: who was told of what, who is next, and who looks after it."""

    def __init__(self, pages: Pages, screen: IncidentScreen) -> None:
        self._pages = pages
        self._screen = screen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the screen."""
        pages, who = self._pages, identity_of(scope)
        sections = await self._screen.sections(who, can_sign_in=_can_sign_in(pages))
        await pages.show(scope, send, "Incidents", sections, here="incidents", live=LIVE)


class LiveIncidents:
    """GET /ui/live/incidents: what changes about incidents, as a stream for the page."""

    def __init__(self, pages: Pages, screen: IncidentScreen) -> None:
        self._pages = pages
        self._screen = screen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the stream of somebody's page: which buttons it has is by their roles."""
        pages, who = self._pages, identity_of(scope)

        async def render() -> list[ScreenSection]:
            return await self._screen.sections(who, can_sign_in=_can_sign_in(pages))

        screen = LiveScreen(("incidents", who), render, lambda: True)
        seen = parse_qs(scope["query_string"].decode("latin-1")).get("seen", [""])[-1]
        await pages.live.serve(scope, receive, send, screen, seen, lambda: may_go_on(scope))


class TakeOne:
    """POST /ui/incidents/take: takes the incident that was seen, and shows the screen again."""

    def __init__(self, pages: Pages, screen: IncidentScreen) -> None:
        self._pages = pages
        self._screen = screen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer where to go, or why it was not taken."""
        pages, who = self._pages, identity_of(scope)
        if who is None:
            why = "sign in first: an incident is taken in somebody's name"
            await pages.refuse(scope, send, 401, why, _NOT_TAKEN)
            return
        try:
            found = await self._take(scope, receive, who)
        except (BodyRefused, IdentityRefused, NotTaken) as refused:
            title = "Perhaps not taken" if isinstance(refused, PerhapsTaken) else _NOT_TAKEN
            await pages.problem(send, refused.status, title, f"{refused}.")
            return
        if all(one.taken_by for one in found):
            to = (b"location", PATH.encode())
            await send_bytes(send, 303, b"", (to, (b"cache-control", b"no-store")))
            return
        why = "It was sent, and is not seen to be taken yet. Escalation goes on until then."
        await pages.problem(send, 202, "Not taken yet", f"{why} Open the incidents again.")

    async def _take(
        self, scope: Scope, receive: Receive, who: Identity
    ) -> tuple[IncidentEntry, ...]:
        """Take what a form names. Raises NotTaken, BodyRefused and IdentityRefused."""
        incidents = self._screen.incidents
        body = await read_body(receive, _LONGEST_FORM)
        pairs = parse_qs(body.decode("ascii", errors="replace"))
        form = {name: values[-1] for name, values in pairs.items()}
        if incidents.guardian is not None:
            incidents.guardian.check_form(scope, who, form.get("form", ""))
        began, _, key = form.get("incident", "").partition(" ")
        try:
            asked, opened_at = Acknowledgement(key=key), datetime.fromisoformat(began)
        except (ValidationError, ValueError):
            raise NotTaken(400, "the form names no incident: open the page again") from None
        return tuple(await incidents.take(who, asked, opened_at))


def _can_sign_in(pages: Pages) -> bool:
    return pages.admission is not None and pages.admission.takes_browsers


def incident_routes(pages: Pages) -> list[Route]:
    """Return the routes of the screen, none where nobody is notified."""
    screen = pages.incidents
    if screen is None:
        return []
    routes = [
        Route(PATH, ShowIncidents(pages, screen), methods=["GET"]),
        Route(LIVE, LiveIncidents(pages, screen), methods=["GET"]),
    ]
    if pages.admission is not None:
        routes.append(Route(TAKE, TakeOne(pages, screen), methods=["POST"]))
    return routes
