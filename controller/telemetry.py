"""Every Prometheus metric of rolloutd: what is measured, in which unit, with which labels.

Labels cannot grow: each takes its values from a closed list given here, anything else is counted as
`other`, and only flags with a rollout have a series of their own. No series holds text from an
event. Parts that measure receive a `Metrics`.

Names follow prometheus.io/docs/practices/naming: prefix, base unit, `_total` for counters.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from controller.core.invariants import RULES
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from controller.health import Component, Scope
from controller.scraped_metrics import ReplicaGauges, RolloutGauges
from schemas.terms import (
    AdviceChoice,
    AlertKind,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    QuarantineReason,
    RecordClass,
    Severity,
)

#: The label of a value outside its list: the event is counted, and the number of series is bounded.
OTHER = "other"
#: The label of a command with an unknown verb.
UNKNOWN_VERB = "unknown"
#: Logical topic names. The prefix in front of them is the operator's and is not repeated here.
EVENT_TOPICS = ("evaluations", "outcomes")
READ_TOPICS = (*EVENT_TOPICS, "commands")
#: Why a handshake of TLS failed. `refused_by_client`: it does not trust our certificate.
HANDSHAKE_FAILURES = ("timeout", "no_tls", "refused_by_client", "protocol", "lost")
#: What became of a delivery. `unproven`: without the token or signature of its endpoint.
HOOK_OUTCOMES = (
    "taken",
    "not_stored",
    "not_understood",
    "unproven",
    "refused",
    "busy",
    "no_endpoint",
    "wrong_host",
)
NOTIFICATION_OUTCOMES = ("sent", "failed", "refused")
DEPENDENCIES = ("kafka", "redis", "advisor", "flag_plane")

# Bucket edges in seconds. Fast calls take tens of milliseconds; a gate may wait for people over a
# weekend.
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_MODEL = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
_GATE = (0.1, 1, 5, 15, 60, 300, 900, 3_600, 4 * 3_600, 24 * 3_600, 3 * 24 * 3_600, 7 * 24 * 3_600)

_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


class Labelled(Generic[_Metric]):
    """A metric with labels of known values. Its series exist, at zero, from the start."""

    def __init__(self, metric: _Metric, *allowed: Iterable[str]) -> None:
        self._metric: _Metric = metric
        self._allowed = tuple(frozenset(str(value) for value in values) for values in allowed)
        self._series: dict[tuple[str, ...], _Metric] = {
            values: metric.labels(*values) for values in product(*map(sorted, self._allowed))
        }

    def of(self, *values: str) -> _Metric:
        """Return the series of these label values, in the order of the labels.

        A value not in its list is `other`.
        """
        series = self._series.get(values)
        if series is None:
            bounded = tuple(
                str(value) if value in allowed else OTHER
                for value, allowed in zip(values, self._allowed, strict=True)
            )
            series = self._metric.labels(*bounded)
        return series


class Metrics:
    """All metrics, in a registry of their own: two daemons in one process do not meet.

    `planes` names the configured flag planes, the values of that label.
    """

    def __init__(
        self,
        *,
        version: str,
        counting: str = "python",
        planes: Iterable[str] = ("ofrep",),
    ) -> None:
        # No query here needs the second series that each counter would have.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        planes = tuple(planes)
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        self._planes = planes
        self._add_counting()
        self._add_deciding()
        self._add_actuating()
        self._add_process()
        build = Gauge(
            "rolloutd_build_info",
            "1; the version is in the labels, and what counts: native, or python without it.",
            ["version", "python", "counting"],
            registry=registry,
        )
        build.labels(version, platform.python_version(), counting).set(1)
        self._watched = ReplicaGauges()
        self._rollouts = RolloutGauges()
        registry.register(self._watched)
        registry.register(self._rollouts)

    # --- the metrics, by who measures them ---

    def _add_counting(self) -> None:
        self.events = self._counter(
            "events_total",
            "Event records read, by the one class each falls into.",
            topic=EVENT_TOPICS,
            **{"class": RecordClass},
        )
        self.quarantined = self._counter(
            "quarantined_total", "Records refused, of all topics.", reason=QuarantineReason
        )
        self.refusals_waiting = self._plain_gauge(
            "refusals_waiting", "Refusals whose details wait for the quarantine topic."
        )
        self.refusals_dropped = self._plain_counter(
            "refusals_dropped_total",
            "Refusals whose details were dropped; they are counted all the same.",
        )
        self.unknown_flag_events = self._plain_counter(
            "unknown_flag_events_total", "Evaluations of flags without a rollout."
        )
        self.scattered_contexts = self._plain_counter(
            "scattered_contexts_total",
            "Times a sampled context was in another partition of a topic than before.",
        )
        self.lag_records = self._gauge(
            "lag_records",
            "Records in our partitions that are not read and saved yet.",
            topic=READ_TOPICS,
        )
        self.partitions_owned = self._gauge(
            "partitions_owned", "Partitions this replica reads.", topic=READ_TOPICS
        )
        self.partitions_expected = self._gauge(
            "partitions_expected", "Partitions that the topic has.", topic=EVENT_TOPICS
        )
        self.save_age_seconds = self._plain_gauge(
            "save_age_seconds", "Time since totals were saved, of the partition that waits longest."
        )
        self.rebalances = self._plain_counter(
            "rebalances_total",
            "Times the partitions of this replica changed, compared once a second.",
        )
        self.flush_duration_seconds = self._histogram(
            "flush_duration_seconds", "Time to save one partition's totals.", _FAST
        )
        self.native_faults = self._plain_counter(
            "native_faults_total",
            "Partitions counted on by the reference, in Python, after a fault of the native fold.",
        )
        self.fence_conflicts = self._plain_counter(
            "fence_conflicts_total", "Saves refused because another replica had counted on."
        )

    def _add_deciding(self) -> None:
        self.decisions = self._counter("decisions_total", "Decisions made.", kind=DecisionKind)
        self.decision_duration_seconds = self._histogram(
            "decision_duration_seconds",
            "From an event's arrival at its flag's worker to the saved decision.",
            _FAST,
        )
        self.commands = self._counter(
            "commands_total",
            "Commands answered.",
            verb=(*CommandVerb, UNKNOWN_VERB),
            status=CommandStatus,
        )
        self.gate_duration_seconds = self._histogram(
            "gate_duration_seconds", "From a gate's opening to its verdict.", _GATE
        )
        self.advice = self._counter(
            "advice_total", "Answers of the language model.", outcome=(*AdviceChoice, "unavailable")
        )
        self.advice_duration_seconds = self._histogram(
            "advice_duration_seconds", "From question to parsed answer or none.", _MODEL
        )
        self.advice_agreement = self._counter(
            "advice_agreement_total",
            "Advice at the gates of rollouts that ended by their evidence, by whether the "
            "outcome agrees with it.",
            choice=AdviceChoice,
            agrees=("yes", "no"),
        )
        self.explanations = self._counter(
            "explanations_total",
            "Explanations of alerts asked for.",
            outcome=("attached", "unavailable", "dropped"),
        )
        self.alerts = self._counter(
            "alerts_total", "Alerts raised.", kind=AlertKind, severity=Severity
        )
        self.invariant_violations = self._counter(
            "invariant_violations_total",
            "Saves and decisions that would have broken an invariant.",
            invariant=("I2", *RULES),
        )
        self.outbox_entries = self._plain_gauge(
            "outbox_entries", "Effects saved and not yet known to be published."
        )

        self.outbox_age_seconds = self._plain_gauge(
            "outbox_age_seconds", "For how long the oldest of those effects has been tried."
        )
        self.unwatched_rollouts = self._plain_gauge(
            "unwatched_rollouts", "Rollouts in a stage here whose guardrails cannot see."
        )

    def _add_actuating(self) -> None:
        self.actuation_gap_seconds = self._gauge(
            "actuation_gap_seconds",
            "Time for which a plane has not served what was decided, worst flag.",
            plane=self._planes,
        )
        self.actuations = self._counter(
            "actuations_total",
            "Attempts to make a plane serve a percentage.",
            plane=self._planes,
            outcome=("served", "failed"),
        )
        self.evaluations = self._counter(
            "evaluations_total",
            "Flag evaluations answered over OFREP.",
            outcome=("treatment", "control", "refused"),
        )
        self.event_streams = self._plain_gauge(
            "event_streams", "OFREP clients that receive changes as they happen."
        )
        self.event_streams_ended = self._counter(
            "event_streams_ended_total",
            "Event streams that were refused, or ended because the client was slow.",
            why=("refused", "slow"),
        )
        self.page_streams = self._plain_gauge(
            "page_streams", "Open pages in browsers that receive changes as they happen."
        )
        self.page_streams_ended = self._counter(
            "page_streams_ended_total",
            "Streams of pages that were refused, or ended because the browser was slow.",
            why=("refused", "slow"),
        )
        self.page_events = self._plain_counter(
            "page_events_total", "Changes sent to open pages, one for each page and change."
        )

    def _add_process(self) -> None:
        self.stall_seconds = self._histogram(
            "stall_seconds", "How late the event loop woke a timer.", _FAST
        )
        self.dependency_errors = self._counter(
            "dependency_errors_total",
            "Calls that failed or came too late.",
            dependency=DEPENDENCIES,
        )
        self.dependency_up = self._gauge(
            "dependency_up", "1 while it answers.", dependency=("kafka", "redis")
        )
        self.state_silence_seconds = self._plain_gauge(
            "state_silence_seconds",
            "Time since a broker said that the known decisions are the newest.",
        )

        self.hook_deliveries = self._counter(
            "hook_deliveries_total",
            "Deliveries of monitoring systems, by what became of them.",
            outcome=HOOK_OUTCOMES,
        )
        self.notifications = self._counter(
            "notifications_total",
            "Messages to channels of notifications, by what became of them.",
            outcome=NOTIFICATION_OUTCOMES,
        )
        self.handshakes_failed = self._counter(
            "tls_handshakes_failed_total",
            "Connections to the HTTP listener that ended in their handshake.",
            reason=HANDSHAKE_FAILURES,
        )

    # --- kinds of metrics ---

    def _counter(self, name: str, text: str, **labels: Iterable[str]) -> Labelled[Counter]:
        metric = Counter(f"rolloutd_{name}", text, list(labels), registry=self.registry)
        return Labelled(metric, *labels.values())

    def _gauge(self, name: str, text: str, **labels: Iterable[str]) -> Labelled[Gauge]:
        metric = Gauge(f"rolloutd_{name}", text, list(labels), registry=self.registry)
        return Labelled(metric, *labels.values())

    def _plain_counter(self, name: str, text: str) -> Counter:
        return Counter(f"rolloutd_{name}", text, registry=self.registry)

    def _plain_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"rolloutd_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, edges: tuple[float, ...]) -> Histogram:
        return Histogram(f"rolloutd_{name}", text, registry=self.registry, buckets=edges)

    def watch(
        self,
        *,
        percents: Callable[[], Mapping[str, float]] | None = None,
        components: Callable[[], Iterable[Component]] | None = None,
        converged: Callable[[], Mapping[tuple[str, str], bool]] | None = None,
        faults: Callable[[], Mapping[Scope, int]] | None = None,
        faults_reported: Callable[[], Mapping[Scope, int]] | None = None,
        skews: Callable[[], Mapping[str, float]] | None = None,
        rollouts: Callable[[], Iterable[Rollout]] | None = None,
        judgement_of: Callable[[str], Judgement | None] | None = None,
        findings: Callable[[], Mapping[str, int]] | None = None,
        flag_events: Callable[[], Mapping[tuple[str, str], float]] | None = None,
        unknown_flags: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        """Set from where gauges are read at each scrape, maybe in another thread.

        `percents` is by flag key, `converged` by flag key and plane, `skews` by clock,
        `flag_events` by flag key and class of event, `unknown_flags` by flag key. `rollouts` gives
        the newest rollout of each flag, `judgement_of` the newest judgement of a flag that runs
        here, `findings` how many flags have each finding of the inventory.
        """
        if flag_events is not None:
            self._watched.flag_events = flag_events
        if unknown_flags is not None:
            self._watched.unknown_flags = unknown_flags
        if percents is not None:
            self._watched.percents = percents
        if components is not None:
            self._watched.components = components
        if converged is not None:
            self._watched.converged = converged
        if faults is not None:
            self._watched.faults = faults
        if faults_reported is not None:
            self._watched.faults_reported = faults_reported
        if skews is not None:
            self._watched.skews = skews
        if rollouts is not None:
            self._rollouts.rollouts = rollouts
        if judgement_of is not None:
            self._rollouts.judgement_of = judgement_of
        if findings is not None:
            self._rollouts.findings = findings
