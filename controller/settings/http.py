"""Settings of what clients connect to: the HTTP surface, and flagd's gRPC sync source."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from controller.settings.section import Count, Section, is_loopback

#: A token of random hex digits of this length has 128 bits: nobody guesses it.
SHORTEST_TOKEN: Final = 32
_TOKEN: Final = re.compile(rf"[!-~]{{{SHORTEST_TOKEN},200}}")


def _is_open_to_all(path: Path) -> bool:
    """Return whether every user of this machine may read a file; not for one that is not there."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False  # said when it is read


class HttpSettings(Section):
    """The HTTP surface: health, metrics, OFREP, the flagd document."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback, because anyone who can connect may read every rollout.
    0.0.0.0 in a container."""
    port: int = Field(default=8080, ge=0, le=65_535)
    """Port to listen on. 0 takes a free one."""
    ops_port: int | None = Field(default=8081, ge=0, le=65_535)
    """Port for liveness, readiness and metrics, which flag traffic can then not starve. 0 takes a
    free one. None: they are on `port` alone."""
    ops_host: str | None = None
    """Address of the second port. None: the same as `host`."""
    lease_seconds: Annotated[float, Field(ge=5, le=86_400, allow_inf_nan=False)] = 30.0
    """For how long a replica counts as up to date after a broker has last confirmed that its flags
    are the newest. After that `/readyz` names it, and its answers are marked as stale. 30 s rides
    out a broker's restart."""
    when_stale: Literal["serve_last", "serve_control", "refuse"] = "serve_last"
    """What a stale replica serves, and one that has just started and knows only what is remembered
    (`last_known`). `serve_last`: the last decision that it knows. In an outage of Kafka all
    replicas are stale, and none can decide otherwise; but a replica that is cut off alone may then
    serve what was rolled back elsewhere. `serve_control`: control to everybody, which
    takes the treatment from all users in every longer outage of Kafka. `refuse`: 503, so that
    clients use another replica, or the values that they have. Both of these also withhold the flagd
    document (503)."""
    certificate_file: Path | None = None
    """PEM file with the listener's certificate, those of its authorities after it. It is read again
    within 10 s after it has changed. Then `port` speaks TLS 1.2 and newer, and nothing else; the
    second port stays as it is. None: no TLS, which a proxy in front may add."""
    key_file: Path | None = None
    """PEM file with the certificate's key, without a password. None: it is in `certificate_file`.
    """
    client_ca_file: Path | None = None
    """PEM file with the authorities of client certificates, or with such certificates themselves.
    It is read again as the others are. Then clients may show one, which endpoints of `hooks` can
    require; others are answered without. One that these authorities did not sign, or that has
    expired, ends its connection. None: no client is asked for a certificate."""
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Host headers that are answered, without ports, so that a web page elsewhere cannot reach us
    by rebinding its name. `*.example.org` matches subdomains, `*` everything. Also add the names
    that the apps and Prometheus use for us."""
    bucketing: Literal["v2", "v3"] = "v3"
    """How OFREP assigns users: v3 as openfeature-flagd-core 2, to which flagd is moving; v2 as
    flagd 0.15 and 0.16. It must be the fleet's where both serve one flag: at 25 % the two disagree
    on a third of the users."""
    max_body_bytes: int = Field(default=65_536, ge=1_024, le=10_000_000)
    """Larger requests are refused. CloudEvents and evaluation contexts stay far below."""
    max_connections: Count = 1_000
    """Limit of open connections, which bounds the cost of idle ones. At the limit the connection
    that has been idle longest gives way to a new one; where none is idle the answer is 503."""
    max_connections_per_client: int | None = Field(default=None, ge=0)
    """Connections of one client address, or of one IPv6 /64. More are answered 503. None: a quarter
    of `max_connections`. 0: no limit, for a daemon behind a proxy, which makes all clients one."""
    max_bulk_per_second: float = Field(default=200.0, ge=0, le=1_000_000, allow_inf_nan=False)
    """Bulk evaluations of one client address per second, twice as many in a burst. More are
    answered 429. A page sends one, an app that polls sends two a minute. 0: no limit, as behind a
    proxy."""
    max_event_streams: int = Field(default=200, ge=0, le=100_000)
    """OFREP clients that are notified of changes, each on a connection of its own that stays open.
    More are answered 503 and poll. Keep it well below `max_connections`. 0: the stream is not
    offered."""

    readers: Literal["nobody", "loopback", "anyone"] = "loopback"
    """Who may read about rollouts: the page, `/api/v1`, `/rollouts` and `/events`. `loopback`:
    whoever connects while `host` is a loopback address; on any other address they are refused with
    an explanation. `anyone`: whoever can connect; right where a proxy asks who they are, or where
    a container's port is published on loopback alone. `nobody`: they are refused. Health, metrics,
    OFREP and flagd are answered in any case."""
    max_page_streams: int | None = Field(default=None, ge=0, le=100_000)
    """Open pages that are kept current, each on a connection of its own that stays open. More are
    answered 503, and show what they have until they are reloaded. None: a fifth of
    `max_connections`."""

    command_token: SecretStr | None = None
    """Lets whoever knows it lower flags over HTTP, for when Kafka is away: `POST
    /rollouts/FLAG/roll-back`, and `abort`, `kill`, `pause`. At least 32 characters without spaces;
    several lines are several tokens, so that one can be replaced. It travels as it is: set
    `certificate_file`, or put TLS in front. None: there are no such routes."""
    command_token_file: Path | None = None
    """File with the token. None: `command_token` is used."""

    @field_validator("command_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse a token that could be guessed."""
        for line in () if value is None else value.get_secret_value().splitlines() or [""]:
            if not _TOKEN.fullmatch(line):
                raise ValueError(
                    f"a token is {SHORTEST_TOKEN} to 200 visible ASCII characters on one line: "
                    f"make one with `openssl rand -hex 32`"
                )
        return value

    def insecure_connections(self, where: str) -> Iterable[str]:
        has_tls = self.certificate_file is not None
        if self.command_token is not None and not is_loopback(self.host) and not has_tls:
            yield (
                f"{where}.command_token: whoever sees a request on the way to {self.host} reads "
                f"the token and can lower every flag: set {where}.certificate_file, put a proxy "
                f"with TLS in front, or listen on loopback"
            )
        key = self.key_file or self.certificate_file
        if key is not None and _is_open_to_all(key):
            name = "certificate_file" if self.key_file is None else "key_file"
            yield (
                f"{where}.{name}: every user of this machine can read the key in {key} and pass "
                f"for rolloutd: chmod o-rwx {key}"
            )

    @model_validator(mode="after")
    def _leave_room(self) -> Self:
        if self.max_event_streams + (self.max_page_streams or 0) >= self.max_connections:
            raise ValueError(
                "max_event_streams, with max_page_streams, must be less than max_connections, or "
                "streams take every connection"
            )
        if self.key_file is not None and self.certificate_file is None:
            raise ValueError("key_file needs certificate_file")
        if self.client_ca_file is not None and self.certificate_file is None:
            raise ValueError("client_ca_file needs certificate_file")
        if self.ops_port and self.ops_port == self.port:
            raise ValueError("ops_port must be another port than port")
        return self

    @property
    def page_streams(self) -> int:
        """Open pages that are kept current."""
        fifth = self.max_connections // 5
        return fifth if self.max_page_streams is None else self.max_page_streams

    @property
    def why_not_shown(self) -> str | None:
        """Why nobody may read about rollouts over HTTP; None where they may."""
        if self.readers == "anyone" or (self.readers == "loopback" and is_loopback(self.host)):
            return None
        if self.readers == "nobody":
            return "rollouts are not shown over HTTP: http.readers is nobody"
        return (
            f"rollouts are not shown: this daemon listens on {self.host}, and whoever can connect "
            f"could read all of them. Set http.readers to anyone if that is meant, as behind a "
            f"proxy that asks who they are, or listen on 127.0.0.1"
        )

    @property
    def connections_per_client(self) -> int:
        """Connections that one client may hold; 0: no limit per client."""
        limit = self.max_connections_per_client
        return max(1, self.max_connections // 4) if limit is None else limit


class FlagdSyncSettings(Section):
    """flagd's gRPC sync source: for flagd, and for providers that evaluate in the app.

    Needs the extra `rolloutd[grpc]`.
    """

    port: int | None = Field(default=None, ge=0, le=65_535)
    """Port to listen on. flagd's own is 8015; 0 takes a free one. None: it is not offered, and
    grpcio need not be installed."""
    host: str = "127.0.0.1"
    """Address to listen on. Loopback, because anyone who can connect may read every rollout.
    0.0.0.0 in a container."""
    certificate_file: Path | None = None
    """PEM file with our certificate. None: no TLS."""
    key_file: Path | None = None
    """PEM file with the key of our certificate. None: it is in `certificate_file`."""
    max_streams: Count = 200
    """Clients that are synced at the same time. More are refused, and try again."""
    max_streams_per_client: int | None = Field(default=None, ge=0)
    """Calls of one client address, or of one IPv6 /64, at the same time. More are refused, and try
    again. None: half of `max_streams`. 0: no limit, as behind a proxy, which makes all clients one.
    """

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.key_file and not self.certificate_file:
            raise ValueError("key_file needs certificate_file")
        return self

    @property
    def streams_per_client(self) -> int:
        """Calls that one client may have at the same time; 0: no limit per client."""
        limit = self.max_streams_per_client
        return max(1, self.max_streams // 2) if limit is None else limit
