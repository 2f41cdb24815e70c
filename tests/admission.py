"""People and machines who may sign in, and a desk that notes what they send."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from controller.errors import OperatingTrouble
from controller.health import Faults
from controller.ports.people import IdentityProvider
from controller.settings import Settings
from controller.web.admission import Admission, make_admission
from controller.web.flags import FlagBoard
from schemas.command import Command
from schemas.result import Result
from schemas.terms import CommandStatus

KEY: Final = "k" * 40


class NotedDesk:
    """Answers as a test says, and notes what it was given."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.answer: Callable[[Command], Result | str] = accepted
        self.trouble: OperatingTrouble | None = None
        self.stored: dict[str, Result] = {}  # by command id

    async def send(self, command: Command) -> Result | str:
        """Note a command."""
        if self.trouble is not None:
            raise self.trouble
        self.commands.append(command)
        return self.answer(command)

    async def earlier(self, command: Command) -> Result | None:
        """Return the answer that a test has stored."""
        return self.stored.get(command.id)


def accepted(command: Command) -> Result:
    """Return that a command was carried out."""
    return answered(command, CommandStatus.ACCEPTED, "done")


def answered(command: Command, status: CommandStatus, reason: str) -> Result:
    """Return a result."""
    return Result(
        command_id=command.id,
        flag=command.flag,
        verb=command.verb,
        status=status,
        reason=reason,
        revision=12,
        at=datetime.now(UTC),
    )


def token_of(name: str) -> str:
    """Return the token of a machine in `access_text`."""
    return f"rolloutd_{name}_{'x' * 32}"


def bearer(name: str) -> dict[str, str]:
    """Return the header by which a machine is known."""
    return {"authorization": f"Bearer {token_of(name)}"}


def token_line(name: str, more: str = "") -> str:
    """Return the line of a machine's token."""
    return f'  {name}: {{sha256: "{hashlib.sha256(token_of(name).encode()).hexdigest()}"{more}}}\n'


def admission(
    directory: Path,
    access: str,
    board: FlagBoard,
    desk: NotedDesk,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    provider: IdentityProvider | None = None,
    **sign_in: Any,
) -> Admission:
    """Return who may sign in by the text of an access file."""
    path = directory / "access.yaml"
    path.write_text(access)
    fields = {"access_file": str(path), "session_key": KEY, **sign_in}
    settings = Settings.model_validate({"sign_in": fields})
    made = make_admission(settings, desk, board, Faults(now), now, provider)
    assert made is not None
    return made
