"""Signing in and out on the page: to the provider, back with a code, and the cookie of a session.

Belongs here: the addresses below `/ui/sign-in`. Does not belong here: the provider
(`controller/adapters/oidc.py`), and who may do what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Final
from urllib.parse import parse_qs

import structlog
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controller.errors import OperatingTrouble, SignInRefused
from controller.ports.people import IdentityProvider, SignInBegun
from controller.settings.sign_in import CALLBACK
from controller.web.access.identity import Identity, IdentityRefused, Way, checked_name
from controller.web.access.reading import SIGN_IN
from controller.web.access.recognition import Guardian
from controller.web.answers import BodyRefused, read_body, send_bytes
from controller.web.clients import RateLimit, client_of
from controller.web.page.pages import Pages

SIGN_OUT: Final = "/ui/sign-out"
#: People look for their password so long at most.
SIGN_IN_LASTS: Final = timedelta(minutes=10)
#: Sign-ins that one client begins per second: behind a proxy everybody has one address.
BEGUN_PER_SECOND: Final = 20.0
#: Those that come back from the provider with the state that we gave: each costs it requests.
FINISHED_PER_SECOND: Final = 2.0
_BURST_SECONDS: Final = 10.0
_COOKIE: Final = "sign-in"
_FAILED: Final = "You are not signed in"
_LONGEST_FORM: Final = 4_096

log = structlog.get_logger(__name__)


def safe_path(to: str) -> str:
    """Return where to go after signing in: a path of ours, whatever was asked."""
    is_ours = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable()
    return to if is_ours and len(to) <= 1_000 and to.isascii() else "/"


class SignInDesk:
    """What the endpoints share."""

    def __init__(self, pages: Pages, guardian: Guardian, provider: IdentityProvider) -> None:
        self.pages = pages
        self.guardian = guardian
        self.provider = provider
        #: Two limits, so that whoever only begins keeps nobody from coming back.
        self.begins = RateLimit(BEGUN_PER_SECOND, burst_seconds=_BURST_SECONDS)
        self.finishes = RateLimit(FINISHED_PER_SECOND, burst_seconds=_BURST_SECONDS)

    def begun(self, scope: Scope) -> tuple[SignInBegun, str] | None:
        """Return the sign-in that this browser began, and where it goes then; None for none."""
        sessions, signer = self.guardian.sessions, self.guardian.signer
        value = sessions.value(scope, _COOKIE)
        fields = None if value is None else signer.read(_COOKIE, value, self.guardian.now())
        if fields is None:
            return None
        begun = SignInBegun("", fields["state"], fields["nonce"], fields["verifier"])
        return begun, fields["to"]

    def remembered(self, begun: SignInBegun, to: str) -> bytes:
        """Return the cookie that binds a sign-in to the browser that began it."""
        fields: Mapping[str, str] = {**asdict(begun), "address": "", "to": to}
        until = self.guardian.now() + SIGN_IN_LASTS
        value = self.guardian.signer.sign(_COOKIE, fields, until)
        return self.guardian.sessions.cookie(_COOKIE, value, SIGN_IN_LASTS)

    def is_signed_in(self, scope: Scope) -> bool:
        """Return whether the browser has a session that holds."""
        try:
            who = self.guardian.who(scope)
        except IdentityRefused:
            return False
        return who is not None and who.way is Way.SESSION

    @property
    def forgotten(self) -> bytes:
        """The header that takes that cookie away: a code is used once."""
        return self.guardian.sessions.cookie(_COOKIE, "", timedelta(0))

    async def is_too_often(self, limit: RateLimit, scope: Scope, send: Send) -> bool:
        """Return whether a client asks too often, which is then answered."""
        if not limit.seconds_to_wait(client_of(scope["client"])):
            return False
        why = "There were too many sign-ins from your address. Try again in some seconds."
        await self.pages.problem(send, 429, _FAILED, why)
        return True


class BeginSignIn:
    """GET /ui/sign-in: sends a person to the provider, who asks them who they are."""

    def __init__(self, desk: SignInDesk) -> None:
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the way to the provider."""
        desk = self._desk
        if await desk.is_too_often(desk.begins, scope, send):
            return
        to = safe_path(_one(scope, "to"))
        try:
            begun = await desk.provider.begin()
        except OperatingTrouble as trouble:
            log.warning("sign_in_not_begun", error=str(trouble))
            await desk.pages.problem(send, 503, _FAILED, str(trouble))
            return
        await _go(send, begun.address, desk.remembered(begun, to))


