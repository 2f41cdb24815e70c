"""Settings of the event log: connection, topics, formats, groups and deadlines."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from controller.errors import ConfigInvalid
from controller.settings.section import KafkaName, KafkaServers, Seconds, Section, is_loopback
from controller.text import file_trouble
from schemas.terms import EventFormat


class KafkaSecurity(Section):
    """Authentication to Kafka, and encryption of the connections."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Kafka's `security.protocol`. PLAINTEXT suits loopback and a private network only. It is
    Kafka's own default."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """Used when the protocol is a SASL one. The default is the strongest of the three that every
    broker has."""
    username: str | None = None
    """SASL user. None: no SASL."""
    password: SecretStr | None = None
    """SASL password. None: no SASL."""
    password_file: Path | None = None
    """File with the SASL password. None: `password` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the brokers' certificates. None: the system's."""
    certificate_file: Path | None = None
    """PEM file with our client certificate. None: we send none."""
    key_file: Path | None = None
    """PEM file with the key of our certificate. None: it is in `certificate_file`."""
    key_password: SecretStr | None = None
    """Password of the key. None: it has none."""
    key_password_file: Path | None = None
    """File with the password of the key. None: `key_password` is used."""

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.protocol.endswith("SSL")

    @property
    def uses_sasl(self) -> bool:
        """Whether user and password are sent."""
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
        for name in ("ca_file", "certificate_file", "key_file"):
            _check_readable(name, getattr(self, name))
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as error:
            raise ConfigInvalid(
                f"kafka.security.ca_file: {self.ca_file} cannot be used: {error}; let it name a "
                "PEM file of certificates, or leave it out to trust the system's authorities"
            ) from error
        if self.certificate_file is None:
            return context
        # With no password OpenSSL would ask for one on the terminal; an empty one prevents it.
        password = "" if self.key_password is None else self.key_password.get_secret_value()
        try:
            context.load_cert_chain(self.certificate_file, self.key_file, password)
        except (OSError, ValueError) as error:
            raise ConfigInvalid(
                f"kafka.security: {self.certificate_file} with the key in "
                f"{self.key_file or 'the same file'} cannot be used: {error}; correct "
                "certificate_file, key_file or key_password_file"
            ) from error
        return context


def _check_readable(name: str, path: Path | None) -> None:
    """Raise ConfigInvalid, naming the file, which OpenSSL's own errors do not."""
    if path is None:
        return
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigInvalid(
            f"kafka.security.{name}: {path} cannot be read: {file_trouble(error)}; correct the "
            "path, or let rolloutd's user read the file"
        ) from error


class TopicNames(Section):
    """The topics, before `topic_prefix`. The defaults are the contract's names."""

    evaluations: KafkaName = "flag.evaluations"
    """Apps write which user was served which variant."""
    outcomes: KafkaName = "request.outcomes"
    """Apps write what happened to requests. Must have as many partitions as `evaluations`."""
    commands: KafkaName = "rollout.commands"
    """Operators write commands. Its partitions share the flags among the replicas."""
    signals: KafkaName = "rollout.signals"
    """We write what monitoring systems tell (`hooks`), before it is answered, and act on it."""
    results: KafkaName = "rollout.results"
    """We answer commands."""
    decisions: KafkaName = "rollout.decisions"
    """We write each decision with its evidence: the audit log."""
    alerts: KafkaName = "rollout.alerts"
    """We write what people must know."""
    state: KafkaName = "rollout.state"
    """We write the rollout's document after each transition. Compacted. Apps may follow it, and we
    recover from it."""
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


class EventFormats(Section):
    """The formats of the two event topics.

    ops/formats.md says what must be configured at the sender.
    """

    evaluations: EventFormat = EventFormat.ROLLOUTD
    """`rolloutd`: our CloudEvents. `otlp_json`, `otlp_proto`: logs as the OpenTelemetry Collector's
    Kafka exporter writes them, or spans, if the topic is also the outcomes'. `go_feature_flag`:
    what GO Feature Flag's Kafka exporter writes."""
    outcomes: EventFormat = EventFormat.ROLLOUTD
    """`rolloutd`, or `otlp_json`, `otlp_proto` for spans as the Collector's Kafka exporter writes
    them."""

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


