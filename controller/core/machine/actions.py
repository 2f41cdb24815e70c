"""What the rows of the command table do, one function each.

Each returns the transition with the answer to the command. A condition that the table cannot name,
such as a freeze, is checked here.
"""

from __future__ import annotations

from datetime import timedelta

from controller.core.machine import transitions
from controller.core.machine.commands import (
    ALREADY_STARTED,
    OUTDATED,
    Request,
    done,
    nothing_to_do,
    rejected,
    stale,
)
from controller.core.machine.times import is_expired, is_frozen
from controller.core.rollout import Baking, Paused, Rollout, Scheduled, Transition, Waiting
from schemas.terms import CommandVerb, HoldReason

# --- starting ---


def begin(previous: Rollout | None, request: Request) -> Transition:
    """Start a flag's first or next rollout; `restart` takes the plan of the one before."""
    command, now = request.command, request.now
    revision = 0 if previous is None else previous.revision
    plan = command.plan
    if plan is None and previous is not None and command.verb is CommandVerb.RESTART:
        plan = previous.plan
    if plan is None:
        return rejected(previous, request, "start needs a plan")
    if previous is not None and command.command_id == previous.rollout_id:
        # Read again after Redis lost the answer: the rollout that it started has ended, and only
        # another command may start the next one.
        return nothing_to_do(previous, request, ALREADY_STARTED)
    if request.is_outdated:
        return rejected(previous, request, OUTDATED)
    if plan.expires_at is not None and now >= plan.expires_at:
        return rejected(previous, request, "the plan has expired: give it a later expires_at")
    if command.expected_revision not in (None, revision):
        return rejected(previous, request, stale(command, revision))
    return done(transitions.start(previous, plan, command, now), request)


# --- up ---


def approve(rollout: Rollout, request: Request) -> Transition:
    """Let a gate pass that waits for a person."""
    if request.command.expected_revision is None:
        why = "an approval is for one revision: give expected_revision"
        return rejected(rollout, request, why)
    if is_frozen(rollout, request.now):
        return _rejected_while_frozen(rollout, request)
    cause = request.cause(f"approved: {request.command.reason}")
    return done(transitions.advance(rollout, cause, request.now), request)


def promote(rollout: Rollout, request: Request) -> Transition:
    """Advance by one stage without its gate."""
    if is_frozen(rollout, request.now):
        return _rejected_while_frozen(rollout, request)
    cause = request.cause(f"promoted past its gate: {request.command.reason}")
    return done(transitions.advance(rollout, cause, request.now), request)


def promote_full(rollout: Rollout, request: Request) -> Transition:
    """Go to the last stage, whose own limits stay armed; from there, complete."""
    if is_frozen(rollout, request.now):
        return _rejected_while_frozen(rollout, request)
    if rollout.stage_index == len(rollout.plan.stages) - 1:
        cause = request.cause(f"completed past its gate: {request.command.reason}")
        return done(transitions.advance(rollout, cause, request.now), request)
    cause = request.cause(f"promoted past every gate: {request.command.reason}")
    return done(transitions.enter_last(rollout, cause, request.now), request)


def _rejected_while_frozen(rollout: Rollout, request: Request) -> Transition:
    why = "frozen: nothing advances; unfreeze, or wait for the window to end"
    return rejected(rollout, request, why)


def resume(rollout: Rollout, request: Request) -> Transition:
    """Go on where the pause began: the rest of the bake is still to come, a gate opens again."""
    paused, now = rollout.phase, request.now
    assert isinstance(paused, Paused)
    if is_expired(rollout, now):
        why = "the plan has expired: promote, roll back or abort"
        return rejected(rollout, request, why)
    phase: Waiting
    match paused.held:
        case Scheduled(start_at=start_at):
            phase = Scheduled(max(start_at, now))
        case Baking(stage=stage, until=until):
            phase = Baking(stage, now + max(until - paused.since, timedelta(0)))
        case held:
            phase = Baking(held.stage, now)
    return done(transitions.resume(rollout, phase, request.cause(), now), request)


# --- down ---


def step_back(rollout: Rollout, request: Request) -> Transition:
    """Serve the stage below, if there is one."""
    if not rollout.stage_index:
        return rejected(rollout, request, "no stage lies below: roll back, or abort")
    return done(transitions.step_back(rollout, request.cause(), request.now), request)


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


def accept_ended(rollout: Rollout, request: Request) -> Transition:
    """Accept a pause of a rollout that has ended."""
    return nothing_to_do(rollout, request, "nothing moves: the rollout has ended")


def reject(rollout: Rollout, request: Request) -> Transition:
    """Pause a rollout that asks for approval, because a person refused it."""
    cause = request.cause()
    return done(transitions.pause(rollout, HoldReason.REJECTED, cause, request.now), request)


def freeze(rollout: Rollout, request: Request) -> Transition:
    """Let nothing advance until `unfreeze`."""
    cause = request.cause(f"frozen: {request.command.reason}")
    return done(transitions.freeze(rollout, request.command, cause, request.now), request)


def unfreeze(rollout: Rollout, request: Request) -> Transition:
    """Lift an operator's freeze. A gate gets its full time again: it could not close meanwhile."""
    if rollout.freeze is None:
        return rejected(rollout, request, "no operator has frozen it")
    cause = request.cause(f"unfrozen: {request.command.reason}")
    return done(transitions.unfreeze(rollout, cause, request.now), request)
