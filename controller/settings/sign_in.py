"""Settings of sign-in: who may see and steer rollouts over HTTP.

Belongs here: how people and machines are recognized. Does not belong here: what each may do, which
is in the access file (`access_file.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from controller.settings.section import HeaderName, HttpUrl, ProxyAddresses, Section, is_loopback

SHORTEST_KEY: Final = 32
#: The path at which people come back from the provider; it is registered there.
CALLBACK: Final = "/ui/sign-in/callback"
_PLAIN_CLAIM: Final = r"^[!-~]{1,200}$"


class ProxySettings(Section):
    """A proxy that asks people who they are, and says it in a header."""

    addresses: ProxyAddresses = ()
    """Addresses or networks of the proxy, such as `10.0.0.5` or `10.0.1.0/24`. The header counts
    from there alone; from any other address it is refused. Empty: there is no such proxy."""
    user_header: HeaderName = "x-forwarded-user"
    """Header with the person's name, in lower case. The proxy must remove it from what clients
    send. It becomes the issuer of commands."""
    groups_header: HeaderName | None = None
    """Header with the person's groups, separated by commas. None: groups are not known."""


class OidcSettings(Section):
    """An OpenID Connect provider that people sign in with. Needs the extra `rolloutd[oidc]`."""

    issuer: HttpUrl | None = None
    """The provider's issuer, as in `https://login.example.org/realms/main`. None: no sign-in by
    OpenID Connect."""
    client_id: str = ""
    """Our name at the provider. Register `<sign_in.public_url>/ui/sign-in/callback` there as the
    redirect address."""
    client_secret: SecretStr | None = None
    """Our secret at the provider. None: we are a public client, which PKCE protects."""
    client_secret_file: Path | None = None
    """File with the secret. None: `client_secret` is used."""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    """Scopes to ask for. Some providers give groups only for one of their own."""
    name_claim: str = Field(default="email", pattern=_PLAIN_CLAIM)
    """Claim that names the person in the access file and as the issuer of commands. It must be one
    that people cannot choose themselves. An `email` is refused unless the provider says that it
    is verified (`email_verified`)."""
    groups_claim: str = Field(default="groups", pattern=_PLAIN_CLAIM)
    """Claim with the list of the person's groups."""
    ca_file: Path | None = None
    """PEM file with the authorities that may sign the provider's certificate. None: those of the
    system."""


class SignInSettings(Section):
    """Who may see and steer rollouts over HTTP. Off until `access_file` is set."""

    access_file: Path | None = None
    """YAML file that says who has which role for which flags, with the digests of machines' tokens
    (`rolloutd token new` makes one). SIGHUP reads it again. None: nobody can sign in, and no
    command is taken but with `http.command_token`."""
    public_url: HttpUrl | None = None
    """Address under which people open the page, such as `https://rollouts.example.org`. Cookies
    are marked Secure where it begins with https. None: only good without `oidc`."""
    session_key: SecretStr | None = None
    """Signs the cookies of sessions; at least 32 characters, the same for all replicas. None: a
    random one, so that a restart or another replica asks people to sign in again."""
    session_key_file: Path | None = None
    """File with the key. None: `session_key` is used."""
    session_hours: float = Field(default=8.0, ge=0.1, le=168, allow_inf_nan=False)
    """For how long a person stays signed in. Groups are read at sign-in, so this bounds how long a
    lost group still counts; the access file counts at once."""
    proxy: ProxySettings = ProxySettings()
    oidc: OidcSettings = OidcSettings()

    @field_validator("session_key")
    @classmethod
    def _is_long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(
            rf"[!-~]{{{SHORTEST_KEY},500}}", value.get_secret_value()
        ):
            raise ValueError(
                f"a key has {SHORTEST_KEY} or more visible ASCII characters: make one with "
                f"`openssl rand -hex 32`"
            )
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.access_file is None and (self.proxy.addresses or self.oidc.issuer):
            raise ValueError("access_file is needed: without it nobody has a role")
        if self.oidc.issuer is not None and (not self.oidc.client_id or self.public_url is None):
            raise ValueError("oidc.issuer needs oidc.client_id and public_url")
        if self.oidc.issuer is not None and "openid" not in self.oidc.scopes:
            raise ValueError("oidc.scopes must contain openid")
        return self

    @property
    def is_secure(self) -> bool:
        """Whether people reach the page over TLS."""
        return self.public_url is not None and self.public_url.startswith("https://")

    def insecure_connections(self, where: str) -> Iterable[str]:
        public, issuer = self.public_url, self.oidc.issuer
        if public is not None and not self.is_secure and not is_loopback(urlsplit(public).hostname):
            yield (
                f"{where}.public_url: people's sessions travel to {public} without TLS, and "
                f"whoever sees one can steer in their name: use https"
            )
        if (
            issuer is not None
            and issuer.startswith("http://")
            and not is_loopback(urlsplit(issuer).hostname)
        ):
            yield (f"{where}.oidc.issuer: {issuer} is asked who people are without TLS: use https")
