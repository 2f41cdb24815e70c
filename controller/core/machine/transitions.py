"""Every change that can be made to a rollout, with what is announced of it.

No other file changes a rollout: `tests/unit/core/machine/test_transitions.py` checks the syntax
trees. Every change of phase, stage, percent or hold goes through `_next_revision`. What is allowed,
and when, is decided by those who call this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from controller.core.machine import announcements
from controller.core.machine.cause import Cause
from controller.core.machine.times import first_unfrozen, gate_time
from controller.core.plan import Plan
from controller.core.rollout import (
    Aborted,
    AdviceRound,
    AwaitingApproval,
    Baking,
    CommandReceived,
    Completed,
    Effect,
    Ended,
    Freeze,
    Gating,
    Paused,
    RolledBack,
    Rollout,
    Scheduled,
    Transition,
    Visit,
    Waiting,
)
from schemas.terms import AlertKind, CommandVerb, DecisionKind, HoldReason

_OFF: Mapping[str, object] = {"percent": 0.0, "hold": None, "freeze": None}


def _next_revision(rollout: Rollout, now: datetime, **changes: object) -> Rollout:
    """Return the rollout one revision on. It closes the last visit of a rollout that has ended."""
    changes |= {"revision": rollout.revision + 1, "updated_at": now}
    after = replace(rollout, **changes)  # type: ignore[arg-type]
    return replace(after, visits=_closed(after.visits, now)) if after.has_ended else after


def _closed(visits: tuple[Visit, ...], now: datetime) -> tuple[Visit, ...]:
    """Return the visits with the last one left, now unless it was left before."""
    if not visits or visits[-1].left_at is not None:
        return visits
    return (*visits[:-1], replace(visits[-1], left_at=now))


def _announced(
    before: Rollout, after: Rollout, kind: DecisionKind, cause: Cause, *alerts: Effect
) -> Transition:
    """Return the transition with its decision and alerts, in this order."""
    return Transition(after, (announcements.decision(before, after, kind, cause), *alerts))


# --- up


def start(
    previous: Rollout | None, plan: Plan, command: CommandReceived, now: datetime
) -> Transition:
    """Begin a rollout in its first stage, or wait for its start time or the end of a freeze.

    The revision goes on where the previous rollout's ended.
    """
    rollout = Rollout(
        flag_key=plan.flag_key,
        rollout_id=command.command_id,
        revision=0 if previous is None else previous.revision,
        plan=plan,
        phase=Scheduled(now),
        percent=0.0,
        visits=(),
        started_at=now,
        updated_at=now,
    )
    start_at = first_unfrozen(rollout, max(plan.start_at or now, now)) or now
    if start_at <= now:
        return enter(rollout, 0, DecisionKind.START, Cause("started", command=command), now)
    after = _next_revision(rollout, now, phase=Scheduled(start_at))
    cause = Cause(f"scheduled for {start_at.isoformat()}", command=command)
    return _announced(rollout, after, DecisionKind.HOLD, cause)


def enter(
    rollout: Rollout, stage_index: int, kind: DecisionKind, cause: Cause, now: datetime
) -> Transition:
    """Begin a visit of a stage: its bake counts from the end of settle."""
    after = _entered(rollout, stage_index, now)
    return _announced(rollout, after, kind, cause)


def _entered(rollout: Rollout, stage_index: int, now: datetime, *, pause: bool = False) -> Rollout:
    """Return the rollout in a stage; `pause` keeps a paused one paused, for the same reason."""
    stage = rollout.plan.stages[stage_index]
    counts_from = now + stage.settle
    visit = Visit(stage_index, stage.percent, now, counts_from)
    baking = Baking(stage_index, counts_from + stage.bake)
    held = rollout.phase if pause and isinstance(rollout.phase, Paused) else None
    return _next_revision(
        rollout,
        now,
        phase=baking if held is None else Paused(now, held.reason, baking),
        percent=stage.percent,
        visits=(*_closed(rollout.visits, now), visit),
        hold=None if held is None else rollout.hold,
    )


def advance(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Enter the next stage, or complete after the last one."""
    following = 0 if rollout.stage_index is None else rollout.stage_index + 1
    if following < len(rollout.plan.stages):
        kind = DecisionKind.START if rollout.stage_index is None else DecisionKind.ADVANCE
        moved = enter(rollout, following, kind, cause, now)
    else:
        after = _next_revision(rollout, now, phase=Completed(now), hold=None, freeze=None)
        alert = announcements.completed(after, cause)
        moved = _announced(rollout, after, DecisionKind.COMPLETE, cause, alert)
    if cause.command is None or cause.command.verb is CommandVerb.APPROVE:
        return moved
    return _past_gate(moved, cause.command)


