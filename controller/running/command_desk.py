"""Sends commands of people who are signed in: through Kafka, as `rolloutctl` does.

The result comes from Redis, so any replica can wait for it, whichever runs the flag. A command that
lowers goes past Kafka where Kafka does not take it.

Belongs here: how long is waited for what. Does not belong here: who may give a command
(`controller/web/commands.py`), and carrying one out past Kafka
(`deciding/commands/direct_commands.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

from controller.codec.command_records import read_command
from controller.codec.commands import command_event, result_in, to_command_received
from controller.core.effects import AnswerCommand
from controller.core.machine import decide
from controller.deciding.flag.command_answers import answer_keys, digest_of, read_answer
from controller.errors import (
    BadInput,
    DocumentUnreadable,
    EventLogUnavailable,
    OperatingTrouble,
    StoreUnavailable,
)
from controller.ports import OutboxEntry, Publisher, Rollouts, StoredRollout
from schemas.command import Command
from schemas.result import Result
from schemas.terms import ALWAYS_ACCEPTED, CommandStatus

CHECK_EVERY_SECONDS: Final = 0.05
#: Commands on their way at once.
MOST_OPEN: Final = 50
#: What people are told of a command without a result.
ON_ITS_WAY: Final = (
    "Kafka has the command, and it has no result yet: it is carried out once a replica reads it. "
    "The same command id gives its result."
)


class Direct(Protocol):
    """Carries out commands that lower, past Kafka."""

    async def carry_out(self, command: Command) -> Result | str:
        """Return the result, or what is known. Raises OperatingTrouble."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited, in seconds."""

    #: A healthy Kafka acknowledges in milliseconds. A command that lowers waits no longer for it.
    publish: float = 2.0
    #: A result takes some hundred milliseconds; then the person is told that it is on its way.
    result: float = 5.0
    #: A command that lowers has its result so soon, or goes past Kafka.
    lowering: float = 2.5
    #: Redis answers in milliseconds; a question beside the command waits no longer.
    question: float = 1.0


