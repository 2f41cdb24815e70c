"""The secret of Standard Webhooks, whoever signs with it.

Source: Standard Webhooks 1.0, symmetric signatures.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

#: Lengths that are allowed for the key of a symmetric signature.
KEY_BYTES: Final = range(24, 65)
#: What is said about a secret that is none.
NO_KEY: Final = (
    f"a signing secret is `whsec_` and {KEY_BYTES.start} to {KEY_BYTES.stop - 1} random bytes in "
    'base64: echo "whsec_$(openssl rand -base64 32)"'
)


def key_of(secret: str) -> bytes | None:
    """Return the key in a secret, with or without `whsec_`; None: there is none of its length."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) in KEY_BYTES else None
