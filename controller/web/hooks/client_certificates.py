"""Which certificate the sender of a delivery has shown: to us, or to a proxy in front.

Belongs here: reading what a trusted proxy says of it. Does not belong here: the handshake
(`controller/web/tls.py`), and who is let in (`proofs.py`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import ssl
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

from starlette.types import Scope

from controller.web.answers import header
from controller.web.clients import Network, comes_from
from controller.web.tls import CLIENT_CERTIFICATE

_FINGERPRINT: Final = re.compile(r"[0-9a-fA-F]{64}")
#: In Envoy's `x-forwarded-client-cert`.
_HASH: Final = re.compile(r"(?:^|[;,])Hash=([0-9a-fA-F]{64})(?=[;,]|$)")
_PEM: Final = "-----BEGIN CERTIFICATE-----"
#: A DER sequence begins so: every certificate does.
_SEQUENCE: Final = b"\x30"


def certificate_names(
    scope: Scope, proxies: Sequence[Network], certificate_header: str
) -> frozenset[str]:
    """Return the names of the certificate that the sender has shown, in the form of the settings.

    The header counts from the addresses of `proxies` alone. Of what a proxy says only the
    fingerprint is used: it cannot be mistaken for another certificate's.
    """
    shown = scope.get("extensions", {}).get(CLIENT_CERTIFICATE, {})
    names: frozenset[str] = shown.get("names", frozenset())
    if proxies and comes_from(scope["client"], proxies):
        told = header(scope, certificate_header.encode())
        if (fingerprint := told_fingerprint(told)) is not None:
            return names | {f"sha256:{fingerprint}"}
    return names


def told_fingerprint(text: str) -> str | None:
    """Return the SHA-256 of the certificate in a proxy's header; None where there is no single one.

    Taken are the fingerprint in hex (HAProxy, Caddy), the certificate as RFC 9440's `Client-Cert`
    has it, in PEM with URL encoding (nginx, AWS), in bare base64 (Traefik), and Envoy's
    `x-forwarded-client-cert` of one hop.
    """
    text = text.strip()
    if _FINGERPRINT.fullmatch(bare := text.replace(":", "")):
        return bare.lower()
    if "Hash=" in text:
        hashes = _HASH.findall(text)
        return hashes[0].lower() if len(hashes) == 1 else None
    der = _der(unquote(text))
    return None if der is None else hashlib.sha256(der).hexdigest()


def _der(text: str) -> bytes | None:
    try:
        if text.startswith(_PEM):
            if text.count(_PEM) > 1:
                return None
            return ssl.PEM_cert_to_DER_cert(text.strip())
        der = base64.b64decode(text.strip(":"), validate=True)
    except (ValueError, binascii.Error):
        return None
    return der if der.startswith(_SEQUENCE) else None
