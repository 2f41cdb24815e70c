"""Commands of people and machines who are signed in: who may give which, and what one needs.

Belongs here: the checks before a command is sent, for the API and for the page alike, and the
API's endpoint. Does not belong here: sending it (`running/command_desk.py`), and whether it fits
the rollout, which the state machine says.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec
import structlog
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from controller.core.machine.commands import RAISING
from controller.errors import OperatingTrouble
from controller.settings.access_file import Role
from controller.text import describe_faults
from controller.web.access.identity import Identity, IdentityRefused
from controller.web.access.reading import CHALLENGE, identity_of
from controller.web.access.recognition import Guardian
from controller.web.access.roles import needed
from controller.web.answers import CLOSE, BodyRefused, header, read_json_body, send_error, send_json
from controller.web.clients import RateLimit, client_of
from controller.web.flags import FlagBoard
from schemas.api import CommandPending, CommandRequest
from schemas.command import Command
from schemas.result import Result
from schemas.terms import ALWAYS_ACCEPTED, CommandStatus, CommandVerb, verb_named

#: A plan with all its stages is far smaller; everything else is a few words.
MAX_COMMAND_BYTES: Final = 300 * 1024
#: Commands of one person or machine, with a burst of ten seconds' worth.
PER_SECOND: Final = 2.0
#: Commands that lower have a limit of their own, which no other command uses up: as many as
#: `steering.py` takes.
LOWERING_PER_SECOND: Final = 5.0
BURST_SECONDS: Final = 10.0
FORM_TOKEN: Final = b"x-rolloutd-form"
_FIELDS: Final = frozenset(CommandRequest.model_fields)

log = structlog.get_logger(__name__)


class Desk(Protocol):
    """Sends commands as `rolloutctl` does: `running/command_desk.py`."""

    async def send(self, command: Command) -> Result | str:
        """Send a command; return its result within some seconds.

        A text in place of a result says what is known where it was sent and has none yet. Raises
        OperatingTrouble where it is not known to be sent, with what to do.
        """

    async def earlier(self, command: Command) -> Result | None:
        """Return the stored answer to exactly this command, None where none is known."""


class NotTaken(Exception):
    """A command that was not sent: the status of the answer, why, and more headers."""

    def __init__(self, status: int, why: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers


class PerhapsTaken(NotTaken):
    """A command that may have been sent, and may still be carried out."""


class Commands:
    """Checks commands and gives them to the desk."""

    def __init__(
        self, guardian: Guardian, desk: Desk, board: FlagBoard, now: Callable[[], datetime]
    ) -> None:
        self.guardian = guardian
        self._desk = desk
        self._board = board
        self._now = now
        self._limit = RateLimit(PER_SECOND, burst_seconds=BURST_SECONDS)
        self._lowering = RateLimit(LOWERING_PER_SECOND, burst_seconds=BURST_SECONDS)

    def role(self, who: Identity | None, flag_key: str) -> Role | None:
        """Return somebody's role for a flag, None for none."""
        return None if who is None else self.guardian.access.role(who, flag_key)

    def why_not_allowed(self, who: Identity | None, verb: CommandVerb, flag_key: str) -> str | None:
        """Return why somebody may not give a command, None where they may."""
        if who is None:
            return "sign in first: commands are given in somebody's name"
        role, least = self.role(who, flag_key), needed(verb)
        if role is not None and role >= least:
            return None
        has = "no role" if role is None else f"the role {role.word}"
        return f"{_words(verb)} needs the role {least.word}: {who.name} has {has} for {flag_key}"

    def command(self, who: Identity, flag_key: str, fields: Mapping[str, Any]) -> Command:
        """Return somebody's command. Raises NotTaken where it may not be sent."""
        verb = verb_named(fields.get("verb"))
        if verb is None:
            raise NotTaken(400, f"verb is one of {', '.join(verb.value for verb in CommandVerb)}")
        if (why := self.why_not_allowed(who, verb, flag_key)) is not None:
            raise NotTaken(403, why)
        self._check_revision(flag_key, verb, fields.get("expected_revision"))
        document = {
            **fields,
            "id": fields.get("id") or uuid.uuid4().hex,
            "flag": flag_key,
            "verb": verb.value,
            "issuer": who.name,
            "issued_at": self._now().isoformat(),
        }
        try:
            return Command.model_validate_json(msgspec.json.encode(document))
        except RecursionError:
            raise NotTaken(400, "the command is nested too deeply") from None
        except ValidationError as error:
            raise NotTaken(400, describe_faults(error)) from None

    def _check_revision(self, flag_key: str, verb: CommandVerb, expected: object) -> None:
        """Raise NotTaken where it is not said which revision was seen."""
        rollout = self._board.rollout(flag_key)
        if verb is CommandVerb.START or rollout is None:
            return
        if verb in RAISING and expected is None:
            raise NotTaken(
                400,
                f"{_words(verb)} needs expected_revision, the revision that you have seen: it is "
                f"{rollout.revision} now",
            )

    async def give(self, command: Command, client: str) -> Result | str:
        """Send a command; return its result, or what is known of it. Raises NotTaken."""
        limit = self._lowering if command.verb in ALWAYS_ACCEPTED else self._limit
        if seconds := limit.seconds_to_wait(command.issuer):
            wait = (b"retry-after", str(max(1, math.ceil(seconds))).encode())
            raise NotTaken(429, f"too many commands of {command.issuer}: wait some seconds", wait)
        if command.verb is not CommandVerb.START and self._board.rollout(command.flag) is None:
            return await self._answer_without_rollout(command)
        try:
            answer = await self._desk.send(command)
        except OperatingTrouble as trouble:
            log.warning("command_not_sent", **_logged(command, client), error=str(trouble))
            raise PerhapsTaken(503, str(trouble)) from trouble
        status = "pending" if isinstance(answer, str) else answer.status.value
        log.info("command_given", **_logged(command, client), status=status)
        return answer

    async def _answer_without_rollout(self, command: Command) -> Result:
        """Return the answer that a repeat gets once its flag is retired. Raises NotTaken."""
        if (answer := await self._desk.earlier(command)) is not None:
            return answer
        if (why := self._board.why_nothing_known) is not None:
            raise NotTaken(503, why)
        raise NotTaken(404, "no rollout has this flag key: nothing was sent")


