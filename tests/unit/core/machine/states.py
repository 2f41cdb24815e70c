"""Rollouts in every phase, and the shortest way from one to the next."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from controller.core.events import Event, EvidenceJudged
from controller.core.machine import decide
from controller.core.plan import AdvisorPolicy
from controller.core.rollout import (
    Aborted,
    AdviceRound,
    AwaitingApproval,
    Baking,
    Completed,
    Freeze,
    Gating,
    Paused,
    Phase,
    Retired,
    RolledBack,
    Rollout,
    Scheduled,
)
from schemas.terms import (
    AdvisorMode,
    HoldReason,
    PhaseName,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_judgement,
    make_plan,
    make_rollout,
    make_stages,
)

SECOND = timedelta(seconds=1)
SOON = T0 + 2 * MINUTE
ADVISED = AdvisorPolicy(
    mode=AdvisorMode.CAN_HOLD, deadline=30 * SECOND, hold_rounds=2, hold_for=5 * MINUTE
)
GATE = Gating(0, "gate-1", T0, T0 + HOUR)
ASKED = replace(GATE, advice=AdviceRound(1, T0 + 30 * SECOND))
FROZEN = Freeze(T0, "ada", "because")

PHASES: dict[PhaseName, Phase] = {
    PhaseName.SCHEDULED: Scheduled(T0 + HOUR),
    PhaseName.BAKING: Baking(1, T0 + HOUR),
    PhaseName.GATING: Gating(1, "gate-1", T0, T0 + HOUR),
    PhaseName.AWAITING_APPROVAL: AwaitingApproval(1, "gate-1", T0, HoldReason.APPROVAL),
    PhaseName.PAUSED: Paused(T0, HoldReason.OPERATOR, Baking(1, T0 + HOUR)),
    PhaseName.COMPLETED: Completed(T0),
    PhaseName.ROLLED_BACK: RolledBack(T0, "because"),
    PhaseName.ABORTED: Aborted(T0, "because"),
    PhaseName.RETIRED: Retired(T0, "because"),
}


def in_phase(name: PhaseName, **overrides: object) -> Rollout:
    """Return a rollout of two stages in the second of them, in this phase."""
    return make_rollout(
        plan=make_plan(stages=make_stages(10, 50)), phase=PHASES[name], updated_at=T0, **overrides
    )


def after(rollout: Rollout | None, event: Event, now: datetime = SOON) -> Rollout:
    """Return the rollout after an event."""
    moved, _ = decide(rollout, event, now)
    assert moved is not None
    return moved


def judged(**overrides: object) -> EvidenceJudged:
    """Return a judgement of the present visit of `make_rollout`'s first stage."""
    return EvidenceJudged(make_judgement(**{"at": SOON, **overrides}))
