"""Changes that keep a rollout in its stage, with what is announced of them: gates, holds and gaps.

`transitions.py` has all other changes. What is allowed, and when, is decided by those who call
this.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final

from controller.core.effects import Transition
from controller.core.judging.judgement import Judgement
from controller.core.machine import announcements, health
from controller.core.machine.cause import Cause
from controller.core.machine.revisions import announced, next_revision
from controller.core.machine.times import bake_time, gate_time
from controller.core.rollout import AdviceRound, AwaitingApproval, Gating, Paused, Rollout
from schemas.terms import DecisionKind, HealthGap, HoldReason

NO_GAPS: Final[frozenset[HealthGap]] = frozenset()
NO_BREACHES: Final[frozenset[str]] = frozenset()


def open_gate(
    rollout: Rollout,
    stage: int,
    now: datetime,
    hold: HoldReason | None,
    judgement: Judgement | None = None,
) -> Rollout:
    """Return the rollout at a new gate of its stage. The gate's id names this gate alone."""
    gate_id = f"{rollout.rollout_id}.{rollout.revision + 1}"
    gate = Gating(stage, gate_id, now, now + gate_time(rollout, stage))
    told = health.told_after(rollout, hold, judgement)
    return next_revision(rollout, now, phase=gate, hold=hold, told_gaps=told)


def set_advice(rollout: Rollout, gate: Gating, advice: AdviceRound | None) -> Rollout:
    """Return the rollout with another state of the question to the model.

    The revision stays, since nobody outside can see a difference.
    """
    return replace(rollout, phase=replace(gate, advice=advice))


def round_to_ask_again(round_: AdviceRound, now: datetime) -> AdviceRound | None:
    """Return the state before an open question: the next judgement asks it again."""
    earlier = round_.number - 1
    return replace(round_, number=earlier, is_closed=True, held_until=now) if earlier else None


def set_hold(rollout: Rollout, reason: HoldReason, cause: Cause, now: datetime) -> Transition:
    """Keep the rollout where it is, and announce why."""
    told = health.told_after(rollout, reason, cause.judgement)
    after = next_revision(rollout, now, hold=reason, told_gaps=told)
    return announced(rollout, after, DecisionKind.HOLD, cause)


def set_told_gaps(
    rollout: Rollout, told: frozenset[HealthGap], cause: Cause, now: datetime
) -> Transition:
    """Announce the gaps that people are told of, or with none that they are over.

    They hold a rollout that is not paused, and release it.
    """
    is_paused = isinstance(rollout.phase, Paused)
    hold = rollout.hold if is_paused else HoldReason.HEALTH if told else None
    after = next_revision(rollout, now, hold=hold, told_gaps=told)
    kind = DecisionKind.HOLD if told or is_paused else DecisionKind.RESUME
    return announced(rollout, after, kind, cause)


def set_told_breaches(
    rollout: Rollout, told: frozenset[str], cause: Cause, now: datetime
) -> Transition:
    """Announce which breaches people are told of while the rollout is paused for a breach."""
    after = next_revision(rollout, now, told_breaches=told)
    return announced(rollout, after, DecisionKind.HOLD, cause)


def await_approval(
    rollout: Rollout, gate: Gating, reason: HoldReason, cause: Cause, now: datetime
) -> Transition:
    """Ask a person to decide what the gate cannot."""
    phase = AwaitingApproval(gate.stage, gate.gate_id, now, reason)
    after = next_revision(rollout, now, phase=phase, hold=reason, told_gaps=NO_GAPS)
    alert = announcements.asks_for_approval(after, reason, cause)
    return announced(rollout, after, DecisionKind.HOLD, cause, alert)


def renew_gate(rollout: Rollout, gate: Gating, now: datetime) -> Rollout:
    """Return the rollout with the full time for a gate that a freeze kept from closing."""
    hold = None if rollout.hold is HoldReason.FROZEN else rollout.hold
    renewed = replace(gate, until=bake_time(rollout, now) + gate_time(rollout, gate.stage))
    return next_revision(rollout, now, phase=renewed, hold=hold)
