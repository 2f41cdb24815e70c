"""Carries out the rows of the command table, one function each.

Each returns the transition with the answer to the command. A condition that the table cannot name,
such as a freeze, is checked here. Commands that a plan comes with are in `plan_actions.py`.
"""

from __future__ import annotations

from datetime import timedelta

from controller.core.effects import Transition
from controller.core.machine import plan_transitions, transitions
from controller.core.machine.commands import (
    Request,
    done,
    nothing_to_do,
    rejected,
)
from controller.core.machine.obstacles import why_not_now
from controller.core.machine.times import bake_time, is_expired, opens_words
from controller.core.plan import stage_called
from controller.core.rollout import Baking, Paused, Rollout, Scheduled, Waiting
from schemas.terms import HoldReason

# --- up ---


def approve(rollout: Rollout, request: Request) -> Transition:
    """Let a gate pass that waits for a person, unless a gap hides what happens at this moment."""
    if request.command.expected_revision is None:
        return rejected(rollout, request, "an approval is for one revision: give expected_revision")
    if (why := why_not_now(rollout, request.now)) is not None:
        return rejected(rollout, request, why)
    if gaps := "; ".join(request.command.gaps):
        why = f"the evidence cannot be judged now ({gaps}): approve once it can, or promote"
        return rejected(rollout, request, why)
    cause = request.cause("approved")
    return done(transitions.advance(rollout, cause, request.now), request)


def promote(rollout: Rollout, request: Request) -> Transition:
    """Advance by one stage without its gate."""
    if (why := why_not_now(rollout, request.now)) is not None:
        return rejected(rollout, request, why)
    if request.command.to_stage is not None:
        return _promote_to(rollout, request, request.command.to_stage)
    cause = request.cause("promoted past its gate")
    return done(transitions.advance(rollout, cause, request.now), request)


def _promote_to(rollout: Rollout, request: Request, name: str) -> Transition:
    """Enter a later stage by its name, whatever gates lie before it."""
    present = -1 if rollout.stage_index is None else rollout.stage_index
    index = stage_called(rollout.plan, name)
    if index is None or index <= present:
        return rejected(rollout, request, _no_such_stage(rollout, name, range(present + 1, 101)))
    cause = request.cause(f"promoted to {name} past every gate")
    return done(transitions.enter_past_gates(rollout, index, cause, request.now), request)


def _no_such_stage(rollout: Rollout, name: str, indexes: range) -> str:
    """Return that no stage of this name is among those that the command may enter."""
    names = [stage.name for index, stage in enumerate(rollout.plan.stages) if index in indexes]
    where = "later" if indexes.stop > len(rollout.plan.stages) else "earlier"
    there = f"there are: {', '.join(names)}" if names else "there is none"
    return f"no {where} stage is called {name}; {there}"


def promote_full(rollout: Rollout, request: Request) -> Transition:
    """Go to the last stage, whose own limits stay armed; from there, complete."""
    if (why := why_not_now(rollout, request.now)) is not None:
        return rejected(rollout, request, why)
    if rollout.stage_index == len(rollout.plan.stages) - 1:
        cause = request.cause("completed past its gate")
        return done(transitions.advance(rollout, cause, request.now), request)
    cause = request.cause("promoted past every gate")
    last = len(rollout.plan.stages) - 1
    return done(transitions.enter_past_gates(rollout, last, cause, request.now), request)


def resume(rollout: Rollout, request: Request) -> Transition:
    """Go on where the pause began: the rest of the bake is still to come, a gate opens again.

    A rollout that is closed goes on when an active window opens it.
    """
    paused, now = rollout.phase, request.now
    assert isinstance(paused, Paused)
    at = bake_time(rollout, now)
    if is_expired(rollout, now):
        return rejected(rollout, request, "the plan has expired: promote, roll back or abort")
    phase: Waiting
    match paused.held:
        case Scheduled(start_at=start_at):
            phase = Scheduled(max(start_at, now))
        case Baking(stage=stage, until=until):
            phase = Baking(stage, at + max(until - min(paused.since, at), timedelta(0)))
        case held:
            phase = Baking(held.stage, at)
    what = "" if rollout.closed_since is None else opens_words(rollout, now)
    return done(transitions.resume(rollout, phase, request.cause(what), now), request)


def retry(rollout: Rollout, request: Request) -> Transition:
    """Begin the present stage again, also one that is paused."""
    if is_expired(rollout, request.now):
        why = "the plan has expired: apply a plan with a later expires_at, roll back or abort"
        return rejected(rollout, request, why)
    if rollout.stage_index is None:
        return rejected(rollout, request, "no stage has begun yet: promote, or resume")
    cause = request.cause("the stage begins again")
    return done(plan_transitions.retry(rollout, cause, request.now), request)


# --- down ---


def step_back(rollout: Rollout, request: Request) -> Transition:
    """Serve the stage below, or an earlier one by its name, if there is one."""
    present, name = rollout.stage_index, request.command.to_stage
    if not present:
        return rejected(rollout, request, "no stage lies below: roll back, or abort")
    index = present - 1 if name is None else stage_called(rollout.plan, name)
    if index is None or index >= present:
        return rejected(rollout, request, _no_such_stage(rollout, f"{name}", range(present)))
    return done(transitions.step_back(rollout, index, request.cause(), request.now), request)


def roll_back(rollout: Rollout, request: Request) -> Transition:
    """Serve 0 %, because of a fault."""
    return done(transitions.roll_back(rollout, request.cause(), request.now), request)


def abort(rollout: Rollout, request: Request) -> Transition:
    """Serve 0 %, without a fault."""
    return done(transitions.abort(rollout, request.cause(), request.now), request)


def accept_off(rollout: Rollout, request: Request) -> Transition:
    """Accept a command for 0 % that finds 0 %."""
    return nothing_to_do(rollout, request, "0 % is served already")


# --- neither up nor down ---


def pause(rollout: Rollout, request: Request) -> Transition:
    """Stop the rollout where it is."""
    cause = request.cause()
    return done(transitions.pause(rollout, HoldReason.OPERATOR, cause, request.now), request)


def accept_pause(rollout: Rollout, request: Request) -> Transition:
    """Accept a pause of a paused rollout."""
    return nothing_to_do(rollout, request, "paused already")


def pause_ended(rollout: Rollout, request: Request) -> Transition:
    """Accept a pause of a rollout that has ended; freeze one that its active windows still open."""
    if rollout.may_open_again and rollout.freeze is None:
        return freeze(rollout, request)
    why = "frozen already" if rollout.may_open_again else "nothing moves: the rollout has ended"
    return nothing_to_do(rollout, request, why)


def reject(rollout: Rollout, request: Request) -> Transition:
    """Pause a rollout that asks for approval, because a person refused it."""
    cause = request.cause()
    return done(transitions.pause(rollout, HoldReason.REJECTED, cause, request.now), request)


def freeze(rollout: Rollout, request: Request) -> Transition:
    """Let nothing advance, and no active window open, until `unfreeze`."""
    if rollout.has_ended and not rollout.may_open_again:
        return rejected(rollout, request, "it has completed: nothing moves, so nothing is frozen")
    cause = request.cause("frozen")
    return done(transitions.freeze(rollout, request.command, cause, request.now), request)


def unfreeze(rollout: Rollout, request: Request) -> Transition:
    """Lift an operator's freeze. A gate gets its full time again: it could not close meanwhile."""
    if rollout.freeze is None:
        return rejected(rollout, request, "no operator has frozen it")
    cause = request.cause("unfrozen")
    return done(transitions.unfreeze(rollout, cause, request.now), request)
