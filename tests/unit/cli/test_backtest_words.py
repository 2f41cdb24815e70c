"""What `rolloutctl backtest` says of recordings that hold nothing to judge."""

from __future__ import annotations

from controller.cli.backtest_run import MOST_REAL, real_decision_lines, why_nothing_counted
from controller.cli.operator_client import as_decision, read_event
from controller.codec.decisions import decision_event
from controller.core.effects import PublishDecision
from schemas.decision import Decision
from schemas.terms import DecisionKind
from tests.builders import T0, make_plan, make_rollout


def test_records_that_settled_are_not_called_missing() -> None:
    """They were recorded, and too early; only without any is nothing recorded."""
    plan = make_plan()
    assert why_nothing_counted(plan, 800).startswith(
        "nothing was counted: all 800 records of new-checkout came while a stage settled; next: "
    )
    assert why_nothing_counted(plan, 0) == (
        "nothing was recorded of new-checkout in that time with variants on, off"
    )


def test_what_was_really_decided_has_also_what_moved_no_percentage() -> None:
    """A reader who sees no pause concludes that there was none; what is left out is counted."""
    decisions = [real(DecisionKind.PAUSE, 10), real(DecisionKind.ROLL_BACK, 0)]
    pause, roll_back = real_decision_lines(decisions)
    assert "pause" in pause
    assert "10 → 10 %" in pause
    assert "roll back" in roll_back
    assert "10 → 0 %" in roll_back
    many = real_decision_lines([decisions[0]] * (MOST_REAL + 3) + decisions[1:])
    assert many[0] == "4 earlier decisions not shown; --json has them"
    assert many[1:] == [pause] * (MOST_REAL - 1) + [roll_back]


def real(kind: DecisionKind, percent: float) -> Decision:
    """Return a decision from 10 % to another percentage, as the topic has it."""
    published = PublishDecision(kind, "why", 10, percent, 0, "rolloutd")
    event = read_event(decision_event(published, make_rollout(), "new-checkout/1/1", T0))
    decision = None if event is None else as_decision(event)
    assert decision is not None
    return decision
