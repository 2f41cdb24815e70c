"""Why brokers refuse our connections, which aiokafka's exceptions do not say.

It logs the cause, and then raises that it is "Unable to bootstrap".
"""

from __future__ import annotations

import logging
import ssl
from time import monotonic
from typing import Final

from aiokafka.errors import (
    KafkaConnectionError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

#: What was refused longer ago is not the cause of an error of now.
_FRESH_SECONDS: Final = 5.0


class _Refusals(logging.Filter):
    """Keeps the newest refusal that the client logs; a filter, as loggers keep theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._newest = ""
        self._at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Take one of the client's log records, and let it pass."""
        error = record.args[-1] if isinstance(record.args, tuple) and record.args else None
        if isinstance(error, Exception) and (words := _words_of(error)):
            self._newest, self._at = words, monotonic()
        return True

    def newest(self) -> str:
        """Return why a broker refused just now, and what to correct; empty where none did."""
        return self._newest if monotonic() - self._at < _FRESH_SECONDS else ""


def _words_of(error: Exception) -> str:
    """Return what a broker has against us; empty where it does not answer at all."""
    if isinstance(error, SaslAuthenticationFailed):
        why = str(error.args[0]) if error.args else "authentication failed"
        return f"{why}: correct kafka.security.username and kafka.security.password_file"
    if isinstance(error, UnsupportedSaslMechanismError):
        return "the broker has another SASL mechanism: correct kafka.security.sasl_mechanism"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"{error}: let kafka.security.ca_file name the PEM file of the authority that signed "
            "the broker's certificate"
        )
    if isinstance(error, ssl.SSLError | ConnectionResetError | KafkaConnectionError):
        return (
            "the broker ends the connection: see whether it wants TLS or SASL "
            "(kafka.security.protocol), and whether this is its address"
        )
    return ""


_refusals: Final = _Refusals()
logging.getLogger("aiokafka").addFilter(_refusals)
newest_refusal = _refusals.newest
