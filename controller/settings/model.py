"""Everything an operator can set, in one frozen model.

Belongs here: the whole, and the sections of the daemon's own parts.
Does not belong here: sections with a file of their own (`kafka`, `advisor`, `dead_mans_switch`,
`flags`, `gate_webhooks`, `hooks`, `http`, `last_known`, `notifications`, `planes`, `sign_in`,
`status_page`), reading files and variables (`reading.py`), plans (operators publish them), and
anything that a formula fixes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from controller.settings.advisor import AdvisorSettings
from controller.settings.checks import ChecksSettings
from controller.settings.dead_mans_switch import DeadMansSwitchSettings
from controller.settings.flags import FlagsSettings
from controller.settings.gate_webhooks import GateWebhooksSettings
from controller.settings.hooks import HooksSettings
from controller.settings.http import FlagdSyncSettings, HttpSettings
from controller.settings.kafka import KafkaSettings
from controller.settings.last_known import LastKnownSettings
from controller.settings.notifications import NotificationsSettings
from controller.settings.planes import PlanesSettings
from controller.settings.redis import RedisAddressSettings
from controller.settings.section import (
    Count,
    EnvironmentName,
    RedisUrl,
    Seconds,
    Section,
    is_loopback,
)
from controller.settings.sign_in import SignInSettings
from controller.settings.status_page import StatusPageSettings
from schemas.terms import NAME_PATTERN

DEFAULT_ENVIRONMENT: Final = "production"
DEFAULT_KEY_PREFIX: Final = "rolloutd:"
MAX_KEY_PREFIX: Final = 64


class RedisSettings(RedisAddressSettings):
    """The store of totals and rollouts."""

    url: RedisUrl = "redis://127.0.0.1:6379/0"
    """`redis://host:port/db`, `rediss://` for TLS, `unix:///path`."""
    is_cluster: bool = False
    """Whether the address is a node of a Redis Cluster. Keys carry hash tags either way."""
    key_prefix: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._:-]{1,64}$")
    """Put before every key, so that an ACL can name our keys. Braces would break the hash tags.
    None: made of `environment` and `kafka.topic_prefix`, so that two environments never share a
    key: `rolloutd:` for production without a topic prefix, else as `rolloutd:staging.:staging:`."""
    connect_timeout_seconds: Seconds = 2.0
    """Deadline for a new connection."""
    call_timeout_seconds: Seconds = 1.0
    """Longest silence of Redis within one try of a call. The outcome of a try past it is unknown,
    so it is sent again with the same arguments. All tries of a call share a deadline of twice this
    time, and of ten times for reading a whole hash."""
    max_connections: Count = 16
    """Limit of open connections. Further callers wait."""
    health_check_seconds: Seconds = 15.0
    """A connection that was idle for this long is tried with a PING before use."""
    reports_kept_days: int = Field(default=30, ge=1, le=3_650)
    """What is shown of a rollout (newest evidence, its course through each stage, newest decisions
    and alerts) is deleted when it was not written for this long. The audit log is the topics'."""


class ClockSettings(Section):
    """How far the clocks of machines may differ."""

    max_skew_seconds: Annotated[float, Field(ge=0.1, le=60, allow_inf_nan=False)] = 5.0
    """Largest accepted difference between this machine's clock, Redis's and the brokers', which are
    compared all the time. Beyond it nothing is raised until they agree; lowering goes on. NTP keeps
    machines within milliseconds, so 5 s is a fault and not noise, and it is small against the
    shortest bakes."""


class CountingSettings(Section):
    """Reading events and keeping totals."""

    flush_interval_seconds: float = Field(default=0.1, ge=0.005, le=10.0)
    """Time between saves of changed totals. It bounds how late a breach is detected. With a backlog
    saves come half a second apart at least, because each takes as long as some hundred events."""
    fetch_max_records: int = Field(default=4_000, ge=1, le=100_000)
    """Records taken from the client at a time. They are then folded in slices of at most 1,000.
    About as many as a request to Kafka brings measured fastest."""
    max_unsaved_records: int = Field(default=50_000, ge=1, le=10_000_000)
    """A save is made early at this many, so that a restart repeats, and a save writes, a bounded
    amount."""
    attribution_window_seconds: Seconds = 1800.0
    """An outcome that names only a context is attributed to that context's last exposure that is
    not older than this."""
    exact_set_limit: int = Field(default=16_384, ge=16, le=1_000_000)
    """Members that a set of contexts holds exactly, per partition, flag, stage and purpose. Beyond
    it a Bloom filter takes over. Exact up to 16,384, about 1.4 MB in memory: most stages end below
    it, without one wrong answer, and a filter's answer costs ten times as much. A flag with a
    million users needs the filters; its sets then take 2 bytes per user."""
    max_contexts_per_partition: int = Field(default=2_000_000, ge=1_000, le=1_000_000_000)
    """Memberships that one event partition holds in memory, of about 100 bytes each (in filters 12,
    in the attribution window 25). Beyond it the partition gives up, in this order: exposures of the
    older part of the attribution window, exactness of its largest sets, and new contexts of the
    flag that has the most: its exposures and conversions stand still, its errors and latencies
    count on."""
    unknown_flags_limit: int = Field(default=1_000, ge=0, le=100_000)
    """Flags without a rollout that are counted by name. With more, the most frequent stay in the
    list; all events share one counter anyway. A metric and the log show ten of them."""

    @property
    def attribution_window_ms(self) -> int:
        """The attribution window in whole milliseconds, as event times are."""
        return round(self.attribution_window_seconds * 1000)


