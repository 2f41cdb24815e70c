"""Settings of the endpoints that monitoring systems call, and of what their signals do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from controller.settings.section import HeaderName, ProxyAddresses, Section
from controller.settings.webhook_keys import NO_KEY, key_of

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
#: How a certificate is named: by its SHA-256, or by what is in its subject and its other names.
_CERTIFICATE: Final = re.compile(
    r"sha256:[0-9a-f]{64}|cn:[^\x00-\x1f]{1,200}|(dns|uri|email):[!-~]{1,500}"
)


def _certificate_name(text: str) -> str:
    """Return a name as certificates are compared: fingerprints in lower case and without colons."""
    kind, colon, name = text.partition(":")
    if kind == "sha256":
        name = name.replace(":", "").lower()
    if kind == "dns":
        name = name.lower()
    if not _CERTIFICATE.fullmatch(found := f"{kind}{colon}{name}"):
        raise ValueError(
            f"{text!r} names no certificate: write sha256: and its 64 hex digits, or cn:, dns:, "
            f"uri: or email: and the name in it"
        )
    return found


CertificateName = Annotated[str, AfterValidator(_certificate_name)]
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
    certificates: tuple[CertificateName, ...] = ()
    """Client certificates that may deliver, each as `sha256:` and its fingerprint, or as `cn:`,
    `dns:`, `uri:` or `email:` and a name in it. Needs `http.client_ca_file`, or `hooks.proxy`
    (fingerprints only)."""
    query_token: bool = False
    """Whether the token is also taken from the address, as `?access_token=...`, which CloudEvents
    let senders do. Proxies and senders write addresses into their logs; we never do. Only for
    cloudevents."""

    @model_validator(mode="after")
    def _proves_itself(self) -> Self:
        """Refuse an endpoint that anybody could call, and a proof that its source cannot give."""
        proofs = {"secret": self.secret, "token": self.token, "password": self.password}
        given = {name: secret for name, secret in proofs.items() if secret is not None}
        if len(given) + bool(self.certificates) != 1:
            can = "secret" if self.source in _SIGNING_ONLY else "token, password or certificates"
            if self.source in SIGNING - _SIGNING_ONLY:
                can = f"secret, {can}"
            raise ValueError(f"an endpoint for {self.source} needs exactly one of {can}")
        if self.query_token and (self.source != "cloudevents" or self.token is None):
            raise ValueError("query_token is for an endpoint of cloudevents with a token")
        if self.certificates:
            name, shortest = "certificates", None
        else:
            ((name, secret),) = given.items()
            shortest = len(secret.get_secret_value())
        if name == "secret" and self.source not in SIGNING:
            raise ValueError(f"{self.source} signs nothing: use token, or username and password")
        if name != "secret" and self.source in _SIGNING_ONLY:
            raise ValueError(f"{self.source} signs and sends nothing else: use secret")
        if bool(self.username) != (name == "password"):
            raise ValueError("username and password belong together")
        if name == "secret" and self.source == "standard_webhooks" and self._has_no_key:
            raise ValueError(NO_KEY)  # every delivery would be refused, or anybody could guess it
        if shortest is not None and shortest < _SHORTEST:
            raise ValueError(f"{name} is shorter than {_SHORTEST} characters: make a longer one")
        return self

    @property
    def _has_no_key(self) -> bool:
        return self.secret is None or key_of(self.secret.get_secret_value()) is None


class HookProxySettings(Section):
    """A proxy that checks the client certificates of senders, and says in a header which it saw."""

    addresses: ProxyAddresses = ()
    """Addresses or networks of the proxy, such as `10.0.0.5` or `10.0.1.0/24`. The header counts
    from there alone. Empty: there is no such proxy."""
    certificate_header: HeaderName = "client-cert"
    """Header with the certificate or its SHA-256, in lower case: `client-cert` of RFC 9440, what
    nginx has as `$ssl_client_escaped_cert`, `x-forwarded-client-cert` of Envoy. The proxy must
    remove it from what senders send."""


class HooksSettings(Section):
    """Monitoring systems that may lower, pause or hold flags. `ops/signals.md` says how."""

    endpoints: dict[HookName, HookSettings] = Field(default={})
    """The endpoints by name. Each takes the deliveries of one source."""
    rules_file: Path | None = None
    """File that says which signals concern which flags, and what they do. SIGHUP reads it again.
    None: signals are kept and shown, and do nothing."""
    proxy: HookProxySettings = HookProxySettings()
    max_body_bytes: int = Field(default=1_000_000, ge=1_024, le=10_000_000)
    """Longest delivery that is taken."""

    @property
    def is_on(self) -> bool:
        """Whether there is anything to listen for."""
        return bool(self.endpoints) or self.rules_file is not None
