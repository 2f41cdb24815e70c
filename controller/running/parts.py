"""Lists what runs in a replica, in the order in which it is started and stopped.

Up: what was decided is known before anything is counted or decided. Down: no new work, a last
save, then the connections. The supervisor carries it out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.redis.identity import StoredIdentity
from controller.counting.ingest import Ingest
from controller.deciding.commentary.anomaly_watch import AnomalyWatch
from controller.deciding.commentary.explanations import Explainer
from controller.deciding.deciding import Deciding
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.worker_pool import WorkerPool
from controller.planes import Planes
from controller.ports import Clock, Commentator
from controller.running.connections import Connections
from controller.running.environment import check_state_topic
from controller.running.last_known import make_last_known
from controller.running.outside_parts import OutsideParts
from controller.running.oversight import Oversight
from controller.running.report_writer import ReportWriter
from controller.running.state_follower import StateFollower
from controller.running.supervisor import Loop, Parts, StartStep, lasting, names_of
from controller.settings import Settings
from controller.web.flags import FlagBoard
from controller.web.surface import Surface


@dataclass(frozen=True, slots=True)
class Subsystems:
    """The subsystems of a replica."""

    settings: Settings
    clock: Clock
    connections: Connections
    follower: StateFollower
    board: FlagBoard
    planes: Planes
    ingest: Ingest
    deciding: Deciding
    reconciler: FlagReconciler
    commentary: Sequence[Loop]
    oversight: Oversight
    surface: Surface
    report_writer: ReportWriter
    outside: OutsideParts


def supervised_parts(subsystems: Subsystems, give_up: Callable[[str], None]) -> Parts:
    """Return the parts of a replica; `give_up` ends the process when only a new one can help."""
    connections, follower = subsystems.connections, subsystems.follower
    oversight = subsystems.oversight
    feed = connections.feed

    async def check_state() -> None:
        await check_state_topic(feed, connections.state_reader, subsystems.settings)

    async def keep_trust() -> None:
        await subsystems.board.keep_trust(feed, silent_seconds=lambda: feed.silent_seconds)

    async def catch_up() -> None:
        await follower.catch_up()
        subsystems.board.settle(follower.rollouts)

    kept = last_known_loops(subsystems)
    shared = _shared_loops(subsystems)
    return Parts(
        steps=(
            StartStep("kafka", "preparing topics", connections.topics.prepare, "Kafka"),
            StartStep("redis", "checking Redis", oversight.environment.prepare, "Redis or Kafka"),
            StartStep("redis", "comparing clocks with Redis", oversight.heartbeat.beat, "Redis"),
            StartStep("flags", "reading which flags there are", follower.read_flag_keys, "Redis"),
            StartStep("state", "checking whose decisions these are", check_state, "Kafka"),
            StartStep(
                "counting", "joining the group that counts", connections.events.start, "Kafka"
            ),
            StartStep(
                "flags", "joining the group that decides", connections.commands.start, "Kafka"
            ),
        ),
        follow=follower.run,
        caught_up=catch_up,
        loops=(
            ("ingest", lasting(subsystems.ingest.run)),
            ("workers", subsystems.deciding.run),
            *subsystems.planes.loops,
            *oversight.loops,
            *oversight.watchdogs(give_up),
            *subsystems.commentary,
            *shared,
        ),
        early=(
            ("trust", keep_trust),
            *kept,
            *oversight.early,
            # Idle until a flag runs here; one that is lowered while Kafka is away may do so early.
            ("actuation", subsystems.reconciler.run),
        ),
        expendable=names_of(
            kept,
            subsystems.planes.loops,
            oversight.loops,
            oversight.early,
            subsystems.commentary,
            shared,
        ),
        drain=partial(_drain, subsystems),
        close=_closers(subsystems),
    )


def _closers(subsystems: Subsystems) -> Sequence[tuple[str, Callable[[], Awaitable[None]]]]:
    """Return what closes each server and connection."""
    return (
        *subsystems.surface.closers,
        *subsystems.outside.closers,
        *subsystems.connections.closers,
        *subsystems.planes.closers,
    )


def _shared_loops(subsystems: Subsystems) -> Sequence[Loop]:
    """Return the loops that tell people and listen to monitors; none of them decides."""
    return (
        ("reports", subsystems.report_writer.run),
        *subsystems.outside.loops,
    )


async def _drain(subsystems: Subsystems) -> None:
    """Save what was counted, first the evidence."""
    await subsystems.ingest.stop()
    await subsystems.oversight.uses.flush()


def last_known_loops(subsystems: Subsystems) -> Sequence[Loop]:
    """Return the loop that keeps what was decided last."""
    connections = subsystems.connections
    last_known = make_last_known(
        subsystems.settings,
        subsystems.board,
        StoredIdentity(connections.redis),
        connections.rollouts,
        connections.feed,
        subsystems.clock,
        subsystems.follower.update,
        subsystems.oversight.direct.lowered,
        subsystems.oversight.direct.restored,
        subsystems.oversight.faults,
    )
    return (("last_known", last_known.run),)


def commentary_loops(
    dependencies: WorkerDependencies,
    pool: WorkerPool,
    model: Commentator | None,
    check_interval_seconds: float | None,
) -> Sequence[Loop]:
    """Return the loops that only add alerts.

    Alerts are explained where there is a model. Anomalies are searched for where the settings give
    an interval, with or without a model.
    """
    loops: list[Loop] = []
    queue = dependencies.explanations
    if model is not None and queue is not None:
        loops.append(("explainer", Explainer(queue, model, dependencies.metrics, pool).run))
    if check_interval_seconds is not None:
        watch = AnomalyWatch(pool, model, every_seconds=check_interval_seconds)
        loops.append(("anomaly_watch", watch.run))
    return loops
