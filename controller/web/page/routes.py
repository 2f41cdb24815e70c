"""The page's addresses: `/` for browsers, and everything below `/ui`.

Belongs here: reading requests and choosing the screen. Does not belong here: what screens show.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, quote

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from controller.health import Faults
from controller.web.access.reading import may_go_on
from controller.web.admission import Admission
from controller.web.answers import BodyRefused, header, read_body
from controller.web.flags import FlagBoard
from controller.web.incidents import Incidents
from controller.web.inventory import Lists
from controller.web.page.buttons import VisitorRights
from controller.web.page.files import PATH as FILES_PATH
from controller.web.page.files import Files
from controller.web.page.fleet import FleetScreen, FleetView
from controller.web.page.give import give_routes
from controller.web.page.incident_screen import IncidentScreen
from controller.web.page.incidents import incident_routes
from controller.web.page.inventory import FlagScreen, FlagsView
from controller.web.page.live import LivePages, LiveScreen
from controller.web.page.pages import Pages
from controller.web.page.plans import LONGEST_FORM, Busy, PlanScreen
from controller.web.page.rendering import Renderer, ScreenSection
from controller.web.page.rollout import Known, RolloutScreen
from controller.web.page.sign_in import sign_in_routes
from controller.web.questions import Query, QuestionRefused
from controller.web.reports import ReportSource

LIVE: Final = "/ui/live"
ONE: Final = "/ui/rollouts/{flag_key}"
_CHECK: Final = "Check a plan"


class Home:
    """GET /: the fleet for browsers, the list of paths for everything else."""

    def __init__(self, pages: Pages, index: ASGIApp) -> None:
        self._pages = pages
        self._index = index

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer HTML where it is accepted by name."""
        if "text/html" not in header(scope, b"accept"):
            await self._index(scope, receive, send)
            return
        pages = self._pages
        try:
            view = FleetView.asked(_query(scope))
        except QuestionRefused as refused:
            await pages.problem(send, refused.status, "There is no such list", str(refused))
            return
        sections = await pages.fleet.sections(view)
        live = view.url(f"{LIVE}/fleet")
        await pages.show(scope, send, "Rollouts", sections, here="fleet", live=live)


class OneRollout:
    """GET /ui/rollouts/{flag}: one rollout, for people."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the screen of the rollout."""
        pages = self._pages
        rollout = await pages.found(scope, send)
        if rollout is not None:
            steering = pages.role(scope, rollout.flag_key)
            known = await pages.rollout.known(rollout)
            sections = await pages.rollout.sections(known, steering)
            live = f"{LIVE}/rollouts/{quote(rollout.flag_key, safe='')}"
            await pages.show(scope, send, rollout.flag_key, sections, here="rollout", live=live)


class Flags:
    """GET /ui/flags: the inventory of flags, for people."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one page of the list."""
        pages = self._pages
        try:
            view = FlagsView.asked(_query(scope))
        except QuestionRefused as refused:
            await pages.problem(send, refused.status, "There is no such list", str(refused))
            return
        sections = await pages.flags.sections(view)
        await pages.show(scope, send, "Flags", sections, here="flags")


class PlanOfOne:
    """GET /ui/rollouts/{flag}/plan: the plan that a rollout runs, for people."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the plan as text."""
        pages = self._pages
        rollout = await pages.found(scope, send)
        if rollout is not None:
            sections = await pages.plans.sections(rollout.plan)
            await pages.show(scope, send, f"Plan of {rollout.flag_key}", sections)


