"""What an operator can set.

One frozen model, read once at start from a YAML file and `ROLLOUTD_` variables.

Belongs here: every setting with its meaning, unit and default, and the only look at the
environment. A variable names a setting by its path, `__` between the steps
(`ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS`), and beats the file. Lists and maps are written as JSON in a
variable. A secret can be given as `<name>_file`, the path of a file that holds it. Does not belong
here: plans (operators publish them), and anything a formula fixes.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import ssl
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from controller.errors import ConfigInvalid
from schemas.formats import EventFormat
from schemas.terms import NAME_PATTERN

PREFIX = "ROLLOUTD_"
CONFIG_VARIABLE = "ROLLOUTD_CONFIG"

# : Variables with our prefix that are not settings: where the settings are, and what only tests and
# tools read.
NOT_SETTINGS = frozenset({CONFIG_VARIABLE})
NOT_SETTINGS_PREFIXES = ("ROLLOUTD_TEST_", "ROLLOUTD_ALLOW_")

Seconds = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
KafkaName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
EnvironmentName = Annotated[str, Field(pattern=NAME_PATTERN)]
MASK = "********"

DEFAULT_ENVIRONMENT = "production"
DEFAULT_KEY_PREFIX = "rolloutd:"
MAX_KEY_PREFIX = 64


def _http_url(value: str) -> str:
    """Refuse anything but http and https with a host, and passwords in the open."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give an address like http://127.0.0.1:8081")
    if parts.username or parts.password:
        raise ValueError(
            "keep the secret out of the address: there is a setting of its own for it, and "
            "one for a file"
        )
    return value.rstrip("/")


def _redis_url(value: str) -> str:
    """Refuse what redis-py cannot open, and passwords in the open."""
    parts = urlsplit(value)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("give an address like redis://127.0.0.1:6379/0, rediss:// for TLS")
    if parts.username or parts.password:
        raise ValueError(
            "keep the secret out of the address: use username and password or password_file"
        )
    return value


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _named_section(annotation: Any) -> type[BaseModel] | None:
    """Return the section that stands under each name of a mapping such as `dict[PlaneName, HttpPlaneSettings]`, else None."""
    inner = get_args(annotation)[1] if get_origin(annotation) is dict else None
    return inner if _is_section(inner) else None


