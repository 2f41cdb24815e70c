from __future__ import annotations

import pytest

from controller.core.effects import AnswerCommand
from controller.core.events import CommandUnusable
from controller.core.machine import decide
from schemas.terms import CommandStatus, CommandVerb
from tests.builders import T0, make_rollout


@pytest.mark.parametrize("verb", [*CommandVerb, None])
def test_an_order_that_cannot_be_meant_is_answered_and_changes_nothing(
    verb: CommandVerb | None,
) -> None:
    """A command with a refusal is rejected with that reason, in every phase."""
    for rollout in (None, make_rollout()):
        after, effects = decide(
            rollout,
            CommandUnusable("command-1", verb, "start needs a `plan`", issuer="ada"),
            T0,
        )
        assert after is rollout
        revision = 0 if rollout is None else rollout.revision
        assert effects == (
            AnswerCommand(
                "command-1",
                verb,
                CommandStatus.REJECTED,
                "start needs a `plan`",
                revision,
                issuer="ada",
            ),
        )
