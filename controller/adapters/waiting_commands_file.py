"""The file of commands that lower and that Redis has not taken yet, for a restart meanwhile.

It is read and written in a thread. Who waits, and for how long, is
`deciding/commands/waiting_commands.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from controller.adapters.private_file import ReplicaDirectory
from controller.codec.waiting_commands import (
    WaitingCommand,
    waiting_commands_from_bytes,
    waiting_commands_to_bytes,
)


class WaitingCommandsFile:
    """One replica's file. Implements `KeptCommands` of `deciding/commands/waiting_commands.py`."""

    def __init__(self, directory: ReplicaDirectory) -> None:
        """Touch nothing yet."""
        self._directory = directory
        self._file = directory.file("waiting-commands", "json")
        self.path = self._file.path

    async def read(self) -> Sequence[WaitingCommand]:
        """Return the commands that waited last.

        Raises LastKnownUnavailable, and DocumentUnreadable for a file that cannot be used.
        """
        return await asyncio.to_thread(self._read)

    def _read(self) -> Sequence[WaitingCommand]:
        self._file.clear_temporaries()
        content = self._file.read()
        if content is None:
            return ()
        directory = self._directory
        return waiting_commands_from_bytes(content, directory.origin, directory.former_environments)

    async def write(self, commands: Sequence[WaitingCommand]) -> None:
        """Replace the file, and wait for the disk. Raises LastKnownUnavailable."""
        content = waiting_commands_to_bytes(self._directory.origin, commands)
        await asyncio.to_thread(self._file.replace, content, is_durable=True)

    async def set_aside(self) -> str:
        """Rename the file, for a person to read; return its new path.

        Raises LastKnownUnavailable. One that was set aside before is replaced.
        """
        return str(await asyncio.to_thread(self._file.set_aside))