class _Section(BaseModel):
    """A frozen part of the settings.

    Unknown keys are refused, `<secret>_file` is read into `<secret>`.

    A section with nothing under it (`kafka:`, all lines commented out) has its defaults.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        merged = dict(values)
        for name, field in cls.model_fields.items():
            is_part = _is_section(field.annotation) or _named_section(field.annotation) is not None
            if is_part and name in merged and merged[name] is None:
                del merged[name]
            file_name = f"{name}_file"
            if (
                SecretStr not in (field.annotation, *get_args(field.annotation))
                or merged.get(file_name) is None
            ):
                continue
            if merged.get(name) is not None:
                raise ValueError(f"{name} and {file_name} are both given: keep one")
            try:
                merged[name] = (
                    Path(str(merged[file_name])).read_text(encoding="utf-8").rstrip("\r\n")
                )
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{file_name} cannot be read: {error}") from error
        return merged


class KafkaSecurity(_Section):
    """How we prove to Kafka who we are, and check who it is."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Kafka's `security.protocol`. PLAINTEXT suits loopback and a private network only; it is Kafka's own default."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """Used when the protocol is a SASL one. The strongest of the three that every broker has."""
    username: str | None = None
    """SASL user. None: no SASL."""
    password: SecretStr | None = None
    """SASL password. None: no SASL."""
    password_file: Path | None = None
    """File with the SASL password. None: `password` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the brokers' certificates. None: the system's."""
    certificate_file: Path | None = None
    """PEM file with our client certificate. None: we show none."""
    key_file: Path | None = None
    """PEM file with the key of our certificate. None: it is in `certificate_file`."""
    key_password: SecretStr | None = None
    """Password of the key. None: it has none."""
    key_password_file: Path | None = None
    """File with the password of the key. None: `key_password` is used."""

    @property
    def uses_tls(self) -> bool:
        """True when the connection is encrypted."""
        return self.protocol.endswith("SSL")

    @property
    def uses_sasl(self) -> bool:
        """True when user and password are sent."""
        return self.protocol.startswith("SASL")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.uses_sasl and (self.username is None or self.password is None):
            raise ValueError(f"{self.protocol} needs username and password (or password_file)")
        if not self.uses_sasl and (self.username is not None or self.password is not None):
            raise ValueError(
                f"{self.protocol} sends no username and password: use SASL_SSL, or remove them"
            )
        if not self.uses_tls and (self.ca_file or self.certificate_file or self.key_file):
            raise ValueError(
                f"{self.protocol} uses no certificates: use SSL or SASL_SSL, or remove them"
            )
        if self.key_file and not self.certificate_file:
            raise ValueError("key_file needs certificate_file")
        return self

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the TLS context, None without TLS.

        Raises ConfigInvalid when a file cannot be used.
        """
        if not self.uses_tls:
            return None
        try:
            context = ssl.create_default_context(
                cafile=None if self.ca_file is None else str(self.ca_file)
            )
            if self.certificate_file is not None:
                password = (
                    None if self.key_password is None else self.key_password.get_secret_value()
                )
                context.load_cert_chain(self.certificate_file, self.key_file, password)
        except (OSError, ssl.SSLError) as error:
            raise ConfigInvalid(
                f"kafka.security: the certificates cannot be used: {error}"
            ) from error
        return context


class TopicNames(_Section):
    """The topics, before `topic_prefix`. The defaults are the contract's names."""

    evaluations: KafkaName = "flag.evaluations"
    """Apps write which user was served which variant."""
    outcomes: KafkaName = "request.outcomes"
    """Apps write what happened to requests. Must have as many partitions as `evaluations`."""
    commands: KafkaName = "rollout.commands"
    """Operators write commands. Its partitions share the flags among the replicas."""
    results: KafkaName = "rollout.results"
    """We answer commands."""
    decisions: KafkaName = "rollout.decisions"
    """We write each decision with its evidence; the audit log."""
    alerts: KafkaName = "rollout.alerts"
    """We write what people must know."""
    state: KafkaName = "rollout.state"
    """We write the rollout's document after each transition. Compacted; apps may follow it, we recover from it."""
    quarantine: KafkaName = "rollout.quarantine"
    """We write records that were refused, and why."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = list(self.model_dump().values())
        if self.evaluations == self.outcomes:
            names.remove(self.outcomes)  # spans are both: see KafkaSettings
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two topics are both called {name!r}: give each its own name")
        return self


class EventFormats(_Section):
    """How the two event topics are written.

    See ops/formats.md for what must be configured at the sender.
    """

    evaluations: EventFormat = EventFormat.ROLLOUTD
    """`rolloutd`: our CloudEvents. `otlp_json`, `otlp_proto`: logs as the OpenTelemetry Collector's Kafka exporter writes
    them, or spans, if the topic is the outcomes' as well. `go_feature_flag`: what its Kafka exporter writes."""
    outcomes: EventFormat = EventFormat.ROLLOUTD
    """`rolloutd`, or `otlp_json`, `otlp_proto` for spans as the Collector's Kafka exporter writes them."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.outcomes is EventFormat.GO_FEATURE_FLAG:
            raise ValueError(
                "GO Feature Flag exports no outcomes: let apps send them, or take them from spans"
            )
        if (
            EventFormat.OTLP_PROTO in (self.evaluations, self.outcomes)
            and find_spec("opentelemetry.proto") is None
        ):
            raise ValueError(
                "otlp_proto needs the extra `otlp`, as in pip install 'rolloutd[otlp]'; "
                "otlp_json needs none"
            )
        return self


class KafkaSettings(_Section):
    """The event log."""

    bootstrap_servers: str = "127.0.0.1:9092"
    """`host:port`, several separated by commas; at least one must answer at start."""
    client_id: KafkaName = "rolloutd"
    """How brokers name us in their logs and quotas."""
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,100}$")
    """Put before every topic name, e.g. `staging.`: several environments on one cluster. Empty: none."""
    topics: TopicNames = TopicNames()
    """Topic names, where they must differ from the contract's."""
    formats: EventFormats = EventFormats()
    """How the records of the event topics are written. Ours unless an instrumented fleet writes them already."""
    topic_epoch: int = Field(default=1, ge=1)
    """Raise by one after an event topic was deleted and made anew: its offsets start over, and so does counting."""
    group_id: KafkaName = "rolloutd"
    """Consumer group of the replicas that count; `<group_id>.commands` reads commands. `topic_prefix` is put before."""
    static_member_id: KafkaName | None = None
    """A name only this replica has, kept over its restarts (a StatefulSet's pod name): a restart shorter than the session
    timeout then moves no partitions. None: dynamic membership, which needs no bookkeeping."""
    security: KafkaSecurity = KafkaSecurity()
    """Authentication and encryption."""
    create_topics: bool = True
    """Make missing topics at start, where Kafka permits. False: missing topics are waited for."""
    partitions: int = Field(default=8, ge=1, le=10_000)
    """Partitions of a topic we make: the most replicas that can share its work. 8 leaves room to grow from one."""
    replication_factor: int | None = Field(default=None, ge=1, le=32)
    """Copies of a topic we make. None: 3, or as many as there are brokers if they are fewer."""
    session_timeout_seconds: float = Field(default=10.0, ge=0.5, le=1800.0)
    """A replica unheard of for this long loses its partitions. 10 s rides out a pause of the machine; brokers refuse
    less than their `group.min.session.timeout.ms` (6 s by default)."""
    heartbeat_interval_seconds: float = Field(default=3.0, ge=0.1, le=600.0)
    """Time between signs of life; a third of the session timeout or less."""
    revoke_seconds: Seconds = 3.0
    """Time for a last save before partitions are handed over; the whole group waits for it."""
    request_timeout_seconds: Seconds = 15.0
    """A broker that has not answered a request for this long is given up; must exceed the session timeout, for which a
    group may let a member wait."""
    call_seconds: Seconds = 5.0
    """Deadline of each of our calls: a look-up, a commit, publishing one batch."""
    start_seconds: Seconds = 20.0
    """Deadline for joining a group; a dead member of it is waited for up to the session timeout."""
    stop_seconds: Seconds = 1.5
    """Deadline for leaving a group and closing; after it connections are cut, which costs the group a session timeout."""
    fetch_max_wait_seconds: Seconds = 0.1
    """How long a broker may hold a fetch when nothing has arrived: it bounds how old a breach is when we see it."""
    max_record_bytes: int = Field(default=1_000_000, ge=16_384, le=100_000_000)
    """Largest record we write; larger decisions are trimmed. Just below Kafka's own limit of 1 MiB."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heartbeat_interval_seconds * 3 > self.session_timeout_seconds + 1e-9:
            raise ValueError(
                "heartbeat_interval_seconds must be a third of session_timeout_seconds or less"
            )
        if self.request_timeout_seconds <= self.session_timeout_seconds:
            raise ValueError("request_timeout_seconds must exceed session_timeout_seconds")
        if self.revoke_seconds >= self.session_timeout_seconds:
            raise ValueError("revoke_seconds must be less than session_timeout_seconds")
        if self.is_one_topic and not (
            self.formats.outcomes.is_otlp and self.formats.evaluations is self.formats.outcomes
        ):
            raise ValueError(
                "topics.evaluations and topics.outcomes may be one only if both formats "
                "are the same OTLP one"
            )
        return self

    def topic(self, logical: str) -> str:
        """Return the full name of a topic by its logical name (`evaluations`, `state`, ...).

        Raises KeyError.
        """
        if logical not in TopicNames.model_fields:
            raise KeyError(logical)
        name: str = getattr(self.topics, logical)
        return self.topic_prefix + name

    @property
    def event_topics(self) -> tuple[str, str]:
        """Full names of the two topics that are counted: evaluations, outcomes."""
        return self.topic("evaluations"), self.topic("outcomes")

    @property
    def is_one_topic(self) -> bool:
        """True when one topic holds the evaluations and the outcomes: spans are both."""
        return self.topics.evaluations == self.topics.outcomes

    @property
    def events_group(self) -> str:
        """Full name of the group that counts."""
        return self.topic_prefix + self.group_id

    @property
    def commands_group(self) -> str:
        """Full name of the group that reads commands; it shares the flags among replicas."""
        return f"{self.events_group}.commands"


class RedisSettings(_Section):
    """The store of totals and rollouts."""

    url: Annotated[str, AfterValidator(_redis_url)] = "redis://127.0.0.1:6379/0"
    """`redis://host:port/db`, `rediss://` for TLS, `unix:///path`."""
    username: str | None = None
    """ACL user. None: Redis' `default`."""
    password: SecretStr | None = None
    """None: no authentication."""
    password_file: Path | None = None
    """File with the password. None: `password` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities for `rediss://`. None: the system's."""
    is_cluster: bool = False
    """Whether the address is a node of a Redis Cluster. Keys carry hash tags either way."""
    key_prefix: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._:-]{1,64}$")
    """Put before every key, so that an ACL can name what is ours; braces would break the hash tags.
    None: made of `environment` and `kafka.topic_prefix`, so that two environments never share a key:
    `rolloutd:` for production without a topic prefix, else as `rolloutd:staging.:staging:`."""
    connect_timeout_seconds: Seconds = 2.0
    """Deadline for a new connection."""
    call_timeout_seconds: Seconds = 1.0
    """Deadline of one command. A command past it has an unknown outcome and is sent again with the same arguments."""
    max_connections: Count = 16
    """Connections kept at most; more callers wait."""
    health_check_seconds: Seconds = 15.0
    """A connection idle for this long is tried with a PING before use."""


