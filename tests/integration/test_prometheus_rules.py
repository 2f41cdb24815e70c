"""The rules of ops/prometheus, run by the real promtool: what fires when, and when nothing does."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.prometheus import ROOT, program

pytestmark = pytest.mark.integration

RULES: Final = ROOT / "ops" / "prometheus" / "rules.yml"
Series = Mapping[str, str]

#: A daemon that is well: a value every 5 s, for two hours.
WELL: Final[Series] = {
    'up{job="rolloutd"}': "1x1500",
    'rolloutd_component_ready{component="kafka"}': "1x1500",
    'rolloutd_component_ready{component="quarantine"}': "1x1500",
    'rolloutd_dependency_up{dependency="redis"}': "1x1500",
    "rolloutd_unwatched_rollouts": "0x1500",
    "rolloutd_save_age_seconds": "0.1x1500",
    "rolloutd_state_silence_seconds": "0.5x1500",
    'rolloutd_clock_skew_seconds{against="kafka"}': "-0.1x1500",
    'rolloutd_faults{scope="flag"}': "0x1500",
    'rolloutd_fault_reports_total{scope="part"}': "0x1500",
    'rolloutd_lag_records{topic="evaluations"}': "40x1500",
    'rolloutd_events_total{topic="evaluations",class="counted"}': "0+500x1500",
    'rolloutd_partitions_owned{topic="evaluations"}': "3x1500",
    'rolloutd_partitions_expected{topic="evaluations"}': "3x1500",
    'rolloutd_actuation_gap_seconds{plane="redis"}': "0x1500",
    "rolloutd_outbox_entries": "0x1500",
    "rolloutd_outbox_age_seconds": "0x1500",
    'rolloutd_quarantined_total{reason="not_json"}': "0x1500",
    "rolloutd_scattered_contexts_total": "0x1500",
    "rolloutd_fence_conflicts_total": "0x1500",
    'rolloutd_stall_seconds_bucket{le="0.25"}': "0+50x1500",
    'rolloutd_stall_seconds_bucket{le="1"}': "0+50x1500",
    'rolloutd_stall_seconds_bucket{le="+Inf"}': "0+50x1500",
    'rolloutd_rollout_phase{flag_key="f",phase="baking"}': "1x1500",
    'rolloutd_flag_events_total{flag_key="f",class="counted"}': "0+500x1500",
}
#: What is broken, and by when the alert of that name must fire.
BROKEN: Final[Mapping[str, tuple[str, Series]]] = {
    "RolloutdAbsent": ("1m", {'up{job="rolloutd"}': "0x1500"}),
    "RolloutdComponentNotReady": (
        "2m",
        {'rolloutd_component_ready{component="kafka"}': "0x1500"},
    ),
    "RolloutdUnwatched": ("10s", {"rolloutd_unwatched_rollouts": "1x1500"}),
    "RolloutdDependencyAway": ("30s", {'rolloutd_dependency_up{dependency="redis"}': "0x1500"}),
    "RolloutdNotSaved": ("30s", {"rolloutd_save_age_seconds": "0+5x1500"}),
    "RolloutdServesStale": ("1m", {"rolloutd_state_silence_seconds": "0+5x1500"}),
    "RolloutdClocksDisagree": ("2m", {'rolloutd_clock_skew_seconds{against="kafka"}': "-9x1500"}),
    "RolloutdFaultContained": ("2m", {'rolloutd_faults{scope="flag"}': "1x1500"}),
    "RolloutdPartRestarts": ("5m", {'rolloutd_fault_reports_total{scope="part"}': "0+1x1500"}),
    "RolloutdPartitionsUnowned": (
        "1m",
        {'rolloutd_partitions_owned{topic="evaluations"}': "2x1500"},
    ),
    "RolloutdQuarantineAway": (
        "2m",
        {'rolloutd_component_ready{component="quarantine"}': "0x1500"},
    ),
    "RolloutdFallsBehind": ("3m", {'rolloutd_lag_records{topic="evaluations"}': "90000x1500"}),
    "RolloutdNotServed": ("1m", {'rolloutd_actuation_gap_seconds{plane="redis"}': "0+5x1500"}),
    "RolloutdOutboxFills": ("2m", {"rolloutd_outbox_entries": "150x1500"}),
    "RolloutdQuarantines": ("12m", {'rolloutd_quarantined_total{reason="not_json"}': "0+20x1500"}),
    "RolloutdContextsScattered": ("5m", {"rolloutd_scattered_contexts_total": "0+1x1500"}),
    "RolloutdFenceConflicts": ("12m", {"rolloutd_fence_conflicts_total": "0+5x1500"}),
    "RolloutdStalls": (
        "12m",
        {
            'rolloutd_stall_seconds_bucket{le="1"}': "0+80x1500",
            'rolloutd_stall_seconds_bucket{le="+Inf"}': "0+80x1500",
        },
    ),
    "RolloutRolledBack": (
        "10s",
        {'rolloutd_rollout_phase{flag_key="f",phase="rolled_back"}': "1x1500"},
    ),
    "RolloutPaused": ("20m", {'rolloutd_rollout_phase{flag_key="f",phase="paused"}': "1x1500"}),
    "RolloutAwaitsApproval": (
        "35m",
        {'rolloutd_rollout_phase{flag_key="f",phase="awaiting_approval"}': "1x1500"},
    ),
    "RolloutEventsIgnored": (
        "12m",
        {'rolloutd_flag_events_total{flag_key="f",class="unknown_variant"}': "0+90x1500"},
    ),
    "RolloutHolds": ("70m", {'rolloutd_rollout_hold{flag_key="f",hold="health"}': "1x1500"}),
}


def firing(directory: Path, series: Series, at: str, expected: list[str]) -> str:
    """Return promtool's complaint when other alerts fire at this time; nothing when these do."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    test: dict[str, Any] = {
        "interval": "5s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'max by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": at,
                "exp_samples": samples,
            }
        ],
    }
    document = {"rule_files": [str(RULES)], "evaluation_interval": "5s", "tests": [test]}
    path = directory / "test.yml"
    path.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_rules_are_valid() -> None:
    """As promtool reads them."""
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(RULES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_times_are_written_for_people() -> None:
    """A raw value has up to 17 digits, as in `5.307123899459839 s`."""
    assert "{{ $value }} s" not in RULES.read_text(encoding="utf-8")


def test_every_alert_has_a_case() -> None:
    """A rule that is added is tried."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    names = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert names == set(BROKEN)


@pytest.mark.parametrize("at", ["1m", "30m", "2h"])
def test_a_daemon_that_is_well_fires_nothing(tmp_path: Path, at: str) -> None:
    """An alert that fires in a healthy fleet is soon switched off."""
    assert firing(tmp_path, WELL, at, []) == ""


@pytest.mark.parametrize("alert", BROKEN)
def test_what_is_broken_is_told_and_nothing_else(tmp_path: Path, alert: str) -> None:
    """One thing broken is one alert, in time."""
    at, broken = BROKEN[alert]
    complaint = firing(tmp_path, {**WELL, **broken}, at, [alert])
    assert complaint == ""
