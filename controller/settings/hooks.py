"""Settings of the endpoints that monitoring systems call, and of what their signals do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, model_validator

from controller.settings.section import Section

Source = Literal[
    "alertmanager",
    "better_stack",
    "cloudevents",
    "datadog",
    "grafana",
    "pagerduty",
    "sentry",
    "standard_webhooks",
    "uptime_kuma",
]
HookName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

#: Sources that sign what they send. The others send a token, or a name and a password.
SIGNING: Final = frozenset({"grafana", "pagerduty", "sentry", "standard_webhooks"})
#: Sources that cannot send an Authorization header.
_SIGNING_ONLY: Final = frozenset({"sentry"})
_SHORTEST: Final = 16


class HookSettings(Section):
    """One endpoint: `POST /hooks/<source>/<name>`. The name is its key."""

    source: Source
    """Whose deliveries it takes."""
    secret: SecretStr | None = None
    """What the source signs with. For grafana, pagerduty, sentry and standard_webhooks (there as
    `whsec_...`)."""
    secret_file: Path | None = None
    """File with the secret. None: `secret` is used."""
    token: SecretStr | None = None
    """What the source sends as `Authorization: Bearer ...`."""
    token_file: Path | None = None
    """File with the token. None: `token` is used."""
    username: str = ""
    """Name that the source sends by basic authentication, with `password`."""
    password: SecretStr | None = None
    """Password that the source sends by basic authentication."""
    password_file: Path | None = None
    """File with the password. None: `password` is used."""

    @model_validator(mode="after")
    def _proves_itself(self) -> Self:
        """Refuse an endpoint that anybody could call, and a proof that its source cannot give."""
        proofs = {"secret": self.secret, "token": self.token, "password": self.password}
        given = {name: secret for name, secret in proofs.items() if secret is not None}
        if len(given) != 1:
            can = "secret" if self.source in _SIGNING_ONLY else "token or password"
            if self.source in SIGNING - _SIGNING_ONLY:
                can = f"secret, {can}"
            raise ValueError(f"an endpoint for {self.source} needs exactly one of {can}")
        ((name, secret),) = given.items()
        if name == "secret" and self.source not in SIGNING:
            raise ValueError(f"{self.source} signs nothing: use token, or username and password")
        if name != "secret" and self.source in _SIGNING_ONLY:
            raise ValueError(f"{self.source} signs and sends nothing else: use secret")
        if bool(self.username) != (name == "password"):
            raise ValueError("username and password belong together")
        if len(secret.get_secret_value()) < _SHORTEST:
            raise ValueError(f"{name} is shorter than {_SHORTEST} characters: make a longer one")
        return self


class HooksSettings(Section):
    """Monitoring systems that may lower, pause or hold flags. `ops/signals.md` says how."""

    endpoints: dict[HookName, HookSettings] = Field(default={})
    """The endpoints by name. Each takes the deliveries of one source."""
    rules_file: Path | None = None
    """File that says which signals concern which flags, and what they do. SIGHUP reads it again.
    None: signals are kept and shown, and do nothing."""
    max_body_bytes: int = Field(default=1_000_000, ge=1_024, le=10_000_000)
    """Longest delivery that is taken."""

    @property
    def is_on(self) -> bool:
        """Whether there is anything to listen for."""
        return bool(self.endpoints) or self.rules_file is not None
