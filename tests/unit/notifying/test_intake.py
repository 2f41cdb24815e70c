"""Records of our topics that others wrote: those behind them are taken all the same."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from controller.health import Faults, Scope
from controller.notifying.intake import Intake
from tests.incidents import NotedIncidents

AT = "2026-11-26T01:00:00Z"


def alert(**harm: Any) -> bytes:
    """Return a roll back's alert, with what it cost."""
    data = {
        "flag": "checkout",
        "rollout_id": "r1",
        "revision": 2,
        "at": AT,
        "kind": "rolled_back",
        "severity": "critical",
        "summary": "checkout rolled back",
        "action": "find the cause",
        "dedup_key": "checkout/r1/rolled_back",
        "phase": "rolled_back",
        "stage": 1,
        "percent": 0.0,
        "stage_name": "10%",
        "harm": {"exposed_contexts": 9, "failed_requests": 1, "excess_failed_requests": 1.0} | harm,
        "explanation": None,
    }
    event = {"type": "io.rolloutd.alert.v1", "id": "checkout/2/2", "time": AT, "data": data}
    return json.dumps(event).encode()


@pytest.fixture
def incidents() -> NotedIncidents:
    """The real planner, over a book in memory."""
    return NotedIncidents()


@pytest.mark.parametrize(
    "foreign",
    [
        alert(exposed_contexts="many"),
        alert(failed_requests=None),
        alert(exposed_contexts=1e308),
        alert(exposed_contexts=[]),
        b"[",
        b"[" * 100_000,
        b"\xff",
        b"1",
        b'{"type":"io.rolloutd.signal.v1","data":{"id":{}}}',
    ],
)
def test_a_foreign_record_stops_nobody(incidents: NotedIncidents, foreign: bytes) -> None:
    """A count that is a text let nobody be told of any flag, until somebody deleted the record."""
    now = datetime(2026, 11, 26, 1, tzinfo=UTC)
    faults = Faults(lambda: now)
    intake = Intake(incidents.planner, lambda _: "team", ["team-slack"], faults)
    intake.take(foreign, now)
    assert not incidents.book.incidents
    intake.take(alert(), now)
    assert [one.news.flag for one in incidents.book.incidents.values()] == ["checkout"]
    assert faults.of(Scope.PART, "notifications") is None


def test_a_mistake_of_ours_in_reading_is_reported(incidents: NotedIncidents) -> None:
    """With the record's id, as far as it can be shown; the next record is taken."""
    now = datetime(2026, 11, 26, 1, tzinfo=UTC)
    faults = Faults(lambda: now)

    def owner_of(flag_key: str) -> str:
        raise TypeError(flag_key)

    intake = Intake(incidents.planner, owner_of, ["team-slack"], faults)
    intake.take(alert(), now)
    fault = faults.of(Scope.PART, "notifications")
    assert "a mistake of rolloutd on checkout/2/2" in str(fault)
