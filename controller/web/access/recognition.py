"""Who sends a request: a machine by its token, a person by a proxy's header or by a session.

Belongs here: finding out, and refusing claims that are not true. Does not belong here: what they
may do (`roles.py`), and how a session begins (`sign_in.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.types import Scope

from controller.settings.sign_in import ProxySettings
from controller.web.access.identity import (
    MOST_GROUPS,
    Identity,
    IdentityRefused,
    Way,
    checked_name,
)
from controller.web.access.roles import Access
from controller.web.access.sessions import Sessions
from controller.web.access.signing import ValueSigner
from controller.web.answers import header
from controller.web.clients import Network, RateLimit, client_of, comes_from

#: Wrong claims of one client per second that are answered; more get 429 and are not logged.
REFUSED_PER_SECOND: Final = 1.0
_OWN_SITE: Final = "send it from rolloutd's own page"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Guardian:
    """All that decides who sends a request and what they may do."""

    access: Access
    sessions: Sessions
    signer: ValueSigner
    proxy: ProxySettings
    proxies: Sequence[Network]  # from where the proxy's header counts
    now: Callable[[], datetime]
    refused: RateLimit
    public_origin: str | None  # scheme and host that people use; None: that of the request

    def who(self, scope: Scope) -> Identity | None:
        """Return who sends a request, None where nobody is claimed.

        Raises IdentityRefused for a claim that is not true.
        """
        try:
            return self._who(scope)
        except IdentityRefused as refusal:
            client = client_of(scope["client"])
            if self.refused.seconds_to_wait(client):
                raise IdentityRefused(429, "too many requests that were refused") from None
            log.warning("identity_refused", client=client, error=str(refusal))
            raise

    def is_still(self, scope: Scope, who: Identity | None) -> bool:
        """Return whether an answer that lasts still goes to whom it began for.

        Not after they signed out, when their session or token has ended, and when they are in
        other groups.
        """
        try:
            return self._who(scope) == who
        except IdentityRefused:
            return False

    def _who(self, scope: Scope) -> Identity | None:
        names = _values(scope, self.proxy.user_header) if self.proxies else []
        if names and not comes_from(
            scope["client"], self.proxies
        ):  # also beside a token: it is a claim of its own
            raise IdentityRefused(
                403,
                f"{self.proxy.user_header} counts only from the addresses of "
                f"sign_in.proxy.addresses, and this request comes from another",
            )
        if authorization := header(scope, b"authorization"):
            scheme, _, token = authorization.partition(" ")
            machine = self.access.machine(token.strip(), self.now())
            if scheme.lower() != "bearer" or machine is None:
                raise IdentityRefused(
                    401, "this token is unknown or has expired: see sign_in.access_file"
                )
            return machine
        if names:
            return self._named_by_proxy(scope, names)
        return self.sessions.of(scope)

    def _named_by_proxy(self, scope: Scope, names: Sequence[bytes]) -> Identity:
        """Return the person in the proxy's header. Raises IdentityRefused."""
        try:
            (name,) = (value.decode() for value in names)
        except ValueError:  # more than one, or no text
            raise IdentityRefused(403, f"{self.proxy.user_header} has no single name") from None
        groups: frozenset[str] = frozenset()
        if self.proxy.groups_header is not None:
            text = b",".join(_values(scope, self.proxy.groups_header)).decode(errors="replace")
            parts = [part.strip() for part in text.split(",")[:MOST_GROUPS]]
            groups = self.access.known_groups(frozenset(parts))
        return Identity(checked_name(name.strip()), Way.PROXY, groups)

    # --- requests that change something ---

    def check_origin(self, scope: Scope, who: Identity) -> None:
        """Raise IdentityRefused where another site made somebody's browser send this.

        Browsers say which site a request comes from (Fetch metadata); old ones at least its origin.
        Tokens of machines are sent by nobody's browser.
        """
        if not who.is_sent_by_browsers:
            return
        site = header(scope, b"sec-fetch-site")
        if site:
            is_own = site == "same-origin"
        else:
            origin = header(scope, b"origin")
            host = header(scope, b"host")
            is_own = bool(origin) and (
                origin == self.public_origin or urlsplit(origin).netloc == host
            )
        if not is_own:
            raise IdentityRefused(403, f"this comes from another site: {_OWN_SITE}")

    def check_form(self, scope: Scope, who: Identity, token: str) -> None:
        """Raise IdentityRefused unless the request comes from a form that we gave this person."""
        self.check_origin(scope, who)
        if who.is_sent_by_browsers and not self.signer.is_form_token(who, token):
            raise IdentityRefused(
                403, "this form is of an earlier session: open the page again, then repeat"
            )


def _values(scope: Scope, name: str) -> list[bytes]:
    """Return the values of a header, one for each time that it was sent."""
    wanted = name.encode()
    return [value for key, value in scope["headers"] if key == wanted]
