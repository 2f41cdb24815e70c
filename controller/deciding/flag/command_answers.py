"""Binds the id of a command to what the command requests, so that a repeat gets the same answer.

An id that comes a second time with another request was used twice by mistake, and is refused. A
command that lowers is carried out all the same, under an event id of its own: a script that rolls
back under one id in every rollout must not get the "accepted" of an earlier rollout. Where it would
change nothing, because its id has brought that about in this rollout already, it is a repeat: it
gets the first answer, whatever time it gives. Over HTTP each repeat has a new time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

import structlog

from controller.codec.commands import to_command_received
from controller.core.effects import AnswerCommand
from controller.core.events import CommandReceived, CommandUnusable
from controller.core.machine import decide
from controller.core.rollout import Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.outbox import Outbox
from controller.deciding.flag.store_trouble import StoreTrouble
from controller.errors import CommandRefused
from controller.ports import OutboxEntry
from schemas.terms import ALWAYS_ACCEPTED, CommandStatus

#: Digits of a digest that distinguish two uses of one id.
SHORT_DIGEST = 16

Command = CommandReceived | CommandUnusable


@dataclass(frozen=True, slots=True)
class Binding:
    """What a command's answer is bound to, besides its id."""

    digest: str  # of what the command requests
    event: str = (
        ""  # id of the result's event; empty: the command's own id, used for the first time
    )
    refusal: str = ""  # why the command is not carried out; empty: it is


@dataclass(frozen=True, slots=True)
class EarlierUse:
    """What an id was used for."""

    digest: str  # empty: answered by a release that stored none
    verb: str | None
    at: str
    is_accepted: bool = False

    def is_of(self, command: Command, digest: str) -> bool:
        """Return whether `command` is the one that was answered."""
        if self.digest:
            return self.digest == digest
        if self.verb is not None and self.verb != command.verb:
            return False
        if isinstance(command, CommandUnusable) or command.verb not in ALWAYS_ACCEPTED:
            return True
        try:
            return command.issued_at <= datetime.fromisoformat(self.at)
        except ValueError:
            return True

    def has_settled(self, command: Command, rollout: Rollout | None, now: datetime) -> bool:
        """Return whether a command that lowers asks for what this use of its id has brought about.

        Only of the present rollout: an earlier one's answer says nothing about this one.
        """
        if isinstance(command, CommandUnusable) or command.verb not in ALWAYS_ACCEPTED:
            return False
        if rollout is None or not self.is_accepted or self.verb != command.verb:
            return False
        try:
            is_of_this_rollout = datetime.fromisoformat(self.at) >= rollout.started_at
        except ValueError:
            return False
        return is_of_this_rollout and decide(rollout, command, now).after is rollout


class CommandAnswers:
    """Finds earlier answers of one flag, and gives them again."""

    def __init__(
        self,
        flag_key: str,
        dependencies: WorkerDependencies,
        outbox: Outbox,
        store: StoreTrouble,
    ) -> None:
        self._flag_key = flag_key
        self._dependencies = dependencies
        self._now = dependencies.clock.now
        self._outbox = outbox
        self._store = store
        self._logger = structlog.get_logger().bind(flag_key=flag_key)

    async def bind(self, command: Command, rollout: Rollout | None) -> Binding | None:
        """Return what the command's answer is bound to; `rollout` is the present one.

        None when exactly this command was answered before. It then gets that answer again.
        """
        digest = digest_of(command)
        first = await self._stored(command.command_id)
        if first is None:
            return Binding(digest)
        earlier = read_answer(first)
        if earlier.is_of(command, digest):
            self._repeat(command, first, command.command_id)
            return None
        if earlier.has_settled(command, rollout, self._now()):
            self._repeat(command, first, command.command_id)
            return None
        event = f"{command.command_id}/{digest[:SHORT_DIGEST]}"
        second = await self._stored(_second_key(command.command_id, digest))
        if second is not None:
            self._repeat(command, second, event)
            return None
        self._logger.warning(
            "command_id_used_twice", command_id=command.command_id, verb=command.verb
        )
        if isinstance(command, CommandReceived) and command.verb in ALWAYS_ACCEPTED:
            return Binding(digest, event)
        verb = earlier.verb or "another command"
        return Binding(digest, event, f"this id was used for {verb} at {earlier.at}: use a new id")

    async def _stored(self, key: str) -> bytes | None:
        return await self._store.until_done(
            lambda: self._dependencies.rollouts.answer_to(self._flag_key, key)
        )

    def _repeat(self, command: Command, answer: bytes, event: str) -> None:
        """Publish the answer that a repeated command got the first time."""
        self._logger.info("command_repeated", command_id=command.command_id)
        effect_id = f"{self._flag_key}/{event}"
        self._outbox.add([OutboxEntry("", effect_id, "results", self._flag_key, answer)])


def digest_of(command: Command) -> str:
    """Return 32 hex digits over everything that a command requests.

    The time of issue is left out, so that a repeat for want of an answer gets the answer. It counts
    for a command that lowers: a repeat is harmless there, and a command that is not carried out is
    not.
    """
    if isinstance(command, CommandUnusable) and command.digest:
        return command.digest
    request: list[object] = [command.verb]
    if isinstance(command, CommandUnusable):
        request += ["unusable", command.why]
    else:
        plan = None if command.plan is None else command.plan.version
        request += [command.issuer, command.reason, command.expected_revision, plan]
        if command.to_stage is not None:
            request.append(command.to_stage)
        if command.verb in ALWAYS_ACCEPTED:
            request.append(command.issued_at.timestamp())
    return hashlib.sha256(json.dumps(request).encode()).hexdigest()[:32]


def unusable(fault: CommandRefused) -> CommandUnusable:
    """Return a refused command as the core's event.

    It has the digest of what it requests wherever that can be told, so that its sender, who knows
    nothing else, finds the answer.
    """
    digest = ""
    if fault.command is not None:
        try:
            digest = digest_of(to_command_received(fault.command))
        except (ValueError, ArithmeticError, LookupError):
            digest = ""  # a plan that cannot be converted has no version
    return CommandUnusable(fault.command_id, fault.verb, fault.reason, digest, fault.issuer)


def read_answer(answer: bytes) -> EarlierUse:
    """Return what a stored result says about the command that it answered."""
    try:
        event = json.loads(answer)
        data = event["data"]
        return EarlierUse(
            event.get("rolloutddigest", ""),
            data.get("verb"),
            data.get("at", ""),
            data.get("status") == CommandStatus.ACCEPTED,
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return EarlierUse("", None, "")  # damaged: it is given again as it is


def answer_key(answer: AnswerCommand) -> str:
    """Return the key by which an answer is stored."""
    if not answer.event:
        return answer.command_id
    return _second_key(answer.command_id, answer.digest)


def answer_keys(command: Command) -> tuple[str, str]:
    """Return the keys under which a command's answer may be stored, the more exact one first."""
    return _second_key(command.command_id, digest_of(command)), command.command_id


def _second_key(command_id: str, digest: str) -> str:
    """Return the key of the answer to a second use of an id; no id contains `#`."""
    return f"{command_id}#{digest[:SHORT_DIGEST]}"
