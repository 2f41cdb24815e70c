"""Sessions of people who signed in: a signed cookie, which any replica with the key can read.

Nothing is stored, but which sessions people ended (`signed_out.py`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from starlette.types import Scope

from controller.web.access.identity import Identity, Way
from controller.web.access.signed_out import SignedOut
from controller.web.access.signing import ValueSigner
from controller.web.answers import header

_PURPOSE: Final = "session"


class Sessions:
    """Begins, reads and ends sessions."""

    def __init__(
        self, signer: ValueSigner, now: Callable[[], datetime], lasts: timedelta, *, is_secure: bool
    ) -> None:
        """`is_secure`: people reach us over TLS, so that cookies need not travel without."""
        self._signer = signer
        self._now = now
        self._lasts = lasts
        self._is_secure = is_secure
        self.ended = SignedOut()

    def begin(self, name: str, groups: frozenset[str]) -> bytes:
        """Return the header that begins a session. Raises ValueError when it is too large."""
        fields = {"name": name, "groups": sorted(groups), "id": secrets.token_urlsafe(12)}
        value = self._signer.sign(_PURPOSE, fields, self._now() + self._lasts)
        return self.cookie("session", value, self._lasts)

    def of(self, scope: Scope) -> Identity | None:
        """Return who has a session by their cookie; None without one, or once it is over."""
        value = self.value(scope, "session")
        fields = None if value is None else self._signer.read(_PURPOSE, value, self._now())
        if fields is None or fields["id"] in self.ended:
            return None
        groups = frozenset(fields["groups"])
        return Identity(fields["name"], Way.SESSION, groups, fields["id"])

    def end(self, who: Identity) -> bytes:
        """End a session; return the header that takes its cookie away."""
        self.ended.end(who.session, int((self._now() + self._lasts).timestamp()))
        return self.cookie("session", "", timedelta(0))

    # --- cookies ---

    def cookie(self, name: str, value: str, lasts: timedelta) -> bytes:
        """Return the Set-Cookie header of one of our cookies: no script and no other site has it.

        Raises ValueError for one that browsers would not keep.
        """
        text = f"{self._name(name)}={value}; Path=/; HttpOnly; SameSite=Lax"
        text += f"; Max-Age={int(lasts.total_seconds())}"
        if len(text) > 4_000:
            raise ValueError("the cookie is too large")
        return (f"{text}; Secure" if self._is_secure else text).encode()

    def value(self, scope: Scope, name: str) -> str | None:
        """Return the value of one of our cookies; None without it."""
        wanted = self._name(name)
        for pair in header(scope, b"cookie").replace(",", ";").split(";"):
            key, _, value = pair.strip().partition("=")
            if key == wanted:
                return value
        return None

    def _name(self, name: str) -> str:
        # A cookie with this prefix is kept only over TLS, for this host alone.
        return f"__Host-rolloutd-{name}" if self._is_secure else f"rolloutd-{name}"
