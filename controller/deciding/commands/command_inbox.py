"""The command topic, as seen by this replica: records are read, refused, forwarded.

Belongs here: what a record of the topic says, and what its sender gets to know. Does not belong
here: when a command is read and committed (`command_follower.py`), and what is done with it
(`command_handler.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from controller.codec.cloud_events import SOURCE
from controller.codec.command_records import read_command, refusal_by_mistake
from controller.codec.commands import command_event, peek_command, to_command_received
from controller.codec.outbox import outbox_entry
from controller.core.effects import AnswerCommand
from controller.core.events import CommandReceived
from controller.deciding.commands.passing_faults import PassingFaults
from controller.errors import (
    BadInput,
    CommandRefused,
    CommandUnreadable,
    EventLogUnavailable,
)
from controller.health import Scope
from controller.ports import Clock, EventLog, OutboxEntry, Publisher, Record, RefusedRecords
from controller.retrying import steady, until_done
from controller.telemetry import Metrics
from schemas import quarantine
from schemas.command import Command
from schemas.envelope import time_of
from schemas.terms import CommandStatus, CommandVerb, QuarantineReason
from schemas.wire import RecordRefused

#: A refused record of the command topic stays uncommitted for at most this long, until the
#: quarantine topic has it.
QUARANTINE_SECONDS = 5.0
#: Between tries while Kafka takes no answers.
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Peeked:
    """What is known of a command before it is read: enough to order commands."""

    flag_key: str
    verb: CommandVerb | None
    hops: int  # how often it was forwarded


@dataclass(frozen=True, slots=True)
class ParsedCommand:
    """A command as read from its record."""

    event: CommandReceived
    document: Command

    @property
    def flag_key(self) -> str:
        """The flag that the command is about."""
        return self.document.flag


class CommandInbox:
    """Reads the records of the command topic, and answers those that are not carried out."""

    def __init__(
        self,
        commands: EventLog,
        publisher: Publisher,
        refused_records: RefusedRecords,
        *,
        clock: Clock,
        metrics: Metrics,
        faults: PassingFaults,
        source: str = SOURCE,
    ) -> None:
        """`commands` is this replica's member of the group that decides."""
        self.commands = commands
        self._publisher = publisher
        self._refused_records = refused_records
        self._clock = clock
        self._metrics = metrics
        self._faults = faults
        self._source = source
        self._logger = structlog.get_logger()

    def peek(self, record: Record) -> Peeked | None:
        """Return flag, verb and hops of a record; None when only reading it can show them."""
        try:
            peeked = peek_command(record.value, record.key)
        except Exception as mistake:  # ours; reading the record in full says more
            self._logger.warning("command_not_peeked", offset=record.offset, error=repr(mistake))
            return None
        return None if peeked is None else Peeked(*peeked)

    def read(self, record: Record) -> ParsedCommand:
        """Return the command in a record.

        Raises CommandRefused when its sender can be answered, else CommandUnreadable. A mistake of
        ours in reading refuses this record alone.
        """
        now = self._clock.now()
        source = (record.value, record.headers, record.key, record.timestamp)
        try:
            command = read_command(*source, now)
            return ParsedCommand(to_command_received(command), command)
        except BadInput:
            raise
        except Exception as mistake:
            self._logger.exception(
                "command_not_read", partition=record.partition, offset=record.offset
            )
            name = f"{record.topic}/{record.partition}/{record.offset}"
            why = f"the controller failed on this command: {mistake!r}"
            self._faults.report(Scope.COMMAND, name, why)
            raise refusal_by_mistake(*source, mistake) from mistake

    async def forward(self, command: ParsedCommand) -> None:
        """Publish a command again, onto its flag's own partition, until Kafka has it.

        Its sender keys records in another way, or the topic has grown. The copy is marked, so that
        it is not forwarded a second time.
        """
        document = command.document
        value = command_event(document, hops=1)
        effect_id = f"{document.flag}/{document.id}/hop"
        await self._publish([OutboxEntry("", effect_id, "commands", document.flag, value)])

    async def refuse(self, refused: Sequence[tuple[Record, BadInput]]) -> None:
        """Answer commands that are not carried out; return when Kafka has the answers.

        A record that is no command goes to the quarantine topic, together with the refused events.
        While that topic is away the record is kept in memory: it must delay no other command.
        """
        answers = [
            self._answer(record, fault)
            for record, fault in refused
            if isinstance(fault, CommandRefused)
        ]
        unreadable: dict[tuple[str, int], list[quarantine.Refusal]] = {}
        for record, fault in refused:
            if not isinstance(fault, CommandRefused):
                refusal = self._refusal(record, fault)
                unreadable.setdefault((record.topic, record.partition), []).append(refusal)
        for (topic, partition), refusals in unreadable.items():
            self._refused_records.add(topic, partition, quarantine.written(refusals))
        if answers:
            await self._publish(answers)
        if unreadable:
            await self._refused_records.flushed(QUARANTINE_SECONDS)

    def _answer(self, record: Record, fault: CommandRefused) -> OutboxEntry:
        """Return the answer to a refused command, which is stored nowhere.

        It follows from the record alone: a record that is read again gets the same answer.
        """
        answer = AnswerCommand(
            fault.command_id,
            fault.verb,
            CommandStatus.REJECTED,
            fault.reason,
            0,
            issuer=fault.issuer,
        )
        at = time_of(record.timestamp)
        return outbox_entry(answer, fault.flag_key, None, fault.command_id, at, source=self._source)

    def _refusal(self, record: Record, fault: BadInput) -> quarantine.Refusal:
        reason = fault.reason if isinstance(fault, CommandUnreadable) else QuarantineReason.INVALID
        self._metrics.quarantined.of(reason).inc()
        unusable = RecordRefused(reason, str(fault), "see schemas/json/command.schema.json")
        return quarantine.refusal(record.offset, record.timestamp, record.value, unusable)

    async def _publish(self, entries: Sequence[OutboxEntry]) -> None:
        """Return once Kafka has the entries: what was read and not handled must not be lost."""
        await until_done(
            lambda: self._publisher.publish(entries),
            trouble=EventLogUnavailable,
            backoff=steady(RETRY_SECONDS),
            report=lambda trouble, _: self._logger.warning("refusal_waits", error=str(trouble)),
        )
