"""Settings of the channels on which people hear of what happens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from controller.settings.section import HttpUrl, Seconds, Section, is_loopback

ChannelType = Literal[
    "slack",
    "slack_webhook",
    "teams",
    "discord",
    "pagerduty",
    "alertmanager",
    "email",
    "webhook",
    "apprise",
]
ChannelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _is_address(value: str) -> str:
    if not _MAIL_ADDRESS.match(value):
        raise ValueError("is no mail address: write it as in ada@example.com, without a name")
    return value


_MAIL_ADDRESS: Final = re.compile(r"[^@\s<>\"]{1,64}@[^@\s<>\"]{1,255}\Z")
_Address = Annotated[str, AfterValidator(_is_address)]

#: What each type needs, and what else it can use.
_NEEDS: Final[Mapping[ChannelType, tuple[frozenset[str], frozenset[str]]]] = {
    "slack": (frozenset({"token", "place"}), frozenset({"base_url"})),
    "slack_webhook": (frozenset({"url"}), frozenset()),
    "teams": (frozenset({"url"}), frozenset()),
    "discord": (frozenset({"url"}), frozenset()),
    "pagerduty": (frozenset({"token"}), frozenset({"base_url"})),
    "alertmanager": (frozenset({"addresses"}), frozenset({"token", "username", "password"})),
    "email": (
        frozenset({"server", "sender", "recipients"}),
        frozenset({"port", "tls", "username", "password"}),
    ),
    "webhook": (frozenset({"url", "secret"}), frozenset()),
    "apprise": (frozenset({"url"}), frozenset()),
}
_OWN: Final = frozenset().union(*(needed | other for needed, other in _NEEDS.values()))


class ChannelSettings(Section):
    """One way to reach people. Its name is its key."""

    type: ChannelType
    """How they are reached. `ops/notifications.md` says what each type needs."""
    url: SecretStr | None = None
    """Address that is posted to, as the other side shows it. For slack_webhook, teams, discord,
    webhook and apprise. It is a secret: whoever knows it can write there."""
    url_file: Path | None = None
    """File with the address. None: `url` is used."""
    token: SecretStr | None = None
    """For slack the bot's token (`xoxb-...`), for pagerduty the integration key, for alertmanager
    a bearer token."""
    token_file: Path | None = None
    """File with the token. None: `token` is used."""
    secret: SecretStr | None = None
    """For webhook: what a delivery is signed with, `whsec_...` as in Standard Webhooks."""
    secret_file: Path | None = None
    """File with the secret. None: `secret` is used."""
    place: str = Field(default="", max_length=100)
    """For slack: id of the channel, as in `C0123456789`."""
    base_url: HttpUrl | None = None
    """For slack and pagerduty: another address than the service's own, as for PagerDuty in the EU
    or a proxy. None: https://slack.com, https://events.pagerduty.com."""
    addresses: tuple[HttpUrl, ...] = Field(default=(), max_length=10)
    """For alertmanager: every member of its cluster, as in http://alertmanager:9093."""
    server: str = Field(default="", max_length=255)
    """For email: host name of the mail server."""
    port: int | None = Field(default=None, ge=1, le=65_535)
    """For email: its port. None: 587, with tls `on_connect` 465."""
    tls: Literal["starttls", "on_connect", "off"] = "starttls"
    """For email: `off` is refused for a server on another machine when there is a password."""
    sender: _Address | None = None
    """For email: address that it comes from."""
    recipients: tuple[_Address, ...] = Field(default=(), max_length=50)
    """For email: addresses that it goes to."""
    username: str = Field(default="", max_length=300)
    """For email and alertmanager: name to log in with."""
    password: SecretStr | None = None
    """For email and alertmanager: password to log in with."""
    password_file: Path | None = None
    """File with the password. None: `password` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    timeout_seconds: Seconds = 10.0
    """Deadline of one message, first byte to last."""
    per_minute: float | None = Field(default=None, gt=0, le=6_000, allow_inf_nan=False)
    """Most messages in a minute. None: what the other side allows."""

    @field_validator("url")
    @classmethod
    def _check_address(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse what cannot be posted to. No message repeats the address, which is a secret."""
        text = "" if value is None else value.get_secret_value()
        if text and (not text.isprintable() or " " in text or "://" not in text):
            raise ValueError("is no address: write it as the other side shows it")
        return value

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        """Refuse a channel that lacks what its type needs, or has what it cannot use."""
        needed, other = _NEEDS[self.type]
        given = {name for name in _OWN if getattr(self, name) not in (None, "", ())}
        given -= {"tls"} if "tls" not in self.model_fields_set else set()
        for name in ("url", "token", "secret", "password"):
            value: SecretStr | None = getattr(self, name)
            if value is not None and not value.get_secret_value().strip():
                raise ValueError(f"{name} is empty, or the file that {name}_file names")
        if missing := sorted(needed - given):
            raise ValueError(f"a channel of type {self.type} needs {', '.join(missing)}")
        if unused := sorted(given - needed - other):
            raise ValueError(f"a channel of type {self.type} cannot use {', '.join(unused)}")
        if bool(self.username) != (self.password is not None):
            raise ValueError("username and password belong together")
        if self.url is not None and self.type != "apprise":
            parts = urlsplit(self.url.get_secret_value())
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("url is no HTTP address: write it as the other side shows it")
        is_near = is_loopback(self.server or None)
        if self.tls == "off" and self.password is not None and self.server and not is_near:
            raise ValueError("tls off would send the password in plain text: use starttls")
        return self

    def plain_text(self) -> str | None:
        """Return the host to which a secret would travel in plain text; None: to none."""
        secret_url = "" if self.url is None else self.url.get_secret_value()
        urls = [secret_url, self.base_url or "", *(self.addresses if self.token else ())]
        urls += self.addresses if self.password else ()
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme == "http" and not is_loopback(parts.hostname):
                return parts.hostname
        return None


class NotificationsSettings(Section):
    """How people hear of what happens. `ops/notifications.md` says how to set it up."""

    channels: dict[ChannelName, ChannelSettings] = Field(default={}, max_length=100)
    """The channels by name. Without any, nobody is notified by rolloutd itself."""
    rules_file: Path | None = None
    """File that says who hears of what, who is next, and what is muted. SIGHUP reads it again.
    None: every channel hears of warnings and worse."""
    page_url: HttpUrl | None = None
    """Address of rolloutd as people open it, for links in messages. None: `sign_in.public_url`;
    without both there are no links."""

    @property
    def is_on(self) -> bool:
        """Whether anybody is to be notified."""
        return bool(self.channels)

    def insecure_connections(self, where: str) -> Iterable[str]:
        """Return each channel whose secret travels in plain text over a network."""
        for name, channel in self.channels.items():
            if (host := channel.plain_text()) is not None:
                yield (
                    f"{where}.channels.{name}: its secret travels to {host} in plain text: write "
                    f"https://"
                )
