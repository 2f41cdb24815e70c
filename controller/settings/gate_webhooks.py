"""Settings of the systems that plans may ask at their gates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from controller.settings.section import HttpUrl, Seconds, Section, is_loopback

EndpointName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class GateEndpointSettings(Section):
    """One system that plans may ask. Its name is its key, and what plans call it."""

    url: HttpUrl
    """Address that is posted to. Redirects are not followed."""
    secret: SecretStr
    """What a question is signed with, `whsec_...` as in Standard Webhooks."""
    secret_file: Path | None = None
    """File with the secret. None: `secret` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    timeout_seconds: Annotated[Seconds, Field(le=60)] = 10.0
    """Deadline of one question, first byte to last. Past it there is no answer."""


class GateWebhooksSettings(Section):
    """Systems that plans may ask at their gates. `ops/plan.md` says how."""

    endpoints: dict[EndpointName, GateEndpointSettings] = Field(default={}, max_length=100)
    """The endpoints by name. A plan can ask no others, so that whoever may write a plan cannot aim
    rolloutd at an address of their own."""

    def insecure_connections(self, where: str) -> Iterable[str]:
        """Return each endpoint whose answers somebody on the network could forge."""
        for name, endpoint in self.endpoints.items():
            parts = urlsplit(endpoint.url)
            if parts.scheme == "http" and not is_loopback(parts.hostname):
                yield (
                    f"{where}.endpoints.{name}: whoever is on the way to {parts.hostname} reads "
                    f"the evidence and can answer `pass`: write https://"
                )
