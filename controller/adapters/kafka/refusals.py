"""Why brokers refuse our connections, which aiokafka's exceptions do not say.

It logs the cause, and then raises that it is "Unable to bootstrap".
"""

from __future__ import annotations

import logging
import ssl
from socket import gaierror
from time import monotonic
from typing import Final

from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

#: What was refused longer ago is not the cause of an error of now.
_FRESH_SECONDS: Final = 5.0


_OTHER_AUTHORITY: Final = (
    "let kafka.security.ca_file name the PEM file of the authority that signed it"
)
_OTHER_NAME: Final = (
    "use a name that it has in kafka.bootstrap_servers and in the brokers' advertised.listeners, "
    "or give the brokers a certificate with this name"
)
#: By OpenSSL's codes (X509_V_ERR_…), which `ssl` has no names for.
_ADVICE_OF_VERIFICATION: Final = {
    9: "compare the clocks of both machines, or wait until it is valid",
    10: "renew it on the brokers",
    62: _OTHER_NAME,  # of a host
    64: _OTHER_NAME,  # of an address
}


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
        return f"{why}; next: correct kafka.security.username and password (or password_file)"
    if isinstance(error, UnsupportedSaslMechanismError):
        return "the broker has another SASL mechanism; next: correct kafka.security.sasl_mechanism"
    if isinstance(error, IllegalSaslStateError):
        return (
            "the broker takes no user and password at this port; next: correct the port, or "
            "kafka.security.protocol (SSL or PLAINTEXT, without username and password)"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", "") or str(error)
        advice = _ADVICE_OF_VERIFICATION.get(getattr(error, "verify_code", 0), _OTHER_AUTHORITY)
        return f"the broker's certificate is not accepted: {why.rstrip('.')}; next: {advice}"
    if isinstance(error, ssl.SSLError | ConnectionResetError | KafkaConnectionError):
        return (
            "the broker ends the connection; next: see whether it wants TLS or SASL "
            "(kafka.security.protocol) or a client certificate (kafka.security.certificate_file), "
            "and whether this is its address"
        )
    if isinstance(error, gaierror):
        return "the broker's name is not known here; next: correct kafka.bootstrap_servers"
    return ""


_refusals: Final = _Refusals()
logging.getLogger("aiokafka").addFilter(_refusals)
newest_refusal = _refusals.newest
