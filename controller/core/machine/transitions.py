"""Every change that leads to another stage, phase or percentage, with what is announced of it.

Changes within a stage are in `holding.py`, those of the plan in `plan_transitions.py`, those at the
edges of active windows in `window_transitions.py`, and the last one in `retirement.py`. All use
`revisions.py`. `tests/unit/core/machine/test_transitions.py` names every file that makes a rollout,
and checks the syntax trees. What is allowed, and when, is decided by those who call this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from controller.core.effects import Transition
from controller.core.events import CommandReceived
from controller.core.machine import (
    announcements,
    breaches,
    four_eyes,
    health,
    holding,
    lowering_alerts,
)
from controller.core.machine.cause import Cause
from controller.core.machine.holding import NO_BREACHES, NO_GAPS
from controller.core.machine.revisions import announced, left, next_revision
from controller.core.machine.times import first_free, scheduled_words
from controller.core.plan import Plan
from controller.core.rollout import (
    Aborted,
    Baking,
    Completed,
    Ended,
    Freeze,
    Gating,
    Paused,
    RolledBack,
    Rollout,
    Scheduled,
    Waiting,
)
from controller.core.visits import Visit
from schemas.terms import AlertKind, CommandVerb, DecisionKind, HoldReason

_OFF: Mapping[str, object] = {
    "percent": 0.0,
    "hold": None,
    "freeze": None,
    "told_gaps": NO_GAPS,
    "told_breaches": NO_BREACHES,
}


# --- up


def start(
    previous: Rollout | None, plan: Plan, command: CommandReceived, now: datetime
) -> Transition:
    """Begin a rollout in its first stage, or wait for its start, a freeze or an active window.

    The revision goes on where the previous rollout's ended, also after the flag was retired.
    """
    authors: tuple[str, ...] = (command.issuer,)
    if previous is not None and command.plan is None:  # who wrote that plan stays its author
        authors = four_eyes.with_author(previous, command.issuer)
    rollout = Rollout(
        flag_key=plan.flag_key,
        rollout_id=command.command_id,
        revision=command.last_revision if previous is None else previous.revision,
        plan=plan,
        phase=Scheduled(now),
        percent=0.0,
        visits=(),
        started_at=now,
        updated_at=now,
        has_advisor=command.has_advisor,
        authors=authors,
    )
    start_at = first_free(rollout, max(plan.start_at or now, now))
    assert start_at is not None, "checked by `actions.begin`"
    if start_at <= now:
        what = "restarted" if command.verb is CommandVerb.RESTART else "started"
        cause = Cause.of_command(command, what)
        begun = enter(rollout, 0, DecisionKind.START, cause, now)
    else:
        after = next_revision(rollout, now, phase=Scheduled(start_at))
        cause = Cause.of_command(command, scheduled_words(plan, start_at, now))
        begun = announced(rollout, after, DecisionKind.HOLD, cause)
    assert begun.after is not None
    alerts = announcements.not_there_yet(begun.after, command)
    return Transition(begun.after, (*begun.effects, *alerts))


def start_as_scheduled(rollout: Rollout, now: datetime) -> Transition:
    """Enter the first stage, because its time has come."""
    phase, plan = rollout.phase, rollout.plan
    is_by_time = isinstance(phase, Scheduled) and phase.start_at == plan.start_at
    if is_by_time or not (plan.active or plan.freeze_windows):
        why = "the start time has come"
    elif plan.active:
        why = "an active window of the plan has begun"
    else:
        why = "the plan's freeze window is over"
    return enter(rollout, 0, DecisionKind.START, Cause(why), now)


def enter(
    rollout: Rollout, stage_index: int, kind: DecisionKind, cause: Cause, now: datetime
) -> Transition:
    """Begin a visit of a stage: its bake counts from the end of settle."""
    after = entered(rollout, stage_index, now)
    return announced(rollout, after, kind, cause)


def entered(rollout: Rollout, stage_index: int, now: datetime, *, pause: bool = False) -> Rollout:
    """Return the rollout in a stage; `pause` keeps a paused one paused, for the same reason."""
    stage = rollout.plan.stages[stage_index]
    counts_from = now + stage.settle
    visit = Visit(stage_index, stage.percent, now, counts_from)
    if rollout.closed_since is not None:
        visit = visit.closed(rollout.closed_since)
    baking = Baking(stage_index, counts_from + stage.bake)
    held = rollout.phase if pause and isinstance(rollout.phase, Paused) else None
    return next_revision(
        rollout,
        now,
        phase=baking if held is None else Paused(now, held.reason, baking),
        percent=stage.percent,
        visits=(*left(rollout.visits, now), visit),
        hold=None if held is None else rollout.hold,
        told_gaps=NO_GAPS,
        told_breaches=NO_BREACHES,
    )


def advance(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Enter the next stage, or complete after the last one."""
    following = 0 if rollout.stage_index is None else rollout.stage_index + 1
    if following < len(rollout.plan.stages):
        kind = DecisionKind.START if rollout.stage_index is None else DecisionKind.ADVANCE
        moved = enter(rollout, following, kind, cause, now)
    else:
        end = {**_OFF, "percent": rollout.percent}
        after = next_revision(rollout, now, phase=Completed(now), **end)
        alert = announcements.completed(after, cause)
        moved = announced(rollout, after, DecisionKind.COMPLETE, cause, alert)
    if cause.command is None or cause.command.verb is CommandVerb.APPROVE:
        return moved
    return _past_gate(moved, cause)


