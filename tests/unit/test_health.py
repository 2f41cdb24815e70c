from __future__ import annotations

import pytest

from controller.health import Health


def test_nothing_is_ready_before_it_says_so() -> None:
    """A part that never reports keeps the process unready, and is named."""
    health = Health(required=["event_log"], optional=["advisor"])
    assert not health.is_ready
    assert [part.name for part in health.components.values() if part.why_not == "not started"] == ["event_log", "advisor"]


def test_optional_parts_only_degrade() -> None:
    """Without the advisor the flags are served and judged all the same."""
    health = Health(required=["event_log"], optional=["advisor"])
    health.ready("event_log")
    assert health.is_ready
    assert health.is_degraded
    health.ready("advisor")
    assert not health.is_degraded


def test_a_part_can_fail_and_recover() -> None:
    """The last report counts."""
    health = Health(required=["event_log"])
    health.ready("event_log")
    health.not_ready("event_log", "no broker answers")
    assert not health.is_ready
    assert health.components["event_log"].why_not == "no broker answers"
    health.ready("event_log")
    assert health.is_ready


def test_a_broken_invariant_is_final() -> None:
    """Once broken, the process is neither alive nor ready, and remembers the first reasons, each once."""
    health = Health(required=[])
    for number in range(100):
        health.broken(f"reason {number // 2}")
    assert not health.is_alive
    assert not health.is_ready
    assert health.trouble == tuple(f"reason {number}" for number in range(20))


def test_an_unannounced_part_is_a_mistake() -> None:
    """A misspelt name does not go unnoticed."""
    with pytest.raises(KeyError):
        Health(required=["event_log"]).ready("eventlog")
