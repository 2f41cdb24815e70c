"""Settings of the dead man's switch: an address that hears from rolloutd while it does its work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from controller.settings.section import Section, is_loopback

_MOST_CHARS: Final = 2_000


class DeadMansSwitchSettings(Section):
    """A monitoring service that pages somebody when it does not hear from rolloutd.

    Better Stack heartbeats, healthchecks.io, an Uptime Kuma push monitor, or any address that takes
    a GET. `ops/running.md` says what is said and what is kept silent.
    """

    url: SecretStr | None = None
    """Address that is called. It is a secret: whoever knows it can keep the service quiet. None:
    nothing is called."""
    url_file: Path | None = None
    """File with the address. None: `url` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    every_seconds: float = Field(default=30.0, ge=5, le=3_600, allow_inf_nan=False)
    """Time between two calls. Let the service page after three times this without one: a restart
    of a single replica takes a few seconds, and one call may be lost."""
    timeout_seconds: float = Field(default=10.0, ge=0.5, le=60, allow_inf_nan=False)
    """Deadline of a call, first byte to last."""

    @field_validator("url")
    @classmethod
    def _check_address(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse what cannot be called. No message repeats the address, which is a secret."""
        text = "" if value is None else value.get_secret_value()
        try:
            parts = urlsplit(text)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
            is_address = is_address and parts.port != 0 and not parts.fragment
        except ValueError:
            is_address = False
        is_written = text.isascii() and text.isprintable() and " " not in text
        is_called = is_address and is_written and len(text) <= _MOST_CHARS
        if value is not None and not is_called:
            raise ValueError(
                "is not an HTTP address: write it as the monitoring service shows it, such as "
                "https://uptime.betterstack.com/api/v1/heartbeat/..."
            )
        return value

    @property
    def address(self) -> str | None:
        """The address in plain text. None: nothing is called."""
        return None if self.url is None else self.url.get_secret_value()

    def insecure_connections(self, where: str) -> Iterable[str]:
        """Return that the address is sent in plain text over a network."""
        if self.address is None:
            return
        parts = urlsplit(self.address)
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            yield (
                f"{where}.url begins with http://: whoever listens can keep the service quiet; "
                "write https://"
            )
