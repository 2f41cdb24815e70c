"""What runs in a replica, and in which order it is started and stopped.

Up: what was decided is known before anything is counted or decided. Down: no new work, a last
save, then the connections. The supervisor carries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.actuating.reconciler import FlagReconciler
from controller.counting.ingest import Ingest
from controller.deciding.commentary.anomaly_watch import AnomalyWatch
from controller.deciding.commentary.explanations import Explainer
from controller.deciding.deciding import Deciding
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.worker_pool import WorkerPool
from controller.planes import Planes
from controller.ports import Commentator
from controller.running.connections import Connections
from controller.running.environment import check_state_topic
from controller.running.oversight import Oversight
from controller.running.state_follower import StateFollower
from controller.running.supervisor import Loop, Parts, Step, lasting, names_of
from controller.settings import Settings
from controller.web.flags import FlagBoard
from controller.web.surface import Surface


@dataclass(frozen=True, slots=True)
class Subsystems:
    """The subsystems of a replica."""

    settings: Settings
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


def supervised_parts(subsystems: Subsystems, give_up: Callable[[str], None]) -> Parts:
    """Return the parts of a replica; `give_up` ends the process when only a new one can help."""
    connections, follower, oversight = (
        subsystems.connections,
        subsystems.follower,
        subsystems.oversight,
    )
    feed = connections.feed

    async def check_state() -> None:
        await check_state_topic(feed, connections.state_reader, subsystems.settings)

    async def keep_trust() -> None:
        await subsystems.board.keep_trust(feed, silent_seconds=lambda: feed.silent_seconds)

    return Parts(
        steps=(
            Step("kafka", "preparing topics", connections.topics.prepare),
            Step("redis", "checking Redis", oversight.environment.prepare),
            Step("redis", "comparing clocks with Redis", oversight.heartbeat.beat),
            Step("flags", "reading which flags there are", follower.read_flag_keys),
            Step("state", "checking whose decisions these are", check_state),
            Step("counting", "joining the group that counts", connections.events.start),
            Step("flags", "joining the group that decides", connections.commands.start),
        ),
        follow=follower.run,
        caught_up=follower.catch_up,
        loops=(
            ("ingest", lasting(subsystems.ingest.run)),
            ("workers", subsystems.deciding.run),
            ("actuation", subsystems.reconciler.run),
            *subsystems.planes.loops,
            *oversight.loops,
            *oversight.watchdogs(give_up),
            *subsystems.commentary,
        ),
        early=(("trust", keep_trust), *oversight.early),
        expendable=names_of(
            subsystems.planes.loops, oversight.loops, oversight.early, subsystems.commentary
        ),
        drain=subsystems.ingest.stop,
        close=(*subsystems.surface.closers, *connections.closers, *subsystems.planes.closers),
    )


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
