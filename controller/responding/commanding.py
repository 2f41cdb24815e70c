"""The commands of signals: which verb an action is, under which id, and by which issuer.

Belongs here: the command. Does not belong here: whether it is given (`responder.py`), and whether
one that was refused is given again (`retries.py`).
"""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from controller.core.rollout import Rollout
from controller.ports import Clock
from controller.responding.matching import Intent
from schemas.command import Command
from schemas.result import Result
from schemas.signal import Signal
from schemas.terms import CommandStatus, CommandVerb, SignalAction

#: The issuer of what is commanded begins so.
ISSUER: Final = "signal:"


class CommandSender(Protocol):
    """Sends commands: `running/command_desk.py`."""

    async def send(self, command: Command) -> Result | str:
        """Return the result, or what is known of it. Raises OperatingTrouble."""


class Commander:
    """Gives commands because of signals."""

    def __init__(self, sender: CommandSender, clock: Clock) -> None:
        self._sender = sender
        self._clock = clock

    async def give(
        self,
        rollout: Rollout,
        verb: CommandVerb,
        signal: Signal,
        reason: str,
        rule: str,
        attempt: int = 1,
    ) -> Result | str:
        """Return the answer, or what is known of it. Raises OperatingTrouble.

        The same signal, rule and `attempt` make the same command, so that a repeat gets its answer.
        """
        made_of = [signal.id, rule, rollout.flag_key, verb.value]
        if attempt > 1:  # a refusal is kept as the answer to its id
            made_of.append(str(attempt))
        digest = hashlib.sha256("\x00".join(made_of).encode()).hexdigest()
        # A signal that is read late must still let go. Its age counts for what lowers: the answer
        # to such a command is found by the time of issue, too.
        is_release = verb is CommandVerb.UNFREEZE
        return await self._sender.send(
            Command(
                id=f"signal-{digest[:32]}",
                flag=rollout.flag_key,
                verb=verb,
                issuer=f"{ISSUER}{signal.hook}",
                reason=reason,
                issued_at=self._clock.now() if is_release else signal.received_at,
            )
        )


def verb_of(intent: Intent) -> CommandVerb | None:
    """Return what is commanded; None: nothing.

    In the first stage, and while it waits, there is nothing to step back to: it is paused. At the
    end of a rollout there is no stage either: it is rolled back.
    """
    rollout, action = intent.rollout, intent.action
    if action is SignalAction.HOLD and rollout.freeze is not None:
        return None
    if action is SignalAction.STEP_BACK:
        if rollout.has_ended:
            return CommandVerb.ROLL_BACK
        if not rollout.stage_index:
            return CommandVerb.PAUSE
    return intent.usual_verb


def is_refused(answer: Result | str | None) -> bool:
    """Return whether a command was refused; one without a result yet is on its way."""
    return isinstance(answer, Result) and answer.status is CommandStatus.REJECTED
