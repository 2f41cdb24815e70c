"""How we check a server we call, and show it who we are."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Protocol

from controller.errors import ConfigInvalid


class Certificates(Protocol):
    """What a settings section says of them."""

    @property
    def ca_file(self) -> Path | None:
        """The authorities that may sign the server's. None: the system's."""

    @property
    def certificate_file(self) -> Path | None:
        """Ours. None: we show none."""

    @property
    def key_file(self) -> Path | None:
        """The key of ours. None: it is in the same file."""


def client_context(certificates: Certificates, section: str, *, is_used: bool) -> ssl.SSLContext:
    """Return the context for calls; `is_used` is whether any goes over TLS.

    Raises ConfigInvalid, naming `section`.
    """
    if not is_used:
        return ssl.SSLContext(
            ssl.PROTOCOL_TLS_CLIENT
        )  # trusts nobody: the default one would read the authorities from disk
    try:
        context = ssl.create_default_context(cafile=certificates.ca_file)
        if certificates.certificate_file is not None:
            # An empty password in place of none: OpenSSL would ask for it on the terminal.
            context.load_cert_chain(
                certificates.certificate_file, certificates.key_file, password=""
            )
    except (OSError, ValueError) as error:
        raise ConfigInvalid(
            f"{section}: ca_file, certificate_file or key_file cannot be used: {error}"
        ) from error
    return context
