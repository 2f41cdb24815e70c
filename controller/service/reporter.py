"""Says once a second how the parts do: what `/readyz` answers, and the gauges of `/metrics`. Reads, decides nothing."""

from __future__ import annotations

from controller.health import Health
from controller.metrics import Metrics
from controller.service.actuation import Actuation
from controller.service.ingest import Ingest
from controller.service.partitions import PartitionState
from controller.service.workers import Workers

REPORT_EVERY_SECONDS = 1.0
#: An outbox this long waits for Kafka, not for its turn.
OUTBOX_WAITS = 50


class Reporter:
    """Turns views of the parts into health and metrics."""

    def __init__(self, metrics: Metrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health
        self._troubles = (0, 0)  # counters of ingest as last reported: Redis, Kafka

    def report(self, ingest: Ingest, workers: Workers, actuation: Actuation) -> None:
        """Look once."""
        self._report_counting(ingest)
        self._metrics.outbox_entries.set(workers.pending_effects)
        self._metrics.partitions_owned.of("commands").set(len(workers.owned))
        self.say("flags", "")  # a flag that is broken is a fault of its own: the others are served and decided
        waiting = workers.pending_effects
        self.say("outbox", f"{waiting} effects wait for Kafka" if waiting >= OUTBOX_WAITS else "")
        gaps = actuation.gaps
        self.say("actuation", "; ".join(f"{key} on {plane} {why}" for (key, plane), why in list(gaps.items())[:5]))

    def _report_counting(self, ingest: Ingest) -> None:
        views = ingest.views()
        stopped = [f"{view.topic}/{view.partition}: {view.trouble}" for view in views if view.state is PartitionState.STOPPED]
        loading = sum(view.state is PartitionState.LOADING for view in views)
        self.say("counting", "; ".join(stopped) or (f"{loading} partitions are being taken over" if loading else ""))
        now = ingest.counters
        self._metrics.dependency_errors.of("redis").inc(now.save_troubles - self._troubles[0])
        self._metrics.dependency_errors.of("kafka").inc(now.fetch_troubles - self._troubles[1])
        self._troubles = (now.save_troubles, now.fetch_troubles)

    def say(self, component: str, why_not: str) -> None:
        """Report one component; an empty reason means it is ready."""
        if why_not:
            self._health.not_ready(component, why_not)
        else:
            self._health.ready(component)
