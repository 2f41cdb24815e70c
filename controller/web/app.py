"""The HTTP surface in one table: every route, and the guard in front of all of them.

Every route reads. The two POSTs are OFREP's evaluations, which change nothing; steering goes
through the command topic.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.core.rollout import Rollout
from controller.health import Faults, Health
from controller.ports import PlaneStanding
from controller.telemetry import Metrics
from controller.web.answers import MAX_BODY_BYTES, SECURITY_HEADERS, header, send_error
from controller.web.event_stream import ADVERTISED, DEFAULT_LIMITS, PATH, EventStreams, StreamLimits
from controller.web.flags import FlagBoard
from controller.web.ofrep import EvaluateAll, EvaluateOne
from controller.web.views import (
    FlagdDocument,
    Healthz,
    MetricsPage,
    NewestEvidence,
    PlaneStandings,
    Readyz,
    RolloutDocuments,
)

#: Host names of a daemon that listens on loopback.
LOOPBACK_NAMES = ("localhost",)


def make_app(
    board: FlagBoard,
    health: Health,
    metrics: Metrics,
    *,
    describe: Callable[[Rollout], bytes],
    newest_evidence: Callable[[str], bytes | None] = lambda _: None,
    plane_standings: Callable[[str], Sequence[PlaneStanding] | None] = lambda _: None,
    allowed_hosts: Iterable[str] = LOOPBACK_NAMES,
    max_body_bytes: int = MAX_BODY_BYTES,
    stream_limits: StreamLimits = DEFAULT_LIMITS,
    max_bulk_per_second: float = 0.0,
    faults: Faults | None = None,
    has_metrics: bool = True,
) -> Starlette:
    """Return the HTTP surface over these views.

    `describe` writes a rollout as the state document's JSON. `newest_evidence` gives the newest
    judgement of a flag, `plane_standings` the standing of its planes; both are None when another
    replica runs the flag. `allowed_hosts` are the names that clients may use for us, without port;
    `*.example.org` allows subdomains, `*` all. IP addresses need no entry, see `Guard`.
    `has_metrics` is False when /metrics has a port of its own (`make_ops_app`). The caller ends
    `app.state.event_streams` before the server stops.
    """
    streams = EventStreams(board, metrics, stream_limits)
    advertised = ADVERTISED if stream_limits.streams else b""
    documents = RolloutDocuments(board, describe)
    routes = [  # the first match is used: most frequent first
        Route(
            "/ofrep/v1/evaluate/flags/{key:path}",
            EvaluateOne(board, metrics, max_body_bytes),
            methods=["POST"],
        ),
        Route(
            "/ofrep/v1/evaluate/flags",
            EvaluateAll(board, max_body_bytes, advertised, per_second=max_bulk_per_second),
            methods=["POST"],
        ),
        Route(PATH, streams, methods=["GET"]),
        Route("/flagd/flags.json", FlagdDocument(board), methods=["GET"]),
        Route("/healthz", Healthz(health), methods=["GET"]),
        Route("/readyz", Readyz(health, board, faults), methods=["GET"]),
        *([Route("/metrics", MetricsPage(metrics), methods=["GET"])] if has_metrics else []),
        Route("/rollouts", documents, methods=["GET"]),
        Route("/rollouts/{flag_key}", documents, methods=["GET"]),
        Route(
            "/rollouts/{flag_key}/evidence", NewestEvidence(board, newest_evidence), methods=["GET"]
        ),
        Route(
            "/rollouts/{flag_key}/planes", PlaneStandings(board, plane_standings), methods=["GET"]
        ),
    ]
    app = _guarded(routes, allowed_hosts)
    app.state.event_streams = streams
    return app


def make_ops_app(
    board: FlagBoard,
    health: Health,
    metrics: Metrics,
    faults: Faults,
    *,
    allowed_hosts: Iterable[str] = LOOPBACK_NAMES,
) -> Starlette:
    """Return the routes of probes and monitors, for a port that flag traffic cannot starve."""
    alive = Healthz(health)
    routes = [
        Route("/livez", alive, methods=["GET"]),
        Route("/healthz", alive, methods=["GET"]),
        Route("/readyz", Readyz(health, board, faults), methods=["GET"]),
        Route("/metrics", MetricsPage(metrics), methods=["GET"]),
    ]
    return _guarded(routes, allowed_hosts)


def _guarded(routes: Sequence[Route], allowed_hosts: Iterable[str]) -> Starlette:
    """Return an application over these routes, with the guard in front."""
    app = Starlette(
        routes=list(routes),
        middleware=[Middleware(Guard, allowed_hosts=allowed_hosts)],
        exception_handlers={HTTPException: _answer_http_error, Exception: _answer_internal_error},
    )
    app.router.redirect_slashes = False  # a redirect would repeat the caller's Host
    return app


class Guard:
    """Refuses requests for other hosts, and puts the security headers on every answer.

    A web page can make a browser call us under the page's own name (DNS rebinding), so only listed
    names are allowed. It cannot do so under an IP address, and probes and scrapers use addresses:
    those are always allowed.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        names = frozenset(host.lower() for host in allowed_hosts)
        # Cached: clients send few different names, and every evaluation is checked.
        self._is_ours = lru_cache(maxsize=256)(partial(is_ours, names=names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 421."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *SECURITY_HEADERS]
            await send(message)

        if self._is_ours(header(scope, b"host")):
            await self._app(scope, receive, send_guarded)
        else:
            await send_error(send_guarded, 421, "not a name of this server: see http.allowed_hosts")


def is_ours(host: str, names: frozenset[str]) -> bool:
    """Return whether a Host header is an IP address or matches one of `names`.

    The header is a name or an address, perhaps with a port.
    """
    if "*" in names:
        return True
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


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer 404 and 405 as JSON."""
    assert isinstance(error, HTTPException)
    headers = {"cache-control": "no-store", **(error.headers or {})}
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=headers)


async def _answer_internal_error(request: Request, error: Exception) -> JSONResponse:
    """Answer 500 without details: the server logs them.

    This runs outside `Guard`, so it sets the headers itself.
    """
    headers = {name.decode(): value.decode() for name, value in SECURITY_HEADERS}
    # `errorDetails` is what OFREP clients read.
    why = "internal error, see the log"
    return JSONResponse(
        {"error": why, "errorDetails": why},
        status_code=500,
        headers={"cache-control": "no-store", **headers},
    )
