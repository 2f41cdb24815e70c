"""Everything of a replica that checks objectives, made and connected.

Belongs here: which part gets what, and reading the checks again. Does not belong here: what the
parts do (`controller/checking/`, `controller/adapters/measuring/`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import structlog

from controller.adapters.redis.turns import RedisTurnStore
from controller.checking.checks_file import ChecksFile, read_checks
from controller.codec.cloud_events import source_of
from controller.errors import ConfigInvalid
from controller.health import Scope
from controller.running.claims import replica_name
from controller.running.connections import Connections
from controller.running.oversight import Process
from controller.running.signal_inlet import SignalInlet
from controller.running.supervisor import Loop

if TYPE_CHECKING:
    from controller.checking.checker import Checker

FILE: Final = "checks_file"


class CheckParts:
    """The checks, and what looks at them."""

    setting: Final = "checks.file"

    def __init__(self, process: Process, connections: Connections) -> None:
        """Raises ConfigInvalid for checks that cannot be used."""
        self._process = process
        self._settings = process.settings.checks
        self._file = self._read()
        self._reading: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger()
        self._checker: Checker | None = None
        if self._settings.is_on:
            from controller.checking.checker import Checker  # not without checks

            self._checker = Checker(
                RedisTurnStore(connections.redis, "checks"),
                connections.monitoring,
                SignalInlet(connections.publisher, source_of(process.settings.environment)),
                lambda: self._file.checks,
                replica_name(),
                process.clock,
                process.faults,
            )

    @property
    def file(self) -> ChecksFile:
        """Everything that the file says."""
        return self._file

    @property
    def loops(self) -> Sequence[Loop]:
        """What checks; nothing where no file is set."""
        return () if self._checker is None else (("checks", self._checker.run),)

    def _read(self) -> ChecksFile:
        path = self._settings.file
        return ChecksFile() if path is None else read_checks(path)

    def reload(self) -> None:
        """Read the file again; one that cannot be used is told, and the known checks stay."""
        self._reading = asyncio.get_running_loop().create_task(self._reload(), name="checks_reload")

    async def _reload(self) -> None:
        faults = self._process.faults
        try:
            self._file = await asyncio.to_thread(self._read)
        except ConfigInvalid as refused:
            self._logger.warning("checks_refused", error=str(refused))
            why = f"the checks were not read again, and the ones before hold: {refused}"
            faults.report(Scope.DEPENDENCY, FILE, why, "fix the file, then send SIGHUP again")
        else:
            faults.clear(Scope.DEPENDENCY, FILE)
            self._logger.info("checks_read", checks=len(self._file.checks))