class FinishSignIn:
    """GET /ui/sign-in/callback: takes a person back from the provider, and begins their session."""

    def __init__(self, desk: SignInDesk) -> None:
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the way to where they wanted to go; else with why they are not signed in."""
        desk = self._desk
        found = desk.begun(scope)
        if found is None or found[0].state != _one(scope, "state"):
            if desk.is_signed_in(scope):  # by another tab, or they went back to this address
                await _go(send, "/")
                return
            why = (
                "This sign-in was not begun in this browser, or took longer than ten minutes, or "
                "another one was begun since. Begin again."
            )
            await desk.pages.problem(send, 400, _FAILED, why)
            return
        if (error := _one(scope, "error")) or not _one(scope, "code"):
            why = f"The provider says: {error[:100] or 'nothing'}. Begin again."
            await desk.pages.problem(send, 403, _FAILED, why)
            return
        if await desk.is_too_often(desk.finishes, scope, send):
            return
        begun, to = found
        try:
            person = await desk.provider.finish(_one(scope, "code"), begun)
            groups = desk.guardian.access.known_groups(person.groups)
            cookie = desk.guardian.sessions.begin(checked_name(person.name), groups)
        except (SignInRefused, IdentityRefused, ValueError) as refused:
            log.warning("sign_in_refused", error=str(refused))
            await desk.pages.problem(send, 403, _FAILED, f"{refused}.")
        except OperatingTrouble as trouble:
            log.warning("sign_in_not_finished", error=str(trouble))
            await desk.pages.problem(send, 503, _FAILED, f"{trouble}.")
        else:
            log.info("signed_in", issuer=person.name, groups=sorted(groups))
            await _go(send, to, cookie, desk.forgotten)


class SignOut:
    """POST /ui/sign-out: ends a person's session."""

    def __init__(self, desk: SignInDesk) -> None:
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer that they are signed out."""
        desk, cookies = self._desk, [self._desk.forgotten]
        who: Identity | None = None
        try:
            form = parse_qs((await read_body(receive, _LONGEST_FORM)).decode("latin-1"))
            who = desk.guardian.who(scope)
            if who is not None and who.way is Way.SESSION:
                desk.guardian.check_form(scope, who, form.get("form", [""])[-1])
                cookies.append(desk.guardian.sessions.end(who))
        except (IdentityRefused, BodyRefused) as refused:
            await desk.pages.problem(send, refused.status, "You are still signed in", str(refused))
            return
        log.info("signed_out", issuer="" if who is None else who.name)
        why = "Your session here has ended. The provider may still know you."
        await desk.pages.problem(send, 200, "You are signed out", why, *cookies)


async def _go(send: Send, to: str, *cookies: bytes) -> None:
    """Send a browser elsewhere, with cookies."""
    headers = [(b"location", to.encode()), (b"cache-control", b"no-store")]
    await send_bytes(send, 303, b"", [*headers, *((b"set-cookie", one) for one in cookies)])


def _one(scope: Scope, name: str) -> str:
    """Return a parameter of the query, empty without it."""
    query: dict[str, list[str]] = parse_qs(scope["query_string"].decode("latin-1"))
    return query.get(name, [""])[-1]


def sign_in_routes(pages: Pages, guardian: Guardian, provider: IdentityProvider) -> list[Route]:
    """Return the routes of signing in and out: whoever is not signed in needs them."""
    desk = SignInDesk(pages, guardian, provider)
    return [
        Route(SIGN_IN, BeginSignIn(desk), methods=["GET"]),
        Route(CALLBACK, FinishSignIn(desk), methods=["GET"]),
        Route(SIGN_OUT, SignOut(desk), methods=["POST"]),
    ]
