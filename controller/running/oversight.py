"""Watches a replica and keeps it steerable in an outage: health, claims, relay, commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.kafka.news_log import KafkaNewsLog
from controller.adapters.redis.claims import RedisClaims
from controller.adapters.redis.relay import RedisRelay
from controller.adapters.redis.sign_outs import RedisSignOuts
from controller.adapters.waiting_commands_file import WaitingCommandsFile
from controller.clock import AgreedClock
from controller.codec.cloud_events import source_of
from controller.core.rollout import Rollout
from controller.counting.ingest import Ingest
from controller.deciding.commands.direct_commands import DirectCommands
from controller.deciding.deciding import Deciding
from controller.deciding.flag.news import NewsKeeper
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults, Health
from controller.reporting.inventory import counted_findings
from controller.reporting.unwatched import Unwatched
from controller.running.all_clear import AllClears
from controller.running.claims import Claims, replica_name
from controller.running.command_desk import CommandDesk
from controller.running.connections import Connections
from controller.running.dead_mans_switch import DeadMansSwitch, why_silent
from controller.running.decision_relay import DecisionRelay
from controller.running.digest_watch import DigestWatch
from controller.running.environment import RedisEnvironment
from controller.running.event_watch import EventWatch
from controller.running.flag_faults import LargeStates, RefusedStates, TimesAhead
from controller.running.flag_summaries import FlagSummaries
from controller.running.garbage_collection import FullCollections
from controller.running.health_watch import HealthWatch, WatchedParts
from controller.running.last_known import replica_directory
from controller.running.open_alerts import OpenAlerts
from controller.running.redis_heartbeat import RedisHeartbeat
from controller.running.refused_shares import RefusedShares
from controller.running.reporter import SILENT_AFTER_SECONDS, Reporter
from controller.running.rollout_views import RolloutViews, WorkingPartitions
from controller.running.shared_sign_outs import SharedSignOuts
from controller.running.supervisor import Loop
from controller.running.use_keeper import UseKeeper
from controller.running.visibility import Visibility, needs_watching
from controller.running.visibility_alerts import WAITING_LIMIT, VisibilityAlerts
from controller.running.watchdog import ConsumerWatchdog, StallMeter
from controller.settings import Settings
from controller.telemetry import Metrics
from controller.web.admission import Admission, make_admission
from controller.web.flags import FlagBoard

#: Between two requests to a model that failed, and how long it may take to answer one.
RECHECK_SECONDS: Final = 2.0
#: Of the topic of alerts, as it is read at the start: an alert that is open was repeated every five
#: minutes until its replica was killed. A thousand flags that nobody sees repeat 12,000 an hour.
ALERTS_FROM_LAST: Final = 20_000
ALERTS_MAX_WAIT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Process:
    """What every watching part needs of the process."""

    settings: Settings
    clock: AgreedClock
    health: Health
    metrics: Metrics
    faults: Faults


class Oversight:
    """Makes the watching parts of a replica."""

    def __init__(
        self,
        process: Process,
        connections: Connections,
        registry: RolloutRegistry,
        deciding: Deciding,
        ingest: Ingest,
        reconciler: FlagReconciler,
        board: FlagBoard,
    ) -> None:
        settings, clock, faults = process.settings, process.clock, process.faults
        self._settings = settings
        self._clock = clock
        self._metrics = process.metrics
        self._health = process.health
        self.faults = faults
        self._connections = connections
        self.environment = RedisEnvironment(
            connections.redis, connections.rollouts, connections.damaged, settings, faults
        )
        self.heartbeat = RedisHeartbeat(
            clock,
            faults,
            ask=connections.redis.ask_time,
            read_broker=lambda: connections.publisher.clock_reading,
        )
        self.claims = self._make_claims(process, deciding)
        self.direct = DirectCommands(
            deciding.pool,
            deciding.dependencies,
            why_not_ours=self.environment.why_not_ours,
            unsaved=board,
            served=board.rollout,
            kept=_waiting_commands_file(settings),
        )
        self.admission = self._make_admission(process, board)
        self.relay = self._make_relay(process, registry, deciding)
        registry.subscribe_own(self.relay)
        self.alerts = alerts = self._make_alerts(process, registry)
        self.visibility = self._make_visibility(process, registry, deciding, alerts)
        opened = self.open_alerts = OpenAlerts()
        self.all_clears = self._make_all_clears(process, registry, reconciler, alerts)
        self.uses = self._make_uses(process, registry, deciding, ingest)
        self.digest = self._make_digest(process, registry, deciding, alerts)
        self.event_watch = EventWatch(ingest.tally, registry.newest, alerts, clock, opened)
        parts = WatchedParts(
            clock=clock,
            redis=connections.redis,
            heartbeat=self.heartbeat,
            events=connections.events,
            commands=connections.commands,
            feed=connections.feed,
            ingest=ingest,
            deciding=deciding,
            reconciler=reconciler,
            board=board,
            advisor=connections.advisor,
        )
        self.health_watch = self._make_health_watch(process, parts, registry)
        _let_measure(process, parts, registry, self.uses)

    def _make_admission(self, process: Process, board: FlagBoard) -> Admission | None:
        connections = self._connections
        desk = CommandDesk(connections.publisher, connections.rollouts, self.direct)
        now, people = process.clock.now, connections.people
        return make_admission(process.settings, desk, board, process.faults, now, people)

    def _make_claims(self, process: Process, deciding: Deciding) -> Claims:
        return Claims(
            process.clock,
            RedisClaims(self._connections.redis),
            process.faults,
            replica=replica_name(),
            working=WorkingPartitions(deciding, process.clock).numbers,
            unseen=lambda: self._views.unseen(self.visibility.seen),
            topic=process.settings.kafka.topic("commands"),
        )

    def _make_alerts(self, process: Process, registry: RolloutRegistry) -> VisibilityAlerts:
        connections = self._connections
        return VisibilityAlerts(
            connections.publisher,
            process.clock,
            process.metrics,
            source_of(process.settings.environment),
            NewsKeeper(
                connections.reports,
                process.faults,
                registry.is_retired,
                most_waiting=WAITING_LIMIT,
            ),
        )

    def _make_uses(
        self, process: Process, registry: RolloutRegistry, deciding: Deciding, ingest: Ingest
    ) -> UseKeeper:
        connections = self._connections
        return UseKeeper(
            lambda: tuple(registry.rollouts),
            ingest.flags_to_count.evaluations.take,
            ingest.flags_to_count.take_unknown,
            FlagSummaries(deciding.pool, connections.reports, process.clock),
            connections.flag_uses,
            process.clock,
            process.faults,
        )

    def _make_digest(
        self,
        process: Process,
        registry: RolloutRegistry,
        deciding: Deciding,
        alerts: VisibilityAlerts,
    ) -> DigestWatch:
        return DigestWatch(
            process.settings.flags,
            lambda: registry.rollouts,
            lambda: self.uses.uses,
            lambda flag_key: flag_key in deciding.pool,
            self._connections.flag_uses,
            alerts,
            process.clock,
        )

    def _make_visibility(
        self,
        process: Process,
        registry: RolloutRegistry,
        deciding: Deciding,
        alerts: VisibilityAlerts,
    ) -> Visibility:
        settings, clock, faults = process.settings, process.clock, process.faults
        redis = self._connections.redis
        self._views = RolloutViews(
            deciding,
            registry,
            self.claims,
            process.health,
            clock,
            faults,
            event_topics=settings.kafka.event_topics,
            store_heard_at=lambda: redis.heard_at,
        )
        return Visibility(clock, self._views, alerts, process.metrics, faults)

    def _make_all_clears(
        self,
        process: Process,
        registry: RolloutRegistry,
        reconciler: FlagReconciler,
        alerts: VisibilityAlerts,
    ) -> AllClears:
        kafka = process.settings.kafka
        # Nothing waits for these records, and an idle replica need not ask ten times a second.
        rarely = kafka.model_copy(update={"fetch_max_wait_seconds": ALERTS_MAX_WAIT_SECONDS})
        return AllClears(
            process.clock,
            KafkaNewsLog(rarely, ["alerts"], from_last=ALERTS_FROM_LAST),
            self.open_alerts,
            self.visibility,
            runs_here=self._views.runs_here,
            newest=registry.newest,
            standings=reconciler.standings,
            alerts=alerts,
            faults=process.faults,
        )

    def unwatched(self, rollout: Rollout) -> Unwatched | None:
        """Return that nobody sees what a live rollout does, None while somebody does.

        What this replica sees comes first. Of flags that run elsewhere, also where their replica
        was killed, the topic of alerts tells.
        """
        if rollout.flag_key in self.visibility.seen or not needs_watching(rollout):
            return None
        here = self.visibility.unwatched_since(rollout.flag_key)
        return here or self.open_alerts.unwatched(rollout)

    def _make_relay(
        self, process: Process, registry: RolloutRegistry, deciding: Deciding
    ) -> DecisionRelay:
        connections = self._connections
        return DecisionRelay(
            process.clock,
            RedisRelay(connections.redis),
            connections.rollouts,
            registry,
            process.faults,
            silent_seconds=lambda: connections.feed.silent_seconds,
            stuck_seconds=lambda: deciding.pool.outbox_seconds,
            why_not_ours=self.environment.why_not_ours,
        )

    def _make_health_watch(
        self, process: Process, parts: WatchedParts, registry: RolloutRegistry
    ) -> HealthWatch:
        times_ahead = TimesAhead(process.clock, process.faults)
        parts.deciding.pool.on_stop(times_ahead.clear)
        topic = process.settings.kafka.topic("state")
        kafka = process.settings.kafka.bootstrap_servers
        publisher = self._connections.publisher
        large_states = LargeStates(
            process.faults,
            most_bytes=publisher.most_bytes,
            in_topic=self._connections.feed.revision_of,
        )
        registry.subscribe(large_states.update)
        return HealthWatch(
            parts,
            process.health,
            Reporter(process.metrics, process.health, process.faults, kafka=kafka),
            times_ahead,
            RefusedStates(registry, process.faults, topic=topic),
            large_states,
            RefusedShares(parts.ingest.counters.records, process.faults, process.clock),
        )

    @property
    def early(self) -> Sequence[Loop]:
        """The loops that run from the start."""
        return (
            ("claims", self.claims.run),
            ("visibility", self.visibility.run),
            ("event_watch", self.event_watch.run),
            ("health", self.health_watch.run),
            ("direct", self.direct.run),
            ("relay", self.relay.run),
        )

    @property
    def loops(self) -> Sequence[Loop]:
        """The loops that run once everything decided is known."""
        garbage = FullCollections(self._clock)
        stalls = StallMeter(
            self._clock,
            self._metrics.stall_seconds.observe,
            warning_seconds=self._settings.watchdog.stall_warning_seconds,
            collecting_seconds=lambda: garbage.seconds,
        )
        return (
            ("topology", self._connections.topics.topology.run),
            ("topics", self._connections.topics.run),
            ("heartbeat", self.heartbeat.run),
            ("model", self._recheck_model),
            ("stalls", stalls.run),
            ("garbage", garbage.run),
            ("identity", self.environment.run),
            ("uses", self.uses.run),
            ("digest", self.digest.run),
            ("all_clear", self.all_clears.run),
            *self._sign_outs(),
            *self._dead_mans_switch(),
        )

    def _sign_outs(self) -> Sequence[Loop]:
        """Return the loop that shares sign-outs, nothing where nobody can sign in."""
        if self.admission is None:
            return ()
        shared = SharedSignOuts(
            self.admission.guardian.sessions.ended,
            RedisSignOuts(self._connections.redis),
            self._clock.now,
            self.faults,
        )
        return (("sign_outs", shared.run),)

    def _dead_mans_switch(self) -> Sequence[Loop]:
        """Return the loop that a monitoring service hears, nothing where none is set."""
        settings = self._settings.dead_mans_switch
        address = settings.address
        if address is None:
            return ()
        from controller.adapters.heartbeat_address import HeartbeatAddress  # with httpx

        heartbeat = HeartbeatAddress(address, settings)

        async def run() -> None:
            async with heartbeat:  # entered again when the part is restarted
                await DeadMansSwitch(
                    heartbeat.call,
                    lambda: why_silent(self._health, self.visibility.unwatched),
                    self.faults,
                    every_seconds=settings.every_seconds,
                ).run()

        return (("dead_mans_switch", run),)

    async def _recheck_model(self) -> None:
        """See now and then whether a model that failed answers again, until cancelled."""
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            if (model := self._connections.model) is not None:
                await model.server.recheck(RECHECK_SECONDS)

    def watchdogs(self, give_up: Callable[[str], None]) -> Sequence[Loop]:
        """The loops that rebuild a consumer that is stuck; `give_up` ends the process."""
        logs = {"events": self._connections.events, "commands": self._connections.commands}
        return [
            (
                f"watchdog:{name}",
                ConsumerWatchdog(
                    name,
                    self._settings.watchdog,
                    self._clock,
                    progress=log.progress,
                    seconds_since_fetch=log.seconds_since_fetch,
                    rebuild=log.rebuild,
                    give_up=give_up,
                    are_brokers_away=self._are_brokers_away,
                ).run,
            )
            for name, log in logs.items()
        ]

    def _are_brokers_away(self) -> bool:
        """Return whether no broker answers, as far as the reader of the state topic knows."""
        silent = self._connections.feed.silent_seconds
        return silent is None or silent > SILENT_AFTER_SECONDS


def _waiting_commands_file(settings: Settings) -> WaitingCommandsFile | None:
    """Return where commands over HTTP outlive the process while Redis is away; None: nowhere."""
    directory = replica_directory(settings)
    return None if directory is None else WaitingCommandsFile(directory)


def _let_measure(
    process: Process, parts: WatchedParts, registry: RolloutRegistry, uses: UseKeeper
) -> None:
    """Let each scrape read its gauges from the parts that know them."""
    tally = parts.ingest.tally
    process.metrics.watch(
        percents=parts.board.percents,
        components=lambda: tuple(process.health.components.values()),
        faults=lambda: process.faults.counts,
        faults_reported=lambda: dict(process.faults.reported),
        skews=process.clock.skews,
        flag_events=tally.by_flag_and_class,
        unknown_flags=tally.flags_to_count.most_unknown,
        converged=parts.reconciler.converged,
        rollouts=lambda: tuple(registry.rollouts.values()),
        judgement_of=parts.deciding.pool.judgement_of,
        findings=lambda: counted_findings(
            tuple(registry.rollouts.values()),
            process.clock.now(),
            process.settings.flags,
            uses.uses,
        ),
    )
