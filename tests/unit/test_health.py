from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controller.health import Health


def test_nothing_is_working_before_it_says_so() -> None:
    """A part that never reports keeps the process unready, and is named."""
    health = Health(required=["event_log"], optional=["advisor"])
    assert not health.is_working
    assert [part.name for part in health.components.values() if part.why_not == "not started"] == [
        "event_log",
        "advisor",
    ]


def test_optional_parts_only_degrade() -> None:
    """Without the advisor the flags are served and judged all the same."""
    health = Health(required=["event_log"], optional=["advisor"])
    health.ready("event_log")
    assert health.is_working
    assert health.is_degraded
    health.ready("advisor")
    assert not health.is_degraded


def test_a_part_can_fail_and_recover() -> None:
    """The last report counts."""
    health = Health(required=["event_log"])
    health.ready("event_log")
    health.not_ready("event_log", "no broker answers")
    assert not health.is_working
    assert health.components["event_log"].why_not == "no broker answers"
    health.ready("event_log")
    assert health.is_working


def test_a_broken_invariant_is_final() -> None:
    """Once broken, the process is neither alive nor ready.

    And remembers the first reasons, each once.
    """
    health = Health(required=[])
    for number in range(100):
        health.broken(f"reason {number // 2}")
    assert not health.is_alive
    assert not health.is_working
    assert health.trouble == tuple(f"reason {number}" for number in range(20))


def test_an_outage_is_not_a_start() -> None:
    """What was ready once has started: a dependency that goes away later does not undo it."""
    health = Health(required=["kafka", "redis"], optional=["advisor"])
    health.ready("kafka")
    assert not health.has_started
    health.ready("redis")
    assert health.has_started
    health.not_ready("redis", "no answer")
    assert health.has_started
    assert not health.is_working


def test_a_component_says_since_when() -> None:
    """The time is that of the change, not of the newest report."""
    times = [datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in range(5)]
    health = Health(required=["kafka"], now=iter(times).__next__)
    health.ready("kafka")
    health.not_ready("kafka", "silent for 5 s")
    since = health.components["kafka"].since
    health.not_ready("kafka", "silent for 6 s")
    assert health.components["kafka"].since == since == times[2]
    health.ready("kafka")
    assert health.components["kafka"].since == times[4]


def test_an_unannounced_part_is_a_mistake() -> None:
    """A misspelt name does not go unnoticed."""
    with pytest.raises(KeyError):
        Health(required=["event_log"]).ready("eventlog")


def test_what_was_not_started_says_whose_answer_the_start_waits_for() -> None:
    """A part that has reported keeps its own reason; none is called waiting after the start."""
    health = Health(("kafka", "redis"), ("actuation",))
    health.not_ready("kafka", "no broker")
    health.others_wait_for("Kafka")
    reasons = {name: one.why_not for name, one in health.components.items()}
    waits = "not started: waits for Kafka"
    assert reasons == {"kafka": "no broker", "redis": waits, "actuation": waits}
    health.ready("redis")
    health.others_wait_for("")
    reasons = {name: one.why_not for name, one in health.components.items()}
    assert reasons == {"kafka": "no broker", "redis": None, "actuation": "not started"}
