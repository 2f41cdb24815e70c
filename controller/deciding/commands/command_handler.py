"""Handles one command: its flag's worker carries it out, or it is forwarded, or refused.

Whatever goes wrong with a command is answered and reported, and stops nothing else.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from controller.cancellation import is_cancelled
from controller.core.events import CommandReceived, CommandUnusable
from controller.deciding.commands.command_inbox import CommandInbox
from controller.deciding.commands.command_partition import (
    OpenCommands,
    PendingCommand,
    RefusedCommand,
)
from controller.deciding.commands.command_refusals import CommandRefusals
from controller.deciding.commands.command_topic import CommandTopic
from controller.deciding.commands.passing_faults import PassingFaults
from controller.deciding.flag.command_answers import unusable
from controller.deciding.worker_pool import WorkerPool
from controller.errors import BadInput, CommandRefused
from controller.health import Scope
from controller.ports import Record
from schemas.terms import ALWAYS_ACCEPTED

#: How often a worker that fails on a command gets it, before the command is refused.
ATTEMPTS = 2


class CommandHandler:
    """Handles commands, each in a task of its own."""

    def __init__(
        self,
        inbox: CommandInbox,
        topic: CommandTopic,
        pool: WorkerPool,
        refusals: CommandRefusals,
        commands: OpenCommands,
        faults: PassingFaults,
    ) -> None:
        self._inbox = inbox
        self._topic = topic
        self._pool = pool
        self._refusals = refusals
        self._commands = commands
        self._faults = faults
        self._logger = structlog.get_logger()

    def begin(self, command: PendingCommand, group: asyncio.TaskGroup) -> None:
        """Handle a command in a task of `group`, beside all others."""
        self._commands.begin(command)
        group.create_task(self._handle(command), name=f"command:{command.offset}")

    async def _handle(self, command: PendingCommand) -> None:
        record = command.record
        assert record is not None
        try:
            if await self._carry_out(command, record):
                command.finish()
        except asyncio.CancelledError:
            raise
        except Exception as mistake:  # ours, in refusing: nothing is left to try, and others wait
            partition = command.partition
            self._logger.exception(
                "command_given_up", partition=partition.number, offset=command.offset
            )
            name = f"{partition.name}/{command.offset}"
            why = f"it could be neither carried out nor refused: {mistake!r}"
            fix = "see whether it is still needed; send it again"
            self._faults.report(Scope.COMMAND, name, why, fix)
            command.finish()
        finally:
            self._commands.end(command)

    async def _carry_out(self, command: PendingCommand, record: Record) -> bool:
        """Carry a command out, forward it, or refuse it.

        False: its refusal waits for Kafka, or its partition is gone and the next owner reads it.
        """
        event: CommandReceived | CommandUnusable
        try:
            parsed = self._inbox.read(record)
        except CommandRefused as fault:
            flag_key = fault.flag_key
            if self._runs_elsewhere(command, record, flag_key):
                # There is no command to forward.
                self._refusals.add(RefusedCommand(command, record, fault))
                return False
            # The flag's worker answers, and stores the answer: a repeat gets the same.
            event = unusable(fault)
        except BadInput as fault:
            self._refusals.add(RefusedCommand(command, record, fault))
            return False
        else:
            flag_key = parsed.flag_key
            if self._runs_elsewhere(command, record, flag_key):
                await self._inbox.forward(parsed)
                return True
            is_backlog = record.offset < command.partition.end or command.hops > 0
            event = replace(parsed.event, is_backlog=is_backlog)
        return await self._submit(command, record, flag_key, event)

    def _runs_elsewhere(self, command: PendingCommand, record: Record, flag_key: str) -> bool:
        """Return whether another partition's owner runs the flag.

        Kcat and others partition keys in their own way, and topics grow. A command that was
        forwarded once is not forwarded again: its reader carries it out. Two workers of one flag
        are safe, and a command that goes round in circles is not.
        """
        return command.hops == 0 and self._topic.home_of(flag_key) != record.partition

    async def _submit(
        self,
        command: PendingCommand,
        record: Record,
        flag_key: str,
        event: CommandReceived | CommandUnusable,
    ) -> bool:
        """Give a command to its flag's worker; return whether it was answered.

        A mistake of ours is tried again once, then the command is refused.
        """
        lowers = (
            isinstance(event, CommandReceived)
            and event.verb in ALWAYS_ACCEPTED
            and not command.why_not
        )
        failure, attempts = "", 0
        while attempts < ATTEMPTS:
            if command.partition.is_gone:
                return False  # not committed: the next owner reads it
            run = self._pool.start(flag_key)
            if run.standing_still and (attempts or not lowers):
                failure = run.standing_still  # for a command that lowers it is loaded once more
                break
            try:
                if command.why_not and isinstance(event, CommandReceived):
                    await run.worker.refuse(event, command.why_not)
                else:
                    await run.worker.submit(event)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                continue  # its worker was stopped: see who has the flag now
            except Exception as mistake:  # the worker reports it, and restarts
                attempts += 1
                failure = f"the controller failed on this command: {mistake!r}"
                self._logger.exception("command_failed", flag_key=flag_key, attempt=attempts)
            else:
                return True
        self._refuse_failed(command, record, flag_key, event, failure, lowers=lowers)
        return False

    def _refuse_failed(
        self,
        command: PendingCommand,
        record: Record,
        flag_key: str,
        event: CommandReceived | CommandUnusable,
        failure: str,
        *,
        lowers: bool,
    ) -> None:
        """Refuse a command that is correct, and that we cannot carry out."""
        self._faults.report(Scope.COMMAND, event.command_id, f"{flag_key}: {failure}")
        fault = CommandRefused(
            command_id=event.command_id,
            flag_key=flag_key,
            verb=event.verb,
            reason=failure,
            issuer=event.issuer,
        )
        refusal = RefusedCommand(command, record, fault)
        if lowers:
            self._refusals.add(refusal)
        else:
            command.record, command.refusal = None, refusal
