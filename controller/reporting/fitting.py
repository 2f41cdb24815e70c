"""What each command would do to a rollout at this moment: the state machine is asked, not guessed.

Pure. What a person is shown as possible is what the machine would accept.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from controller.core.effects import AnswerCommand
from controller.core.events import CommandReceived, Ticked
from controller.core.machine import decide
from controller.core.machine.commands import RAISING
from controller.core.plan import Plan
from controller.core.rollout import Rollout
from schemas.api import FittingCommand
from schemas.terms import CommandStatus, CommandVerb

#: The issuer of a question: somebody who has not touched the rollout.
_ANYBODY: Final = "a-question"

#: In the order in which they are shown. Not `start` and `apply`: they need a plan.
SHOWN: Final = (
    CommandVerb.APPROVE,
    CommandVerb.REJECT,
    CommandVerb.PAUSE,
    CommandVerb.RESUME,
    CommandVerb.STEP_BACK,
    CommandVerb.ROLL_BACK,
    CommandVerb.ABORT,
    CommandVerb.PROMOTE,
    CommandVerb.PROMOTE_FULL,
    CommandVerb.RETRY,
    CommandVerb.FREEZE,
    CommandVerb.UNFREEZE,
    CommandVerb.RESTART,
    CommandVerb.RETIRE,
)


def fitting_commands(
    rollout: Rollout, now: datetime, gaps: Sequence[str] = (), issuer: str = _ANYBODY
) -> list[FittingCommand]:
    """Return what each command would do now; `gaps` are those of the newest evidence.

    `issuer` is who would give them; without one, somebody who has not touched the rollout.
    """
    return [_fitting(rollout, verb, now, tuple(gaps), issuer) for verb in SHOWN]


def percent_after_apply(rollout: Rollout, plan: Plan, now: datetime) -> float:
    """Return the percentage that is served once the plan was applied and the next tick was made.

    The tick closes and opens at the edges of the plan's active windows, and starts what is due. A
    plan that is refused changes nothing.
    """
    after, _ = decide(rollout, _question(rollout, CommandVerb.APPLY, now, plan=plan), now)
    if after is None or after is rollout:
        return rollout.percent
    ticked, _ = decide(after, Ticked(), now)
    return after.percent if ticked is None else ticked.percent


def _question(
    rollout: Rollout,
    verb: CommandVerb,
    now: datetime,
    gaps: tuple[str, ...] = (),
    plan: Plan | None = None,
    issuer: str = _ANYBODY,
) -> CommandReceived:
    """Return the command that asks the machine what it would do."""
    return CommandReceived(
        command_id="a-question",
        verb=verb,
        issuer=issuer,
        reason="a question",
        issued_at=now,
        expected_revision=rollout.revision,
        plan=plan,
        gaps=gaps,
        has_advisor=rollout.has_advisor,
    )


def _fitting(
    rollout: Rollout, verb: CommandVerb, now: datetime, gaps: tuple[str, ...], issuer: str
) -> FittingCommand:
    question = _question(rollout, verb, now, gaps, issuer=issuer)
    after, effects = decide(rollout, question, now)
    answer = next(effect for effect in effects if isinstance(effect, AnswerCommand))
    shown = rollout if after is None else after
    fits = answer.status is CommandStatus.ACCEPTED and after is not rollout
    return FittingCommand(
        verb=verb,
        fits=fits,
        why_not=None if fits else answer.reason,
        percent=shown.percent,
        phase=shown.phase.name,
        raises=verb in RAISING,
    )
