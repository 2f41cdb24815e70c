"""TLS towards a server that we call: how its certificate is checked, and which one we show."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Protocol

from controller.errors import ConfigInvalid


class Certificates(Protocol):
    """The part of a settings section that names certificates."""

    @property
    def ca_file(self) -> Path | None:
        """The authorities that may sign the server's certificate. None: the system's."""

    @property
    def certificate_file(self) -> Path | None:
        """Our certificate. None: we show none."""

    @property
    def key_file(self) -> Path | None:
        """The key of our certificate. None: it is in the same file."""


def client_context(certificates: Certificates, section: str, *, is_used: bool) -> ssl.SSLContext:
    """Return the context for calls; `is_used` says whether any call goes over TLS.

    Raises ConfigInvalid, naming `section`.
    """
    if not is_used:
        # It trusts no authority. The default context would read them all from disk.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context = ssl.create_default_context(cafile=certificates.ca_file)
        if certificates.certificate_file is not None:
            # With no password OpenSSL would ask for one on the terminal; an empty one prevents it.
            context.load_cert_chain(
                certificates.certificate_file, certificates.key_file, password=""
            )
    except (OSError, ValueError) as error:
        raise ConfigInvalid(
            f"{section}: ca_file, certificate_file or key_file cannot be used: {error}"
        ) from error
    return context
