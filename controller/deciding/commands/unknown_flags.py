"""Commands of flags that do not exist: answered once all other commands are read.

Whoever floods the topic with them delays no command of a flag that exists. They leave nothing
behind: no worker, nothing in the store. Their answer follows from the record alone, so that a
record that is read again after a crash gets the same answer. A start makes a flag exist.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from controller.core.effects import AnswerCommand
from controller.core.machine import decide
from controller.deciding.commands.command_handler import CommandHandler
from controller.deciding.commands.command_inbox import CommandInbox
from controller.deciding.commands.command_partition import (
    CommandPartition,
    OpenCommands,
    PendingCommand,
    RefusedCommand,
)
from controller.deciding.commands.command_refusals import CommandRefusals
from controller.deciding.commands.known_flags import KnownFlags
from controller.deciding.commands.passing_faults import PassingFaults
from controller.errors import BadInput, CommandRefused, OperatingTrouble
from controller.health import Scope
from controller.ports import Clock, Record

ANSWERED_AT_ONCE = 50
#: Reading a command takes about 0.1 ms. After so many the event loop gets its turn.
READ_AT_ONCE = 20
#: Until refusals are added again, while Kafka is slow.
SLOW_SECONDS = 0.1
RETRY_SECONDS = 1.0


class UnknownFlags:
    """Answers the commands that wait in a partition, one partition at a time."""

    def __init__(
        self,
        inbox: CommandInbox,
        handler: CommandHandler,
        refusals: CommandRefusals,
        known: KnownFlags,
        commands: OpenCommands,
        faults: PassingFaults,
        clock: Clock,
    ) -> None:
        self._inbox = inbox
        self._handler = handler
        self._refusals = refusals
        self._known = known
        self._commands = commands
        self._faults = faults
        self._clock = clock
        #: Set while everything that has arrived is read.
        self.all_read = asyncio.Event()
        self._logger = structlog.get_logger()

    async def run(self, partition: CommandPartition, group: asyncio.TaskGroup) -> None:
        """Answer what waits in a partition until cancelled."""
        while True:
            if not partition.unknown:
                partition.arrived.clear()
                await partition.arrived.wait()
            if not partition.has_enough_unknown:
                await self.all_read.wait()
            if self._refusals.is_full:
                await asyncio.sleep(SLOW_SECONDS)
                continue
            try:
                last = min(len(partition.unknown), ANSWERED_AT_ONCE) - 1
                await self._known.refresh_stored(since=partition.unknown[last].fetched_at)
                await self._answer(partition, group)
            except OperatingTrouble as trouble:
                self._logger.warning(
                    "commands_wait", partition=partition.number, error=str(trouble)
                )
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as mistake:  # ours
                self._logger.exception("unknown_flags_failed", partition=partition.number)
                why = f"commands of flags that do not exist could not be refused: {mistake!r}"
                self._faults.report(Scope.PARTITION, partition.name, why)
                await asyncio.sleep(RETRY_SECONDS)

    async def _answer(self, partition: CommandPartition, group: asyncio.TaskGroup) -> None:
        """Answer the oldest of those that wait."""
        for number in range(min(len(partition.unknown), ANSWERED_AT_ONCE)):
            if number % READ_AT_ONCE == READ_AT_ONCE - 1:
                await asyncio.sleep(0)
            command = partition.unknown[0]
            record, flag_key = command.record, command.flag_key
            assert record is not None
            fault = self._why_not(command, record)
            if fault is None and not command.why_not:
                self._commands.refuse_excess(command)
            partition.take_unknown()
            partition.free_followers(command, flag_key)
            if fault is not None:
                self._refusals.add(RefusedCommand(command, record, fault))
            elif command.why_not and self._commands.has_enough_refusals(command.flag_key):
                self._refuse_once_committed(command, record)
            else:
                self._handler.begin(command, group)

    def _refuse_once_committed(self, command: PendingCommand, record: Record) -> None:
        """Refuse a command of a flood. Once it is committed, no next owner carries it out."""
        try:
            event = self._inbox.read(record).event
        except CommandRefused as refused:
            fault = refused
        except BadInput as unreadable:
            self._refusals.add(RefusedCommand(command, record, unreadable))
            return
        else:
            fault = CommandRefused(
                command_id=event.command_id,
                flag_key=command.flag_key,
                verb=event.verb,
                reason=command.why_not,
            )
        # Its text is needed no more: thousands may wait until they are committed.
        command.record, command.refusal = (
            None,
            RefusedCommand(command, replace(record, value=None), fault),
        )

    def _why_not(self, command: PendingCommand, record: Record) -> BadInput | None:
        """Return why a command is refused here; None when a worker has to handle it.

        The worker also refuses what is too much, and stores that answer: read again by the next
        owner, the command must not be carried out after all.
        """
        if not command.why_not and self._known.has(command.flag_key):
            return None
        try:
            request = self._inbox.read(record)
        except CommandRefused as fault:
            if command.why_not or not self._known.has(fault.flag_key):
                return fault
            command.flag_key = fault.flag_key
            return None
        except BadInput as fault:
            return fault
        event = request.event
        command.flag_key = request.flag_key
        if command.why_not or self._known.has(request.flag_key):
            return None
        after, effects = decide(None, event, self._clock.now())
        if after is not None:
            return None
        reason = next(effect.reason for effect in effects if isinstance(effect, AnswerCommand))
        return CommandRefused(
            command_id=event.command_id,
            flag_key=request.flag_key,
            verb=event.verb,
            reason=reason,
            issuer=event.issuer,
        )
