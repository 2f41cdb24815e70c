from __future__ import annotations

import re
from datetime import timedelta

from prometheus_client import generate_latest
from prometheus_client.samples import Sample

from controller.core.rollout import AwaitingApproval, RolledBack
from controller.health import Health, Scope
from controller.scraped_metrics import MOST_ROLLOUTS, SHOWN_AFTER_END
from controller.telemetry import Metrics
from schemas.terms import Arm, CommandStatus, CommandVerb, HoldReason, RecordClass
from tests.builders import T0, make_judgement, make_plan, make_rollout

SECOND = timedelta(seconds=1)


def samples_of(metrics: Metrics) -> list[Sample]:
    """Return every sample of our own metrics, without those of the process."""
    families = metrics.registry.collect()
    return [
        sample
        for family in families
        if family.name.startswith("rolloutd_")
        for sample in family.samples
    ]


def test_names_follow_the_conventions() -> None:
    """Prefix, base unit last (`_total` for counters), lower case.

    What dashboards and linters expect.
    """
    for family in Metrics(version="1").registry.collect():
        if family.name.startswith(("process_", "python_")):
            continue
        assert re.fullmatch(r"rolloutd_[a-z_]+", family.name)
        assert family.documentation.endswith(".") or family.name == "rolloutd_build_info"
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_a_series_exists_before_its_first_event() -> None:
    """Known label values start at zero, so that a rate over the first event is not lost."""
    value = Metrics(version="1").registry.get_sample_value
    for recorded in RecordClass:
        assert value("rolloutd_events_total", {"topic": "outcomes", "class": recorded}) == 0
    assert value("rolloutd_quarantined_total", {"reason": "not_json"}) == 0


def test_labels_are_given_in_order() -> None:
    """Enum members and their text name the same series."""
    metrics = Metrics(version="1")
    metrics.commands.of(CommandVerb.PAUSE, CommandStatus.ACCEPTED).inc()
    metrics.commands.of("pause", "accepted").inc()
    assert (
        metrics.registry.get_sample_value(
            "rolloutd_commands_total", {"verb": "pause", "status": "accepted"}
        )
        == 2
    )


def test_no_input_creates_series_without_bound() -> None:
    """A thousand label values that nobody announced are one series, `other`.

    None of the known ones is touched.
    """
    metrics = Metrics(version="1", planes=["ofrep"])
    before = len(samples_of(metrics))
    for number in range(1_000):
        metrics.quarantined.of(f"reason-{number}").inc()
        metrics.actuation_gap_seconds.of(f"plane-{number}").set(number)
        metrics.events.of(f"topic-{number}", f"class-{number}").inc()
    assert len(samples_of(metrics)) == before + 3
    assert (
        metrics.registry.get_sample_value("rolloutd_quarantined_total", {"reason": "other"})
        == 1_000
    )
    assert (
        metrics.registry.get_sample_value("rolloutd_quarantined_total", {"reason": "not_json"}) == 0
    )


def test_percentages_and_components_are_read_at_the_scrape() -> None:
    """A flag has a series while it has a rollout, and none before or after."""
    metrics, percents, health = (
        Metrics(version="1"),
        {"new-checkout": 10.0},
        Health(required=["event_log"]),
    )
    metrics.watch(percents=lambda: percents, components=health.components.values)
    value = metrics.registry.get_sample_value
    assert value("rolloutd_percent", {"flag_key": "new-checkout"}) == 10.0
    assert value("rolloutd_component_ready", {"component": "event_log"}) == 0
    percents.clear()
    health.ready("event_log")
    assert value("rolloutd_percent", {"flag_key": "new-checkout"}) is None
    assert value("rolloutd_component_ready", {"component": "event_log"}) == 1


def test_two_daemons_in_one_process_do_not_meet() -> None:
    """Each has a registry of its own."""
    one, other = Metrics(version="1"), Metrics(version="2")
    one.rebalances.inc()
    assert other.registry.get_sample_value("rolloutd_rebalances_total") == 0


def test_the_text_is_small_and_has_no_second_series() -> None:
    """No `_created` series; the whole text of an idle daemon stays below 64 KiB."""
    text = generate_latest(Metrics(version="1.2.3").registry).decode()
    assert "_created" not in text
    assert 'rolloutd_build_info{counting="python",python="' in text
    assert len(text) < 64 * 1024