class CommandDesk:
    """Implements `controller.web.commands.Desk`."""

    def __init__(
        self,
        publisher: Publisher,
        rollouts: Rollouts,
        direct: Direct,
        patience: Patience = Patience(),  # frozen
    ) -> None:
        self._patience = patience
        self._publisher = publisher
        self._rollouts = rollouts
        self._direct = direct
        self._publishing: set[asyncio.Task[None]] = set()

    async def earlier(self, command: Command) -> Result | None:
        """Return the stored answer to exactly this command, None where none is known."""
        try:
            async with asyncio.timeout(self._patience.question):
                stored = await self._stored(command)
        except (StoreUnavailable, TimeoutError):
            return None
        return None if stored is None else result_in(stored)

    async def send(self, command: Command) -> Result | str:
        is_lowering = command.verb in ALWAYS_ACCEPTED
        if (why := _why_unusable(command)) is not None:
            # Dates of a plan may have passed since it was carried out.
            return await self.earlier(command) or await self._rejected(command, why)
        trouble = await self._publish(command)
        if trouble is None:
            seconds = self._patience.lowering if is_lowering else self._patience.result
            result = await self._result(command, seconds)
            if result is not None:
                return result
        if is_lowering:
            return await self._direct.carry_out(command)
        if trouble is not None:
            raise OperatingTrouble(
                f"Kafka did not confirm the command ({trouble}), and it can come only that way: "
                f"it may still be carried out. Look at the rollout, then repeat it; roll back, "
                f"abort and pause work without Kafka"
            )
        return await self._rejected_unknown(command) or ON_ITS_WAY

    async def _rejected(self, command: Command, why: str) -> Result:
        """Return the refusal of a command that was not sent."""
        stored = await self._loaded(command.flag)
        rollout = None if stored is None else stored.rollout
        return _refusal(command, why, 0 if rollout is None else rollout.revision)

    async def _rejected_unknown(self, command: Command) -> Result | None:
        """Return the refusal of a command whose flag does not exist, None where it may yet come.

        Its answer is stored nowhere (`deciding/commands/unknown_flags.py`), and follows from the
        command alone.
        """
        stored = await self._loaded(command.flag)
        if stored is None or stored.token or stored.rollout is not None:
            return None
        after, effects = decide(None, to_command_received(command), command.issued_at)
        if after is not None:
            return None
        why = next(effect.reason for effect in effects if isinstance(effect, AnswerCommand))
        return _refusal(command, why, 0)

    async def _loaded(self, flag_key: str) -> StoredRollout | None:
        """Return what is stored of a flag, None where Redis does not say it in time."""
        try:
            async with asyncio.timeout(self._patience.question):
                return await self._rollouts.load(flag_key)
        except (StoreUnavailable, TimeoutError):
            return None

    async def _publish(self, command: Command) -> str | None:
        """Publish a command; return why Kafka is not known to have it, None when it has.

        The publishing itself goes on: cutting it off would cost the decisions their connection.
        """
        if len(self._publishing) >= MOST_OPEN:
            return f"{MOST_OPEN} commands wait for Kafka already"
        entry = OutboxEntry(
            "",
            f"command/{command.flag}/{command.id}",
            "commands",
            command.flag,
            command_event(command),
        )
        task = asyncio.create_task(self._publisher.publish([entry]), name="publish command")
        self._publishing.add(task)
        task.add_done_callback(self._published)
        await asyncio.wait({task}, timeout=self._patience.publish)
        if not task.done():
            return f"no acknowledgement within {self._patience.publish:g} s"
        if task.cancelled():
            return "this replica is stopping"
        failure = task.exception()
        if failure is None:
            return None
        if isinstance(failure, EventLogUnavailable):
            return str(failure)
        raise failure

    def _published(self, task: asyncio.Task[None]) -> None:
        self._publishing.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it has it; nobody may

    async def _result(self, command: Command, seconds: float) -> Result | None:
        """Return a command's result as soon as it is stored; None where it is not in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline:
            try:
                async with asyncio.timeout_at(deadline):
                    stored = await self._stored(command)
            except (StoreUnavailable, TimeoutError):
                stored = None
            if stored is not None:
                return result_in(stored)
            await asyncio.sleep(CHECK_EVERY_SECONDS)
        return None

    async def _stored(self, command: Command) -> bytes | None:
        """Return the stored answer to exactly this command, None while there is none."""
        event = to_command_received(command)
        second, first = answer_keys(event)
        answer = await self._rollouts.answer_to(command.flag, second)
        if answer is not None:
            return answer
        answer = await self._rollouts.answer_to(command.flag, first)
        if answer is None:
            return None
        earlier = read_answer(answer)
        if earlier.is_of(event, digest_of(event)):
            return answer
        if command.verb not in ALWAYS_ACCEPTED:
            return None
        # Each repeat over HTTP has a new time: its flag's worker gives the first answer again.
        try:
            rollout = (await self._rollouts.load(command.flag)).rollout
        except DocumentUnreadable:
            return None
        return answer if earlier.has_settled(event, rollout, command.issued_at) else None


def _why_unusable(command: Command) -> str | None:
    """Return why whoever reads this command would refuse it, None where its plan can be used.

    The reader's answer to a flag without a rollout is stored nowhere, so it is asked beforehand.
    """
    if command.plan is None:
        return None
    issued_ms = round(command.issued_at.timestamp() * 1000)
    try:
        read_command(command_event(command), (), command.flag.encode(), issued_ms)
    except BadInput as fault:
        return str(fault)
    return None


def _refusal(command: Command, why: str, revision: int) -> Result:
    return Result(
        command_id=command.id,
        flag=command.flag,
        verb=command.verb,
        status=CommandStatus.REJECTED,
        reason=why,
        revision=revision,
        at=command.issued_at,
        issuer=command.issuer,
    )