class CheckPlan:
    """GET /ui/plan: a form that checks and simulates a plan; nothing is kept or started."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the form, with the findings about what was posted."""
        pages = self._pages
        if scope["method"] != "POST":
            await pages.show(scope, send, _CHECK, pages.plans.empty_form(), here="plan")
            return
        # Another site could only make us work, and that is enough to refuse it.
        if header(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
            why = "The form was sent by another site."
            await pages.problem(send, 403, "Not checked", why)
            return
        try:
            body = await read_body(receive, LONGEST_FORM)
            outcome = await pages.plans.checked(body)
        except BodyRefused as refused:
            await pages.problem(send, refused.status, "Not checked", str(refused))
        except ValueError as error:
            await pages.problem(send, 400, "Not checked", str(error))
        except Busy:
            why = "Another plan is being checked, and takes long. Send it again."
            await pages.problem(send, HTTPStatus.SERVICE_UNAVAILABLE, "Not checked", why)
        else:
            sections, status = outcome.sections, outcome.status
            await pages.show(scope, send, _CHECK, sections, here="plan", status=status)


class LiveFleet:
    """GET /ui/live/fleet: what changes in the list of rollouts, as a stream for its page."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the stream of one view of the list."""
        query = _query(scope)
        try:
            view = FleetView.asked(query)
        except QuestionRefused as refused:
            await self._pages.problem(send, refused.status, "There is no such list", str(refused))
            return

        async def render() -> list[ScreenSection]:
            return await self._pages.fleet.sections(view)

        screen = LiveScreen(("fleet", view), render, lambda: True)
        live = self._pages.live
        await live.serve(scope, receive, send, screen, _seen(query), lambda: may_go_on(scope))


class LiveRollout:
    """GET /ui/live/rollouts/{flag}: what changes about one rollout, as a stream for its page."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the stream of a flag; a rollout that begins later is shown when it is there."""
        pages = self._pages
        if await pages.found(scope, send) is None:
            return
        flag_key = scope["path_params"]["flag_key"]
        steering = pages.role(scope, flag_key)
        screen = _screen_of(pages, flag_key, steering)

        def may_still() -> bool:
            return may_go_on(scope) and pages.role(scope, flag_key) == steering

        await pages.live.serve(scope, receive, send, screen, _seen(_query(scope)), may_still)


def _screen_of(pages: Pages, flag_key: str, steering: VisitorRights | None) -> LiveScreen:
    """Return a flag's screen, which is rendered only where it would show something else.

    All who may do the same to the flag share one.
    """
    shown: list[tuple[Known, int]] = []

    async def render() -> list[ScreenSection] | None:
        rollout = pages.board.rollout(flag_key)
        if rollout is None:
            return []
        known, moment = await pages.rollout.known(rollout), pages.rollout.moment
        if shown and shown[0][1] == moment and known.is_like(shown[0][0]):
            return None
        shown[:] = [(known, moment)]
        return await pages.rollout.sections(known, steering)

    def is_behind() -> bool:
        return not shown or pages.board.rollout(flag_key) is not shown[0][0].rollout

    return LiveScreen(("rollout", flag_key, steering), render, is_behind)


def _query(scope: Scope) -> Query:
    return parse_qs(scope["query_string"].decode("latin-1"))


def _seen(query: Query) -> str:
    return query.get("seen", [""])[-1]


def make_pages(
    board: FlagBoard,
    reports: ReportSource,
    now: Callable[[], datetime],
    live: LivePages,
    lists: Lists,
    *,
    faults: Faults | None,
    environment: str,
    admission: Admission | None = None,
    incidents: Incidents | None = None,
) -> Pages:
    """Return every screen. `incidents` None: nobody is notified, so there is no screen of them."""
    files = Files()
    renderer = Renderer(files, environment, has_incidents=incidents is not None)
    return Pages(
        files,
        renderer,
        board,
        FleetScreen(board, reports, renderer, now, faults, lists.fleet, incidents),
        RolloutScreen(board, reports, renderer, now, incidents),
        PlanScreen(renderer, now, lists.inventory.start_rules),
        live,
        admission,
        FlagScreen(lists.inventory, renderer),
        None if incidents is None else IncidentScreen(incidents, renderer),
    )


def page_routes(pages: Pages) -> list[Route]:
    """Return the routes of the page, but for `/`, and what people who are signed in may call."""
    admission = pages.admission
    return [
        Route(f"{FILES_PATH}/{{name}}", pages.files, methods=["GET"]),
        Route(f"{LIVE}/fleet", LiveFleet(pages), methods=["GET"]),
        Route(f"{LIVE}/rollouts/{{flag_key}}", LiveRollout(pages), methods=["GET"]),
        Route("/ui/flags", Flags(pages), methods=["GET"]),
        Route("/ui/plan", CheckPlan(pages), methods=["GET", "POST"]),
        Route(ONE, OneRollout(pages), methods=["GET"]),
        Route(f"{ONE}/plan", PlanOfOne(pages), methods=["GET"]),
        *incident_routes(pages),
        *([] if admission is None else give_routes(pages, admission.commands)),
        *([] if admission is None else admission.routes()),
    ]


def open_routes(pages: Pages, *, has_open_page: bool = False) -> list[Route]:
    """Return the routes that whoever is not signed in needs: signing in, and the page's files.

    `has_open_page`: there is a page for everybody, such as the one that refuses them.
    """
    admission = pages.admission
    signing_in = (
        []
        if admission is None or admission.provider is None
        else sign_in_routes(pages, admission.guardian, admission.provider)
    )
    if admission is None and not has_open_page:
        return []
    return [Route(f"{FILES_PATH}/{{name}}", pages.files, methods=["GET"]), *signing_in]