class KafkaSettings(Section):
    """The event log."""

    bootstrap_servers: KafkaServers = "127.0.0.1:9092"
    """`host:port`, several separated by commas. At least one must answer at start."""
    client_id: KafkaName = "rolloutd"
    """Our name in the brokers' logs and quotas."""
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,100}$")
    """Put before every topic name, e.g. `staging.`: several environments on one cluster. Empty:
    none."""
    topics: TopicNames = TopicNames()
    """Topic names, where they must differ from the contract's."""
    formats: EventFormats = EventFormats()
    """Formats of the event topics. Ours, unless an instrumented fleet already writes its own."""
    topic_epoch: int = Field(default=1, ge=1)
    """Raise by one after an event topic was deleted and created again. Its offsets then start from
    zero, and so does counting."""
    group_id: KafkaName = "rolloutd"
    """Consumer group of the replicas that count. `<group_id>.commands` reads commands.
    `topic_prefix` is put before both."""
    static_member_id: KafkaName | None = None
    """A name that only this replica has and that it keeps over restarts (a StatefulSet's pod name).
    A restart shorter than the session timeout then moves no partitions. None: dynamic membership,
    which needs no bookkeeping."""
    security: KafkaSecurity = KafkaSecurity()
    """Authentication and encryption."""
    create_topics: bool = True
    """Create missing topics at start, where Kafka permits. False: wait for missing topics."""
    partitions: int = Field(default=8, ge=1, le=10_000)
    """Partitions of a topic that we create: the largest number of replicas that can share its work.
    8 leaves room to grow from one."""
    replication_factor: int | None = Field(default=None, ge=1, le=32)
    """Copies of a topic that we create. None: 3, or as many as there are brokers if they are
    fewer."""
    session_timeout_seconds: float = Field(default=10.0, ge=0.5, le=1800.0)
    """A replica that sends no heartbeat for this long loses its partitions. 10 s rides out a pause
    of the machine. Brokers refuse less than their `group.min.session.timeout.ms` (6 s by
    default)."""
    heartbeat_interval_seconds: float = Field(default=3.0, ge=0.1, le=600.0)
    """Time between heartbeats: at most a third of the session timeout."""
    revoke_seconds: Seconds = 3.0
    """Time for a last save before partitions are handed over. The whole group waits for it."""
    request_timeout_seconds: Seconds = 15.0
    """Deadline of a request to a broker. It must exceed the session timeout, because a group may
    let a member wait that long."""
    call_seconds: Seconds = 5.0
    """Deadline of each of our calls: a look-up, a commit, publishing one batch."""
    start_seconds: Seconds = 20.0
    """Deadline for joining a group. The group waits for a dead member up to the session timeout."""
    stop_seconds: Seconds = 1.5
    """Deadline for leaving a group and closing. After it connections are cut, and the group notices
    only after a session timeout."""
    fetch_max_wait_seconds: Seconds = 0.1
    """Longest time that a broker may hold a fetch when nothing has arrived. It bounds how old a
    breach is when we detect it. Where nothing has come for ten seconds it is half a second: what
    comes then is answered at once."""
    max_record_bytes: int = Field(default=1_000_000, ge=524_288, le=100_000_000)
    """Largest record that we write. Larger decisions are trimmed; state records never are, so the
    least value has room for the largest plan (256 KiB) and as much again for a rollout's history.
    The default is just below Kafka's own limit of 1 MiB."""

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

    def insecure_connections(self, where: str) -> Iterator[str]:
        servers = [server.strip() for server in self.bootstrap_servers.split(",")]
        remote = [server for server in servers if not is_loopback(urlsplit(f"//{server}").hostname)]
        if not remote:
            return
        security = self.security
        if not security.uses_sasl and security.certificate_file is None:
            how = "encrypted, but" if security.uses_tls else "PLAINTEXT and"
            yield (
                f"Kafka at {remote[0]} is {how} does not authenticate its clients: whoever reaches "
                f"it and can write {self.topic('commands')} may promote any flag, as long as "
                f"commands are not signed. Set {where}.security.protocol to SASL_SSL and grant the "
                "rights of ops/security.md"
            )
        elif not security.uses_tls:
            yield (
                f"Kafka at {remote[0]} is reached over {security.protocol}: whoever listens reads "
                f"the password or changes records. Set {where}.security.protocol to SASL_SSL"
            )

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
        """Whether one topic holds the evaluations and the outcomes: spans are both."""
        return self.topics.evaluations == self.topics.outcomes

    @property
    def events_group(self) -> str:
        """Full name of the group that counts."""
        return self.topic_prefix + self.group_id

    @property
    def commands_group(self) -> str:
        """Full name of the group that reads commands; it shares the flags among replicas."""
        return f"{self.events_group}.commands"

    @property
    def signals_group(self) -> str:
        """Full name of the group that acts on signals."""
        return f"{self.events_group}.signals"
