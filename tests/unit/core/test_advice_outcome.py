"""When advice was right."""

from __future__ import annotations

import pytest

from controller.core.advice_outcome import agrees, ended_by_evidence
from schemas.terms import AdviceChoice, DecisionKind


@pytest.mark.parametrize(
    ("choice", "outcome", "expected"),
    [
        (AdviceChoice.PROCEED, DecisionKind.COMPLETE, True),
        (AdviceChoice.PROCEED, DecisionKind.ROLL_BACK, False),
        (AdviceChoice.HOLD, DecisionKind.COMPLETE, False),
        (AdviceChoice.HOLD, DecisionKind.ROLL_BACK, True),
        (AdviceChoice.ROLL_BACK, DecisionKind.ROLL_BACK, True),
    ],
)
def test_agreement(choice: AdviceChoice, outcome: DecisionKind, *, expected: bool) -> None:
    """`proceed` is right when the rollout completes, other advice when evidence rolls back."""
    assert agrees(choice, outcome) is expected


def test_what_people_end_is_no_outcome() -> None:
    """A roll back by hand says nothing about advice, nor does a hold."""
    assert ended_by_evidence(DecisionKind.COMPLETE, "rolloutd")
    assert not ended_by_evidence(DecisionKind.ROLL_BACK, "ada")
    assert not ended_by_evidence(DecisionKind.HOLD, "rolloutd")
