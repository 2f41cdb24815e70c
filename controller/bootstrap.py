"""Wires everything: which adapter stands behind which port, and what is told to whom.

No decisions, no loops of its own.

How the parts are started, watched and stopped is `running/supervisor.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Protocol
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import structlog

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.file_plane import FilePlane
from controller.adapters.http_plane.plane import HttpPlane
from controller.adapters.kafka.event_log import (
    KafkaEventLog,
    KafkaPublisher,
    cluster_id,
    ensure_topics,
    partition_of,
)
from controller.adapters.kafka.shared_topic import SharedTopic, streams, topic_of
from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.adapters.kafka.state_topic_plane import StateTopicPlane
from controller.adapters.kafka.topology import KafkaTopology
from controller.adapters.llm.advisor import NoAdvisor, make_advisor
from controller.adapters.redis.claims import RedisClaims
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.identity import SHARED_PREFIX, Identity, StoredIdentity
from controller.adapters.redis.plane import RedisPlane
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.server_check import check_server
from controller.adapters.redis.totals import RedisTotals
from controller.adapters.unleash.plane import UnleashPlane
from controller.clock import AgreedClock, SystemClock
from controller.codec.cloud_events import source_of
from controller.codec.command_records import read_command, refusal_by_mistake
from controller.codec.commands import command_event, peek_command, to_command_received
from controller.codec.decisions import judgement_to_json
from controller.codec.outbox import outbox_entry
from controller.codec.rollouts import read_state, rollout_to_json
from controller.core.future_times import AHEAD_AT_MOST_SECONDS, seconds_ahead
from controller.core.rollout import AnswerCommand, RaiseAlert, Rollout
from controller.counting.ingest import Ingest
from controller.counting.partition_totals import IS_COMPILED
from controller.deciding.commentary import Explainer, Lookout
from controller.deciding.flag_worker import START_UP, WorkerDependencies
from controller.deciding.flag_workers import Peeked, ReadCommand, Workers
from controller.errors import (
    BadInput,
    CommandRefused,
    CommandUnreadable,
    ConfigInvalid,
    DocumentUnreadable,
    EventLogUnavailable,
    ForeignDocument,
    OperatingTrouble,
    RolloutdError,
    StoreUnavailable,
)
from controller.health import Component, Faults, Health, Scope
from controller.metrics import EVENT_TOPICS, Metrics
from controller.ports import Clock, FlagPlane, OutboxEntry, PlaneStanding, Record, TopicPartition
from controller.running.claims import Claims, replica_name
from controller.running.redis_heartbeat import RedisHeartbeat
from controller.running.reporter import (
    REPORT_EVERY_SECONDS,
    STATE_TOPIC,
    Reporter,
    Signs,
    why_word_is_old,
)
from controller.running.supervisor import Parts, Step, Supervisor
from controller.running.visibility import Holder, Unseen, View, Visibility, Waiting, needs_watching
from controller.running.watchdog import ConsumerWatchdog, StallMeter
from controller.settings import RedisPlaneSettings, RedisSettings, Settings, open_doors
from controller.web.app import make_app, make_ops_app
from controller.web.bucketing import Generation
from controller.web.event_stream import EventStreams, StreamLimits
from controller.web.flagd_sync import FlagdSyncServer, SyncAddress
from controller.web.flags import FlagBoard
from controller.web.server import HttpServer
from schemas import quarantine
from schemas.envelope import time_of
from schemas.formats import evaluation_reader, outcome_reader
from schemas.terms import CommandStatus, QuarantineReason
from schemas.wire import RecordRefused

#: What must work before this replica is ready, and what it can do without for a while.
REQUIRED = ("http", "kafka", "redis", "state", "counting", "saves", "flags", "serving")
OPTIONAL = ("actuation", "outbox", "rollouts", "quarantine", "clock")
#: A process that has not started by then may be kept from it by an outage.
STARTING_SECONDS = 30.0

QUARANTINE_SECONDS = 5.0
"""For so long a refused record of the command topic stays uncommitted, for the quarantine to have it."""

OPS_CONNECTIONS = 64
"""Connections of the port for probes: some kubelets, some Prometheus servers, and room for people."""

IDENTITY_SECONDS = 60.0
"""How often it is asked whether Redis still holds our keys and not another environment's."""
#: Who reports a fault of a flag, and alone clears it.
_STATE, _FOREIGN, _TIMES, _REFUSED = "state", "foreign", "times", "state-topic"

_REFUSED_SHOWN = 20  # records of the state topic: whoever may write there makes up keys
_REFUSED_REMEDY = "see state_refused in the log; the next decision about the flag writes a good one"

WORKED_WITHIN_SECONDS = 3.0
"""A replica claims its command partitions while the loop that follows them came round so lately."""

_OWN_TOPICS = "Give each environment its own kafka.topic_prefix, or its own Kafka"


class OutsidePlane(FlagPlane, Protocol):
    """A plane that holds connections of its own."""

    async def close(self) -> None:
        """Drop them, within a deadline."""


