"""The `rolloutctl` line for each command, to be copied into a terminal.

Pure. A test gives each line to `rolloutctl` itself.
"""

from __future__ import annotations

import shlex
from typing import Final

from controller.core.rollout import Rollout
from schemas.api import FittingCommand
from schemas.command import NEEDS_REASON
from schemas.terms import ALWAYS_ACCEPTED, CommandVerb

#: What each command does, for people who meet it for the first time.
WHAT: Final = {
    CommandVerb.APPROVE: "let it advance to the next stage",
    CommandVerb.REJECT: "do not advance: pause it where it is",
    CommandVerb.PAUSE: "keep the percentage; nothing advances until you resume",
    CommandVerb.RESUME: "go on where it was paused",
    CommandVerb.STEP_BACK: "go back to the stage before",
    CommandVerb.ROLL_BACK: "serve 0 % to everybody now, because something is wrong",
    CommandVerb.ABORT: "serve 0 % to everybody now, and end the rollout",
    CommandVerb.PROMOTE: "skip the gate, and enter the next stage now",
    CommandVerb.PROMOTE_FULL: "skip all gates, and serve the last stage now",
    CommandVerb.RETRY: "begin the stage again, with new evidence",
    CommandVerb.FREEZE: "let nothing advance until you unfreeze",
    CommandVerb.UNFREEZE: "let it advance again",
    CommandVerb.RESTART: "begin a new rollout with the same plan",
    CommandVerb.RETIRE: "let go of the flag: apps use the default of their own code",
}
#: Commands whose reason people read afterwards, beside those that demand one.
_REASON_ASKED: Final = NEEDS_REASON | {
    CommandVerb.ROLL_BACK,
    CommandVerb.ABORT,
    CommandVerb.REJECT,
    CommandVerb.STEP_BACK,
}
_NAMES: Final = {CommandVerb.ROLL_BACK: "rollback"}


def command_line(command: FittingCommand, rollout: Rollout) -> str:
    """Return the line that sends a command for the revision that was seen."""
    verb = command.verb
    words = ["rolloutctl", _NAMES.get(verb, verb.value.replace("_", "-")), rollout.flag_key]
    if verb not in ALWAYS_ACCEPTED:
        words += ["--expected-revision", str(rollout.revision)]
    line = shlex.join(words)
    return f'{line} --reason "WHY"' if verb in _REASON_ASKED else line
