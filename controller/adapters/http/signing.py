"""Signing requests, so that their receiver knows who sent them and when."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

from controller.errors import ConfigInvalid

#: Lengths that Standard Webhooks 1.0 allows for the key of a symmetric signature.
KEY_BYTES: Final = range(24, 65)


class Signer:
    """Signs requests so that the receiver knows who sent them and when.

    Source: Standard Webhooks 1.0, symmetric signatures (HMAC-SHA256 over id, timestamp and body).
    """

    def __init__(self, secret: str) -> None:
        """`secret` is `whsec_` and 24 to 64 bytes in base64.

        Raises ConfigInvalid for anything else.
        """
        self.encoded_key = secret.removeprefix("whsec_")
        try:
            self._key = base64.b64decode(self.encoded_key, validate=True)
        except (binascii.Error, ValueError):
            self._key = b""
        if not secret.startswith("whsec_") or len(self._key) not in KEY_BYTES:
            raise ConfigInvalid(
                f"a signing secret is `whsec_` and {KEY_BYTES.start} to "
                f"{KEY_BYTES.stop - 1} random bytes in "
                'base64: echo "whsec_$(openssl rand -base64 32)"'
            )

    def headers(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the headers that prove a message.

        `timestamp` is in seconds; receivers refuse one that is minutes off.
        """
        signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
        signature = base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256)).decode()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": f"v1,{signature}",
        }