class AdvisorSettings(_Section):
    """The language model that is asked at gates.

    Any OpenAI-compatible server, LocalAI first, or Ollama.
    """

    url: Annotated[str, AfterValidator(_http_url)] | None = None
    """Base address before `/v1/chat/completions` or `/api/chat`. None: nobody is asked; plans that require advice then hold."""
    protocol: Literal["openai", "ollama"] = "openai"
    """`openai`: chat completions, as LocalAI, llama.cpp's server and vLLM speak. `ollama`: its own `/api/chat`, which, other
    than its OpenAI-compatible address, can be told how large a context to load."""
    model: str = Field(default="rolloutd-advisor", min_length=1, max_length=200)
    """Name of the model as the server knows it."""
    api_key: SecretStr | None = None
    """Sent as a bearer token. None: none is sent."""
    api_key_file: Path | None = None
    """File with the key. None: `api_key` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    certificate_file: Path | None = None
    """PEM file with our client certificate. None: we show none."""
    key_file: Path | None = None
    """PEM file with the key of our certificate, without a password. None: it is in `certificate_file`."""
    deadline_seconds: Seconds = 30.0
    """The whole call, first byte to last. A small model on a CPU answers in 5 to 20 s; bakes are minutes to days."""
    connect_timeout_seconds: Seconds = 2.0
    """A server that accepts no connection by then is away."""
    max_answer_bytes: int = Field(default=65_536, ge=1_024, le=10_000_000)
    """More is cut off and counts as no advice. Ten times the longest answer the schema allows."""
    max_tokens: int = Field(default=512, ge=16, le=32_768)
    """Asked of the server: a model that never ends is stopped by it. The schema's answers take 150 to 300."""
    context_tokens: int = Field(default=4_096, ge=512, le=1_000_000)
    """Asked of Ollama, which cuts the head off what does not fit: 2,100 for the longest gate question, `max_tokens`, room."""
    keep_alive: str = Field(default="30m", pattern=r"^(-1|[0-9]+(ms|s|m|h)?)$")
    """Asked of Ollama: how long the model stays in memory after a question. -1: for ever. Loading takes seconds."""
    concurrency: int = Field(default=1, ge=1, le=64)
    """Questions under way at once. A local model answers one at a time anyway."""
    questions_per_day: Count = 2_000
    """Per replica and UTC day; explanations and looks for anomalies may use half. At 10 s each 2,000 take one CPU 6 h."""
    look_every_seconds: Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)] | None = 900.0
    """How often the evidence of all rollouts is looked over for unusual movement, by rule and by the model if there is one;
    what is found is an alert of kind `anomaly`, never an action. None: nobody looks."""
    breaker_failures: Count = 3
    """Failures in a row after which the model is not asked for a while."""
    breaker_seconds: Seconds = 60.0
    """How long it is then not asked."""