def enter_last(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Enter the last stage, whatever gates lie before it. Its own limits stay armed."""
    assert cause.command is not None
    last = len(rollout.plan.stages) - 1
    return _past_gate(enter(rollout, last, DecisionKind.ADVANCE, cause, now), cause.command)


def _past_gate(moved: Transition, command: CommandReceived) -> Transition:
    assert moved.after is not None
    alert = announcements.moved_past_gate(moved.after, command)
    return moved._replace(effects=(*moved.effects, alert))


# --- down


def roll_back(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Serve 0 %, because of a fault. Final."""
    after = _next_revision(rollout, now, phase=RolledBack(now, cause.reason), **_OFF)
    alert = announcements.rolled_back(rollout, after, cause)
    return _announced(rollout, after, DecisionKind.ROLL_BACK, cause, alert)


def abort(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Serve 0 %, because an operator decided so. Final."""
    after = _next_revision(rollout, now, phase=Aborted(now, cause.reason), **_OFF)
    return _announced(rollout, after, DecisionKind.ABORT, cause)


def step_back(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Serve the stage below. A paused rollout stays paused there."""
    assert rollout.stage_index is not None
    after = _entered(rollout, rollout.stage_index - 1, now, pause=True)
    alerts = [] if cause.command else [announcements.stepped_back(rollout, after, cause)]
    return _announced(rollout, after, DecisionKind.STEP_BACK, cause, *alerts)


# --- neither up nor down


def open_gate(rollout: Rollout, stage: int, now: datetime, hold: HoldReason | None) -> Rollout:
    """Return the rollout at a new gate of its stage. The gate's id names this gate alone."""
    gate_id = f"{rollout.rollout_id}.{rollout.revision + 1}"
    gate = Gating(stage, gate_id, now, now + gate_time(rollout, stage))
    return _next_revision(rollout, now, phase=gate, hold=hold)


def set_advice(rollout: Rollout, gate: Gating, advice: AdviceRound | None) -> Rollout:
    """Return the rollout with another state of the question to the model.

    The revision stays, since nobody outside can see a difference.
    """
    return replace(rollout, phase=replace(gate, advice=advice))


def set_hold(rollout: Rollout, reason: HoldReason, cause: Cause, now: datetime) -> Transition:
    """Keep the rollout where it is, and announce why."""
    after = _next_revision(rollout, now, hold=reason)
    return _announced(rollout, after, DecisionKind.HOLD, cause)


def release(rollout: Rollout, now: datetime) -> Rollout:
    """Return the rollout without its hold: what stood in the way has gone."""
    return _next_revision(rollout, now, hold=None)


def await_approval(
    rollout: Rollout, gate: Gating, reason: HoldReason, cause: Cause, now: datetime
) -> Transition:
    """Ask a person to decide what the gate cannot."""
    phase = AwaitingApproval(gate.stage, gate.gate_id, now, reason)
    after = _next_revision(rollout, now, phase=phase, hold=reason)
    alert = announcements.asks_for_approval(after, reason, cause)
    return _announced(rollout, after, DecisionKind.HOLD, cause, alert)


def pause(
    rollout: Rollout,
    reason: HoldReason,
    cause: Cause,
    now: datetime,
    alert: AlertKind = AlertKind.PAUSED,
) -> Transition:
    """Stop here. A pause that lasts already keeps its beginning and gets the new reason."""
    phase = rollout.phase
    assert not isinstance(phase, Ended)
    since, held = (phase.since, phase.held) if isinstance(phase, Paused) else (now, phase)
    after = _next_revision(rollout, now, phase=Paused(since, reason, held), hold=reason)
    alerts = [] if cause.command else [announcements.paused(rollout, after, alert, cause)]
    return _announced(rollout, after, DecisionKind.PAUSE, cause, *alerts)


def resume(rollout: Rollout, phase: Waiting, cause: Cause, now: datetime) -> Transition:
    """Go on from a pause in `phase`."""
    after = _next_revision(rollout, now, phase=phase, hold=None)
    return _announced(rollout, after, DecisionKind.RESUME, cause)


def freeze(rollout: Rollout, command: CommandReceived, cause: Cause, now: datetime) -> Transition:
    """Let nothing advance until `unfreeze`."""
    after = _next_revision(rollout, now, freeze=Freeze(now, command.issuer, command.reason))
    return _announced(rollout, after, DecisionKind.HOLD, cause)


def unfreeze(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Lift an operator's freeze; a gate gets its full time again."""
    if isinstance(rollout.phase, Gating):
        after = replace(renew_gate(rollout, rollout.phase, now), freeze=None)
    else:
        after = _next_revision(rollout, now, freeze=None)
    return _announced(rollout, after, DecisionKind.RESUME, cause)


def renew_gate(rollout: Rollout, gate: Gating, now: datetime) -> Rollout:
    """Return the rollout with the full time for a gate that a freeze kept from closing."""
    hold = None if rollout.hold is HoldReason.FROZEN else rollout.hold
    renewed = replace(gate, until=now + gate_time(rollout, gate.stage))
    return _next_revision(rollout, now, phase=renewed, hold=hold)
