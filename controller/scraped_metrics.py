"""Metrics that are read from their owners at each scrape: of a replica, and of its rollouts.

Belongs here: gauges and counters whose value is kept elsewhere. Does not belong here: metrics that
parts count themselves (`telemetry.py`, which registers these too).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from controller.health import Component, Scope

#: Clocks that ours is compared with, as in `controller.clock`.
CLOCKS = ("wall", "redis", "kafka")
#: For how long after its end a rollout has series: rules can be written for what has just ended.
SHOWN_AFTER_END: Final = timedelta(days=1)
#: Rollouts with series; beyond it those that changed last.
MOST_ROLLOUTS: Final = 2_000
#: Ages of flags count in days: what is found about them is worked out this often.
FOUND_EVERY: Final = timedelta(seconds=10)


class ReplicaGauges(Collector):
    """Gauges whose values are read from their owners at each scrape."""

    def __init__(self) -> None:
        self.percents: Callable[[], Mapping[str, float]] = dict
        self.components: Callable[[], Iterable[Component]] = tuple
        self.converged: Callable[[], Mapping[tuple[str, str], bool]] = dict
        self.faults: Callable[[], Mapping[Scope, int]] = dict
        self.faults_reported: Callable[[], Mapping[Scope, int]] = dict
        self.skews: Callable[[], Mapping[str, float]] = dict
        self.flag_events: Callable[[], Mapping[tuple[str, str], float]] = dict
        self.unknown_flags: Callable[[], Mapping[str, float]] = dict

    def collect(self) -> Iterator[Metric]:
        percent = GaugeMetricFamily(
            "rolloutd_percent",
            "Percentage of contexts that the daemon serves the treatment to.",
            labels=["flag_key"],
        )
        for flag_key, value in self.percents().items():
            percent.add_metric([flag_key], value)
        yield percent
        converged = GaugeMetricFamily(
            "rolloutd_plane_converged",
            "1 while a flag plane serves what was decided.",
            labels=["flag_key", "plane"],
        )
        for (flag_key, plane), is_converged in self.converged().items():
            converged.add_metric([flag_key, plane], float(is_converged))
        yield converged
        ready = GaugeMetricFamily(
            "rolloutd_component_ready", "1 while the component does its work.", labels=["component"]
        )
        for component in self.components():
            ready.add_metric([component.name], float(component.why_not is None))
        yield ready
        faults = GaugeMetricFamily(
            "rolloutd_faults", "Faults that are contained now.", labels=["scope"]
        )
        # Not rolloutd_faults_total: in OpenMetrics a gauge and a counter share one name space.
        reported = CounterMetricFamily(
            "rolloutd_fault_reports", "Reports of contained faults.", labels=["scope"]
        )
        now, total = self.faults(), self.faults_reported()
        for scope in Scope:
            faults.add_metric([scope.value], now.get(scope, 0))
            reported.add_metric([scope.value], total.get(scope, 0))
        yield faults
        yield reported
        skew = GaugeMetricFamily(
            "rolloutd_clock_skew_seconds",
            "By how much another clock is ahead of the time that decisions go by.",
            labels=["against"],
        )
        skews = self.skews()
        for against in CLOCKS:
            if against in skews:
                skew.add_metric([against], skews[against])
        yield skew
        yield from self._collect_events()

    def _collect_events(self) -> Iterator[Metric]:
        events = CounterMetricFamily(
            "rolloutd_flag_events",
            "Events of each flag with a rollout by what they were, estimated from records that "
            "were read again.",
            labels=["flag_key", "class"],
        )
        for (flag_key, found), count in self.flag_events().items():
            events.add_metric([flag_key, found], count)
        yield events
        unknown = GaugeMetricFamily(
            "rolloutd_unknown_flag_events_by_name",
            "Evaluations of the most frequent flags without a rollout, at least.",
            labels=["flag_key"],
        )
        for flag_key, count in self.unknown_flags().items():
            unknown.add_metric([flag_key], count)
        yield unknown


class RolloutGauges(Collector):
    """Gauges of each rollout that is under way or ended within a day, read at each scrape.

    Every replica knows the phase of every rollout: take `max by (flag_key)`. The counted evidence
    is known to the replica that runs the flag.
    """

    def __init__(self) -> None:
        self.rollouts: Callable[[], Iterable[Rollout]] = tuple
        self.judgement_of: Callable[[str], Judgement | None] = lambda _: None
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.findings: Callable[[], Mapping[str, int]] = dict
        self._found: tuple[datetime, Mapping[str, int]] | None = None

    def collect(self) -> Iterator[Metric]:
        yield self._findings()
        shown = self._shown()
        phase = GaugeMetricFamily(
            "rolloutd_rollout_phase",
            "1 for the phase that the rollout is in; a day after its end there is none.",
            labels=["flag_key", "phase"],
        )
        stage = GaugeMetricFamily(
            "rolloutd_rollout_stage",
            "Number of the present stage, from 1; none before the start and after the end.",
            labels=["flag_key"],
        )
        hold = GaugeMetricFamily(
            "rolloutd_rollout_hold",
            "1 for the reason why the rollout does not move; none while nothing is in the way.",
            labels=["flag_key", "hold"],
        )
        closed = GaugeMetricFamily(
            "rolloutd_rollout_closed",
            "1 while the rollout serves 0 % outside its plan's active windows; none without them.",
            labels=["flag_key"],
        )
        for rollout in shown:
            phase.add_metric([rollout.flag_key, rollout.phase.name], 1)
            if rollout.plan.active:
                closed.add_metric([rollout.flag_key], rollout.closed_since is not None)
            if rollout.stage_index is not None:
                stage.add_metric([rollout.flag_key], rollout.stage_index + 1)
            if rollout.hold is not None:
                hold.add_metric([rollout.flag_key, rollout.hold], 1)
        yield from (phase, stage, hold, closed)
        yield from self._evidence(shown)

    def _findings(self) -> Metric:
        """Return how many flags have each finding of the inventory, worked out every 10 s."""
        now = self.now()
        if self._found is None or now - self._found[0] >= FOUND_EVERY:
            self._found = now, self.findings()
        findings = GaugeMetricFamily(
            "rolloutd_flag_findings",
            "Flags that a person should tidy up, by what was found about them.",
            labels=["finding"],
        )
        for finding, count in self._found[1].items():
            findings.add_metric([finding], count)
        return findings

    def _shown(self) -> list[Rollout]:
        """Return the rollouts that have series, in the order of flag keys."""
        ended_after = self.now() - SHOWN_AFTER_END
        recent = [
            one for one in self.rollouts() if not one.has_ended or one.updated_at > ended_after
        ]
        recent.sort(key=lambda one: one.updated_at, reverse=True)
        return sorted(recent[:MOST_ROLLOUTS], key=lambda one: one.flag_key)

    def _evidence(self, shown: Iterable[Rollout]) -> Iterator[Metric]:
        contexts = GaugeMetricFamily(
            "rolloutd_rollout_contexts",
            "Distinct contexts counted in the present stage.",
            labels=["flag_key", "arm"],
        )
        estimate = GaugeMetricFamily(
            "rolloutd_rollout_estimate",
            "Estimate of a guardrail's metric: a share of user actions or of contexts, or "
            "milliseconds.",
            labels=["flag_key", "metric", "arm"],
        )
        for rollout in shown:
            judgement = None if rollout.has_ended else self.judgement_of(rollout.flag_key)
            if judgement is None:
                continue
            for arm, count in judgement.exposures.items():
                contexts.add_metric([rollout.flag_key, arm], count)
            estimates = {
                (report.metric, arm): summary.estimate
                for report in judgement.metrics
                for arm, summary in report.arms.items()
            }
            for (metric, arm), value in estimates.items():
                if value is not None:
                    estimate.add_metric([rollout.flag_key, metric, arm], value)
        yield from (contexts, estimate)
