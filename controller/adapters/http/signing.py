"""Signing requests, so that their receiver knows who sent them and when."""

from __future__ import annotations

import base64
import hashlib
import hmac

from controller.errors import ConfigInvalid
from controller.settings.webhook_keys import NO_KEY, key_of


class RequestSigner:
    """Signs requests so that the receiver knows who sent them and when.

    Source: Standard Webhooks 1.0, symmetric signatures (HMAC-SHA256 over id, timestamp and body).
    """

    def __init__(self, secret: str) -> None:
        """`secret` is `whsec_` and 24 to 64 bytes in base64.

        Raises ConfigInvalid for anything else.
        """
        self.encoded_key = secret.removeprefix("whsec_")
        key = key_of(secret)
        if not secret.startswith("whsec_") or key is None:
            raise ConfigInvalid(NO_KEY)
        self._key = key

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