def _words(verb: CommandVerb) -> str:
    return verb.value.replace("_", " ")


def _logged(command: Command, client: str) -> dict[str, str]:
    return {
        "flag_key": command.flag,
        "command_id": command.id,
        "verb": command.verb.value,
        "issuer": command.issuer,
        "client": client,
    }


class TakeCommand:
    """POST /api/v1/rollouts/{flag}/commands: gives a command in the name of who is signed in."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the command's result; 202 where there is none yet."""
        who, flag_key = identity_of(scope), scope["path_params"]["flag_key"]
        if who is None:
            why = "commands are given in somebody's name: send `Authorization: Bearer TOKEN`"
            await send_error(send, 401, why, CHALLENGE, CLOSE)
            return
        try:
            token = header(scope, FORM_TOKEN)
            self._commands.guardian.check_form(scope, who, token)
            fields = await _fields(scope, receive)
            command = self._commands.command(who, flag_key, fields)
            answer = await self._commands.give(command, client_of(scope["client"]))
        except NotTaken as refused:
            await send_error(send, refused.status, str(refused), CLOSE, *refused.headers)
        except (BodyRefused, IdentityRefused) as refused:
            await send_error(send, refused.status, str(refused), CLOSE)
        else:
            await _send_answer(send, command, answer)


async def _send_answer(send: Send, command: Command, answer: Result | str) -> None:
    if isinstance(answer, str):
        pending = CommandPending(
            command_id=command.id, flag=command.flag, verb=command.verb, reason=answer
        )
        await send_json(send, 202, pending.model_dump_json().encode())
        return
    status = 200 if answer.status is CommandStatus.ACCEPTED else 409
    await send_json(send, status, answer.model_dump_json().encode())


async def _fields(scope: Scope, receive: Receive) -> dict[str, Any]:
    """Return the fields of a request. Raises NotTaken and BodyRefused."""
    body = await read_json_body(scope, receive, MAX_COMMAND_BYTES)
    try:
        decoded = msgspec.json.decode(body)
    except RecursionError:
        raise NotTaken(400, "the body is nested too deeply") from None
    except ValueError as error:  # also text that is not UTF-8
        raise NotTaken(400, f"the body is no JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise NotTaken(400, "the body is a JSON object")
    if unknown := sorted(decoded.keys() - _FIELDS):
        names = ", ".join(sorted(_FIELDS))
        raise NotTaken(400, f"the body has {', '.join(unknown)[:200]}: there are {names}")
    return decoded
