"""The cause of a transition."""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.judging.judgement import Judgement
from controller.core.rollout import CommandReceived


@dataclass(frozen=True, slots=True)
class Cause:
    """The reason of a transition in words, with what it rests on; the audit log gets all of it.

    The gate and its advice are not part of it: they are read from the rollout's phase.
    """

    reason: str
    judgement: Judgement | None = None  # the evidence, where evidence is the cause
    command: CommandReceived | None = None  # the command, where an operator is the cause
