"""Compares a model's advice with how the rollout ended: what the advice was worth in production."""

from __future__ import annotations

from controller.core.rollout import CONTROLLER
from schemas.terms import AdviceChoice, DecisionKind

#: Decisions that end a rollout by its evidence. An end by an operator says nothing about advice.
_ENDS = (DecisionKind.COMPLETE, DecisionKind.ROLL_BACK)


def ended_by_evidence(kind: DecisionKind, issuer: str) -> bool:
    """Return whether a decision ended a rollout by its evidence, so that advice can be compared."""
    return kind in _ENDS and issuer == CONTROLLER


def agrees(choice: AdviceChoice, end: DecisionKind) -> bool:
    """Return whether advice at a gate agrees with how the rollout ended.

    `proceed` agrees with `complete`, every other choice with `roll_back`.
    """
    return (choice is AdviceChoice.PROCEED) == (end is DecisionKind.COMPLETE)
