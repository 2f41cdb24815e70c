"""What is taken for a failure, and how it is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from controller.counting.owned_partition import PartitionState, PartitionView
from controller.deciding.raise_guard import why_knowledge_is_old
from controller.health import KAFKA, Faults, Health, Scope
from controller.running.reporter import (
    OPTIONAL,
    QUARANTINE,
    REQUIRED,
    SAVED_WITHIN_SECONDS,
    SAVED_WITHIN_TROUBLE_SECONDS,
    STATE_TOPIC,
    Reporter,
    Signs,
)
from controller.telemetry import Metrics
from schemas.totals import PartitionCounts
from tests.builders import T0


def make_view(**overrides: Any) -> PartitionView:
    """Return a partition that is counted and saved."""
    fields: dict[str, Any] = {
        "topic": "flag.evaluations",
        "partition": 0,
        "state": PartitionState.READY,
        "next_offset": 10,
        "saved_offset": 10,
        "end_offset": 10,
        "records": PartitionCounts(),
        "unmoved_seconds": 0.0,
        "trouble": "",
        "saved_seconds": 0.1,
    }
    return PartitionView(**{**fields, **overrides})


def make_signs(**overrides: Any) -> Signs:
    """Return the signs of a replica that is well."""
    fields: dict[str, Any] = {
        "brokers": {STATE_TOPIC: 0.5, "events": 0.1, "commands": None},
        "store_seconds": 0.3,
        "store_trouble": None,
        "partitions": [make_view(), make_view(topic="request.outcomes")],
        "topics": {"flag.evaluations": "evaluations", "request.outcomes": "outcomes"},
        "expected": {"evaluations": 1, "outcomes": 1},
        "owned_commands": [("rollout.commands", number) for number in range(4)],
        "effects": 0,
        "effects_seconds": 0.0,
    }
    return Signs(**{**fields, **overrides})


class Bench:
    """A reporter, and what it reports to."""

    def __init__(self) -> None:
        self.metrics = Metrics(version="test")
        self.health = Health(REQUIRED, (*OPTIONAL, "advisor"), now=lambda: T0)
        self.faults = Faults(lambda: T0)
        self.reporter = Reporter(self.metrics, self.health, self.faults)
        self.health.ready("http")

    def not_ready(self, signs: Signs) -> dict[str, str]:
        """Report, and return why each component is not ready that is not."""
        self.reporter.report(signs)
        return {
            name: one.why_not
            for name, one in self.health.components.items()
            if one.why_not is not None
        }


def test_a_flag_whose_state_is_not_saved_is_named() -> None:
    """Redis answers and totals are saved: it shows nowhere else."""
    unsaved = {"checkout": "its state has not been saved for 5 s: no permission"}
    why = Bench().not_ready(make_signs(unsaved=unsaved))
    assert why == {"rollouts": "checkout: its state has not been saved for 5 s: no permission"}


def test_a_replica_that_has_no_events_to_count_is_ready_while_kafka_is_there() -> None:
    """Others have them all: there are more replicas than partitions."""
    bench = Bench()
    assert bench.not_ready(make_signs(partitions=[])) == {}
    silent = make_signs(partitions=[], brokers={"events": 4.1})
    why = bench.not_ready(silent)["counting"]
    assert why.startswith("none is counted here, and it is not known whether others count them: ")


def test_everything_well_is_ready_and_working() -> None:
    """Each component is reported: none stays at `not started`."""
    bench = Bench()
    assert bench.not_ready(make_signs()) == {}
    assert bench.health.has_started
    assert bench.health.is_working


@pytest.mark.parametrize(
    ("overrides", "component", "why"),
    [
        (
            {"brokers": {STATE_TOPIC: 4.1}},
            "kafka",
            "no broker has answered about the state topic for 4 s",
        ),
        (
            {"brokers": {STATE_TOPIC: 4.1}},
            "state",
            "what is decided elsewhere has not been read for 4 s",
        ),
        (
            {"brokers": {STATE_TOPIC: 0.0, "events": 9.0}},
            "kafka",
            "no broker has answered about events for 9 s",
        ),
        (
            {"store_seconds": 5.0, "store_trouble": "timed out"},
            "redis",
            "Redis has not answered for 5 s: timed out",
        ),
        ({"store_seconds": None}, "redis", "Redis has not answered yet"),
        (
            {"partitions": [make_view(saved_seconds=7.0)]},
            "saves",
            "flag.evaluations/0 was last saved 7 s ago",
        ),
        (
            {"partitions": [make_view(saved_seconds=4.6, save_trouble="OOM: maxmemory")]},
            "saves",
            "flag.evaluations/0 was last saved 5 s ago: OOM: maxmemory",
        ),
        (
            {"partitions": [make_view(state=PartitionState.STOPPED, trouble="damaged")]},
            "counting",
            "flag.evaluations/0: damaged",
        ),
        (
            {"partitions": [make_view(state=PartitionState.LOADING)]},
            "counting",
            "1 partition is being taken over",
        ),
        (
            {"partitions": [make_view(heard_seconds=5.0), make_view(partition=1)]},
            "counting",
            "no broker has answered for 5 s about flag.evaluations/0",
        ),
        (
            {"effects": 3, "effects_seconds": 5.0},
            "outbox",
            "3 effects wait for Kafka, the oldest for 5 s",
        ),
        ({"effects": 50}, "outbox", "50 effects wait for Kafka"),
        ({"broken": {"checkout": "KeyError('x')"}}, "rollouts", "checkout: KeyError('x')"),
        (
            {"mismatches": {("checkout", "unleash"): "serves 50 %"}},
            "actuation",
            "checkout on unleash serves 50 %",
        ),
        ({"not_served": "stale"}, "serving", "stale"),
        ({"clocks": "Redis's clock is 31 s ahead"}, "clock", "Redis's clock is 31 s ahead"),
        ({"advisor": "down"}, "advisor", "down"),
    ],
)
def test_each_failure_is_told_by_its_component(
    overrides: dict[str, Any], component: str, why: str
) -> None:
    """With the reason in one sentence; and it is over when it is over."""
    bench = Bench()
    assert bench.not_ready(make_signs(**overrides))[component] == why
    assert bench.not_ready(make_signs()) == {}


def test_a_backlog_of_thousands_of_flags_is_no_late_save() -> None:
    """With so much to write a partition is saved every four seconds, and all is well."""
    views = [make_view(saved_seconds=5.5)]
    assert Bench().not_ready(make_signs(partitions=views)) == {}


def test_the_document_says_when_saves_are_late() -> None:
    """Both limits, as they are here."""
    late, after_failure = SAVED_WITHIN_SECONDS, SAVED_WITHIN_TROUBLE_SECONDS
    row = f"totals were not saved for {late:.0f} s, {after_failure:.0f} s after a failed save"
    document = Path(__file__).parents[3] / "ops" / "operating.md"
    assert row in document.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("overrides", "component", "seconds"),
    [
        ({"brokers": {STATE_TOPIC: 4.5}}, "kafka", 4.5),
        ({"brokers": {STATE_TOPIC: 4.5}}, "state", 4.5),
        ({"brokers": {STATE_TOPIC: 0.0, "events": 9.0}}, "kafka", 9.0),
        ({"partitions": [], "brokers": {"events": 9.0}}, "counting", 9.0),
        ({"store_seconds": 5.0}, "redis", 5.0),
        ({"partitions": [make_view(saved_seconds=7.0)]}, "saves", 7.0),
        ({"effects": 3, "effects_seconds": 5.0}, "outbox", 5.0),
    ],
)
def test_a_silence_began_before_it_was_noticed(
    overrides: dict[str, Any], component: str, seconds: float
) -> None:
    """`since` is when the dependency went away, and stays so while it is away."""
    bench = Bench()
    bench.not_ready(make_signs())
    bench.not_ready(make_signs(**overrides))
    bench.not_ready(make_signs(**overrides))
    assert bench.health.components[component].since == T0 - timedelta(seconds=seconds)


def test_an_outage_of_kafka_is_one_of_counting_while_partitions_are_ours() -> None:
    """The group takes none away while its brokers are silent, and nothing of them can be read."""
    bench = Bench()
    views = [make_view(partition=number, heard_seconds=4.1) for number in range(2)]
    silent = make_signs(brokers={STATE_TOPIC: 4.9, "events": 4.1}, partitions=views)
    assert bench.not_ready(silent).keys() == {"kafka", "state", "counting"}
    assert bench.not_ready(make_signs()) == {}


def test_a_group_that_rebalances_is_no_broker_that_is_silent() -> None:
    """A broker that was frozen answers at once, and forms its groups again ten seconds later."""
    bench = Bench()
    away = make_signs(
        brokers={STATE_TOPIC: 90.0}, unassigned={"events": 91.0, "commands": 91.0}, partitions=[]
    )
    assert bench.not_ready(away)["kafka"] == (
        "no broker has answered about the state topic for 90 s; no broker has answered about "
        "events for 91 s; no broker has answered about commands for 91 s"
    )
    back = make_signs(brokers={STATE_TOPIC: 0.2}, unassigned={"events": 92.0}, partitions=[])
    assert bench.not_ready(back) == {
        "counting": "brokers answer, and the consumer group of events has assigned no partitions "
        "for 92 s: it rebalances"
    }
    assert bench.not_ready(make_signs()) == {}


def test_a_broken_flag_leaves_the_replica_working() -> None:
    """One flag is no outage: the replica counts and decides for all others."""
    bench = Bench()
    bench.not_ready(make_signs(broken={"checkout": "its document cannot be read"}))
    assert bench.health.is_working
    assert bench.health.is_degraded


def test_a_quarantine_that_takes_nothing_is_a_component() -> None:
    """Whoever publishes refusals reports the fault; it is shown until it is cleared."""
    bench = Bench()
    bench.faults.report(Scope.DEPENDENCY, QUARANTINE, "12 refusals wait")
    assert bench.not_ready(make_signs()) == {"quarantine": "12 refusals wait"}
    bench.faults.clear(Scope.DEPENDENCY, QUARANTINE)
    assert bench.not_ready(make_signs()) == {}


def test_a_long_list_is_cut() -> None:
    """A hundred partitions that fail alike are five names and a number."""
    bench = Bench()
    views = [make_view(partition=number, saved_seconds=9.0) for number in range(100)]
    why = bench.not_ready(make_signs(partitions=views))["saves"]
    assert why.count("was last saved") == 5
    assert why.endswith("and 95 more")


def test_the_gauges_follow() -> None:
    """Save age, silence, outbox and dependencies are metrics that a rule can look at."""
    bench = Bench()
    signs = make_signs(partitions=[make_view(saved_seconds=7.0)], effects=2, effects_seconds=6.5)
    signs = replace(signs, brokers={STATE_TOPIC: 12.0}, store_seconds=11.0)
    bench.not_ready(signs)
    text = generate_latest(bench.metrics.registry).decode()
    for line in (
        "rolloutd_save_age_seconds 7.0",
        "rolloutd_state_silence_seconds 12.0",
        "rolloutd_outbox_age_seconds 6.5",
        'rolloutd_dependency_up{dependency="kafka"} 0.0',
        'rolloutd_dependency_up{dependency="redis"} 0.0',
        'rolloutd_partitions_owned{topic="evaluations"} 1.0',
        'rolloutd_partitions_owned{topic="outcomes"} 0.0',
        'rolloutd_partitions_expected{topic="outcomes"} 1.0',
    ):
        assert line in text
    bench.not_ready(make_signs())
    assert (
        'rolloutd_dependency_up{dependency="redis"} 1.0'
        in generate_latest(bench.metrics.registry).decode()
    )


@pytest.mark.parametrize(
    ("silent", "is_old"), [(None, True), (0.0, False), (5.0, False), (5.1, True), (900.0, True)]
)
def test_nothing_is_raised_by_an_old_word(silent: float | None, *, is_old: bool) -> None:
    """Half of a session timeout: after the whole of it another replica may have the flags."""
    why = why_knowledge_is_old(silent, 10.0)
    assert (why is not None) is is_old


def test_a_short_session_does_not_ask_for_word_more_often_than_it_comes() -> None:
    """Brokers are asked once a second.

    With sessions of two seconds half of one would be over again and again.
    """
    assert why_knowledge_is_old(1.4, 2.0) is None
    assert why_knowledge_is_old(3.1, 2.0) is not None


def test_a_kafka_that_does_not_answer_is_a_fault_with_its_address_and_a_fix() -> None:
    """The page shows faults: "in trouble" alone names no cause, and helps nobody."""
    now = T0
    bench = Bench()
    bench.health = Health(REQUIRED, (), now=lambda: now)
    reporter = Reporter(bench.metrics, bench.health, bench.faults, kafka="kafka.example:9092")
    bench.health.not_ready("kafka", "preparing topics: no answer from Kafka for 5 s")
    reporter.report_brokers(None)
    assert not bench.faults.current, "a start takes a moment"
    now += timedelta(seconds=5)
    reporter.report_brokers(None)
    (fault,) = bench.faults.current
    assert (fault.scope, fault.name) == (Scope.DEPENDENCY, KAFKA)
    assert fault.why == "preparing topics: no answer from Kafka for 5 s"
    assert "start Kafka at kafka.example:9092" in fault.fix
    assert "kafka.bootstrap_servers" in fault.fix
    bench.health.is_running = True
    for silent, is_away in ((None, False), (4.1, True), (9.0, True), (0.2, False)):
        reporter.report_brokers(silent)
        whys = [one.why for one in bench.faults.current]
        assert whys == (["no broker at kafka.example:9092 answers"] if is_away else [])