class WatchdogSettings(Section):
    """When the daemon stops trusting its own consumer."""

    check_interval_seconds: Seconds = 1.0
    """Time between checks."""
    stuck_after_seconds: Seconds = 20.0
    """The consumer is rebuilt when records wait and none was taken for this long. Longer than a
    session timeout, so that an ordinary rebalance does not count. Nor does an outage of Kafka."""
    max_rebuilds: int = Field(default=3, ge=0, le=100)
    """Rebuilds without progress after which the process exits, so that its supervisor restarts
    it."""
    stall_warning_seconds: Seconds = 0.25
    """An event loop that stands still for longer is logged (`loop_stalled`), because heartbeats and
    rollbacks wait for it. The metric `rolloutd_stall_seconds` has shorter stalls too. 250 ms is the
    limit of the Prometheus rule `RolloutdStalls`."""


class ShutdownSettings(Section):
    """Time from SIGTERM to exit. The sum stays below 5 s, whatever hangs."""

    drain_seconds: Seconds = 1.5
    """Time to finish the present batch and save it."""
    close_seconds: Seconds = 2.0
    """Time to leave groups and close connections. After it the process exits anyway."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.drain_seconds + self.close_seconds > 4.5:
            raise ValueError("drain_seconds and close_seconds together must not exceed 4.5 s")
        return self


class LogSettings(Section):
    """What is written to standard output."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is written. Each decision is one `info` line. SIGHUP applies a
    new value while the daemon runs."""
    format: Literal["auto", "json", "console"] = "auto"
    """`json`: one object per line, for machines. `console`: colored lines for people. `auto`:
    `console` where standard output is a terminal, else `json`."""


class Settings(Section):
    """Everything, read once."""

    environment: str = Field(default=DEFAULT_ENVIRONMENT, pattern=NAME_PATTERN)
    """The environment that this daemon serves; it stands on every decision and alert. One daemon
    serves one."""
    former_environments: tuple[EnvironmentName, ...] = ()
    """Names that this environment had before. What they left on the state topic and in Redis is
    taken over. Without their name here a start on it is refused, since it may be another's."""
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    advisor: AdvisorSettings = AdvisorSettings()
    http: HttpSettings = HttpSettings()
    clock: ClockSettings = ClockSettings()
    sign_in: SignInSettings = SignInSettings()
    flagd_sync: FlagdSyncSettings = FlagdSyncSettings()
    last_known: LastKnownSettings = LastKnownSettings()
    flags: FlagsSettings = FlagsSettings()
    status_page: StatusPageSettings = StatusPageSettings()
    dead_mans_switch: DeadMansSwitchSettings = DeadMansSwitchSettings()
    hooks: HooksSettings = HooksSettings()
    checks: ChecksSettings = ChecksSettings()
    gate_webhooks: GateWebhooksSettings = GateWebhooksSettings()
    notifications: NotificationsSettings = NotificationsSettings()
    planes: PlanesSettings = PlanesSettings()
    counting: CountingSettings = CountingSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _one_scheme(self) -> Self:
        """Refuse a page that people would be sent to without TLS, which the listener speaks alone.

        The reverse is right behind a proxy.
        """
        if self.http.certificate_file is None or self.sign_in.public_url is None:
            return self
        if not self.sign_in.is_secure:
            raise ValueError(
                "sign_in.public_url begins with http:// and http.certificate_file is set, so that "
                "nobody is answered there: write https://"
            )
        return self

    @model_validator(mode="after")
    def _certificates_are_asked_for(self) -> Self:
        """Refuse an endpoint that nobody could reach: no sender is asked for its certificate."""
        if self.http.client_ca_file is not None:
            return self
        for name, hook in self.hooks.endpoints.items():
            others = [one for one in hook.certificates if not one.startswith("sha256:")]
            if hook.certificates and not self.hooks.proxy.addresses:
                raise ValueError(
                    f"hooks.endpoints.{name}.certificates: nobody is asked for one: set "
                    f"http.client_ca_file, or hooks.proxy.addresses for a proxy that asks"
                )
            if others:
                raise ValueError(
                    f"hooks.endpoints.{name}.certificates: behind a proxy only fingerprints are "
                    f"compared: write sha256:... in place of {others[0]}, or set "
                    f"http.client_ca_file"
                )
        return self

    def insecure_connections(self, where: str) -> Iterable[str]:
        """Return the endpoints whose token or password travels in plain text over a network."""
        if is_loopback(self.http.host) or self.http.certificate_file is not None:
            return
        for name, hook in self.hooks.endpoints.items():
            if hook.secret is None and not hook.certificates:
                yield (
                    f"hooks.endpoints.{name}: whoever sees a delivery on the way to "
                    f"{self.http.host} reads its token and can lower the flags of its rules: set "
                    f"http.certificate_file, put a proxy with TLS in front, or listen on loopback"
                )

    @property
    def redis_key_prefix(self) -> str:
        """The start of every Redis key: as set, or made so that no other environment has it."""
        prefix = self.redis.key_prefix
        return self.made_key_prefix(self.environment) if prefix is None else prefix

    def made_key_prefix(self, environment: str) -> str:
        """Return the prefix of an environment with this name on our topics where none is set."""
        topic_prefix = self.kafka.topic_prefix
        if environment == DEFAULT_ENVIRONMENT and not topic_prefix:
            return DEFAULT_KEY_PREFIX  # what was written before prefixes were made stays valid
        words = f"{topic_prefix}:{environment}" if topic_prefix else environment
        made = f"{DEFAULT_KEY_PREFIX}{words}:"
        if len(made) <= MAX_KEY_PREFIX:
            return made
        digest = hashlib.sha256(words.encode()).hexdigest()[:16]
        return f"{DEFAULT_KEY_PREFIX}{words[:24]}:{digest}:"
