"""The past rollouts of a flag, from its decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from schemas.decision import Decision
from schemas.terms import DecisionKind, PhaseName


class PastRollout(BaseModel):
    """One rollout of a flag, as far as its decisions are kept."""

    rollout_id: str
    plan: str  # its name
    started_at: datetime | None  # None: its start is not among the decisions
    started_by: str | None
    changed_at: datetime  # its last decision
    phase: PhaseName  # after it
    highest_percent: float
    decisions: int
    by: str  # who made the last decision
    reason: str  # of the last decision


def history(decisions: Iterable[Decision]) -> list[PastRollout]:
    """Return the rollouts of one flag, oldest first; `decisions` may come in any order."""
    rollouts: dict[str, dict[str, Any]] = {}
    for one in sorted(decisions, key=lambda each: each.revision):
        known = rollouts.setdefault(
            one.rollout_id,
            {
                "rollout_id": one.rollout_id,
                "started_at": None,
                "started_by": None,
                "highest_percent": 0.0,
                "decisions": 0,
            },
        )
        is_start = known["decisions"] == 0 and one.kind in (DecisionKind.START, DecisionKind.HOLD)
        if is_start:
            known |= {"started_at": one.at, "started_by": one.issuer}
        highest = max(known["highest_percent"], one.from_percent, one.to_percent)
        if is_start:
            highest = one.to_percent  # `from_percent` is that of the rollout before
        known |= {
            "plan": one.plan.name,
            "changed_at": one.at,
            "phase": one.phase,
            "highest_percent": highest,
            "decisions": known["decisions"] + 1,
            "by": one.issuer,
            "reason": one.reason,
        }
    return [PastRollout(**fields) for fields in rollouts.values()]