def enter_past_gates(rollout: Rollout, stage: int, cause: Cause, now: datetime) -> Transition:
    """Enter a later stage, whatever gates lie before it. Its own limits stay armed."""
    kind = DecisionKind.START if rollout.stage_index is None else DecisionKind.ADVANCE
    return _past_gate(enter(rollout, stage, kind, cause, now), cause)


def _past_gate(moved: Transition, cause: Cause) -> Transition:
    assert moved.after is not None
    alert = announcements.moved_past_gate(moved.after, cause)
    return moved._replace(effects=(*moved.effects, alert))


# --- down


def roll_back(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Serve 0 %, because of a fault. Final."""
    after = next_revision(rollout, now, phase=RolledBack(now, cause.reason), **_OFF)
    alert = lowering_alerts.rolled_back(rollout, after, cause)
    return announced(rollout, after, DecisionKind.ROLL_BACK, cause, alert)


def abort(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Serve 0 %, because an operator decided so. Final."""
    after = next_revision(rollout, now, phase=Aborted(now, cause.reason), **_OFF)
    alert = lowering_alerts.aborted(rollout, after, cause)
    return announced(rollout, after, DecisionKind.ABORT, cause, alert)


def end(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Serve 0 %, because the plan ends now. Final."""
    after = next_revision(rollout, now, phase=Aborted(now, cause.reason), **_OFF)
    alert = lowering_alerts.ended(rollout, after, cause)
    return announced(rollout, after, DecisionKind.END, cause, alert)


def step_back(rollout: Rollout, below: int, cause: Cause, now: datetime) -> Transition:
    """Serve an earlier stage. A paused rollout stays paused there."""
    after = entered(rollout, below, now, pause=True)
    alerts = [] if cause.command else [lowering_alerts.stepped_back(rollout, after, cause)]
    return announced(rollout, after, DecisionKind.STEP_BACK, cause, *alerts)


# --- neither up nor down


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
    told = health.told_after(rollout, reason, cause.judgement) | rollout.told_gaps
    paused = Paused(since, reason, held)
    breached = breaches.told_after(reason, cause.judgement)
    changes = {"hold": reason, "told_gaps": told, "told_breaches": breached}
    after = next_revision(rollout, now, phase=paused, **changes)
    alerts = [] if cause.command else [lowering_alerts.paused(rollout, after, alert, cause)]
    return announced(rollout, after, DecisionKind.PAUSE, cause, *alerts)


def expire(rollout: Rollout, now: datetime) -> Transition:
    """Stop here, because the plan has expired."""
    cause = Cause("the plan has expired; its owner decides")
    return pause(rollout, HoldReason.EXPIRED, cause, now)


def resume(rollout: Rollout, phase: Waiting, cause: Cause, now: datetime) -> Transition:
    """Go on from a pause in `phase`."""
    hold = HoldReason.HEALTH if rollout.told_gaps else None
    after = next_revision(rollout, now, phase=phase, hold=hold, told_breaches=NO_BREACHES)
    return announced(rollout, after, DecisionKind.RESUME, cause)


def freeze(rollout: Rollout, command: CommandReceived, cause: Cause, now: datetime) -> Transition:
    """Let nothing advance until `unfreeze`."""
    after = next_revision(rollout, now, freeze=Freeze(now, command.issuer, command.reason))
    return announced(rollout, after, DecisionKind.HOLD, cause)


def unfreeze(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    """Lift an operator's freeze; a gate gets its full time again."""
    if isinstance(rollout.phase, Gating):
        after = replace(holding.renew_gate(rollout, rollout.phase, now), freeze=None)
    else:
        after = next_revision(rollout, now, freeze=None)
    return announced(rollout, after, DecisionKind.RESUME, cause)
