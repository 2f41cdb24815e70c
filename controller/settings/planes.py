"""Settings of the flag planes: the systems that serve flags to apps besides ourselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from controller.settings.redis import RedisAddressSettings
from controller.settings.section import HttpUrl, RedisUrl, Seconds, Section
from schemas.terms import NAME_PATTERN

PlaneName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]


class RedisPlaneSettings(RedisAddressSettings):
    """Redis keys for simple readers: `flag:<key>` and `flag:<key>:rollout`.

    See ops/planes.md.
    """

    url: RedisUrl | None = None
    """`redis://host:port/db`, `rediss://` for TLS, `unix:///path`. It may be another Redis than
    ours. None: no such plane. A single Redis, not a cluster: the keys of a flag lie in different
    slots and could not be written together."""
    key_prefix: str = Field(default="flag:", pattern=r"^[A-Za-z0-9._:-]{0,64}$")
    """Put before every key. `flag:` is the convention."""
    call_timeout_seconds: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 0.5
    """Deadline of one command. A plane is checked again every few seconds, so no command is
    repeated before."""


class FilePlaneSettings(Section):
    """A file of flag definitions that another program reads. Only rolloutd writes it.

    See ops/planes.md.
    """

    path: Path
    """The file. Its directory must exist, and we must be allowed to write there, because the file
    is replaced as a whole. A temporary file and a lock file `.<name>.lock` stand beside it."""
    format: Literal["flagd", "go-feature-flag"] = "flagd"
    """Format of the definitions: flagd's JSON, or GO Feature Flag's, which are JSON or YAML by the
    file's ending."""

    @model_validator(mode="after")
    def _known_ending(self) -> Self:
        endings = {"flagd": (".json",), "go-feature-flag": (".json", ".yaml", ".yml")}[self.format]
        if self.path.suffix not in endings:
            raise ValueError(
                f"a {self.format} file ends in {' or '.join(endings)}: its readers go by that"
            )
        return self


class HttpPlaneSettings(Section):
    """A flag system that is set by one HTTP call, worded by a template. See ops/planes.md."""

    template: str = Field(min_length=1, max_length=1_000)
    """One of ours (`launchdarkly`, `flagsmith`, `growthbook`, `webhook`) or the path of a template
    file."""
    values: dict[str, str] = Field(default={})
    """Values for the template's placeholders, by name: project, environment, address. Never a
    secret, because these values are shown unmasked."""
    secret: SecretStr | None = None
    """The access token, or the key that signs requests, as the template uses it. None: the template
    uses none."""
    secret_file: Path | None = None
    """File with the secret. None: `secret` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    allow_plain_http: bool = False
    """Whether `http://` may be used to other hosts than loopback. Anyone on the network path could
    then read the secret."""
    call_timeout_seconds: Annotated[float, Field(gt=0, le=3, allow_inf_nan=False)] = 1.0
    """Deadline of one exchange, first byte to last. Reading, writing and reading back fit into 3 s
    together."""
    check_interval_seconds: Annotated[float, Field(ge=1, le=3_600, allow_inf_nan=False)] = 30.0
    """Time between two readings of the served percentage while nothing changes. It bounds how long
    a foreign edit lasts, and saves calls, which most such services limit."""
    max_answer_bytes: int = Field(default=1_000_000, ge=1_024, le=10_000_000)
    """Longer answers are refused. The answer about a flag with thousands of targeted users is
    long."""


class UnleashSettings(Section):
    """The flag plane of apps that use Unleash (self-hosted 7.x or 8.x), by its Admin API."""

    url: HttpUrl | None = None
    """Base address before `/api/admin`. None: no Unleash is driven."""
    token: SecretStr | None = None
    """Admin API token, sent as it is. Give it access to this project and environment alone where
    your Unleash can do that. None: `url` must be None too."""
    token_file: Path | None = None
    """File with the token. None: `token` is used."""
    project: str = Field(default="default", pattern=NAME_PATTERN)
    """Project that holds the flags."""
    environment: str = Field(default="production", pattern=NAME_PATTERN)
    """Environment whose percentage is decided here. Other environments are not changed."""
    create_flags: bool = False
    """Create a flag that Unleash does not have, of the plan's type. False: it must exist, so that a
    mistyped key is reported."""
    stickiness: str = Field(default="userId", pattern=NAME_PATTERN)
    """Context field that decides which users are in treatment. It must be what the apps report as
    context id. Unleash's own `default` falls back to the session and then to chance, which would
    move users between variants."""
    archive_after_days: float | None = Field(default=None, ge=1, le=3_650, allow_inf_nan=False)
    """Archive a flag this long after its rollout ended. An archived flag is off in every
    environment. It is therefore archived only if no SDK has requested it for as long wherever it is
    on, and no other strategy is enabled here. None: flags are never archived."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    certificate_file: Path | None = None
    """PEM file with our client certificate. None: we send none."""
    key_file: Path | None = None
    """PEM file with the key of our certificate, without a password. None: it is in
    `certificate_file`."""
    connect_timeout_seconds: Seconds = 1.0
    """Deadline for a new connection. After it the server counts as away."""
    request_timeout_seconds: Annotated[float, Field(gt=0, le=5, allow_inf_nan=False)] = 2.0
    """Deadline of one request, first byte to last. A read and a write together must fit into a
    reconcile period of 5 s."""
    max_backoff_seconds: Annotated[float, Field(ge=1, le=600, allow_inf_nan=False)] = 30.0
    """Longest wait between tries while the server fails. Lowering a flag is tried at once, and
    again every 5 s."""
    max_answer_bytes: int = Field(default=1_000_000, ge=16_384, le=100_000_000)
    """A longer answer is refused. A flag with all its strategies and segments takes some
    kilobytes."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.url is not None and self.token is None:
            raise ValueError("url needs token (or token_file): an Admin API token")
        if self.token is not None and not (
            self.token.get_secret_value().isascii() and self.token.get_secret_value().isprintable()
        ):
            raise ValueError("token is not one line of ASCII: copy it from Unleash once more")
        if self.key_file and not self.certificate_file:
            raise ValueError("key_file needs certificate_file")
        return self


class PlanesSettings(Section):
    """Further systems that serve flags.

    OFREP, flagd's HTTP document and the state topic are always there, without settings here.
    """

    redis: RedisPlaneSettings = RedisPlaneSettings()
    unleash: UnleashSettings = UnleashSettings()
    files: dict[PlaneName, FilePlaneSettings] = Field(default={})
    """Files by a name of yours. The plane is then called `file:<name>`."""
    http: dict[PlaneName, HttpPlaneSettings] = Field(default={})
    """HTTP calls by a name of yours. The plane is then called `http:<name>`."""
