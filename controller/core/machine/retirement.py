"""Retiring a flag: rolloutd lets go of it, and apps get the default of their own code.

Belongs here: the rows of the command table about it, and the change. Does not belong here: deleting
what is stored of the flag (`controller/deciding/retiring.py`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from controller.core.effects import Transition
from controller.core.machine import lowering_alerts
from controller.core.machine.cause import Cause
from controller.core.machine.commands import Request, done, nothing_to_do, rejected
from controller.core.machine.holding import NO_BREACHES, NO_GAPS
from controller.core.machine.revisions import announced, next_revision
from controller.core.rollout import Completed, Retired, Rollout
from schemas.terms import DecisionKind

WINDOWS_GO_ON: Final = (
    "its plan still switches it on and off (active windows or ends_at): apply a plan without "
    "them, or abort it, which serves 0 %; then retire it"
)


def retire(rollout: Rollout, request: Request) -> Transition:
    """Let go of a flag whose rollout has ended; nobody may lose treatment unnoticed."""
    if isinstance(rollout.phase, Completed) and (
        rollout.may_open_again or rollout.plan.ends_at is not None
    ):
        return rejected(rollout, request, WINDOWS_GO_ON)
    if rollout.percent > 0 and request.command.expected_revision is None:
        return rejected(rollout, request, serves_words(rollout))
    what = "retired"
    if rollout.percent > 0:
        what += f", although it served {rollout.served_words}"
    return done(_retired(rollout, request.cause(what), request.now), request)


def accept_retired(rollout: Rollout, request: Request) -> Transition:
    """Accept a command that finds the flag retired."""
    return nothing_to_do(rollout, request, "the flag is retired already")


def serves_words(rollout: Rollout) -> str:
    """Return what becomes of those who are served treatment, and how to go on."""
    return (
        f"it serves {rollout.served_words}: once it is retired, apps get the default of their own "
        f"code instead. Make treatment that default, or remove the flag from the code; then send "
        f"expected_revision {rollout.revision} with it. To serve 0 % first: abort"
    )


def _retired(rollout: Rollout, cause: Cause, now: datetime) -> Transition:
    after = retired_at(rollout, rollout.revision + 1, cause.reason, now)
    alert = lowering_alerts.retired(rollout, after, cause)
    return announced(rollout, after, DecisionKind.RETIRE, cause, alert)


def retired_at(rollout: Rollout, revision: int, reason: str, now: datetime) -> Rollout:
    """Return the rollout retired as this revision, as a worker or the state topic says."""
    return next_revision(
        rollout,
        now,
        revision=revision,
        phase=Retired(now, reason),
        percent=0.0,
        hold=None,
        freeze=None,
        told_gaps=NO_GAPS,
        told_breaches=NO_BREACHES,
    )