class HttpSettings(_Section):
    """The HTTP surface: health, metrics, OFREP, the flagd document."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback, because anyone who can connect may read every rollout; 0.0.0.0 in a container."""
    port: int = Field(default=8080, ge=0, le=65_535)
    """Port to listen on; 0 takes a free one."""
    ops_port: int | None = Field(default=8081, ge=0, le=65_535)
    """Port for liveness, readiness and metrics, which flag traffic can then not starve; 0 takes a
    free one. None: they are on `port` alone."""
    ops_host: str | None = None
    """Address of the second port. None: as `host`."""
    lease_seconds: Annotated[float, Field(ge=5, le=86_400, allow_inf_nan=False)] = 30.0
    """A replica that has heard for longer than this from no broker that its flags are the newest says
    so: `/readyz` names it, and answers are marked as stale. 30 s rides out a broker's restart."""
    when_stale: Literal["serve_last", "serve_control", "refuse"] = "serve_last"
    """What such a replica serves. `serve_last`: the last decision it knows, since in an outage of Kafka
    all replicas are stale and nobody can decide otherwise; a replica that is cut off alone may then
    serve what has been rolled back elsewhere. `serve_control`: control to everybody, which takes the
    treatment from all users in every longer outage of Kafka. `refuse`: 503, so that clients go to
    another replica, or by what they have. A flagd document is kept back (503) in both of these."""
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Host headers answered, without ports: a web page elsewhere cannot reach us by rebinding its name. `*.example.org`
    matches subdomains, `*` everything. Also add what the apps and Prometheus call us."""
    bucketing: Literal["v2", "v3"] = "v3"
    """How OFREP assigns users: v3 as openfeature-flagd-core 2, which flagd is moving to; v2 as flagd 0.15 and 0.16. It must
    be the fleet's where both serve one flag: at 25 % the two disagree on a third of the users."""
    max_body_bytes: int = Field(default=65_536, ge=1_024, le=10_000_000)
    """Larger requests are refused. CloudEvents and evaluation contexts stay far below."""
    max_connections: Count = 1_000
    """More are answered 503; it bounds what idle connections can cost. At the limit the connection that
    has been idle longest gives way to a new one."""
    max_connections_per_client: int | None = Field(default=None, ge=0)
    """Connections of one client address, or of one IPv6 /64; more are answered 503. None: a quarter of
    `max_connections`. 0: no limit, for a daemon behind a proxy, which makes all clients one."""
    max_bulk_per_second: float = Field(default=200.0, ge=0, le=1_000_000, allow_inf_nan=False)
    """Bulk evaluations of one client address per second, twice as many at once; more are answered 429.
    A page asks once, an app that polls twice a minute. 0: no limit, as behind a proxy."""
    max_event_streams: int = Field(default=200, ge=0, le=100_000)
    """OFREP clients told of changes as they happen, each on a connection of its own that stays open; more are answered 503 and
    poll. Keep it well below `max_connections`. 0: the stream is not offered."""

    @model_validator(mode="after")
    def _leave_room(self) -> Self:
        if self.max_event_streams >= self.max_connections:
            raise ValueError(
                "max_event_streams must be less than max_connections, or streams take "
                "every connection"
            )
        if self.ops_port and self.ops_port == self.port:
            raise ValueError("ops_port must be another port than port")
        return self

    @property
    def connections_per_client(self) -> int:
        """Connections that one client may hold; 0: as many as there are."""
        limit = self.max_connections_per_client
        return max(1, self.max_connections // 4) if limit is None else limit


class ClockSettings(_Section):
    """How far the clocks of machines may differ."""

    max_skew_seconds: Annotated[float, Field(ge=0.1, le=60, allow_inf_nan=False)] = 5.0
    """This machine's clock, Redis's and the brokers' are compared all the time. Beyond this many
    seconds nothing is raised until they agree; lowering goes on. NTP keeps machines within
    milliseconds, so 5 s is a fault and no noise, and it is small against the shortest bakes."""


class FlagdSyncSettings(_Section):
    """flagd's gRPC sync source: for flagd, and for providers that evaluate in the app.

    Needs the extra `rolloutd[grpc]`.
    """

    port: int | None = Field(default=None, ge=0, le=65_535)
    """Port to listen on; flagd's own is 8015, 0 takes a free one. None: it is not offered, and grpcio need not be there."""
    host: str = "127.0.0.1"
    """Address to listen on. Loopback, because anyone who can connect may read every rollout; 0.0.0.0 in a container."""
    certificate_file: Path | None = None
    """PEM file with our certificate. None: no TLS."""
    key_file: Path | None = None
    """PEM file with the key of our certificate. None: it is in `certificate_file`."""
    max_streams: Count = 200
    """Clients synced at once; more are refused, and try again."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.key_file and not self.certificate_file:
            raise ValueError("key_file needs certificate_file")
        return self


class RedisPlaneSettings(_Section):
    """Redis keys that simple readers ask for: `flag:<key>` and `flag:<key>:rollout`.

    See ops/planes.md.
    """

    url: Annotated[str, AfterValidator(_redis_url)] | None = None
    """`redis://host:port/db`, `rediss://` for TLS, `unix:///path`; it may be another Redis than ours. None: no such plane.
    A single Redis, not a cluster: the keys of a flag lie in different slots and could not be written as one."""
    username: str | None = None
    """ACL user. None: Redis' `default`."""
    password: SecretStr | None = None
    """None: no authentication."""
    password_file: Path | None = None
    """File with the password. None: `password` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities for `rediss://`. None: the system's."""
    key_prefix: str = Field(default="flag:", pattern=r"^[A-Za-z0-9._:-]{0,64}$")
    """Put before every key; `flag:` is the convention."""
    call_timeout_seconds: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 0.5
    """Deadline of one command. A plane is looked at again every few seconds, so nothing is repeated before."""


class FilePlaneSettings(_Section):
    """A file of flag definitions that another program reads. The file is ours alone.

    See ops/planes.md.
    """

    path: Path
    """The file; its directory must exist and be ours to write, since the file is replaced as a whole. A temporary file and a
    lock file `.<name>.lock` stand beside it."""
    format: Literal["flagd", "go-feature-flag"] = "flagd"
    """Whose definitions: flagd's JSON, or GO Feature Flag's, which are JSON or YAML by the file's ending."""

    @model_validator(mode="after")
    def _known_ending(self) -> Self:
        endings = {"flagd": (".json",), "go-feature-flag": (".json", ".yaml", ".yml")}[self.format]
        if self.path.suffix not in endings:
            raise ValueError(
                f"a {self.format} file ends in {' or '.join(endings)}: its readers go by that"
            )
        return self


class HttpPlaneSettings(_Section):
    """A flag system that is told by one HTTP call, worded by a template. See ops/planes.md."""

    template: str = Field(min_length=1, max_length=1_000)
    """One of ours (`launchdarkly`, `flagsmith`, `growthbook`, `webhook`) or the path of a template file."""
    values: dict[str, str] = {}
    """What the template asks for, by name: project, environment, address. Never a secret; those are shown in the open."""
    secret: SecretStr | None = None
    """The access token, or the key that requests are signed with, as the template uses it. None: it uses none."""
    secret_file: Path | None = None
    """File with the secret. None: `secret` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    allow_plain_http: bool = False
    """Whether `http://` may be used to other hosts than loopback: whoever listens could then read the secret."""
    call_timeout_seconds: Annotated[float, Field(gt=0, le=3, allow_inf_nan=False)] = 1.0
    """Deadline of one exchange, first byte to last. Reading, writing and reading back fit into 3 s together."""
    look_every_seconds: Annotated[float, Field(ge=1, le=3_600, allow_inf_nan=False)] = 30.0
    """How often the served percentage is read back while nothing changes: it bounds how long a foreign edit lasts, and
    spares what most such services limit, the number of calls."""
    max_answer_bytes: int = Field(default=1_000_000, ge=1_024, le=10_000_000)
    """Longer answers are refused; a flag with thousands of targeted users is long."""


class UnleashSettings(_Section):
    """The flag plane of apps that use Unleash (self-hosted 7.x or 8.x), driven through its Admin API."""

    url: Annotated[str, AfterValidator(_http_url)] | None = None
    """Base address before `/api/admin`. None: no Unleash is driven."""
    token: SecretStr | None = None
    """Admin API token, sent as it is. Give it this project and environment alone where your Unleash can do that. None: `url`
    must be None too."""
    token_file: Path | None = None
    """File with the token. None: `token` is used."""
    project: str = Field(default="default", pattern=NAME_PATTERN)
    """Project that holds the flags."""
    environment: str = Field(default="production", pattern=NAME_PATTERN)
    """Environment whose exposure is decided here. Others are not touched."""
    create_flags: bool = False
    """Make a flag that Unleash does not have, of the plan's type. False: it must exist, so that a mistyped key is found."""
    stickiness: str = Field(default="userId", pattern=NAME_PATTERN)
    """Context field by which users are in or out; it must be what the apps report as context id. Unleash's own `default` falls
    back to the session and then to chance, which would move users about."""
    archive_after_days: float | None = Field(default=None, ge=1, le=3_650, allow_inf_nan=False)
    """Archive a flag this long after its rollout ended. Archived is off in every environment: so only if no SDK has asked for
    it as long wherever it is on, and nobody else has an enabled strategy here. None: flags are never archived."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    certificate_file: Path | None = None
    """PEM file with our client certificate. None: we show none."""
    key_file: Path | None = None
    """PEM file with the key of our certificate, without a password. None: it is in `certificate_file`."""
    connect_timeout_seconds: Seconds = 1.0
    """A server that accepts no connection by then is away."""
    request_timeout_seconds: Annotated[float, Field(gt=0, le=5, allow_inf_nan=False)] = 2.0
    """One request, first byte to last. A look and a write together must fit into a reconcile period of 5 s."""
    max_backoff_seconds: Annotated[float, Field(ge=1, le=600, allow_inf_nan=False)] = 30.0
    """Longest wait between tries while the server fails. Lowering a flag is tried at once and every 5 s all the same."""
    max_answer_bytes: int = Field(default=1_000_000, ge=16_384, le=100_000_000)
    """A longer answer is refused. A flag with all its strategies and segments takes some kilobytes."""

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


PlaneName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]


class PlanesSettings(_Section):
    """Further systems that serve flags, besides OFREP, flagd's HTTP document and the state topic, which are always there."""

    redis: RedisPlaneSettings = RedisPlaneSettings()
    unleash: UnleashSettings = UnleashSettings()
    files: dict[PlaneName, FilePlaneSettings] = {}
    """Files by a name of yours; the plane is then called `file:<name>`."""
    http: dict[PlaneName, HttpPlaneSettings] = {}
    """HTTP calls by a name of yours; the plane is then called `http:<name>`."""

    @property
    def of_shares_alone(self) -> tuple[str, ...]:
        """Names of the planes that can serve nothing but a share of everybody.

        No audiences, no divided treatment.
        """
        files = (f"file:{name}" for name, file in self.files.items() if file.format != "flagd")
        return (
            *(("redis",) if self.redis.url is not None else ()),
            *files,
            *(f"http:{name}" for name in self.http),
        )


class CountingSettings(_Section):
    """Reading events and keeping totals."""

    flush_interval_seconds: float = Field(default=0.1, ge=0.005, le=10.0)
    """Time between saves of changed totals; it bounds how late a breach is seen. With a backlog saves come half a second
    apart at least: each takes as long as some hundred events."""
    fetch_max_records: int = Field(default=4_000, ge=1, le=100_000)
    """Records taken from the client at once, which then are folded in slices of at most 1,000. About as many as a request to
    Kafka brings measured fastest."""
    max_unsaved_records: int = Field(default=50_000, ge=1, le=10_000_000)
    """A save is made early at this many, so that a restart repeats and a flush writes a bounded amount."""
    attribution_window_seconds: Seconds = 1800.0
    """An outcome that names only a context joins that context's last exposure not older than this."""
    exact_set_limit: int = Field(default=16_384, ge=16, le=1_000_000)
    """Members a set of contexts holds exactly per partition, flag, stage and purpose; beyond, a Bloom filter takes over.
    Exact up to 16,384, about 1.4 MB in memory: most stages end below it, without one wrong answer, and asking a filter
    costs ten times as much. A flag with a million users needs the filters; its sets then take 2 bytes per user."""
    max_contexts_per_partition: int = Field(default=2_000_000, ge=1_000, le=1_000_000_000)
    """Memberships one event partition holds in memory, of about 100 bytes each (in filters 12, in
    the attribution window 25). Beyond it the partition gives up, in this order: exposures of the
    older part of the attribution window, exactness of its largest sets, and new contexts of the flag
    that has most: its exposures and conversions stand still, its errors and latencies count on."""
    seen_flags_limit: int = Field(default=1_000, ge=0, le=100_000)
    """Unknown flag keys remembered for `rolloutctl status`; the rest is one counter."""

    @property
    def attribution_window_ms(self) -> int:
        """The attribution window in whole milliseconds, as event times are."""
        return round(self.attribution_window_seconds * 1000)


class WatchdogSettings(_Section):
    """When the daemon stops trusting its own consumer."""

    check_interval_seconds: Seconds = 1.0
    """Time between looks."""
    stuck_after_seconds: Seconds = 20.0
    """Records waiting and none taken for this long: the consumer is rebuilt. Longer than a session timeout, so that
    an ordinary rebalance is not taken for it."""
    max_rebuilds: int = Field(default=3, ge=0, le=100)
    """Rebuilds without progress after which the process exits, for its supervisor to start afresh."""
    stall_warning_seconds: Seconds = 0.05
    """An event loop held up for longer is logged: heartbeats and rollbacks wait for it."""


class ShutdownSettings(_Section):
    """SIGTERM to exit. The sum stays below 5 s, whatever hangs."""

    drain_seconds: Seconds = 1.5
    """Time to finish the batch in hand and save it."""
    close_seconds: Seconds = 2.0
    """Time to leave groups and close connections; after it the process exits anyway."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.drain_seconds + self.close_seconds > 4.5:
            raise ValueError("drain_seconds and close_seconds together must not exceed 4.5 s")
        return self


class LogSettings(_Section):
    """What is written to standard output."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe that is written. Each decision is one `info` line."""
    format: Literal["json", "console"] = "json"
    """`json`: one object per line, for machines. `console`: coloured lines for people."""


class Settings(_Section):
    """Everything, read once."""

    environment: str = Field(default=DEFAULT_ENVIRONMENT, pattern=NAME_PATTERN)
    """Which environment this daemon serves; on every decision and alert. One daemon serves one."""
    former_environments: tuple[EnvironmentName, ...] = ()
    """Names that this environment had before. What they left on the state topic and in Redis is
    taken over; without their name here a start on it is refused, since it may be another's."""
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    advisor: AdvisorSettings = AdvisorSettings()
    http: HttpSettings = HttpSettings()
    clock: ClockSettings = ClockSettings()
    flagd_sync: FlagdSyncSettings = FlagdSyncSettings()
    planes: PlanesSettings = PlanesSettings()
    counting: CountingSettings = CountingSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    log: LogSettings = LogSettings()

    @property
    def redis_key_prefix(self) -> str:
        """What every Redis key begins with: as set, or made so that no other environment has it."""
        prefix = self.redis.key_prefix
        return self.made_key_prefix(self.environment) if prefix is None else prefix

    def made_key_prefix(self, environment: str) -> str:
        """Return the prefix that an environment of this name has on our topics where none is set."""
        topic_prefix = self.kafka.topic_prefix
        if environment == DEFAULT_ENVIRONMENT and not topic_prefix:
            return DEFAULT_KEY_PREFIX  # what was written before prefixes were made stays valid
        words = f"{topic_prefix}:{environment}" if topic_prefix else environment
        made = f"{DEFAULT_KEY_PREFIX}{words}:"
        if len(made) <= MAX_KEY_PREFIX:
            return made
        digest = hashlib.sha256(words.encode()).hexdigest()[:16]
        return f"{DEFAULT_KEY_PREFIX}{words[:24]}:{digest}:"


def open_doors(settings: Settings) -> list[str]:
    """Return what in these settings lets strangers in, one sentence each with what to do."""
    found: list[str] = []
    kafka, redis = settings.kafka, settings.redis
    servers = [server.strip() for server in kafka.bootstrap_servers.split(",")]
    far = [server for server in servers if not _is_loopback(urlsplit(f"//{server}").hostname)]
    if far and not kafka.security.uses_sasl and kafka.security.certificate_file is None:
        how = "encrypted, but" if kafka.security.uses_tls else "PLAINTEXT and"
        found.append(
            f"Kafka at {far[0]} is {how} asks nobody who they are: whoever reaches it and "
            f"can write "
            f"{kafka.topic('commands')} may promote any flag, as long as commands are not signed. "
            "Set kafka.security.protocol to SASL_SSL and grant the rights of ops/security.md"
        )
    elif far and not kafka.security.uses_tls:
        found.append(
            f"Kafka at {far[0]} is asked over {kafka.security.protocol}: whoever listens reads the "
            "password or changes records. Set kafka.security.protocol to SASL_SSL"
        )
    for name, address, password in (
        ("redis", redis.url, redis.password),
        ("planes.redis", settings.planes.redis.url, settings.planes.redis.password),
    ):
        parts = urlsplit(address or "")
        if parts.scheme in ("", "unix") or _is_loopback(parts.hostname):
            continue
        if not (password is not None and password.get_secret_value()):
            found.append(
                f"Redis at {parts.netloc} is used without a password: whoever reaches it "
                f"may change "
                f"what is served. Set {name}.username and {name}.password_file, see ops/security.md"
            )
        elif parts.scheme == "redis":
            found.append(
                f"Redis at {parts.netloc} is sent our password in the open: use rediss:// "
                f"in {name}.url"
            )
    return found


def _is_loopback(host: str | None) -> bool:
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- reading
# --------------------------------------------------------------------------------------------------

_Path = tuple[str | int, ...]


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Return the settings of `path`.

    Or of the file ROLLOUTD_CONFIG names, overlaid by ROLLOUTD_ variables.

    Neither given: defaults and variables alone. Raises ConfigInvalid with every fault found, one
    per line, each with `file:line:column` or the variable's name, and how to fix it.
    """
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    faults: list[str] = []
    places: dict[_Path, str] = {}
    values = {} if path is None else _read_file(path, places, faults)
    _overlay(values, environ, places, faults)
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        faults.extend(
            _describe(fault, places, path)
            for fault in error.errors(include_url=False, include_input=False)
        )
    if faults or settings is None:
        raise ConfigInvalid("\n".join(faults))
    return settings


def show(settings: Settings) -> str:
    """Return the settings as YAML that could be read back, except that secrets are masked."""
    plain = settings.model_dump(mode="json", exclude_none=False)
    return yaml.safe_dump(
        _masked(settings, plain), sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def _masked(section: BaseModel, plain: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, value in plain.items():
        actual = getattr(section, name)
        if isinstance(
            actual, SecretStr
        ):  # one that came from a file is shown by its file alone: both are refused
            shown[name] = MASK if getattr(section, f"{name}_file", None) is None else None
        elif isinstance(actual, BaseModel):
            shown[name] = _masked(actual, value)
        elif _named_section(type(section).model_fields[name].annotation) is not None:
            shown[name] = {key: _masked(inner, value[key]) for key, inner in actual.items()}
        else:
            shown[name] = value
    return shown


def _read_file(path: Path, places: dict[_Path, str], faults: list[str]) -> dict[str, Any]:
    """Return the file's mapping, noting where each key stands; {} with a fault when it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(
            f"{path}: cannot be read: {error}; name another file with --config or {CONFIG_VARIABLE}"
        )
        return {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return {}
        _note_places(root, (), path, places, faults)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)
        faults.append(f"{place}: not YAML: {error.problem or error.context}; fix the line")
        return {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        faults.append(f"{path}: not YAML: {error}; fix the file")
        return {}
    if not isinstance(values, dict):
        faults.append(f"{path}:1:1: expected a mapping such as `environment: production`")
        return {}
    return values


def _note_places(
    node: yaml.Node, at: _Path, path: Path, places: dict[_Path, str], faults: list[str]
) -> None:
    """Note `file:line:column` of every key, and refuse keys that are given twice.

    YAML would drop the first.
    """
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[*at, index] = f"{path}:{item.start_mark.line + 1}:{item.start_mark.column + 1}"
            _note_places(item, (*at, index), path, places, faults)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        place = f"{path}:{key.start_mark.line + 1}:{key.start_mark.column + 1}"
        inner = (*at, str(key.value))
        if inner in places:
            faults.append(f"{place}: {_dotted(inner)} is given twice: keep one")
        places[inner] = place
        _note_places(value, inner, path, places, faults)


def _overlay(
    values: dict[str, Any], environ: Mapping[str, str], places: dict[_Path, str], faults: list[str]
) -> None:
    """Lay ROLLOUTD_ variables over `values`; a variable that names no setting is a fault."""
    for variable in sorted(environ):
        if (
            not variable.startswith(PREFIX)
            or variable in NOT_SETTINGS
            or variable.startswith(NOT_SETTINGS_PREFIXES)
        ):
            continue
        steps = tuple(variable.removeprefix(PREFIX).lower().split("__"))
        annotation = _annotation_at(steps)
        if annotation is None:
            faults.append(f"{variable}: no such setting{_nearest(steps)}")
            continue
        raw = environ[variable]
        value: Any = raw
        if _is_collection(annotation):
            try:
                value = json.loads(raw)
            except ValueError:
                faults.append(f'{variable}: write a list as JSON, e.g. ["a", "b"]')
                continue
        inner: Any = values
        for step in steps[:-1]:
            held = inner.get(step)
            if not isinstance(
                held, dict
            ):  # absent, or `kafka:` with nothing or nonsense under it: a later fault names it
                if held is not None:
                    break
                held = inner[step] = {}
            inner = held
        else:
            twin = (
                steps[-1].removesuffix("_file")
                if steps[-1].endswith("_file")
                else f"{steps[-1]}_file"
            )
            if not places.get((*steps[:-1], twin), "").startswith(PREFIX):
                inner.pop(
                    twin, None
                )  # a variable beats the file also where it gives the other form of a secret
            inner[steps[-1]] = value
            places[steps] = variable


def _annotation_at(steps: tuple[str, ...]) -> Any:
    """Return the type of the setting at a path, None when there is none or it is a whole section."""
    annotation: Any = Settings
    for step in steps:
        named = _named_section(annotation)
        if named is not None:
            annotation = named  # the step is a name of the operator's
        elif _is_section(annotation) and step in annotation.model_fields:
            annotation = annotation.model_fields[step].annotation
        else:
            return None
    return None if _is_section(annotation) or _named_section(annotation) is not None else annotation


def _is_collection(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list, dict, set, frozenset)


def _settings_below(model: type[BaseModel], at: tuple[str, ...] = ()) -> list[str]:
    """Return every setting as a variable's name."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if _is_section(annotation):
            found += _settings_below(annotation, (*at, name))
        elif _named_section(annotation) is None:
            found.append(PREFIX + "__".join((*at, name)).upper())
    return found


def _nearest(steps: tuple[str, ...]) -> str:
    import difflib

    near = difflib.get_close_matches(
        PREFIX + "__".join(steps).upper(), _settings_below(Settings), n=1
    )
    return f"; did you mean {near[0]}?" if near else "; `rolloutd config show` lists them"


def _describe(fault: Mapping[str, Any], places: Mapping[_Path, str], path: Path | None) -> str:
    """Return one line: where, which setting, what is wrong, how to fix it."""
    at: _Path = tuple(fault["loc"])
    place = next(
        (places[at[:length]] for length in range(len(at), 0, -1) if at[:length] in places), None
    )
    where = place or (f"{path}" if path is not None else "settings")
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = f"no such setting{_nearest_key(at)}"
    name = _dotted(at)
    return f"{where}: {name}: {message}" if name else f"{where}: {message}"


def _nearest_key(at: _Path) -> str:
    """Return a hint at the sibling that was probably meant."""
    import difflib

    model: Any = Settings
    for step in at[:-1]:
        named = _named_section(model)
        model = named if named is not None else model.model_fields[str(step)].annotation
    near = difflib.get_close_matches(str(at[-1]), list(model.model_fields), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(model.model_fields)}"


def _dotted(at: _Path) -> str:
    return ".".join(str(step) for step in at)
