"""Lets requests through to what shows rollouts: for whoever may read, and for nobody else.

Whoever is not signed in sees what `http.readers` says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from controller.web.access.identity import Identity, IdentityRefused
from controller.web.access.recognition import Guardian
from controller.web.answers import CLOSE, header, send_bytes, send_error

SIGN_IN: Final = "/ui/sign-in"
#: Answers a browser with a page: the request, its status, and why.
Explain = Callable[[Scope, Send, int, str], Awaitable[None]]
_KEY: Final = "rolloutd.identity"
_GATE: Final = "rolloutd.reading"
CHALLENGE: Final = (b"www-authenticate", b'Bearer realm="rolloutd"')


def identity_of(scope: Scope) -> Identity | None:
    """Return who sends a request that came through `ReadGuard`; None: nobody is signed in."""
    found: Identity | None = scope.get(_KEY)
    return found


def may_go_on(scope: Scope) -> bool:
    """Return whether a request that came through `ReadGuard` would be let through again now.

    For answers that last: people sign out, and sessions, tokens and roles end.
    """
    gate: ReadGuard | None = scope.get(_GATE)
    return gate is None or gate.still_admits(scope)


_AT_THE_PROXY: Final = (
    "Sign in at the proxy in front of rolloutd (sign_in.proxy), and open this page there"
)
_NO_WAY: Final = (
    "People cannot sign in on this page before whoever runs rolloutd sets sign_in.oidc or "
    "sign_in.proxy. rolloutctl status shows rollouts without HTTP"
)


class ReadGuard:
    """Puts a check in front of routes."""

    def __init__(
        self,
        guardian: Guardian,
        why_not_shown: str | None,
        explain: Explain,
        *,
        has_page: bool,
    ) -> None:
        """`why_not_shown`: why nobody may read who is not signed in; None: everybody may.

        `explain` answers a browser with a page. `has_page`: people can sign in on a page of ours.
        """
        self._guardian = guardian
        self._why_not = why_not_shown
        self._explain = explain
        self._has_page = has_page

    def checked(self, route: Route) -> Route:
        """Return a route that is answered for those who may read."""
        endpoint: ASGIApp = _Checked(self, route.endpoint)
        return Route(route.path, endpoint, methods=sorted(route.methods or ()))

    async def admit(self, scope: Scope, send: Send) -> bool:
        """Note who sends a request, and return whether it goes on; else it has its answer."""
        try:
            who = self._guardian.who(scope)
        except IdentityRefused as refusal:
            challenge = (CHALLENGE,) if refusal.status == 401 else ()
            if _is_browser(scope) and scope["method"] == "GET":
                await self._explain(scope, send, refusal.status, str(refusal))
                return False
            await send_error(send, refusal.status, str(refusal), *challenge, CLOSE)
            return False
        scope[_KEY] = who
        if self._is_shown_to(who):
            scope[_GATE] = self
            return True
        await self._refuse(scope, send, who)
        return False

    def still_admits(self, scope: Scope) -> bool:
        """Return whether a request that was let through would be again, as the same person's."""
        who = identity_of(scope)
        return self._guardian.is_still(scope, who) and self._is_shown_to(who)

    def _is_shown_to(self, who: Identity | None) -> bool:
        if self._why_not is None:
            return True
        return who is not None and self._guardian.access.may_read(who)

    async def _refuse(self, scope: Scope, send: Send, who: Identity | None) -> None:
        is_browser = _is_browser(scope)
        if who is not None:
            why = f"{who.name} has no role here: ask whoever keeps sign_in.access_file"
            if is_browser:
                await self._explain(scope, send, 403, why)
            else:
                await send_error(send, 403, why)
        elif is_browser and scope["method"] != "GET":
            why = "your session has ended, and nothing was sent: sign in, then repeat it"
            await self._explain(scope, send, 401, why)
        elif is_browser and self._has_page:
            back = quote(_path(scope), safe="")
            to = (b"location", f"{SIGN_IN}?to={back}".encode())
            await send_bytes(send, 303, b"", (to, (b"cache-control", b"no-store")))
        elif is_browser:
            way = _AT_THE_PROXY if self._guardian.proxies else _NO_WAY
            await self._explain(scope, send, 401, f"{self._why_not}. {way}")
        else:
            how = "sign in, or send `Authorization: Bearer TOKEN`"
            await send_error(send, 401, f"{self._why_not}; or {how}", CHALLENGE)


class _Checked:
    """One route behind the check: a class, because Starlette passes ASGI applications on."""

    def __init__(self, reading: ReadGuard, endpoint: ASGIApp) -> None:
        self._reading = reading
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if await self._reading.admit(scope, send):
            await self._endpoint(scope, receive, send)


def _is_browser(scope: Scope) -> bool:
    """Return whether a page is accepted by name."""
    return "text/html" in header(scope, b"accept")


def _path(scope: Scope) -> str:
    """Return the path of a request with its query."""
    path: str = scope["path"]
    query = scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path
