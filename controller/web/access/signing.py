"""Values that come back from browsers unchanged: signed, with an end, and bound to a purpose.

Belongs here: signatures, cookies' text, and tokens against forged requests. Does not belong here:
what a session is for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from controller.web.access.identity import Identity

#: Browsers keep cookies of up to 4,096 bytes, with their names.
LONGEST: Final = 3_800


class ValueSigner:
    """Signs values with one key, and reads what it has signed."""

    def __init__(self, key: bytes | None) -> None:
        """`key` None: a random one, which ends with the process."""
        self._key = secrets.token_bytes(32) if key is None else key

    def sign(self, purpose: str, fields: Mapping[str, Any], until: datetime) -> str:
        """Return text that `read` accepts for the same purpose until a moment. Not encrypted."""
        body = msgspec.json.encode({**fields, "until": until.timestamp()})
        return f"{_text(body)}.{_text(self._digest(purpose, body))}"

    def read(self, purpose: str, text: str, now: datetime) -> dict[str, Any] | None:
        """Return the fields of a text; None for one that is forged, of another purpose, or over."""
        if len(text) > LONGEST:
            return None
        body_text, _, digest_text = text.partition(".")
        try:
            body, digest = _bytes(body_text), _bytes(digest_text)
        except (ValueError, binascii.Error):
            return None
        if not hmac.compare_digest(digest, self._digest(purpose, body)):
            return None
        fields: dict[str, Any] = msgspec.json.decode(body)  # ours: its form is known
        return fields if fields["until"] > now.timestamp() else None

    def form_token(self, who: Identity) -> str:
        """Return the token that forms of somebody's pages carry, and other sites cannot know."""
        words = f"{who.way.value}\0{who.name}\0{who.session}"
        return self._digest("form", words.encode()).hex()

    def is_form_token(self, who: Identity, token: str) -> bool:
        """Return whether a token is the one of somebody's pages."""
        given = token.encode("utf-8", errors="replace")
        return hmac.compare_digest(given, self.form_token(who).encode())

    def _digest(self, purpose: str, body: bytes) -> bytes:
        return hmac.digest(self._key, purpose.encode() + b"\0" + body, hashlib.sha256)


def _text(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
