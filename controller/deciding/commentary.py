"""What people get to know beside the decisions: explained alerts, and anomalies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from controller.deciding.anomaly_watch import AnomalyWatch
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.explanations import Explainer
from controller.deciding.worker_pool import WorkerPool
from controller.ports import Commentator

NamedLoop = tuple[str, Callable[[], Awaitable[None]]]


def commentary_loops(
    dependencies: WorkerDependencies,
    pool: WorkerPool,
    model: Commentator | None,
    check_interval_seconds: float | None,
) -> Sequence[NamedLoop]:
    """Return the loops that only add alerts.

    Alerts are explained where there is a model. Anomalies are searched for where the settings give
    an interval, with or without a model.
    """
    loops: list[NamedLoop] = []
    queue = dependencies.explanations
    if model is not None and queue is not None:
        loops.append(("explainer", Explainer(queue, model, dependencies.metrics, pool).run))
    if check_interval_seconds is not None:
        watch = AnomalyWatch(pool, model, every_seconds=check_interval_seconds)
        loops.append(("anomaly_watch", watch.run))
    return loops
