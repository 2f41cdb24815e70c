"""Keeps commands that lower and that Redis has not taken yet, also over a restart.

A replica serves 0 % at once where Redis is away. Without a file the command would be lost with the
process, and the percentage before it would be served again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from controller.codec.waiting_commands import WaitingCommand
from controller.errors import DocumentUnreadable, LastKnownUnavailable
from controller.health import Faults, Scope
from schemas.command import Command

#: For the reading at the start, as for the last known state: a restart loads the disk.
READ_SECONDS: Final = 15.0
#: A write that takes longer hangs; the command is carried out all the same.
DISK_SECONDS: Final = 1.0
#: The name of the fault of a file that could not be read.
FAULT: Final = "waiting commands"

log = structlog.get_logger(__name__)


class KeptCommands(Protocol):
    """A file of commands: `adapters/waiting_commands_file.py`."""

    async def read(self) -> Sequence[WaitingCommand]:
        """Return the commands. Raises LastKnownUnavailable and DocumentUnreadable."""

    async def write(self, commands: Sequence[WaitingCommand]) -> None:
        """Replace them all. Raises LastKnownUnavailable."""

    async def set_aside(self) -> str:
        """Rename what could not be read; return its new path. Raises LastKnownUnavailable."""


class WaitingCommands:
    """The commands that wait here, in the order in which they came."""

    def __init__(self, file: KeptCommands | None, faults: Faults) -> None:
        """`file` is None where nothing outlives the process."""
        self._file = file
        self._faults = faults
        self._commands: dict[tuple[str, str, str], WaitingCommand] = {}
        self._lock = asyncio.Lock()
        self._is_unread = False  # what is in the file must not be overwritten
        #: Set once the file was read, or could not be.
        self.restored = asyncio.Event()

    @property
    def commands(self) -> Sequence[WaitingCommand]:
        """The commands that wait now."""
        return tuple(self._commands.values())

    def of(self, command: Command) -> WaitingCommand | None:
        """Return the command as it waits, None where it does not."""
        return self._commands.get(command_key(command))

    async def restore(self) -> Sequence[WaitingCommand]:
        """Return the commands that waited when the process before this one ended."""
        try:
            found = await self._read()
            self._commands = {command_key(each.command): each for each in found} | self._commands
        finally:
            self.restored.set()
        if len(self._commands) > len(found):  # some came meanwhile
            await self._write()
        return found

    async def _read(self) -> Sequence[WaitingCommand]:
        if self._file is None:
            return ()
        try:
            async with self._lock, asyncio.timeout(READ_SECONDS):
                return await self._file.read()
        except (DocumentUnreadable, LastKnownUnavailable, TimeoutError) as trouble:
            why = str(trouble) or f"the disk gave no answer within {READ_SECONDS:g} s"
        self._is_unread = True
        where = "the file stays where it is until the next command waits"
        try:
            async with asyncio.timeout(DISK_SECONDS), self._lock:
                where = await self._set_aside(self._file)
        except (LastKnownUnavailable, TimeoutError) as trouble:
            log.warning("waiting_commands_not_set_aside", error=str(trouble) or "the disk hangs")
        self._faults.report(
            Scope.DEPENDENCY,
            FAULT,
            f"commands that waited for Redis before this start were not read, and may be lost: "
            f"{why}; {where}",
            "lower again what must be at 0 %; this is said until this replica is restarted",
        )
        return ()

    async def _set_aside(self, file: KeptCommands) -> str:
        """Keep what was not read under another name; return a sentence with it."""
        path = await file.set_aside()
        self._is_unread = False
        return f"it is kept as {path}"

    async def add(self, waiting: WaitingCommand) -> bool:
        """Keep a command; return whether it outlives this process."""
        self._commands.setdefault(command_key(waiting.command), waiting)
        return await self._write()

    async def remove(self, command: Command) -> None:
        """Forget a command that was answered."""
        if self._commands.pop(command_key(command), None) is not None:
            await self._write()

    async def _write(self) -> bool:
        if self._file is None:
            return False
        try:
            async with asyncio.timeout(DISK_SECONDS), self._lock:
                if self._is_unread:
                    await self._set_aside(self._file)
                await self._file.write(self.commands)
        except (LastKnownUnavailable, TimeoutError) as trouble:
            log.warning("waiting_commands_not_kept", error=str(trouble) or "the disk hangs")
            return False
        return True


def command_key(command: Command) -> tuple[str, str, str]:
    """Return what tells a command from every other one: flag, verb and id."""
    return command.flag, command.verb.value, command.id
