"""The cause of a transition."""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.events import CommandReceived
from controller.core.judging.judgement import Judgement


@dataclass(frozen=True, slots=True)
class Cause:
    """The reason of a transition in words, with what it rests on; the audit log gets all of it.

    The gate and its advice are not part of it: they are read from the rollout's phase.
    """

    reason: str
    judgement: Judgement | None = None  # the evidence, where evidence is the cause
    command: CommandReceived | None = None  # the command, where an operator is the cause
    fix: str = ""  # what a person can do about it, where the cause itself tells

    @classmethod
    def of_command(cls, command: CommandReceived, what: str = "") -> Cause:
        """Return the cause of what a command does: `what`, then the reason that its issuer gave."""
        given = command.reason.strip()
        reason = ": ".join(words for words in (what, given) if words) or "no reason was given"
        if command.missing:
            reason += f"; not there yet: {'; '.join(command.missing)}"
        return cls(reason, command=command)

    @property
    def by_words(self) -> str:
        """` by ada` where an operator is the cause, else nothing."""
        return "" if self.command is None else f" by {self.command.issuer}"
