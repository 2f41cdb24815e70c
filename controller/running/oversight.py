"""What watches a replica: clock, claims, health, and whether its rollouts are watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.redis.claims import RedisClaims
from controller.clock import AgreedClock
from controller.codec.cloud_events import source_of
from controller.counting.ingest import Ingest
from controller.deciding.deciding import Deciding
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults, Health
from controller.running.claims import Claims, replica_name
from controller.running.connections import Connections
from controller.running.environment import RedisEnvironment
from controller.running.flag_faults import RefusedStates, TimesAhead
from controller.running.health_watch import HealthWatch, WatchedParts
from controller.running.redis_heartbeat import RedisHeartbeat
from controller.running.reporter import Reporter
from controller.running.rollout_views import RolloutViews, WorkingPartitions
from controller.running.supervisor import Loop
from controller.running.visibility import Visibility
from controller.running.visibility_alerts import VisibilityAlerts
from controller.running.watchdog import ConsumerWatchdog, StallMeter
from controller.settings import Settings
from controller.telemetry import Metrics
from controller.web.flags import FlagBoard


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
        health, metrics = process.health, process.metrics
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
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
        self.claims = Claims(
            clock,
            RedisClaims(connections.redis),
            faults,
            replica=replica_name(),
            working=WorkingPartitions(deciding, clock).numbers,
            topic=settings.kafka.topic("commands"),
        )
        views = RolloutViews(
            deciding,
            registry,
            self.claims,
            health,
            clock,
            faults,
            event_topics=settings.kafka.event_topics,
        )
        alerts = VisibilityAlerts(
            connections.publisher, clock, metrics, source_of(settings.environment)
        )
        self.visibility = Visibility(clock, views, alerts, metrics, faults)
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

    def _make_health_watch(
        self, process: Process, parts: WatchedParts, registry: RolloutRegistry
    ) -> HealthWatch:
        times_ahead = TimesAhead(process.clock, process.faults)
        parts.deciding.pool.on_stop(times_ahead.clear)
        topic = process.settings.kafka.topic("state")
        return HealthWatch(
            parts,
            process.health,
            Reporter(process.metrics, process.health, process.faults),
            times_ahead,
            RefusedStates(registry, process.faults, topic=topic),
        )

    @property
    def early(self) -> Sequence[Loop]:
        """The loops that run from the start."""
        return (
            ("claims", self.claims.run),
            ("visibility", self.visibility.run),
            ("health", self.health_watch.run),
        )

    @property
    def loops(self) -> Sequence[Loop]:
        """The loops that run once everything decided is known."""
        stalls = StallMeter(
            self._clock,
            self._metrics.stall_seconds.observe,
            warning_seconds=self._settings.watchdog.stall_warning_seconds,
        )
        return (
            ("topology", self._connections.topics.topology.run),
            ("heartbeat", self.heartbeat.run),
            ("stalls", stalls.run),
            ("identity", self.environment.run),
        )

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
                ).run,
            )
            for name, log in logs.items()
        ]