def test_faults_and_clocks_are_read_where_they_live() -> None:
    """One series per scope from the start, one per clock that is known.

    No two metrics share a name.
    """
    metrics = Metrics(version="1.2.3")
    metrics.watch(
        faults=lambda: {Scope.FLAG: 2},
        faults_reported=lambda: {Scope.FLAG: 5},
        skews=lambda: {"redis": 31.5},
    )
    text = generate_latest(metrics.registry).decode()
    for line in (
        'rolloutd_faults{scope="flag"} 2.0',
        'rolloutd_faults{scope="clock"} 0.0',
        'rolloutd_fault_reports_total{scope="flag"} 5.0',
        'rolloutd_clock_skew_seconds{against="redis"} 31.5',
    ):
        assert line in text
    names = [family.name for family in metrics.registry.collect()]
    assert len(names) == len(set(names))


def test_each_rollout_shows_where_it_is_and_why_it_waits() -> None:
    """Phase, stage and hold have one series each; an alert rule can be written for them."""
    metrics = Metrics(version="1")
    waiting = AwaitingApproval(stage=0, gate_id="g", since=T0, reason=HoldReason.APPROVAL)
    rollout = make_rollout(phase=waiting, hold=HoldReason.APPROVAL)
    judgement = make_judgement(exposures={Arm.TREATMENT: 12, Arm.CONTROL: 100})
    metrics.watch(rollouts=lambda: [rollout], judgement_of=lambda _: judgement)
    value = metrics.registry.get_sample_value
    flag = {"flag_key": rollout.flag_key}
    assert value("rolloutd_rollout_phase", {**flag, "phase": "awaiting_approval"}) == 1
    assert value("rolloutd_rollout_phase", {**flag, "phase": "baking"}) is None
    assert value("rolloutd_rollout_stage", flag) == 1
    assert value("rolloutd_rollout_hold", {**flag, "hold": "approval"}) == 1
    assert value("rolloutd_rollout_contexts", {**flag, "arm": "treatment"}) == 12
    estimates = [
        sample for sample in samples_of(metrics) if sample.name == "rolloutd_rollout_estimate"
    ]
    assert {(one.labels["metric"], one.labels["arm"]) for one in estimates} >= {
        (judgement.metrics[0].metric, "treatment")
    }


def test_a_rollout_that_ended_long_ago_has_no_series() -> None:
    """A rollback is seen for a day; what was counted ends with the rollout."""
    metrics = Metrics(version="1")
    ended = make_rollout(phase=RolledBack(at=T0, reason="harm"), updated_at=T0)
    metrics.watch(rollouts=lambda: [ended], judgement_of=lambda _: make_judgement())
    value, flag = metrics.registry.get_sample_value, {"flag_key": ended.flag_key}
    metrics._rollouts.now = lambda: T0 + SHOWN_AFTER_END / 2
    assert value("rolloutd_rollout_phase", {**flag, "phase": "rolled_back"}) == 1
    assert value("rolloutd_rollout_stage", flag) is None
    assert value("rolloutd_rollout_contexts", {**flag, "arm": "treatment"}) is None
    metrics._rollouts.now = lambda: T0 + SHOWN_AFTER_END
    assert value("rolloutd_rollout_phase", {**flag, "phase": "rolled_back"}) is None


def test_the_number_of_rollouts_with_series_is_bounded() -> None:
    """Those that changed last have series."""
    metrics = Metrics(version="1")
    rollouts = [
        make_rollout(plan=make_plan(flag_key=f"flag-{number}"), updated_at=T0 + number * SECOND)
        for number in range(MOST_ROLLOUTS + 10)
    ]
    metrics.watch(rollouts=lambda: rollouts)
    phases = [one for one in samples_of(metrics) if one.name == "rolloutd_rollout_phase"]
    assert len(phases) == MOST_ROLLOUTS
    flags = {one.labels["flag_key"] for one in phases}
    assert f"flag-{MOST_ROLLOUTS + 9}" in flags
    assert "flag-0" not in flags
