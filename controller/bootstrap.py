"""Wires a replica: which part stands behind which port. No loops: see `running/supervisor.py`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.kafka.shared_topic import SharedTopic, streams
from controller.adapters.kafka.state_topic_plane import StateTopicPlane
from controller.clock import AgreedClock, SystemClock
from controller.codec.cloud_events import source_of
from controller.counting.folding.native import ENGINE
from controller.counting.ingest import Ingest
from controller.deciding.commentary.explanations import ExplanationQueue
from controller.deciding.deciding import Deciding
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.event_partitions import EventPartitions
from controller.deciding.evidence_reader import EvidenceReader
from controller.deciding.preflight import Preflight
from controller.deciding.raise_guard import RaiseGuard
from controller.deciding.registry import RolloutRegistry
from controller.deciding.retiring import LettingGo
from controller.deciding.totals_reader import TotalsReader
from controller.deciding.worker_pool import WorkerPool
from controller.health import Faults, Health
from controller.planes import Planes, make_outside_planes
from controller.running.connections import Connections
from controller.running.http_parts import make_reports, make_surface
from controller.running.outside_parts import OutsideParts
from controller.running.oversight import Oversight, Process
from controller.running.parts import Subsystems, commentary_loops, supervised_parts
from controller.running.quarantine import QuarantineTopic
from controller.running.report_writer import ReportWriter
from controller.running.reporter import OPTIONAL, REQUIRED
from controller.running.state_follower import StateFollower
from controller.running.supervisor import Parts, Supervisor
from controller.settings import Settings
from controller.telemetry import Metrics
from controller.web.surface import make_board
from schemas.formats import evaluation_reader, outcome_reader


class Daemon:
    """One replica. Nothing is connected before `run`. `on_hangup` is called on SIGHUP."""

    def __init__(self, settings: Settings, on_hangup: Callable[[], object] = lambda: None) -> None:
        self.settings = settings
        self.clock = AgreedClock(SystemClock(), max_skew_seconds=settings.clock.max_skew_seconds)
        self.faults = Faults(self.clock.now)
        optional = OPTIONAL if settings.advisor.url is None else (*OPTIONAL, "advisor")
        self.health = Health(REQUIRED, optional, now=self.clock.now, counting=ENGINE)
        self.registry = RolloutRegistry()
        self.connections = Connections(settings, self.clock, self.faults, self.registry)
        self.planes = self._make_planes()
        self.metrics = Metrics(
            version=version("rolloutd"), counting=ENGINE, planes=self.planes.names
        )
        self.dependencies = self._make_dependencies()
        self.pool = WorkerPool(self.dependencies)
        self.reconciler = FlagReconciler(
            self.planes.all, self.clock, self.pool, self.metrics, self.faults
        )
        self.totals_reader = self._make_totals_reader()
        self.ingest = self._make_ingest()
        self.deciding = Deciding(
            self.dependencies,
            self.totals_reader,
            self.connections.commands,
            self.connections.topics.topology,
            self.ingest.refusals,
            LettingGo(self.planes.all, settings.flags.retire_after),
        )
        process = Process(settings, self.clock, self.health, self.metrics, self.faults)
        self.oversight = Oversight(
            process,
            self.connections,
            self.registry,
            self.deciding,
            self.ingest,
            self.reconciler,
            self.board,
        )
        self.report_writer = ReportWriter(
            self.pool, self.reconciler, self.connections.reports, self.clock, self.faults
        )
        reports = make_reports(self.report_writer, self.connections, self.clock, self.oversight)
        self.outside = OutsideParts(
            process, self.connections, self.registry, reports, self.oversight
        )
        self.surface = make_surface(
            process, self.board, self.oversight, self.ingest, reports, self.outside
        )
        self._subscribe()
        hang_up = self.surface.reloading(on_hangup, self.outside.reload)
        self.supervisor = Supervisor(self.health, settings.shutdown, self.faults, hang_up)

    async def run(self) -> int:
        """Serve HTTP at once, then start the rest and run until stopped; return the exit code."""
        self.connections.log_start(self.planes.names)
        await self.surface.start()
        return await self.supervisor.run(self.parts())

    def parts(self) -> Parts:
        """Return what is started, watched and stopped, in order."""
        connections = self.connections
        interval = self.settings.advisor.anomaly_check_interval_seconds
        subsystems = Subsystems(
            settings=self.settings,
            clock=self.clock,
            connections=connections,
            follower=StateFollower(
                connections, self.registry, self.state_plane, self.health, self.faults
            ),
            board=self.board,
            planes=self.planes,
            ingest=self.ingest,
            deciding=self.deciding,
            reconciler=self.reconciler,
            commentary=commentary_loops(self.dependencies, self.pool, connections.model, interval),
            oversight=self.oversight,
            surface=self.surface,
            report_writer=self.report_writer,
            outside=self.outside,
        )
        return supervised_parts(subsystems, self.supervisor.give_up)

    def _make_planes(self) -> Planes:
        self.board = make_board(self.settings, self.clock)
        source = source_of(self.settings.environment)
        self.state_plane = StateTopicPlane(self.connections.publisher, self.clock, source)
        outside = make_outside_planes(self.settings, self.clock)
        return Planes((self.board, self.state_plane, *outside))

    def _make_dependencies(self) -> WorkerDependencies:
        connections, kafka = self.connections, self.settings.kafka
        topology, timeout = connections.topics.topology, kafka.session_timeout_seconds
        self.partitions = EventPartitions(topology, streams(kafka.event_topics), kafka.topic_epoch)
        has_model = connections.model is not None
        return WorkerDependencies(
            rollouts=connections.rollouts,
            reports=connections.reports,
            publisher=connections.publisher,
            advisor=connections.advisor,
            clock=self.clock,
            metrics=self.metrics,
            faults=self.faults,
            registry=self.registry,
            guard=RaiseGuard(
                connections.feed, self.clock, self.faults, session_timeout_seconds=timeout
            ),
            explanations=ExplanationQueue(self.metrics) if has_model else None,
            preflight=self._make_preflight(),
            evidence=EvidenceReader(connections.totals, self.partitions, self.clock),
            has_advisor=has_model,
            source=source_of(self.settings.environment),
        )

    def _make_preflight(self) -> Preflight:
        model, queries = self.connections.model, self.connections.monitoring
        rules, known = self.settings.flags, self.registry
        others = (lambda: known.rollouts, queries, self.clock, self.connections.gate_webhooks)
        return Preflight(self.faults, model, rules, *others)

    def _make_totals_reader(self) -> TotalsReader:
        connections, clock, faults = self.connections, self.clock, self.faults
        asked = (self.reconciler, connections.monitoring, connections.gate_webhooks)
        return TotalsReader(
            self.pool, connections.totals, self.partitions, *asked, clock=clock, faults=faults
        )

    def _make_ingest(self) -> Ingest:
        kafka, connections = self.settings.kafka, self.connections
        is_shared = kafka.is_one_topic
        return Ingest(
            SharedTopic(connections.events) if is_shared else connections.events,
            connections.totals,
            clock=self.clock,
            metrics=self.metrics,
            settings=self.settings.counting,
            topics=streams(kafka.event_topics),
            epoch=kafka.topic_epoch,
            quarantine=QuarantineTopic(connections.publisher, self.dependencies.source).publish,
            on_saved=self.totals_reader.totals_saved,
            read_evaluations=evaluation_reader(kafka.formats.evaluations, of_spans=is_shared),
            read_outcomes=outcome_reader(kafka.formats.outcomes),
            faults=self.faults,
            topology=connections.topics.topology,
        )

    def _subscribe(self) -> None:
        """Let documents reach what serves flags first, then what counts and decides."""
        self.planes.follow(self.registry)
        self.registry.subscribe(self.ingest.count_for)
        self.registry.subscribe(self.oversight.direct.follow)
        self.registry.subscribe_own(self.reconciler)
        self.registry.on_retired(self.ingest.retire)
        self.registry.on_overtaken(self.state_plane.forget, self.pool.republish_state)
