"""Wires everything: which adapter stands behind which port, and what is told to whom. No decisions, no loops of its own.

How the parts are started, watched and stopped is `service/supervisor.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Protocol
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import structlog

from controller.adapters import documents
from controller.adapters.advisor import NoAdvisor, make_advisor
from controller.adapters.file_plane import FilePlane
from controller.adapters.http_plane import HttpPlane
from controller.adapters.kafka import KafkaEventLog, KafkaPublisher, cluster_id, ensure_topics, partition_of
from controller.adapters.kafka_state import KafkaStateFeed
from controller.adapters.redis import RedisRollouts, RedisTotals, Store
from controller.adapters.redis_plane import RedisPlane
from controller.adapters.shared_topic import SharedTopic, streams, topic_of
from controller.adapters.state_topic import StateTopicPlane
from controller.adapters.unleash import UnleashPlane
from controller.clock import SystemClock
from controller.core.rollout import AnswerCommand, RaiseAlert, Rollout
from controller.errors import BadInput, CommandRefused, CommandUnreadable, EventLogUnavailable, StoreUnavailable
from controller.health import Component, Health
from controller.metrics import EVENT_TOPICS, Metrics
from controller.ports import Clock, FlagPlane, OutboxEntry, PlaneStanding, Record
from controller.service.actuation import Actuation
from controller.service.commentary import Explainer, Lookout
from controller.service.counting import IS_COMPILED
from controller.service.ingest import Ingest
from controller.service.reporter import REPORT_EVERY_SECONDS, Reporter
from controller.service.supervisor import Parts, Step, Supervisor
from controller.service.watchdog import ConsumerWatchdog, StallMeter
from controller.service.worker import Tools
from controller.service.workers import ReadCommand, Workers
from controller.settings import RedisPlaneSettings, RedisSettings, Settings
from controller.web.app import make_app
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
REQUIRED = ("http", "kafka", "redis", "state", "counting", "flags")
OPTIONAL = ("actuation", "outbox")


class OutsidePlane(FlagPlane, Protocol):
    """A plane that holds connections of its own."""

    async def close(self) -> None:
        """Drop them, within a deadline."""


class Daemon:
    """One replica. Nothing is connected before `run`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = SystemClock()
        advised = () if settings.advisor.url is None else ("advisor",)
        self._health = Health(REQUIRED, (*OPTIONAL, *advised))
        self._board = FlagBoard(generation=Generation(settings.http.bucketing), flag_set_id=settings.environment)
        self._publisher = KafkaPublisher(settings.kafka)
        self._state_plane = StateTopicPlane(self._publisher, self._state_entry)
        self._file_planes = [FilePlane(name, file) for name, file in settings.planes.files.items()]
        self._outside_planes = make_outside_planes(settings, self._clock)
        planes: tuple[FlagPlane, ...] = (self._board, self._state_plane, *self._file_planes, *self._outside_planes)
        self._metrics = Metrics(version=version("rolloutd"), is_compiled=IS_COMPILED, planes=[plane.name for plane in planes])
        self._metrics.watch(percents=self._board.percents, components=self._components)
        self._newest: dict[str, Rollout] = {}  # by flag, from the state topic and our own workers
        self._stored_flags: frozenset[str] = frozenset()
        self._partitions: dict[str, int] = {}
        self._store = Store.connect(
            redis_url(settings.redis),
            prefix=settings.redis.key_prefix,
            is_cluster=settings.redis.is_cluster,
            deadline_seconds=2 * settings.redis.call_timeout_seconds,
            try_seconds=settings.redis.call_timeout_seconds,
            connections=settings.redis.max_connections,
        )
        event_topics = settings.kafka.event_topics
        self._streams = streams(event_topics)
        is_shared = settings.kafka.is_one_topic
        self._events = KafkaEventLog(settings.kafka, sorted(set(event_topics)), settings.kafka.events_group, bare_records=True)
        self._commands = KafkaEventLog(settings.kafka, [settings.kafka.topic("commands")], settings.kafka.commands_group)
        self._feed = KafkaStateFeed(settings.kafka, documents.read_state, overtaken=self._overtaken)
        app = make_app(
            self._board,
            self._health,
            self._metrics,
            describe=documents.rollout_to_json,
            newest_evidence=self._newest_evidence,
            plane_standings=self._plane_standings,
            allowed_hosts=settings.http.allowed_hosts,
            max_body_bytes=settings.http.max_body_bytes,
            stream_limits=StreamLimits(streams=settings.http.max_event_streams),
        )
        self._event_streams: EventStreams = app.state.event_streams
        self._http = HttpServer(
            app, host=settings.http.host, port=settings.http.port, max_connections=settings.http.max_connections
        )
        self._flagd_sync = make_flagd_sync(settings, self._board)
        self._advisor = make_advisor(settings.advisor, self._clock)
        totals = RedisTotals(self._store)
        self._tools = Tools(
            rollouts=RedisRollouts(self._store),
            publisher=self._publisher,
            advisor=self._advisor,
            clock=self._clock,
            metrics=self._metrics,
            encode=documents.encode,
            on_transition=self._on_transition,
            newest_known=self._newest.get,
            on_alert=self._on_alert,
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
            read_evaluations=evaluation_reader(settings.kafka.formats.evaluations, of_spans=is_shared),
            read_outcomes=outcome_reader(settings.kafka.formats.outcomes),
        )
        self._workers = Workers(
            tools=self._tools,
            commands=self._commands,
            totals=totals,
            read_command=self._read_command,
            refuse=self._refuse_command,
            forward=self._publish_persistently,
            partition_of=self._command_partition,
            known_flags=self._known_flags,
            event_partitions=self._event_partitions,
            released=self._released,
            actuation_drift=self._drift,
        )
        commentator = None if isinstance(self._advisor, NoAdvisor) else self._advisor
        self._explainer = None if commentator is None else Explainer(commentator, self._metrics, self._comment)
        look_seconds = settings.advisor.look_every_seconds
        self._lookout = (
            None
            if look_seconds is None
            else Lookout(lambda: self._workers.evidence, commentator, self._comment, every_seconds=look_seconds)
        )
        self._actuation = Actuation(
            planes, self._clock, raise_alert=self._alert, note_gap=self._note_gap, note_attempt=self._note_attempt
        )
        self._metrics.watch(converged=self._actuation.converged)
        self._supervisor = Supervisor(self._parts(), self._health, settings.shutdown)
        self._log = structlog.get_logger()

    async def run(self) -> int:
        """Serve HTTP at once, then bring up the rest and run until stopped; return the exit code."""
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
            self._clock, self._metrics.stall_seconds.observe, warning_seconds=settings.watchdog.stall_warning_seconds
        )
        return Parts(
            steps=(
                Step("kafka", "preparing topics", self._prepare_topics),
                Step("redis", "looking at Redis", self._prepare_redis),
                Step("flags", "reading which flags there are", self._read_flags),
                Step("counting", "joining the group that counts", self._events.start),
                Step("flags", "joining the group that decides", self._commands.start),
            ),
            follow=self._follow_state,
            caught_up=self._catch_up,
            loops=(
                ("ingest", self._count_events),
                ("workers", self._workers.run),
                ("actuation", self._actuation.run),
                ("health", self._watch_health),
                ("stalls", stalls.run),
                *((plane.name, plane.keep) for plane in self._file_planes),
                *watchdogs,
                *([] if self._explainer is None else [("explainer", self._explainer.run)]),
                *([] if self._lookout is None else [("lookout", self._lookout.run)]),
            ),
            drain=self._ingest.stop,
            close=(
                ("http", self._stop_http),
                *([] if self._flagd_sync is None else [("flagd_sync", self._flagd_sync.stop)]),
                ("events", self._events.stop),
                ("commands", self._commands.stop),
                ("state_feed", self._feed.stop),
                ("publisher", self._publisher.stop),
                ("redis", self._store.close),
                ("advisor", self._advisor.close),
                *((plane.name, plane.close) for plane in self._outside_planes),
            ),
        )

    async def _stop_http(self) -> None:
        self._event_streams.end()
        await self._http.stop(self._settings.shutdown.close_seconds)

    # --- before anything runs -------------------------------------------------------------------------------------------

    async def _prepare_topics(self) -> None:
        self._partitions.update(await ensure_topics(self._settings.kafka))

    async def _prepare_redis(self) -> None:
        for warning in await self._store.check_server():
            self._log.warning("redis_warning", warning=warning)
        identity = await cluster_id(self._settings.kafka)
        await self._store.check_identity(identity or self._settings.environment, self._settings.kafka.topic_epoch)

    async def _read_flags(self) -> None:
        self._stored_flags = frozenset(await self._tools.rollouts.flag_keys())

    def _event_partitions(self) -> tuple[str, ...]:
        kafka = self._settings.kafka
        counts = ((topic, self._partitions[name]) for topic, name in zip(self._streams, EVENT_TOPICS, strict=True))
        return tuple(f"{topic}/{number}/{kafka.topic_epoch}" for topic, count in counts for number in range(count))

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
        return documents.encode(
            rollout, rollout.flag_key, rollout, f"{rollout.flag_key}/{rollout.revision}/0", self._clock.now()
        )

    # --- what parts tell each other -------------------------------------------------------------------------------------

    async def _follow_state(self) -> None:
        """Let every document of the state topic reach all who go by it: other replicas decide too."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._board.keep_trust(self._feed, silent_seconds=self._silent_seconds), name="trust")
            async for document in self._feed.documents():
                self._learn(document)
                await self._state_plane.note(document)

    async def _catch_up(self) -> None:
        """Return once everything decided is known: the state topic to its end, and what a crash kept from it.

        Events must not be counted by an older document: those of a new stage would count for the one before, for good.
        """
        await self._feed.caught_up()
        unpublished: Sequence[Rollout] | None = None
        while unpublished is None:
            try:
                unpublished = await self._tools.rollouts.newer_than({key: each.revision for key, each in self._newest.items()})
            except StoreUnavailable as trouble:
                self._health.not_ready("state", str(trouble))
                self._log.warning("waiting", step="reading what was decided last", error=str(trouble))
                await asyncio.sleep(1.0)
        for rollout in unpublished:
            self._log.info("decided_unpublished", flag_key=rollout.flag_key, revision=rollout.revision)
            self._learn(rollout)

    def _learn(self, rollout: Rollout) -> None:
        """Serve a document and count by it, whoever decided it; an older one than known changes nothing."""
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
        """The state topic ends with an older document: somebody late wrote over the newest one."""
        worker = self._workers.worker(flag_key)
        if worker is not None:
            self._state_plane.forget(flag_key)
            worker.republish_state()

    def _newest_evidence(self, flag_key: str) -> bytes | None:
        worker = self._workers.worker(flag_key)
        if worker is None or worker.judgement is None or worker.rollout is None:
            return None
        is_of_this_rollout = worker.judgement.at >= worker.rollout.started_at
        return documents.judgement_to_json(worker.judgement) if is_of_this_rollout else None

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
        if worker is not None and worker.rollout is not None and worker.rollout.rollout_id == rollout.rollout_id:
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

    # --- commands -------------------------------------------------------------------------------------------------------

    def _read_command(self, record: Record) -> ReadCommand:
        now = self._clock.now()
        command = documents.read_command(
            record.value,
            record.headers,
            record.key,
            record.timestamp,
            now,
        )
        entry = OutboxEntry("", command.id, "commands", command.flag, documents.command_bytes(command))
        return ReadCommand(command.flag, documents.to_command_event(command, now), entry)

    def _command_partition(self, flag_key: str) -> int:
        return partition_of(flag_key, self._partitions["commands"])

    def _known_flags(self) -> Sequence[str]:
        return sorted({*self._newest, *self._stored_flags})

    def _released(self, flag_key: str) -> None:
        self._actuation.drop([flag_key])

    def _drift(self, rollout: Rollout) -> str | None:
        return self._actuation.drift(rollout)

    async def _quarantine(self, topic: str, partition: int, refusals: Sequence[quarantine.Refusal]) -> None:
        """Return once the quarantine has what was refused. Raises EventLogUnavailable."""
        topic = topic_of(topic)
        place = quarantine.key(topic, partition).decode()
        effect_id = f"{place}/{refusals[0].offset}-{refusals[-1].offset}"
        value = quarantine.encode(topic, partition, refusals)
        await self._publisher.publish([OutboxEntry("", effect_id, "quarantine", place, value)])

    async def _refuse_command(self, record: Record, fault: BadInput) -> None:
        """Answer a command that cannot be obeyed, or set aside a record that is none. Repeated until Kafka has it."""
        if isinstance(fault, CommandRefused):
            # No worker of ours has the flag, so nobody keeps the answer: only what stands in the record goes into it, and a
            # record that is read again after a crash gets the same one.
            answer = AnswerCommand(fault.command_id, fault.verb, CommandStatus.REJECTED, fault.reason, 0)
            at = time_of(record.timestamp)
            entry = documents.encode(answer, fault.flag_key, None, fault.command_id, at)
            tell = partial(self._publisher.publish, [entry])
        else:
            reason = fault.reason if isinstance(fault, CommandUnreadable) else QuarantineReason.INVALID
            refused_record = RecordRefused(reason, str(fault), "see schemas/json/command.schema.json")
            refused = quarantine.refusal(record.offset, record.timestamp, record.value, refused_record)
            tell = partial(self._quarantine, record.topic, record.partition, [refused])
            self._metrics.quarantined.of(reason).inc()
        await self._persistently(tell)

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

    # --- running and stopping -------------------------------------------------------------------------------------------

    async def _count_events(self) -> None:
        await self._ingest.run()
        await asyncio.Event().wait()  # it ends only when drained; then the process is on its way out

    def _give_up(self, why: str) -> None:
        self._supervisor.give_up(why)

    async def _watch_health(self) -> None:
        """Say once a second how the parts do, and let go of rollouts that ended long ago."""
        reporter = Reporter(self._metrics, self._health)
        while True:
            reporter.report(self._ingest, self._workers, self._actuation)
            if self._settings.advisor.url is not None:
                reporter.say("advisor", self._advisor.trouble or "")
            await asyncio.sleep(REPORT_EVERY_SECONDS)


def check_parts(settings: Settings) -> None:
    """Raise ConfigInvalid for what shows only when a part is made: templates, certificates, directories, packages."""
    for name, file in settings.planes.files.items():
        FilePlane(name, file)
    make_outside_planes(settings, SystemClock())
    make_flagd_sync(settings, FlagBoard(generation=Generation(settings.http.bucketing)))


def make_flagd_sync(settings: Settings, board: FlagBoard) -> FlagdSyncServer | None:
    """Return flagd's gRPC sync source, None when it is not offered. Raises ConfigInvalid."""
    wanted = settings.flagd_sync
    if wanted.port is None:
        return None
    address = SyncAddress(wanted.host, wanted.port, wanted.certificate_file, wanted.key_file, wanted.max_streams)
    return FlagdSyncServer(board, address, flag_set_id=settings.environment)


def make_outside_planes(settings: Settings, clock: Clock) -> Sequence[OutsidePlane]:
    """Return the planes that the settings name, besides those that are always there. Raises ConfigInvalid."""
    planes: list[OutsidePlane] = []
    keys = settings.planes.redis
    if keys.url is not None:
        planes.append(RedisPlane(redis_url(keys), key_prefix=keys.key_prefix, call_seconds=keys.call_timeout_seconds))
    if settings.planes.unleash.url is not None:
        planes.append(UnleashPlane(settings.planes.unleash, clock))
    planes += [HttpPlane(name, http, clock) for name, http in settings.planes.http.items()]
    return planes


def redis_url(settings: RedisSettings | RedisPlaneSettings) -> str:
    """Return the address with everything redis-py takes from it: user, password, authorities. There must be one."""
    parts = urlsplit(settings.url or "")
    netloc, query = parts.netloc, parts.query
    if settings.password is not None:
        user = quote(settings.username or "", safe="")
        password = quote(settings.password.get_secret_value(), safe="")
        netloc = f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"
    if settings.ca_file is not None:
        query = "&".join(filter(None, (query, urlencode({"ssl_ca_certs": str(settings.ca_file)}))))
    return urlunsplit(parts._replace(netloc=netloc, query=query))
