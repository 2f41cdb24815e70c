"""The file of commands that lower and that Redis has not taken yet, for a restart meanwhile.

It is read and written in a thread. Who waits, and for how long, is
`deciding/commands/waiting_commands.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path

from controller.adapters.private_file import PrivateFile, file_name
from controller.codec.last_known import Origin
from controller.codec.waiting_commands import (
    WaitingCommand,
    waiting_commands_from_bytes,
    waiting_commands_to_bytes,
)


class WaitingCommandsFile:
    """One replica's file. Implements `KeptCommands` of `deciding/commands/waiting_commands.py`."""

    def __init__(
        self,
        directory: Path,
        origin: Origin,
        *,
        port: int,
        former_environments: Collection[str] = (),
    ) -> None:
        """Touch nothing yet. `port` tells replicas on one machine apart."""
        self.path = directory / file_name("waiting-commands", origin, port, "json")
        self._file = PrivateFile(self.path)
        self._origin = origin
        self._former_environments = former_environments

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
        return waiting_commands_from_bytes(content, self._origin, self._former_environments)

    async def write(self, commands: Sequence[WaitingCommand]) -> None:
        """Replace the file, and wait for the disk. Raises LastKnownUnavailable."""
        content = waiting_commands_to_bytes(self._origin, commands)
        await asyncio.to_thread(self._file.replace, content, is_durable=True)

    async def set_aside(self) -> str:
        """Rename the file, for a person to read; return its new path.

        Raises LastKnownUnavailable. One that was set aside before is replaced.
        """
        return str(await asyncio.to_thread(self._file.set_aside))
