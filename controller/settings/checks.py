"""Settings of the monitoring systems that are asked, and of the objectives that are checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from controller.settings.section import HttpUrl, Seconds, Section, is_loopback


class AskedSettings(Section):
    """A monitoring system that is asked over HTTP."""

    url: HttpUrl | None = None
    """Its address. None: it is not asked."""
    token: SecretStr | None = None
    """Sent as `Authorization: Bearer ...`. None: no token is sent."""
    token_file: Path | None = None
    """File with the token. None: `token` is used."""
    username: str = ""
    """Name for basic authentication, with `password`."""
    password: SecretStr | None = None
    """Password for basic authentication. None: none is sent."""
    password_file: Path | None = None
    """File with the password. None: `password` is used."""
    organization: str = Field(default="", max_length=200)
    """Sent as `X-Scope-OrgID`, which Mimir, Cortex and Thanos ask for."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    timeout_seconds: Seconds = 5.0
    """Deadline of one question, first byte to last."""

    @model_validator(mode="after")
    def _one_proof(self) -> Self:
        if bool(self.username) != (self.password is not None):
            raise ValueError("username and password belong together")
        if self.token is not None and self.password is not None:
            raise ValueError("token and password are both given: keep one")
        return self

    def insecure_connections(self, where: str) -> Iterable[str]:
        """Return that the token or password is sent in plain text over a network."""
        parts = urlsplit(self.url or "")
        has_secret = self.token is not None or self.password is not None
        if has_secret and parts.scheme == "http" and not is_loopback(parts.hostname):
            yield f"{where}: its secret travels to {parts.hostname} in plain text: write https://"


class BetterStackSettings(AskedSettings):
    """Better Stack's API; asked where `token` is set."""

    url: HttpUrl | None = "https://uptime.betterstack.com"
    """Its address."""


class ChecksSettings(Section):
    """Objectives that are checked on a schedule. `ops/checks.md` says how."""

    file: Path | None = None
    """File with the checks. SIGHUP reads it again. None: nothing is checked. What is missed becomes
    a signal, and `hooks.rules_file` says what follows."""
    prometheus: AskedSettings = AskedSettings()
    uptime_kuma: AskedSettings = AskedSettings()
    better_stack: BetterStackSettings = BetterStackSettings()
    blackbox: AskedSettings = AskedSettings()

    @property
    def is_on(self) -> bool:
        """Whether anything is checked."""
        return self.file is not None
