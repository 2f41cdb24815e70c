"""Whether a model's advice agrees with how the rollout ended: what it was worth in production."""

from __future__ import annotations

from controller.core.rollout import CONTROLLER
from schemas.terms import AdviceChoice, DecisionKind

#: Decisions that end a rollout by its evidence. What an operator ends says nothing about advice.
_OUTCOMES = (DecisionKind.COMPLETE, DecisionKind.ROLL_BACK)


def is_outcome(kind: DecisionKind, issuer: str) -> bool:
    """Tell whether a decision is an outcome that advice can be held against."""
    return kind in _OUTCOMES and issuer == CONTROLLER


def agrees(choice: AdviceChoice, outcome: DecisionKind) -> bool:
    """Tell whether advice at a gate agrees with a rollout's outcome.

    `proceed` with completing, all else with rolling back.
    """
    return (choice is AdviceChoice.PROCEED) == (outcome is DecisionKind.COMPLETE)
