"""What the log lines about one flag hold."""

from __future__ import annotations

from controller.core.effects import PublishDecision
from controller.core.rollout import Gating
from controller.deciding.flag.decision_log import decision_line, gate_line
from schemas.terms import DecisionKind
from tests.builders import HOUR, T0, make_rollout


def test_stages_are_counted_from_1_in_every_line() -> None:
    """The line of a gate names the stage as that of its decision does."""
    gate = Gating(1, "gate-1", T0, T0 + HOUR)
    rollout = make_rollout(phase=gate)
    decision = PublishDecision(DecisionKind.HOLD, "why", 10.0, 10.0, 1, "rolloutd")
    assert gate_line(rollout, gate)["stage"] == 2
    assert decision_line(decision, rollout)["stage"] == 2