class Daemon:
    """One replica. Nothing is connected before `run`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = AgreedClock(SystemClock(), max_skew_seconds=settings.clock.max_skew_seconds)
        self._faults = Faults(self._clock.now)
        advised = () if settings.advisor.url is None else ("advisor",)
        self._health = Health(REQUIRED, (*OPTIONAL, *advised), now=self._clock.now)
        self._board = FlagBoard(
            generation=Generation(settings.http.bucketing),
            flag_set_id=settings.environment,
            lease_seconds=settings.http.lease_seconds,
            when_stale=settings.http.when_stale,
            now=self._clock.now,
        )
        self._source = source_of(settings.environment)
        self._encode = partial(outbox_entry, source=self._source)
        self._identity: Identity | None = None
        self._publisher = KafkaPublisher(settings.kafka)
        self._state_plane = StateTopicPlane(self._publisher, self._state_entry)
        self._file_planes = [FilePlane(name, file) for name, file in settings.planes.files.items()]
        self._outside_planes = make_outside_planes(settings, self._clock)
        planes: tuple[FlagPlane, ...] = (
            self._board,
            self._state_plane,
            *self._file_planes,
            *self._outside_planes,
        )
        self._metrics = Metrics(
            version=version("rolloutd"),
            is_compiled=IS_COMPILED,
            planes=[plane.name for plane in planes],
        )
        self._metrics.watch(
            percents=self._board.percents,
            components=self._components,
            faults=lambda: self._faults.counts,
            faults_reported=lambda: dict(self._faults.reported),
            skews=self._clock.skews,
        )
        self._began_at = self._clock.monotonic()
        self._newest: dict[str, Rollout] = {}  # by flag, from the state topic and our own workers
        self._times_ahead: set[str] = set()
        self._damaged: set[str] = set()  # flags whose document start-up could not read
        self._state_refused: frozenset[str] = (
            frozenset()
        )  # flags whose record of the state topic was reported
        self._stored_flags: frozenset[str] = frozenset()
        self._topology = KafkaTopology(settings.kafka, self._faults, remade=self._topic_remade)
        self._store = RedisConnection.connect(
            redis_url(settings.redis),
            prefix=settings.redis_key_prefix,
            is_cluster=settings.redis.is_cluster,
            deadline_seconds=2 * settings.redis.call_timeout_seconds,
            try_seconds=settings.redis.call_timeout_seconds,
            connect_seconds=settings.redis.connect_timeout_seconds,
            health_check_seconds=settings.redis.health_check_seconds,
            connections=settings.redis.max_connections,
        )
        event_topics = settings.kafka.event_topics
        self._streams = streams(event_topics)
        is_shared = settings.kafka.is_one_topic
        self._events = KafkaEventLog(
            settings.kafka,
            sorted(set(event_topics)),
            settings.kafka.events_group,
            faults=self._faults,
            bare_records=True,
        )
        self._commands = KafkaEventLog(
            settings.kafka,
            [settings.kafka.topic("commands")],
            settings.kafka.commands_group,
            faults=self._faults,
            reads_committed=False,
        )
        self._foreign_state: tuple[str, str] | None = (
            None  # a flag of another environment, and its name
        )
        self._feed = KafkaStateFeed(settings.kafka, self._read_state, overtaken=self._overtaken)
        app = make_app(
            self._board,
            self._health,
            self._metrics,
            describe=rollout_to_json,
            newest_evidence=self._newest_evidence,
            plane_standings=self._plane_standings,
            allowed_hosts=settings.http.allowed_hosts,
            max_body_bytes=settings.http.max_body_bytes,
            stream_limits=StreamLimits(streams=settings.http.max_event_streams),
            max_bulk_per_second=settings.http.max_bulk_per_second,
            faults=self._faults,
            has_metrics=settings.http.ops_port is None,
        )
        self._event_streams: EventStreams = app.state.event_streams
        self._http = HttpServer(
            app,
            host=settings.http.host,
            port=settings.http.port,
            max_connections=settings.http.max_connections,
            max_per_client=settings.http.connections_per_client,
        )
        self._ops_http = self._make_ops_http()
        self._flagd_sync = make_flagd_sync(settings, self._board)
        self._advisor = make_advisor(settings.advisor, self._clock)
        totals = RedisTotals(self._store, self._faults)
        self._tools = WorkerDependencies(
            rollouts=RedisRollouts(self._store, unreadable=self._unreadable),
            publisher=self._publisher,
            advisor=self._advisor,
            clock=self._clock,
            metrics=self._metrics,
            encode=self._encode,
            on_transition=self._on_transition,
            newest_known=self._newest.get,
            faults=self._faults,
            on_alert=self._on_alert,
            why_not_raise=self._why_not_raise,
        )
        self._ingest = Ingest(
            SharedTopic(self._events) if is_shared else self._events,
            totals,
            clock=self._clock,
            metrics=self._metrics,
            settings=settings.counting,
            topics=self._streams,
            epoch=settings.kafka.topic_epoch,
            quarantine=self._quarantine,
            on_counted=self._on_counted,
            read_evaluations=evaluation_reader(
                settings.kafka.formats.evaluations, of_spans=is_shared
            ),
            read_outcomes=outcome_reader(settings.kafka.formats.outcomes),
            faults=self._faults,
            topology=self._topology,
        )
        self._workers = Workers(
            tools=self._tools,
            commands=self._commands,
            totals=totals,
            peek=self._peek_command,
            read_command=self._read_command,
            refuse=self._refuse_commands,
            forward=self._publish_persistently,
            partition_of=self._command_partition,
            command_partitions=self._command_partitions,
            known_flags=self._known_flags,
            event_partitions=self._event_partitions,
            released=self._released,
            actuation_drift=self._drift,
        )
        commentator = None if isinstance(self._advisor, NoAdvisor) else self._advisor
        self._explainer = (
            None if commentator is None else Explainer(commentator, self._metrics, self._comment)
        )
        look_seconds = settings.advisor.look_every_seconds
        self._lookout = (
            None
            if look_seconds is None
            else Lookout(
                lambda: self._workers.evidence,
                commentator,
                self._comment,
                every_seconds=look_seconds,
            )
        )
        self._actuation = FlagReconciler(
            planes,
            self._clock,
            raise_alert=self._alert,
            note_gap=self._note_gap,
            note_attempt=self._note_attempt,
            faults=self._faults,
        )
        self._metrics.watch(converged=self._actuation.converged)
        self._pulse = RedisHeartbeat(
            self._clock,
            self._faults,
            ask=self._store.ask_time,
            read_broker=lambda: self._publisher.clock_reading,
        )
        self._claims = Claims(
            self._clock,
            RedisClaims(self._store),
            self._faults,
            replica=replica_name(),
            working=self._working_partitions,
            topic=settings.kafka.topic("commands"),
        )
        self._sight = Visibility(
            self._clock,
            views=self._views,
            expected_partitions=lambda: sum(self._expected().values()),
            also_blind=self._why_all_blind,
            send=self._send_alerts,
            count=self._metrics.unwatched_rollouts.set,
            note=lambda alert: self._metrics.alerts.of(alert.kind, alert.severity).inc(),
            holders=self._holders,
            newest=self._newest.get,
            store_trouble=lambda: self._claims.trouble,
            faults=self._faults,
        )
        self._reporter = Reporter(self._metrics, self._health, self._faults)
        self._supervisor = Supervisor(self._parts(), self._health, settings.shutdown, self._faults)
        self._log = structlog.get_logger()

    async def run(self) -> int:
        """Serve HTTP at once, then bring up the rest and run until stopped.

        Return the exit code.
        """
        for warning in open_doors(self._settings):
            self._log.warning("open_door", warning=warning)
        if self._ops_http is not None:  # first of all: what can be asked must not wait for anything
            await self._ops_http.start()
            self._log.info("ops_http_started", port=self._ops_http.port)
        await self._http.start()
        self._health.ready("http")
        self._log.info("http_started", port=self._http.port)
        if self._flagd_sync is not None:
            await self._flagd_sync.start()
            self._log.info("flagd_sync_started", port=self._flagd_sync.port)
        return await self._supervisor.run()

    def _parts(self) -> Parts:
        settings = self._settings
        watchdogs = [
            (f"watchdog:{name}", self._watchdog(name, log).run)
            for name, log in (("events", self._events), ("commands", self._commands))
        ]
        stalls = StallMeter(
            self._clock,
            self._metrics.stall_seconds.observe,
            warning_seconds=settings.watchdog.stall_warning_seconds,
        )
        return Parts(
            steps=(
                Step("kafka", "preparing topics", self._prepare_topics),
                Step("redis", "looking at Redis", self._prepare_redis),
                Step("flags", "reading which flags there are", self._read_flags),
                Step("state", "reading whose decisions these are", self._check_environment),
                Step("counting", "joining the group that counts", self._events.start),
                Step("flags", "joining the group that decides", self._commands.start),
            ),
            follow=self._follow_state,
            caught_up=self._catch_up,
            loops=(
                ("ingest", self._count_events),
                ("workers", self._workers.run),
                ("actuation", self._actuation.run),
                ("topology", self._topology.run),
                ("pulse", self._pulse.run),
                ("stalls", stalls.run),
                ("identity", self._watch_identity),
                *((plane.name, plane.keep) for plane in self._file_planes),
                *watchdogs,
                *([] if self._explainer is None else [("explainer", self._explainer.run)]),
                *([] if self._lookout is None else [("lookout", self._lookout.run)]),
            ),
            early=(
                ("trust", self._keep_trust),
                ("claims", self._claims.run),
                ("sight", self._sight.run),
                ("health", self._watch_health),
            ),
            expendable=frozenset(
                {
                    *(
                        "explainer",
                        "lookout",
                        "stalls",
                        "health",
                        "sight",
                        "pulse",
                        "identity",
                        "topology",
                    ),
                    "claims",
                    *(plane.name for plane in self._file_planes),
                }
            ),
            drain=self._ingest.stop,
            close=(
                ("http", self._stop_http),
                *([] if self._ops_http is None else [("ops_http", self._ops_http.stop)]),
                *([] if self._flagd_sync is None else [("flagd_sync", self._flagd_sync.stop)]),
                ("events", self._events.stop),
                ("commands", self._commands.stop),
                ("state_feed", self._feed.stop),
                ("publisher", self._publisher.stop),
                ("topology", self._topology.stop),
                ("redis", self._store.close),
                ("advisor", self._advisor.close),
                *((plane.name, plane.close) for plane in self._outside_planes),
            ),
        )

    def _make_ops_http(self) -> HttpServer | None:
        """Return the server for probes and scrapers alone, None when there is to be none."""
        http = self._settings.http
        if http.ops_port is None:
            return None
        hosts = http.allowed_hosts
        app = make_ops_app(
            self._board, self._health, self._metrics, self._faults, allowed_hosts=hosts
        )
        return HttpServer(
            app,
            host=http.host if http.ops_host is None else http.ops_host,
            port=http.ops_port,
            max_connections=OPS_CONNECTIONS,
            max_per_client=OPS_CONNECTIONS // 4,
            head_seconds=3.0,
            keep_alive_seconds=5,
            backlog=OPS_CONNECTIONS,
            setting="http.ops_host and http.ops_port",
        )

    async def _stop_http(self) -> None:
        self._event_streams.end()
        servers = [self._http] if self._ops_http is None else [self._http, self._ops_http]
        await asyncio.gather(*(one.stop(self._settings.shutdown.close_seconds) for one in servers))

    # --- before anything runs
    # -------------------------------------------------------------------------------------------

    async def _prepare_topics(self) -> None:
        await self._topology.begin(await ensure_topics(self._settings.kafka))

    def _topic_remade(self, logical: str) -> None:
        """A topic was deleted and made anew: whoever reads it begins afresh."""
        name = self._settings.kafka.topic(logical)
        self._events.topic_remade(name)
        self._commands.topic_remade(name)
        if logical == "state":
            self._feed.read_again()

    async def _prepare_redis(self) -> None:
        for warning in await check_server(self._store):
            self._log.warning("redis_warning", warning=warning)
        settings = self._settings
        identity = Identity(
            await cluster_id(settings.kafka) or settings.environment,
            settings.kafka.topic_prefix,
            settings.environment,
            settings.former_environments,
        )
        stored = StoredIdentity(self._store)
        if settings.redis.key_prefix is None and await stored.has_shared_data():
            self._log.warning(
                "redis_warning",
                warning=f"keys under {SHARED_PREFIX!r} may be this environment's, from before keys "
                f"named it; they "
                f"are not used: all is counted again from Kafka under "
                f"{self._store.prefix!r}. To go on with "
                f"them, set redis.key_prefix to {SHARED_PREFIX!r}",
            )
        await self._refuse_to_leave_data_behind()
        await stored.check(identity, settings.kafka.topic_epoch)
        self._identity = identity
        await self._pulse.look()  # nothing is decided before the clocks were compared
        self._log.info(
            "redis_ready", key_prefix=self._store.prefix, environment=settings.environment
        )

    async def _refuse_to_leave_data_behind(self) -> None:
        """Raise ConfigInvalid when a former name's data stand under a prefix that this name does not get."""
        settings = self._settings
        stored = StoredIdentity(self._store)
        if (
            settings.redis.key_prefix is not None
            or await stored.environment_at(self._store.prefix) is not None
        ):
            return
        for former in settings.former_environments:
            prefix = settings.made_key_prefix(former)
            if prefix != self._store.prefix and await stored.environment_at(prefix) == former:
                raise ConfigInvalid(
                    f"Redis holds the data of {former!r}, which former_environments says "
                    f"was this environment, under "
                    f"{prefix!r}: set redis.key_prefix to {prefix!r} to go on with them"
                )

    async def _read_flags(self) -> None:
        self._stored_flags = frozenset(await self._tools.rollouts.flag_keys())

    def _event_partitions(self) -> tuple[str, ...]:
        kafka = self._settings.kafka
        counts = (
            (topic, self._topology.partitions(name))
            for topic, name in zip(self._streams, EVENT_TOPICS, strict=True)
        )
        return tuple(
            f"{topic}/{number}/{kafka.topic_epoch}"
            for topic, count in counts
            for number in range(count)
        )

    def _watchdog(self, name: str, log: KafkaEventLog) -> ConsumerWatchdog:
        return ConsumerWatchdog(
            name,
            self._settings.watchdog,
            self._clock,
            progress=log.progress,
            seconds_since_fetch=log.seconds_since_fetch,
            rebuild=log.rebuild,
            give_up=self._give_up,
        )

    def _state_entry(self, rollout: Rollout) -> OutboxEntry:
        return self._encode(
            rollout,
            rollout.flag_key,
            rollout,
            f"{rollout.flag_key}/{rollout.revision}/0",
            self._clock.now(),
        )

    # --- what parts tell each other
    # -------------------------------------------------------------------------------------

    async def _follow_state(self) -> None:
        """Let every document of the state topic reach all who go by it.

        Other replicas decide too.
        """
        async with aclosing(self._feed.documents()) as documents_read:
            async for document in documents_read:
                self._learn_alone(document)
                await self._state_plane.note(document)

    async def _keep_trust(self) -> None:
        await self._board.keep_trust(self._feed, silent_seconds=self._silent_seconds)

    async def _catch_up(self) -> None:
        """Return once everything decided is known.

        The state topic to its end, and what a crash kept from it.

        Events must not be counted by an older document: those of a new stage would count for the
        one before, for good.
        """
        await self._feed.caught_up()
        self._refuse_foreign_state()
        unpublished: Sequence[Rollout] | None = None
        while unpublished is None:
            try:
                unpublished = await self._tools.rollouts.newer_than(
                    {key: each.revision for key, each in self._newest.items()}
                )
            except StoreUnavailable as trouble:
                self._health.not_ready("state", str(trouble))
                self._log.warning(
                    "waiting", step="reading what was decided last", error=str(trouble)
                )
                await asyncio.sleep(1.0)
        for rollout in unpublished:
            self._log.info(
                "decided_unpublished", flag_key=rollout.flag_key, revision=rollout.revision
            )
            self._learn_alone(rollout)

    def _learn_alone(self, rollout: Rollout) -> None:
        """Learn a document from the topic. One that cannot be used stops its own flag only."""
        try:
            self._learn(rollout)
        except Exception as error:  # the edge of one flag: the topic would bring it again for ever
            why = f"revision {rollout.revision} cannot be used: {type(error).__name__}: {error}"
            self._log.exception("document_unusable", flag_key=rollout.flag_key)
            fix = "see document_unusable in the log"
            self._faults.report(Scope.FLAG, rollout.flag_key, why[:300], fix, reporter=_STATE)
        else:
            self._faults.clear(Scope.FLAG, rollout.flag_key, reporter=_STATE)
            # Whoever runs it has written a document that can be read.
            self._readable(rollout.flag_key)

    def _read_state(self, value: bytes) -> Rollout:
        """Return the rollout of a record of the state topic. Raises DocumentUnreadable."""
        names = (self._settings.environment, *self._settings.former_environments)
        try:
            return read_state(value, names)
        except ForeignDocument as foreign:
            if self._foreign_state is None:
                self._foreign_state = (read_state(value).flag_key, foreign.environment)
                flag_key, _ = self._foreign_state
                why = self._foreign_state_words()
                self._faults.report(Scope.FLAG, flag_key, why, _OWN_TOPICS, reporter=_FOREIGN)
            raise

    def _foreign_state_words(self) -> str:
        assert self._foreign_state is not None
        flag_key, environment = self._foreign_state
        return (
            f"{self._settings.kafka.topic('state')} holds the rollout of {flag_key} of "
            f"environment {environment!r}, and "
            f"this is {self._settings.environment!r}: two environments on the same topics "
            f"would undo each other's decisions"
        )

    async def _check_environment(self) -> None:
        """Refuse another environment's topics before any group is joined.

        Its replicas would lose partitions.

        Raises ConfigInvalid, and EventLogUnavailable while the state topic has not been read to its
        end.
        """
        try:
            async with asyncio.timeout(self._settings.kafka.call_seconds):
                await self._feed.caught_up()
        except TimeoutError:
            raise EventLogUnavailable(
                f"{self._settings.kafka.topic('state')} has not been read to its end yet"
            ) from None
        self._refuse_foreign_state()

    def _refuse_foreign_state(self) -> None:
        """Raise ConfigInvalid when the state topic is another environment's."""
        if self._foreign_state is not None:
            environment = self._foreign_state[1]
            raise ConfigInvalid(
                f"{self._foreign_state_words()}. {_OWN_TOPICS}; or, if {environment!r} is "
                f"this environment's "
                "former name, add it to former_environments"
            )

    def _learn(self, rollout: Rollout) -> None:
        """Serve a document and count by it, whoever decided it.

        An older one than known changes nothing.
        """
        known = self._newest.get(rollout.flag_key)
        if known is None or rollout.revision >= known.revision:
            self._newest[rollout.flag_key] = rollout
            self._board.take(rollout)
            for plane in self._file_planes:
                plane.take(rollout)
            self._ingest.watch(rollout)

    def _on_transition(self, rollout: Rollout) -> None:
        """Our own worker decided, or took the flag over."""
        self._learn(rollout)
        self._actuation.want(rollout)

    def _overtaken(self, flag_key: str) -> None:
        """The state topic ends with an older document, written late, or with none.

        It was made anew.

        The newest one stands there again once it was read there.
        """
        self._state_plane.forget(flag_key)
        worker = self._workers.worker(flag_key)
        if worker is not None:
            worker.republish_state()

    def _newest_evidence(self, flag_key: str) -> bytes | None:
        worker = self._workers.worker(flag_key)
        if worker is None or worker.judgement is None or worker.rollout is None:
            return None
        is_of_this_rollout = worker.judgement.at >= worker.rollout.started_at
        return judgement_to_json(worker.judgement) if is_of_this_rollout else None

    def _plane_standings(self, flag_key: str) -> Sequence[PlaneStanding] | None:
        return self._actuation.standings(flag_key)

    def _on_counted(self, flag_keys: frozenset[str]) -> None:
        if flag_keys:
            self._workers.counted()

    def _alert(self, flag_key: str, alert: RaiseAlert) -> None:
        worker = self._workers.worker(flag_key)
        if worker is not None:
            worker.alert(alert)

    def _on_alert(self, rollout: Rollout, alert: RaiseAlert) -> None:
        if self._explainer is not None:
            self._explainer.want(rollout, alert)

    def _comment(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Publish what was found about a rollout, unless its flag has begun another by now."""
        worker = self._workers.worker(rollout.flag_key)
        if (
            worker is not None
            and worker.rollout is not None
            and worker.rollout.rollout_id == rollout.rollout_id
        ):
            worker.alert(alert)

    def _silent_seconds(self) -> float | None:
        return self._feed.silent_seconds

    def _components(self) -> Sequence[Component]:
        return tuple(self._health.components.values())

    def _note_gap(self, plane: str, seconds: float) -> None:
        self._metrics.actuation_gap_seconds.of(plane).set(seconds)

    def _note_attempt(self, plane: str, is_served: bool) -> None:
        self._metrics.actuations.of(plane, "served" if is_served else "failed").inc()
        if not is_served:
            self._metrics.dependency_errors.of("flag_plane").inc()

    # --- commands
    # ----------------------------------------------------------------------------------------------

    def _peek_command(self, record: Record) -> Peeked | None:
        peeked = peek_command(record.value, record.headers, record.key)
        return None if peeked is None else Peeked(*peeked)

    def _read_command(self, record: Record) -> ReadCommand:
        now = self._clock.now()
        source = (record.value, record.headers, record.key, record.timestamp)
        try:
            command = read_command(*source, now)
            event = to_command_received(command, now)
        except BadInput:
            raise
        except Exception as mistake:  # ours: refused by the command, and nothing else is touched
            self._log.exception(
                "command_not_read", partition=record.partition, offset=record.offset
            )
            raise refusal_by_mistake(*source, mistake) from mistake

        def copy() -> OutboxEntry:
            value = command_event(command, hops=1)
            return OutboxEntry(
                "", f"{command.flag}/{command.id}/hop", "commands", command.flag, value
            )

        return ReadCommand(command.flag, event, copy)

    def _command_partitions(self) -> int:
        return self._topology.partitions("commands")

    def _command_partition(self, flag_key: str) -> int:
        return _home(flag_key, self._command_partitions())

    def _unreadable(self, flag_key: str, why: str) -> None:
        """One flag's document cannot be read.

        The others start, and it is served as the state topic says.
        """
        fix = f"rolloutd repair flag {flag_key}, or run the release that wrote it"
        why = f"what is stored for it cannot be read: {why}"
        self._damaged.add(flag_key)
        self._faults.report(Scope.FLAG, flag_key, why, fix, reporter=START_UP)

    def _readable(self, flag_key: str) -> None:
        """One flag's document can be read again, or is gone."""
        self._damaged.discard(flag_key)
        self._faults.clear(Scope.FLAG, flag_key, reporter=START_UP)

    async def _read_damaged_again(self) -> None:
        """Ask for what start-up could not read.

        Another replica may run the flag, and have repaired it.
        """
        for flag_key in sorted(self._damaged):
            try:
                stored = await self._tools.rollouts.load(flag_key)
            except DocumentUnreadable:
                continue
            if not stored.trouble:
                self._readable(flag_key)

    def _known_flags(self) -> Sequence[str]:
        return sorted({*self._newest, *self._stored_flags})

    def _released(self, flag_key: str) -> None:
        self._actuation.drop([flag_key])
        if flag_key in self._times_ahead:
            self._times_ahead.discard(flag_key)
            self._faults.clear(Scope.FLAG, flag_key)

    def _drift(self, rollout: Rollout) -> str | None:
        return self._actuation.drift(rollout)

    async def _quarantine(
        self, topic: str, partition: int, refusals: Sequence[quarantine.Refusal]
    ) -> None:
        """Return once the quarantine has what was refused. Raises EventLogUnavailable."""
        topic = topic_of(topic)
        place = quarantine.key(topic, partition).decode()
        effect_id = f"{place}/{refusals[0].offset}-{refusals[-1].offset}"
        value = quarantine.encode(topic, partition, refusals, source=self._source)
        await self._publisher.publish([OutboxEntry("", effect_id, "quarantine", place, value)])

    async def _refuse_commands(self, refused: Sequence[tuple[Record, BadInput]]) -> None:
        """Answer commands that are not carried out, until Kafka has it.

        Set aside records that are none.

        Those wait with ingest's while the quarantine is away: it must keep no command from its
        answer.
        """
        entries: list[OutboxEntry] = []
        aside: dict[tuple[str, int], list[quarantine.Refusal]] = {}
        for record, fault in refused:
            if isinstance(fault, CommandRefused):
                entries.append(self._refusal(record, fault))
                continue
            reason = (
                fault.reason if isinstance(fault, CommandUnreadable) else QuarantineReason.INVALID
            )
            unusable = RecordRefused(reason, str(fault), "see schemas/json/command.schema.json")
            refusal = quarantine.refusal(record.offset, record.timestamp, record.value, unusable)
            aside.setdefault((record.topic, record.partition), []).append(refusal)
            self._metrics.quarantined.of(reason).inc()
        for (topic, partition), refusals in aside.items():
            self._ingest.refusals.add(topic, partition, refusals)
        if entries:
            await self._persistently(partial(self._publisher.publish, entries))
        if aside:
            await self._ingest.refusals.flushed(QUARANTINE_SECONDS)

    def _refusal(self, record: Record, fault: CommandRefused) -> OutboxEntry:
        # Nobody keeps the answer: only what stands in the record goes into it, and a record that is
        # read again after a crash gets the same one.
        answer = AnswerCommand(
            fault.command_id, fault.verb, CommandStatus.REJECTED, fault.reason, 0
        )
        at = time_of(record.timestamp)
        return self._encode(answer, fault.flag_key, None, fault.command_id, at)

    async def _publish_persistently(self, entry: OutboxEntry) -> None:
        await self._persistently(partial(self._publisher.publish, [entry]))

    async def _persistently(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Repeat until Kafka has it: what was read and not obeyed must not be lost."""
        while True:
            try:
                await tell()
            except EventLogUnavailable as trouble:
                self._log.warning("refusal_waits", error=str(trouble))
                await asyncio.sleep(1.0)
            else:
                return

    # --- running and stopping
    # -------------------------------------------------------------------------------------------

    async def _count_events(self) -> None:
        await self._ingest.run()
        await (
            asyncio.Event().wait()
        )  # it ends only when drained; then the process is on its way out

    def _give_up(self, why: str) -> None:
        self._supervisor.give_up(why)

    async def _watch_identity(self) -> None:
        """Ask now and then whether this Redis still is ours.

        An address may come to name another.
        """
        while True:
            await asyncio.sleep(IDENTITY_SECONDS)
            try:
                await self._read_damaged_again()
            except OperatingTrouble as trouble:
                self._log.warning("damaged_not_read", error=str(trouble))
            if self._identity is None:
                continue
            epoch = self._settings.kafka.topic_epoch
            try:
                why = await StoredIdentity(self._store).recheck(self._identity, epoch)
            except RolloutdError as trouble:
                self._log.warning("identity_not_read", error=str(trouble))
                continue
            if why is None:
                self._faults.clear(Scope.DEPENDENCY, "redis_identity")
            else:
                fix = (
                    "give redis.url its former address and restart; flags stay as they are, "
                    "nothing is decided"
                )
                self._faults.report(Scope.DEPENDENCY, "redis_identity", why, fix)

    # --- how it stands
    # -------------------------------------------------------------------------------

    async def _watch_health(self) -> None:
        """Report once a second how everything stands."""
        while True:
            counters = self._ingest.counters
            self._reporter.count_troubles(counters.save_troubles, counters.fetch_troubles)
            if self._supervisor.is_running:  # before, the steps say what they wait for
                self._reporter.report(self._signs())
                self._report_times_ahead()
                self._report_refused_state()
            await asyncio.sleep(REPORT_EVERY_SECONDS)

    def _report_times_ahead(self) -> None:
        """Name the rollouts whose stored times lie ahead.

        They stand still until they are brought back.
        """
        now = self._clock.now()
        for flag_key, rollout in self._workers.rollouts.items():
            ahead = seconds_ahead(rollout, now)
            if ahead > AHEAD_AT_MOST_SECONDS:
                self._times_ahead.add(flag_key)
                why = (
                    f"its last transition is {ahead:.0f} s ahead of the clocks, so nothing "
                    f"about it moves"
                )
                fix = (
                    "it is brought back by itself once the clocks agree: see the fault of "
                    "scope clock"
                )
                self._faults.report(Scope.FLAG, flag_key, why, fix, reporter=_TIMES)
            elif flag_key in self._times_ahead:
                self._times_ahead.discard(flag_key)
                self._faults.clear(Scope.FLAG, flag_key, reporter=_TIMES)
        for flag_key in self._times_ahead - self._workers.rollouts.keys():
            self._times_ahead.discard(flag_key)  # another replica runs it now
            self._faults.clear(Scope.FLAG, flag_key, reporter=_TIMES)

    def _report_refused_state(self) -> None:
        """Name the flags whose newest record of the state topic is of no use.

        Some, our own first.
        """
        corrupt = self._feed.corrupt
        shown = sorted(corrupt, key=lambda flag_key: flag_key not in self._newest)[:_REFUSED_SHOWN]
        for flag_key in self._state_refused.difference(shown):
            self._faults.clear(Scope.FLAG, flag_key, reporter=_REFUSED)
        self._state_refused = frozenset(shown)
        topic = self._settings.kafka.topic("state")
        for flag_key in shown:
            why = f"its newest record in {topic} is of no use: {corrupt[flag_key]}"[:300]
            self._faults.report(Scope.FLAG, flag_key, why, _REFUSED_REMEDY, reporter=_REFUSED)

    def _signs(self) -> Signs:
        """Return how everything stands now."""
        now = self._clock.monotonic()
        heard_at = self._store.heard_at
        return Signs(
            brokers={
                STATE_TOPIC: self._feed.silent_seconds,
                "events": _silence(self._events, now),
                "commands": _silence(self._commands, now),
            },
            store_seconds=None if heard_at is None else now - heard_at,
            store_trouble=self._pulse.trouble,
            partitions=self._ingest.views(),
            topics=dict(zip(self._streams, EVENT_TOPICS, strict=True)),
            expected=self._expected(),
            owned_commands=len(self._workers.owned),
            effects=self._workers.pending_effects,
            effects_seconds=self._workers.outbox_seconds,
            broken=self._workers.broken,
            unsaved=self._workers.unsaved,
            gaps=self._actuation.gaps,
            not_served=self._board.why_not or self._board.why_stale,
            clocks=self._clock.why_not(),
            advisor=self._advisor.trouble,
        )

    def _expected(self) -> Mapping[str, int]:
        """Return how many partitions each event topic has, by logical name.

        Nothing before that is known.
        """
        try:
            keys = self._event_partitions()
        except KeyError:
            return {}
        topics = [key.rsplit("/", 2)[0] for key in keys]
        return {
            name: topics.count(stream)
            for stream, name in zip(self._streams, EVENT_TOPICS, strict=True)
        }

    def _why_not_raise(self) -> str | None:
        """Return why this replica must not raise exposure now.

        Its word, clock or store is in doubt.
        """
        session_timeout = self._settings.kafka.session_timeout_seconds
        # Reported by whoever asks Redis now and then whose keys it holds.
        strange = self._faults.of(Scope.DEPENDENCY, "redis_identity")
        return (
            why_word_is_old(self._feed.silent_seconds, session_timeout)
            or self._clock.why_not()
            or (None if strange is None else strange.why)
        )

    def _views(self) -> Sequence[View]:
        """Return every live rollout that this replica should see, taken up or not."""
        views: list[View] = list(self._workers.watch_views())
        known = {view.flag_key for view in views}
        owned = {number for _, number in self._workers.owned}
        is_late = self._clock.monotonic() - self._began_at > STARTING_SECONDS
        for flag_key, rollout in list(self._newest.items()):
            if flag_key in known or rollout.has_ended:
                continue
            is_ours = bool(owned) and self._command_partition(flag_key) in owned
            # While this replica cannot start, it may not know who else runs the flag: after a while
            # it says what it sees, under a key that all replicas share.
            is_anybodys = is_late and not self._health.has_started
            if is_ours or (is_anybodys and not self._is_known(flag_key)):
                views.append(Unseen(flag_key, rollout))
        return views

    def _is_known(self, flag_key: str) -> bool:
        """Return whether the claims say who runs a flag that is not ours, or that nobody does."""
        try:
            is_claimed, why = self._claims.judge(self._command_partition(flag_key), is_owned=False)
        except KeyError:
            return False
        return is_claimed or why is not None

    def _working_partitions(self) -> Sequence[int]:
        """Return the command partitions whose flags run here, as far as their loop still turns."""
        at = self._workers.followed_at
        if at is None or self._clock.monotonic() - at > WORKED_WITHIN_SECONDS:
            return ()
        return sorted(number for _, number in self._workers.owned)

    def _holders(self) -> Sequence[Holder]:
        """Return of every live rollout that is known who runs it."""
        owned = {number for _, number in self._workers.owned}
        found = []
        for flag_key, rollout in list(self._newest.items()):
            if not needs_watching(rollout):
                continue
            try:
                number = self._command_partition(flag_key)
            except KeyError:  # nobody has said yet how many there are
                continue
            is_claimed, why = self._claims.judge(number, is_owned=number in owned)
            found.append(Holder(flag_key, rollout, is_claimed, why))
        return found

    def _why_all_blind(self) -> str | None:
        """Return what keeps every guardrail from seeing: topics that are not counted whole."""
        fault = self._faults.of(Scope.DEPENDENCY, "kafka topics")
        if fault is None or not any(
            topic in fault.why for topic in self._settings.kafka.event_topics
        ):
            return None  # another topic's trouble blinds nobody
        return fault.why

    async def _send_alerts(self, waiting: Sequence[Waiting]) -> None:
        """Return once Kafka has the alerts. Raises EventLogUnavailable."""
        entries = []
        for one in waiting:
            effect_id = f"{one.alert.dedup_key}/{one.at.timestamp():.3f}"
            flag_key = one.rollout.flag_key
            entries.append(self._encode(one.alert, flag_key, one.rollout, effect_id, one.at))
        await self._publisher.publish(entries)


@lru_cache(maxsize=50_000)
def _home(flag_key: str, partitions: int) -> int:
    """Return a flag's partition. Remembered: live flags are looked at every second."""
    return partition_of(flag_key, partitions)


def _silence(log: KafkaEventLog, now: float) -> float | None:
    """Return for how long the brokers have not answered for some partition of a consumer's."""
    ask: Callable[[TopicPartition], float | None] = getattr(log, "heard_at", lambda _: None)
    known = [at for at in map(ask, log.assignment) if at is not None]
    if not known and log.heard_before is not None:  # the consumer is made again, and again
        known = [log.heard_before]
    return now - min(known) if known else None


async def discard_partition(settings: Settings, topic: str, number: int) -> bool:
    """Delete what is stored of one event partition; return whether there was something.

    Raises ConfigInvalid for a topic that is not counted, StoreUnavailable when it is not known to
    be done.
    """
    counted = streams(settings.kafka.event_topics)
    if topic not in counted:
        raise ConfigInvalid(f"{topic} is not counted; counted are {' and '.join(counted)}")
    store = RedisConnection.connect(
        redis_url(settings.redis),
        prefix=settings.redis_key_prefix,
        is_cluster=settings.redis.is_cluster,
        deadline_seconds=2 * settings.redis.call_timeout_seconds,
        try_seconds=settings.redis.call_timeout_seconds,
    )
    try:
        return await RedisTotals(store).discard(f"{topic}/{number}/{settings.kafka.topic_epoch}")
    finally:
        await store.close()


def check_parts(settings: Settings) -> None:
    """Raise ConfigInvalid for what shows only when a part is made.

    Templates, certificates, directories, packages.
    """
    for name, file in settings.planes.files.items():
        FilePlane(name, file)
    make_outside_planes(settings, SystemClock())
    make_flagd_sync(settings, FlagBoard(generation=Generation(settings.http.bucketing)))


def make_flagd_sync(settings: Settings, board: FlagBoard) -> FlagdSyncServer | None:
    """Return flagd's gRPC sync source, None when it is not offered. Raises ConfigInvalid."""
    flagd_sync = settings.flagd_sync
    if flagd_sync.port is None:
        return None
    address = SyncAddress(
        flagd_sync.host,
        flagd_sync.port,
        flagd_sync.certificate_file,
        flagd_sync.key_file,
        flagd_sync.max_streams,
    )
    return FlagdSyncServer(board, address, flag_set_id=settings.environment)


def make_outside_planes(settings: Settings, clock: Clock) -> Sequence[OutsidePlane]:
    """Return the planes that the settings name, besides those that are always there.

    Raises ConfigInvalid.
    """
    planes: list[OutsidePlane] = []
    keys = settings.planes.redis
    if keys.url is not None:
        planes.append(
            RedisPlane(
                redis_url(keys), key_prefix=keys.key_prefix, call_seconds=keys.call_timeout_seconds
            )
        )
    if settings.planes.unleash.url is not None:
        planes.append(UnleashPlane(settings.planes.unleash, clock))
    planes += [HttpPlane(name, http, clock) for name, http in settings.planes.http.items()]
    return planes


def redis_url(settings: RedisSettings | RedisPlaneSettings) -> str:
    """Return the address with everything redis-py takes from it.

    User, password, authorities. There must be one.
    """
    parts = urlsplit(settings.url or "")
    netloc, query = parts.netloc, parts.query
    if settings.password is not None:
        user = quote(settings.username or "", safe="")
        password = quote(settings.password.get_secret_value(), safe="")
        netloc = f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"
    if settings.ca_file is not None:
        query = "&".join(filter(None, (query, urlencode({"ssl_ca_certs": str(settings.ca_file)}))))
    return urlunsplit(parts._replace(netloc=netloc, query=query))
