"""Everything of a replica that has to do with signals, made and connected.

Belongs here: which part gets what, and reading the rules again. Does not belong here: what the
parts do (`controller/responding/`, `controller/web/hooks/`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import structlog

from controller.adapters.redis.shared_hash import SharedHash
from controller.codec.cloud_events import source_of
from controller.deciding.registry import RolloutRegistry
from controller.errors import ConfigInvalid
from controller.health import Scope
from controller.responding.memory import Recent, SignalMemory
from controller.running.command_desk import CommandDesk
from controller.running.connections import Connections
from controller.running.oversight import Oversight, Process
from controller.running.report_reader import ReportReader
from controller.running.signal_inlet import SignalInlet
from controller.running.supervisor import Loop
from controller.settings.signal_rules import RulesFile, SignalRule, read_rules

if TYPE_CHECKING:
    from controller.web.hooks.endpoint import Hooks

RULES: Final = "signal_rules"


class SignalParts:
    """The endpoints, the rules, and what acts by them."""

    setting: Final = "hooks.rules_file"

    def __init__(
        self,
        process: Process,
        connections: Connections,
        registry: RolloutRegistry,
        reports: ReportReader,
        oversight: Oversight,
    ) -> None:
        """Raises ConfigInvalid for rules that cannot be used."""
        self._process = process
        self._settings = process.settings.hooks
        self._rules = self._read()
        self._reading: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger()
        self._memory = SignalMemory(
            SharedHash(connections.redis, "signals"), process.clock, process.faults
        )
        self._loops: tuple[Loop, ...] = ()
        self.hooks: Hooks | None = None
        if connections.signals is None:
            return
        self._loops = self._make_loops(connections, registry, reports, oversight)
        if self._settings.endpoints:
            from controller.web.hooks.endpoint import Hooks  # not without a hook

            inlet = SignalInlet(connections.publisher, source_of(process.settings.environment))
            deliveries = process.metrics.hook_deliveries
            self.hooks = Hooks(
                self._settings,
                inlet,
                process.clock.now,
                lambda _hook, outcome: deliveries.of(outcome).inc(),
            )

    def _make_loops(
        self,
        connections: Connections,
        registry: RolloutRegistry,
        reports: ReportReader,
        oversight: Oversight,
    ) -> tuple[Loop, ...]:
        # Not where nothing listens to signals.
        from controller.responding.commanding import Commander
        from controller.responding.responder import Responder
        from controller.responding.retries import Retries
        from controller.responding.signal_follower import SignalFollower

        assert connections.signals is not None
        process = self._process
        desk = CommandDesk(connections.publisher, connections.rollouts, oversight.direct)
        commander = Commander(desk, process.clock)
        retries = Retries(
            lambda: self.rules,
            lambda: registry.rollouts,
            commander,
            oversight.alerts,
            self._memory,
            process.clock,
        )
        responder = Responder(
            lambda: self.rules,
            lambda: registry.rollouts,
            reports,
            commander,
            retries,
            oversight.alerts,
            self._memory,
            process.clock,
        )
        follower = SignalFollower(connections.signals, responder, process.faults)
        return ("signals", follower.run), ("signal_retries", retries.run)

    @property
    def rules(self) -> Sequence[SignalRule]:
        """The present rules."""
        return self._rules.rules

    @property
    def file(self) -> RulesFile:
        """Everything that the rules file says."""
        return self._rules

    @property
    def loops(self) -> Sequence[Loop]:
        """What acts on signals; nothing where no hook is set."""
        return self._loops

    async def recent(self) -> Sequence[Recent]:
        """Return the newest signals of all replicas, newest first, and what was done about each."""
        await self._memory.refresh()
        return self._memory.recent

    def _read(self) -> RulesFile:
        path = self._settings.rules_file
        return RulesFile() if path is None else read_rules(path)

    def reload(self) -> None:
        """Read the rules again; those that cannot be used are told, and the known ones stay."""
        self._reading = asyncio.get_running_loop().create_task(self._reload(), name="rules_reload")

    async def _reload(self) -> None:
        faults = self._process.faults
        try:
            self._rules = await asyncio.to_thread(self._read)
        except ConfigInvalid as refused:
            self._logger.warning("signal_rules_refused", error=str(refused))
            why = f"the rules were not read again, and the ones before hold: {refused}"
            faults.report(Scope.DEPENDENCY, RULES, why, "fix the file, then send SIGHUP again")
        else:
            faults.clear(Scope.DEPENDENCY, RULES)
            self._logger.info("signal_rules_read", rules=len(self._rules.rules))
