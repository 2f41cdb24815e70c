"""Commands that wait for Redis, as the file keeps them over a restart.

Belongs here: writing and reading the bytes. Does not belong here: the file
(`adapters/waiting_commands_file.py`), and who waits (`deciding/commands/waiting_commands.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import ValidationError

from controller.codec.commands import to_command_received
from controller.codec.last_known import Origin
from controller.core.events import CommandReceived
from controller.core.rollout import Rollout
from controller.errors import DocumentUnreadable
from controller.text import describe_faults
from schemas.command import Command

#: A reader refuses every other.
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class WaitingCommand:
    """A command that Redis has not taken yet, and the rollout that it is meant for."""

    command: Command
    rollout_id: str = ""  # empty: not known

    @property
    def event(self) -> CommandReceived:
        """The command as the core's event, for its rollout alone."""
        return replace(to_command_received(self.command), for_rollout=self.rollout_id)

    def is_for(self, rollout: Rollout) -> bool:
        """Return whether the command is meant for this rollout, and not for an earlier one."""
        is_same = self.rollout_id in ("", rollout.rollout_id)
        return is_same and rollout.flag_key == self.command.flag


def waiting_commands_to_bytes(origin: Origin, waiting: Sequence[WaitingCommand]) -> bytes:
    """Return the commands as JSON."""
    fields = {
        "format": FORMAT,
        "environment": origin.environment,
        "topic_prefix": origin.topic_prefix,
        "commands": [
            {"command": each.command.model_dump(mode="json"), "rollout_id": each.rollout_id}
            for each in waiting
        ],
    }
    return json.dumps(fields).encode()


def waiting_commands_from_bytes(
    content: bytes, origin: Origin, former_environments: Collection[str] = ()
) -> Sequence[WaitingCommand]:
    """Return the commands that `waiting_commands_to_bytes` wrote for `origin`.

    `former_environments` are earlier names of the environment. Raises DocumentUnreadable.
    """
    try:
        fields = json.loads(content)
        is_ours = (
            fields["format"] == FORMAT
            and fields["environment"] in (origin.environment, *former_environments)
            and fields["topic_prefix"] == origin.topic_prefix
        )
        waiting = [
            WaitingCommand(Command.model_validate(each["command"]), str(each["rollout_id"]))
            for each in fields["commands"]
        ]
    except ValidationError as error:
        raise DocumentUnreadable(f"it is damaged: {describe_faults(error)}") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DocumentUnreadable(f"it is damaged: {error!r}"[:300]) from None
    if not is_ours:
        raise DocumentUnreadable("it is of another environment or release")
    return waiting
