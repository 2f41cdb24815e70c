"""Writes the Grafana dashboards: the fleet, one rollout, and the daemon itself.

Run `make dashboards` after changing this file; a test fails when the files beside it differ. The
dashboards read Prometheus alone, so they work wherever rolloutd is scraped. Every query is tried on
a real Prometheus that scrapes a running daemon (`tests/e2e/test_dashboards.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

DIRECTORY: Final = Path(__file__).parent / "dashboards"
#: Which Prometheus: chosen in the dashboard.
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True, slots=True)
class Lines:
    """A panel of lines over time: PromQL by the name of its series."""

    title: str
    what: str
    queries: Mapping[str, str]
    unit: str = "short"
    span: int = 12
    repeat: str = ""  # a variable: one panel for each of its values


@dataclass(frozen=True, slots=True)
class Number:
    """A panel of one number; red from `alarm` on."""

    title: str
    what: str
    query: str
    unit: str = "short"
    alarm: float | None = None
    span: int = 4


Panel = Lines | Number
Rows = Mapping[str, Sequence[Panel]]

#: Every replica knows every rollout: the newest word of any is taken.
FLEET: Final[Rows] = {
    "Is anything wrong, is anything waiting?": (
        Number(
            "Unwatched",
            "Live rollouts whose guardrails cannot see: a regression would not be rolled back.",
            "sum(rolloutd_unwatched_rollouts)",
            alarm=1,
        ),
        Number(
            "Waiting for a person",
            "Paused, or asking for approval: nothing goes on by itself.",
            'count(max by (flag_key) (rolloutd_rollout_phase{phase=~"paused|awaiting_approval"}))'
            " or vector(0)",
        ),
        Number(
            "Under way",
            "Rollouts that have begun and not ended.",
            "count(max by (flag_key) (rolloutd_rollout_phase"
            '{phase!~"completed|rolled_back|aborted"})) or vector(0)',
        ),
        Number(
            "Rolled back in 24 h",
            "By a guardrail or by a person.",
            'round(sum(increase(rolloutd_decisions_total{kind="roll_back"}[1d])))',
        ),
        Number(
            "Critical alerts in 24 h",
            "Each is on rollout.alerts with its evidence and what to do.",
            'round(sum(increase(rolloutd_alerts_total{severity="critical"}[1d])))',
        ),
        Number(
            "Replicas",
            "That Prometheus can scrape.",
            "count(rolloutd_build_info)",
        ),
    ),
    "Rollouts": (
        Lines(
            "Percentage decided",
            "Of contexts that are served the treatment, by flag.",
            {"{{flag_key}}": "max by (flag_key) (rolloutd_percent)"},
            unit="percent",
        ),
        Lines(
            "Phase",
            "1 for the phase that each rollout is in.",
            {
                "{{flag_key}}: {{phase}}": "max by (flag_key, phase) (rolloutd_rollout_phase)",
            },
        ),
        Lines(
            "Why rollouts do not move",
            "1 for the reason of each rollout that is held.",
            {"{{flag_key}}: {{hold}}": "max by (flag_key, hold) (rolloutd_rollout_hold)"},
        ),
        Lines(
            "Planes that do not serve what was decided",
            "For how long, by plane; 0 while all of them do.",
            {"{{plane}}": "max by (plane) (rolloutd_actuation_gap_seconds)"},
            unit="s",
        ),
    ),
    "Decisions and alerts": (
        Lines(
            "Decisions per hour",
            "By kind.",
            {"{{kind}}": "sum by (kind) (increase(rolloutd_decisions_total[1h])) > 0"},
        ),
        Lines(
            "Alerts per hour",
            "By kind and severity.",
            {
                "{{kind}} ({{severity}})": (
                    "sum by (kind, severity) (increase(rolloutd_alerts_total[1h])) > 0"
                )
            },
        ),
        Lines(
            "Events by flag",
            "Those that count, per second. A flag without a line has no events.",
            {
                "{{flag_key}}": (
                    'sum by (flag_key) (rate(rolloutd_flag_events_total{class="counted"}[1m]))'
                )
            },
            unit="eps",
        ),
        Lines(
            "Flags in events that have no rollout",
            "The most frequent ones, evaluations since the start of each replica.",
            {"{{flag_key}}": "sum by (flag_key) (rolloutd_unknown_flag_events_by_name)"},
        ),
    ),
}

_OF_FLAG: Final = 'flag_key="$flag"'
ROLLOUT: Final[Rows] = {
    "Where it stands": (
        Number(
            "Percentage decided",
            "Of contexts that are served the treatment.",
            f"max(rolloutd_percent{{{_OF_FLAG}}})",
            unit="percent",
        ),
        Number(
            "Stage",
            "Number of the present stage, from 1.",
            f"max(rolloutd_rollout_stage{{{_OF_FLAG}}})",
        ),
        Number(
            "Users in treatment",
            "Distinct contexts counted in the present stage.",
            f'max(rolloutd_rollout_contexts{{{_OF_FLAG},arm="treatment"}})',
        ),
        Number(
            "Users in control",
            "Distinct contexts counted in the present stage.",
            f'max(rolloutd_rollout_contexts{{{_OF_FLAG},arm="control"}})',
        ),
        Number(
            "Planes that do not serve it",
            "Planes that do not serve what was decided.",
            f"count(max by (plane) (rolloutd_plane_converged{{{_OF_FLAG}}}) == 0) or vector(0)",
            alarm=1,
        ),
        Number(
            "Events that count",
            "Per second, over the last minute.",
            f'sum(rate(rolloutd_flag_events_total{{{_OF_FLAG},class="counted"}}[1m]))',
            unit="eps",
        ),
    ),
    "Evidence": (
        Lines(
            "$metric",
            "Estimate of both arms, in the metric's unit: a share, or milliseconds.",
            {
                "{{arm}}": (
                    f'max by (arm) (rolloutd_rollout_estimate{{{_OF_FLAG},metric="$metric"}})'
                )
            },
            repeat="metric",
        ),
    ),
    "Course": (
        Lines(
            "Percentage decided",
            "Of contexts that are served the treatment.",
            {"decided": f"max(rolloutd_percent{{{_OF_FLAG}}})"},
            unit="percent",
        ),
        Lines(
            "Users",
            "Distinct contexts counted in the present stage; they begin again with each stage.",
            {"{{arm}}": f"max by (arm) (rolloutd_rollout_contexts{{{_OF_FLAG}}})"},
        ),
        Lines(
            "Phase and hold",
            "1 for the phase that it is in, and for the reason why it does not move.",
            {
                "{{phase}}": f"max by (phase) (rolloutd_rollout_phase{{{_OF_FLAG}}})",
                "held: {{hold}}": f"max by (hold) (rolloutd_rollout_hold{{{_OF_FLAG}}})",
            },
        ),
        Lines(
            "What became of its events",
            "Per second, by class: only `counted` is evidence.",
            {"{{class}}": (f"sum by (class) (rate(rolloutd_flag_events_total{{{_OF_FLAG}}}[1m]))")},
            unit="eps",
        ),
    ),
}


def _quantile(metric: str, quantile: float = 0.99) -> str:
    return f"histogram_quantile({quantile}, sum by (le) (rate({metric}_bucket[5m])))"


DAEMON: Final[Rows] = {
    "Does it work?": (
        Number(
            "Replicas",
            "That Prometheus can scrape.",
            "count(rolloutd_build_info)",
        ),
        Number(
            "Parts that are not ready",
            "/readyz says what each waits for.",
            "count(min by (component) (rolloutd_component_ready) == 0) or vector(0)",
            alarm=1,
        ),
        Number(
            "Dependencies away",
            "Kafka, Redis, the model or a plane does not answer some replica.",
            "count(min by (dependency) (rolloutd_dependency_up) == 0) or vector(0)",
            alarm=1,
        ),
        Number(
            "Faults contained",
            "One record, flag, partition or plane that cannot be handled; the rest goes on.",
            "sum(rolloutd_faults)",
            alarm=1,
        ),
        Number(
            "Records behind",
            "Not read and saved yet.",
            'sum(rolloutd_lag_records{topic=~"evaluations|outcomes"})',
        ),
        Number(
            "Invariants violated",
            "Since the start of each replica. Must be 0: report it with the log.",
            "sum(rolloutd_invariant_violations_total)",
            alarm=1,
        ),
    ),
    "Counting": (
        Lines(
            "Events read",
            "Per second, by topic and class.",
            {
                "{{topic}}: {{class}}": (
                    "sum by (topic, class) (rate(rolloutd_events_total[1m])) > 0"
                )
            },
            unit="eps",
        ),
        Lines(
            "Behind",
            "Records that are not read and saved yet, and seconds since totals were saved.",
            {
                "{{topic}}": "sum by (topic) (rolloutd_lag_records)",
                "seconds since a save": "max(rolloutd_save_age_seconds)",
            },
        ),
        Lines(
            "Time of a save and of a decision",
            "The slowest of a hundred.",
            {
                "save of a partition": _quantile("rolloutd_flush_duration_seconds"),
                "event to decision": _quantile("rolloutd_decision_duration_seconds"),
                "stall of the loop": _quantile("rolloutd_stall_seconds"),
            },
            unit="s",
        ),
        Lines(
            "Partitions",
            "Read by some replica, of those that there are.",
            {
                "{{topic}} read": "sum by (topic) (rolloutd_partitions_owned)",
                "{{topic}} there": "max by (topic) (rolloutd_partitions_expected)",
            },
        ),
        Lines(
            "Records refused",
            "Per second, by reason; rollout.quarantine has each.",
            {
                "{{reason}}": "sum by (reason) (rate(rolloutd_quarantined_total[5m])) > 0",
            },
            unit="eps",
        ),
        Lines(
            "Rebalances and lost races",
            "Per second. Replicas that keep counting the same partitions do not settle.",
            {
                "rebalances": "sum(rate(rolloutd_rebalances_total[5m]))",
                "saves that another replica was ahead of": (
                    "sum(rate(rolloutd_fence_conflicts_total[5m]))"
                ),
            },
        ),
    ),
    "Serving and publishing": (
        Lines(
            "Evaluations answered",
            "Per second over OFREP, by outcome.",
            {"{{outcome}}": "sum by (outcome) (rate(rolloutd_evaluations_total[1m]))"},
            unit="reqps",
        ),
        Lines(
            "Waiting for Kafka",
            "Decisions and alerts that are saved and not published, and the age of the oldest.",
            {
                "entries": "sum(rolloutd_outbox_entries)",
                "seconds": "max(rolloutd_outbox_age_seconds)",
            },
        ),
        Lines(
            "Failed calls",
            "Per second, by dependency.",
            {"{{dependency}}": "sum by (dependency) (rate(rolloutd_dependency_errors_total[5m]))"},
        ),
        Lines(
            "Clocks",
            "By how much other clocks are ahead of ours.",
            {"{{against}}": "max by (against) (rolloutd_clock_skew_seconds)"},
            unit="s",
        ),
    ),
    "Process": (
        Lines(
            "Memory",
            "Resident, by replica.",
            {"{{instance}}": 'process_resident_memory_bytes{job="rolloutd"}'},
            unit="bytes",
        ),
        Lines(
            "CPU",
            "Cores used, by replica.",
            {"{{instance}}": 'rate(process_cpu_seconds_total{job="rolloutd"}[1m])'},
        ),
    ),
}


def dashboards() -> dict[str, str]:
    """Return every dashboard as JSON, by file name."""
    fleet = _dashboard("rolloutd-fleet", "rolloutd: fleet")
    rollout = _dashboard("rolloutd-rollout", "rolloutd: one rollout")
    rollout = rollout.with_variable(_values("flag", "Flag", "rolloutd_percent", "flag_key"))
    of_flag = f"rolloutd_rollout_estimate{{{_OF_FLAG}}}"
    metric = _values("metric", "Metric", of_flag, "metric").multi(True).include_all(True)
    rollout = rollout.with_variable(metric)
    daemon = _dashboard("rolloutd-daemon", "rolloutd: the daemon")
    return {
        "fleet.json": _written(fleet, FLEET),
        "rollout.json": _written(rollout, ROLLOUT),
        "daemon.json": _written(daemon, DAEMON),
    }


def _dashboard(uid: str, title: str) -> Dashboard:
    source = DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    return (
        Dashboard(title)
        .uid(uid)
        .tags(["rolloutd"])
        .refresh("5s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(source)
    )


def _values(name: str, label: str, series: str, of: str) -> QueryVariable:
    """Return a variable whose values are those of a label."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({series}, {of})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def _written(dashboard: Dashboard, rows: Rows) -> str:
    for title, panels in rows.items():
        dashboard = dashboard.with_row(Row(title))
        for panel in panels:
            made = _lines(panel) if isinstance(panel, Lines) else _number(panel)
            dashboard = dashboard.with_panel(made)
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard.build()) + "\n"


def _lines(panel: Lines) -> Any:
    legend = VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    made = (
        Timeseries()
        .title(panel.title)
        .description(panel.what)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.span)
        .height(8)
        .min(0)
        .fill_opacity(10)
        .legend(legend.placement(LegendPlacement.BOTTOM))
    )
    if panel.repeat:
        made = made.repeat(panel.repeat).max_per_row(2)
    for number, (name, expression) in enumerate(panel.queries.items()):
        query = Dataquery().expr(expression).legend_format(name).ref_id(chr(ord("A") + number))
        made = made.with_target(query)
    return made


def _number(panel: Number) -> Any:
    steps = [Threshold(color="text", value=None)]
    if panel.alarm is not None:
        steps.append(Threshold(color="red", value=panel.alarm))
    return (
        Stat()
        .title(panel.title)
        .description(panel.what)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.span)
        .height(4)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(Dataquery().expr(panel.query).ref_id("A"))
    )


def main() -> None:
    """Write the files."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, content in dashboards().items():
        (DIRECTORY / name).write_text(content, "utf-8")


if __name__ == "__main__":
    main()
