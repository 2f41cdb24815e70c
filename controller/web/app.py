"""The HTTP surface in one table: every route, and the guard in front of all of them.

Every route reads, and so do OFREP's two POSTs and the check of a plan. Steering goes through the
command topic, also for people who are signed in (`admission.py`). Where a token is configured, four
more routes take commands that only lower or pause: `steering.py`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.core.rollout import Rollout
from controller.health import Faults, Health
from controller.telemetry import Metrics
from controller.web.access.reading import Explain
from controller.web.admission import Admission
from controller.web.answers import CLOSE, MAX_BODY_BYTES, SECURITY_HEADERS, header, send_error
from controller.web.api import api_routes
from controller.web.event_stream import ADVERTISED, DEFAULT_LIMITS, PATH, EventStreams, StreamLimits
from controller.web.flags import FlagBoard
from controller.web.incidents import Incidents, NotificationSource
from controller.web.inventory import FlagSource, Lists
from controller.web.notifications import told_routes
from controller.web.ofrep import EvaluateAll, EvaluateOne, PlainEvaluations
from controller.web.page.live import LivePages
from controller.web.page.pages import Pages
from controller.web.page.rendering import PAGE_HEADERS
from controller.web.page.routes import Home, make_pages, open_routes, page_routes
from controller.web.reports import ReportSource
from controller.web.signals import SignalSource, delivery_routes, misdirected_of
from controller.web.status_page import PublicNames, StatusPage, status_routes
from controller.web.steering import VERBS, Steer
from controller.web.views import (
    EventsRead,
    FlagdDocument,
    Healthz,
    Index,
    MetricsPage,
    NotShown,
    Readyz,
    RolloutDocuments,
)

#: Host names of a daemon that listens on loopback.
LOOPBACK_NAMES = ("localhost",)
#: Characters of a Host header that can be one of ours: a name of DNS with its final dot, or an
#: address, and a port. The work grows with the square of a name's labels.
_LONGEST_HOST = 254 + len(":65535")


def _incidents(
    notifications: NotificationSource | None,
    admission: Admission | None,
    now: Callable[[], datetime],
) -> Incidents | None:
    """Return what people take incidents through, None where nobody is told of any."""
    if notifications is None:
        return None
    return Incidents(notifications, None if admission is None else admission.guardian, now)


def make_app(
    board: FlagBoard,
    health: Health,
    metrics: Metrics,
    *,
    describe: Callable[[Rollout], bytes],
    reports: ReportSource,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    events_of: Callable[[str | None], bytes | None] = lambda _: None,
    allowed_hosts: Iterable[str] = LOOPBACK_NAMES,
    max_body_bytes: int = MAX_BODY_BYTES,
    stream_limits: StreamLimits = DEFAULT_LIMITS,
    max_bulk_per_second: float = 0.0,
    faults: Faults | None = None,
    has_metrics: bool = True,
    steer: Steer | None = None,
    environment: str = "default",
    page_streams: int = 200,
    why_not_shown: str | None = None,
    admission: Admission | None = None,
    flag_source: FlagSource | None = None,
    public: PublicNames | None = None,
    signals: SignalSource | None = None,
    notifications: NotificationSource | None = None,
) -> Starlette:
    """Return the HTTP surface over these views.

    `describe` writes a rollout as the state document's JSON. `reports` has what is known of any
    flag, whichever replica runs it. `events_of` gives what a flag's events were, None for nothing.
    `allowed_hosts` are the names that clients may use for us, without port; see `HostGuard`.
    `has_metrics` is False when /metrics has a port of its own (`make_ops_app`). `steer` takes
    commands that lower; None: there is no such route. `why_not_shown` refuses everything that shows
    rollouts, unless `admission` knows who asks, and that they may; None: nobody is known. `public`
    is what everybody may see on `/status`. `signals` takes deliveries of monitoring systems, and
    knows what they led to; `notifications` knows who was told; None: there is no such route.
    `flag_source` is what the inventory goes by; None: the default rules. The caller ends
    `app.state.event_streams` and `app.state.live_pages` before the server stops, and may give
    `app.state.at_once` to the server.
    """
    streams = EventStreams(board, metrics, stream_limits)
    one = EvaluateOne(board, metrics, max_body_bytes)
    routes = [  # the first match is used: most frequent first
        *_ofrep_routes(one, board, stream_limits, max_bulk_per_second),
        Route(PATH, streams, methods=["GET"]),
        Route("/flagd/flags.json", FlagdDocument(board), methods=["GET"]),
        *_probe_routes(board, health, metrics, faults, steer, has_metrics=has_metrics),
        *_steering_routes(steer),
        *delivery_routes(signals),
    ]
    incidents = _incidents(notifications, admission, now)
    lists = Lists.of(board, now, flag_source, reports.unwatched)
    page_parts = (board, reports, now, LivePages(board, metrics, page_streams), lists)
    pages = make_pages(
        *page_parts,
        faults=faults,
        environment=environment,
        admission=admission,
        incidents=incidents,
    )
    routes += open_routes(pages, has_open_page=public is not None or why_not_shown is not None)
    routes += _status_routes(public, board, reports, pages, now)
    shown = [
        *api_routes(board, reports, now, lists),
        *told_routes(signals, notifications, incidents),
        *_document_routes(board, describe, events_of),
        *page_routes(pages),
    ]
    index = Index([*routes, *shown])
    shown.append(Route("/", Home(pages, index), methods=["GET"]))
    routes += _admitted(shown, pages, why_not_shown, index)
    app = _guarded(routes, allowed_hosts, pages, misdirected_of(signals))
    app.state.live_pages, app.state.event_streams = pages.live, streams
    app.state.at_once = PlainEvaluations(one, host_check(allowed_hosts))
    return app


def make_ops_app(
    board: FlagBoard,
    health: Health,
    metrics: Metrics,
    faults: Faults,
    *,
    allowed_hosts: Iterable[str] = LOOPBACK_NAMES,
    steer: Steer | None = None,
) -> Starlette:
    """Return the routes of probes and monitors, for a port that flag traffic cannot starve."""
    alive = Healthz(health)
    routes = [
        Route("/livez", alive, methods=["GET"]),
        Route("/healthz", alive, methods=["GET"]),
        _readyz(health, board, faults, steer),
        Route("/metrics", MetricsPage(metrics), methods=["GET"]),
        *_steering_routes(steer),
    ]
    return _guarded([*routes, Route("/", Index(routes), methods=["GET"])], allowed_hosts)


def _ofrep_routes(
    one: EvaluateOne, board: FlagBoard, stream_limits: StreamLimits, per_second: float
) -> list[Route]:
    """Return the routes of evaluation; at most `per_second` evaluations of all flags per client."""
    advertised = ADVERTISED if stream_limits.streams else b""
    every = EvaluateAll(board, one.max_body_bytes, advertised, per_second=per_second)
    return [
        Route("/ofrep/v1/evaluate/flags/{key:path}", one, methods=["POST"]),
        Route("/ofrep/v1/evaluate/flags", every, methods=["POST"]),
    ]


def _probe_routes(
    board: FlagBoard,
    health: Health,
    metrics: Metrics,
    faults: Faults | None,
    steer: Steer | None,
    *,
    has_metrics: bool,
) -> list[Route]:
    """Return the routes of probes; metrics have a port of their own where `has_metrics` is not."""
    routes = [
        Route("/healthz", Healthz(health), methods=["GET"]),
        _readyz(health, board, faults, steer),
    ]
    if has_metrics:
        routes.append(Route("/metrics", MetricsPage(metrics), methods=["GET"]))
    return routes


def _status_routes(
    public: PublicNames | None,
    board: FlagBoard,
    reports: ReportSource,
    pages: Pages,
    now: Callable[[], datetime],
) -> list[Route]:
    """Return the routes of the page for everybody, none where nobody may see anything."""
    if public is None:
        return []
    return status_routes(StatusPage(public, board, reports, pages.renderer, now))


def _readyz(health: Health, board: FlagBoard, faults: Faults | None, steer: Steer | None) -> Route:
    """Return the route of readiness."""
    endpoint = Readyz(health, board, faults, takes_commands=steer is not None)
    return Route("/readyz", endpoint, methods=["GET"])


def _document_routes(
    board: FlagBoard,
    describe: Callable[[Rollout], bytes],
    events_of: Callable[[str | None], bytes | None],
) -> list[Route]:
    """Return what the API does not have: documents of the state topic, and what events were."""
    documents = RolloutDocuments(board, describe)
    one = "/rollouts/{flag_key}"
    return [
        Route("/rollouts", documents, methods=["GET"]),
        Route(one, documents, methods=["GET"]),
        Route(f"{one}/events", EventsRead(events_of), methods=["GET"]),
        Route("/events", EventsRead(events_of), methods=["GET"]),
    ]


def _admitted(
    shown: Sequence[Route], pages: Pages, why_not: str | None, index: Index
) -> list[Route]:
    """Return what shows rollouts, for those who may see it; `why_not`: why not everybody may."""
    if pages.admission is not None:
        return pages.admission.checked(shown, why_not, pages.refuse)
    if why_not is not None:
        return [_refused(route, why_not, index, pages.refuse) for route in shown]
    return list(shown)


def _refused(route: Route, why: str, index: Index, explain: Explain) -> Route:
    """Return a route that explains why it shows nothing; `/` still lists the paths."""
    endpoint = NotShown(why, explain, index if route.path == "/" else None)
    return Route(route.path, endpoint, methods=sorted(route.methods or ()))


def _steering_routes(steer: Steer | None) -> list[Route]:
    """Return one route per command, none without a token."""
    if steer is None:
        return []
    return [
        Route(f"/rollouts/{{flag_key}}/{name}", steer.of(name), methods=["POST"]) for name in VERBS
    ]


def _guarded(
    routes: Sequence[Route],
    allowed_hosts: Iterable[str],
    pages: Pages | None = None,
    misdirected: Callable[[Scope], object] = lambda _: None,
) -> Starlette:
    """Return an application over these routes, with the guard in front.

    `pages` explains an address that leads nowhere to browsers; None: they get JSON.
    """
    app = Starlette(
        routes=list(routes),
        middleware=[Middleware(HostGuard, allowed_hosts=allowed_hosts, misdirected=misdirected)],
        exception_handlers={
            HTTPException: partial(_answer_http_error, pages),
            Exception: _answer_internal_error,
        },
    )
    app.router.redirect_slashes = False  # a redirect would repeat the caller's Host
    return app


class HostGuard:
    """Refuses requests for other hosts, and puts the security headers on every answer.

    A web page can make a browser call us under the page's own name (DNS rebinding), so only listed
    names are allowed. It cannot do so under an IP address, and probes and scrapers use addresses:
    those are always allowed.
    """

    def __init__(
        self, app: ASGIApp, allowed_hosts: Iterable[str], misdirected: Callable[[Scope], object]
    ) -> None:
        """`misdirected` is told of each request for another host."""
        self._app = app
        self._misdirected = misdirected
        self._is_ours = host_check(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 421."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                # Of two policies a browser would obey both, so a page's own stands alone.
                more = [one for one in SECURITY_HEADERS if one[0] not in own]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        if self._is_ours(header(scope, b"host")):
            await self._app(scope, receive, send_guarded)
        else:
            self._misdirected(scope)
            why = "not a name of this server: see http.allowed_hosts"
            await send_error(send_guarded, 421, why, CLOSE)


def host_check(allowed_hosts: Iterable[str]) -> Callable[[str], bool]:
    """Return `is_ours` for these names.

    It is cached: clients send few different names, and every evaluation is checked. What is too
    long for a name is not kept.
    """
    names = frozenset(host.lower() for host in allowed_hosts)
    known = lru_cache(maxsize=256)(partial(is_ours, names=names))

    def check(host: str) -> bool:
        return known(host) if len(host) <= _LONGEST_HOST else is_ours(host, names)

    return check


def is_ours(host: str, names: frozenset[str]) -> bool:
    """Return whether a Host header is an IP address or matches one of `names`.

    The header is a name or an address, perhaps with a port.
    """
    if "*" in names:
        return True
    if len(host) > _LONGEST_HOST:
        return False
    is_bracketed = host.startswith("[")  # an IPv6 address, whose colons are not a port's
    name = (
        host[1:].partition("]")[0]
        if is_bracketed
        else host.partition(":")[0].lower().removesuffix(".")
    )
    parents = name.split(".")[1:]
    wildcards = {"*." + ".".join(parents[start:]) for start in range(len(parents))}
    if name in names or not names.isdisjoint(wildcards):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer_http_error(pages: Pages | None, request: Request, error: Exception) -> Response:
    """Answer 404 and 405: with a page to a browser, and as JSON to all others."""
    assert isinstance(error, HTTPException)
    headers, status = dict(error.headers or {}), error.status_code
    if pages is not None and "text/html" in header(request.scope, b"accept"):
        headers |= {name.decode(): value.decode() for name, value in PAGE_HEADERS}
        page = pages.nowhere(request.scope, status, headers.get("Allow", "no method"))
        return Response(page, status, headers)
    headers |= {"cache-control": "no-store", "vary": "accept"}
    # 404 stays "Not Found": by it `rolloutctl` knows a replica that does not have the path.
    allowed = headers.get("Allow")
    words = error.detail if allowed is None else f"this path takes {allowed} alone"
    return JSONResponse({"error": words}, status_code=status, headers=headers)


async def _answer_internal_error(request: Request, error: Exception) -> JSONResponse:
    """Answer 500 without details: the server logs them.

    This runs outside `HostGuard`, so it sets the headers itself.
    """
    headers = {name.decode(): value.decode() for name, value in SECURITY_HEADERS}
    # `errorDetails` is what OFREP clients read.
    why = "internal error, see the log"
    return JSONResponse(
        {"error": why, "errorDetails": why},
        status_code=500,
        headers={"cache-control": "no-store", **headers},
    )
