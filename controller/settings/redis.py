"""Settings of any connection to Redis: its address, its user, and whether it is secure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from controller.settings.section import RedisUrl, Section, is_loopback


class RedisAddressSettings(Section):
    """What the store and the flag plane share. Each says itself what its address is for."""

    url: RedisUrl | None = None
    """`redis://host:port/db`, `rediss://` for TLS, `unix:///path`."""
    username: str | None = None
    """ACL user. None: Redis' `default`."""
    password: SecretStr | None = None
    """None: no authentication."""
    password_file: Path | None = None
    """File with the password. None: `password` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities for `rediss://`. None: the system's."""

    def insecure_connections(self, where: str) -> Iterator[str]:
        parts = urlsplit(self.url or "")
        if parts.scheme in ("", "unix") or is_loopback(parts.hostname):
            return
        if self.password is None or not self.password.get_secret_value():
            yield (
                f"Redis at {parts.netloc} is used without a password: whoever reaches it may "
                f"change what is served. Set {where}.username and {where}.password_file, see "
                "ops/security.md"
            )
        elif parts.scheme == "redis":
            yield (
                f"Redis at {parts.netloc} receives our password unencrypted: use rediss:// in "
                f"{where}.url"
            )
