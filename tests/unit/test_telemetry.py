from __future__ import annotations

import re

from prometheus_client import generate_latest
from prometheus_client.samples import Sample

from controller.health import Health, Scope
from controller.telemetry import Metrics
from schemas.terms import CommandStatus, CommandVerb, RecordClass


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
    assert 'rolloutd_build_info{counting="interpreted",python="' in text
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
