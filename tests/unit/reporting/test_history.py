"""The past rollouts of a flag."""

from __future__ import annotations

from controller.reporting.history import history
from schemas.terms import PhaseName
from tests.unit.authoring.test_story import make_decision


def test_each_rollout_has_its_begin_its_height_and_its_end() -> None:
    """Whatever the order in which decisions come; each rollout has its own."""
    decisions = [
        make_decision("start", 1, issuer="ada"),
        make_decision("advance", 2, from_percent=10.0, to_percent=50.0),
        make_decision(
            "roll_back", 3, from_percent=50.0, to_percent=0.0, phase=PhaseName.ROLLED_BACK
        ),
        make_decision("start", 4, rollout_id="start-2", issuer="bob"),
        make_decision(
            "retire", 5, rollout_id="start-2", phase=PhaseName.RETIRED, to_percent=0.0, reason="old"
        ),
    ]
    first, second = history(reversed(decisions))
    assert (first.started_by, first.highest_percent, first.phase) == (
        "ada",
        50.0,
        PhaseName.ROLLED_BACK,
    )
    assert first.decisions == 3
    assert (second.started_by, second.highest_percent, second.phase, second.reason) == (
        "bob",
        10.0,
        PhaseName.RETIRED,
        "old",
    )
    assert first.changed_at < second.changed_at


def test_a_rollout_whose_start_is_not_kept_is_shown_all_the_same() -> None:
    """The topic has its retention."""
    (one,) = history([make_decision("advance", 7, from_percent=10.0, to_percent=50.0)])
    assert (one.started_at, one.started_by, one.highest_percent) == (None, None, 50.0)


def test_a_flag_without_decisions_has_no_history() -> None:
    """Nothing is invented."""
    assert history([]) == []
