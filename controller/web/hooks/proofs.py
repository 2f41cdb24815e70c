"""How a delivery proves who sent it: a token, a name with its password, or a signature.

Signatures are over the bytes as they came, and every comparison takes equally long. Sources:
PagerDuty webhooks v3, Sentry integration platform, grafana/alerting `http/hmac.go`, Standard
Webhooks 1.0.0.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import parse_qsl

from controller.settings import HookSettings

#: A signed time may differ from ours by so much. Source: Standard Webhooks' libraries.
REPLAY_SECONDS: Final = 300
#: Signatures of one delivery that are tried: two during the change of a secret.
_MOST_SIGNATURES: Final = 8

#: Reads a request header by its name, empty where it is not there.
Headers = Callable[[str], str]

#: Checks the signature of a body; gets headers, body, secret and the time in Unix seconds.
Signature = Callable[[Headers, bytes, str, float], bool]


def is_named(headers: Headers, hook: HookSettings, query: str = "") -> bool:
    """Return whether the Authorization header has the endpoint's token, or its name and password.

    Where the endpoint allows it, the token may be in the query in place of the header. False where
    the endpoint has neither.
    """
    if hook.query_token and hook.token is not None and not headers("authorization"):
        tokens = [value for name, value in parse_qsl(query) if name == "access_token"]
        return len(tokens) == 1 and is_same(tokens[0], hook.token.get_secret_value())
    scheme, _, given = headers("authorization").partition(" ")
    token = "" if hook.token is None else hook.token.get_secret_value()
    password = "" if hook.password is None else hook.password.get_secret_value()
    expected = {"bearer": token, "basic": f"{hook.username}:{password}" if password else ""}
    wanted = expected.get(scheme.lower(), "")
    if scheme.lower() == "basic":
        given = _decoded(given)
    return bool(wanted) and is_same(given.strip(), wanted)


def is_same(given: str, wanted: str) -> bool:
    """Return whether two secrets are equal, in a time that tells nothing."""
    digests = [hashlib.sha256(one.encode(errors="replace")).digest() for one in (given, wanted)]
    return hmac.compare_digest(*digests)


def pagerduty(headers: Headers, body: bytes, secret: str, _now: float) -> bool:
    """`v1=<hex>`, several during a change of the secret."""
    wanted = "v1=" + _hex(secret, body)
    return _any(headers("x-pagerduty-signature").split(","), wanted)


def sentry(headers: Headers, body: bytes, secret: str, _now: float) -> bool:
    """Bare hex; the time in another header is not signed."""
    return _any([headers("sentry-hook-signature")], _hex(secret, body))


def grafana(headers: Headers, body: bytes, secret: str, now: float) -> bool:
    """Bare hex under either of two names; with a timestamp header before the body, if it is sent.

    Grafana has no default name for that header; this is the one that `ops/signals.md` sets.
    """
    signature = headers("x-grafana-alerting-signature") or headers("x-grafana-alert-signature")
    at = headers("x-grafana-alerting-timestamp")
    if not at:
        return _any([signature], _hex(secret, body))
    return _is_near(at, now) and _any([signature], _hex(secret, at.encode() + b":" + body))


def standard_webhook(headers: Headers, body: bytes, secret: str, now: float) -> bool:
    """`v1,<base64>` over id, time and body; the time is the attempt's."""
    delivery, at = headers("webhook-id"), headers("webhook-timestamp")
    key = _standard_key(secret)
    if not delivery or "." in delivery or key is None or not _is_near(at, now):
        return False
    signed = f"{delivery}.{at}.".encode(errors="replace") + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return _any(headers("webhook-signature").split(" "), "v1," + base64.b64encode(digest).decode())


def _standard_key(secret: str) -> bytes | None:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return None


def _hex(secret: str, signed: bytes) -> str:
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def _any(given: list[str], wanted: str) -> bool:
    """Return whether any of the signatures is right; all of them are compared."""
    matches = [is_same(one.strip(), wanted) for one in given[:_MOST_SIGNATURES]]
    return any(matches)


def _is_near(at: str, now: float) -> bool:
    # A superscript is a digit to Python, and no number.
    is_number = at.isascii() and at.isdigit() and len(at) <= 12
    return is_number and abs(int(at) - now) <= REPLAY_SECONDS


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text.strip(), validate=True).decode(errors="replace")
    except (binascii.Error, ValueError):
        return ""


#: The sources that sign, each with how.
SIGNATURES: Final[Mapping[str, Signature]] = {
    "pagerduty": pagerduty,
    "sentry": sentry,
    "grafana": grafana,
    "standard_webhooks": standard_webhook,
}
