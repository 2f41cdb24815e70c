"""POST /rollouts/{flag}/roll-back, abort, kill and pause: lowering a flag when Kafka is away.

Belongs here: who may ask, what a request says, and how often. Does not belong here: carrying a
command out (`controller/deciding/commands/direct_commands.py`). Nothing that could raise a
percentage has a route.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec
import structlog
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from controller.errors import OperatingTrouble
from controller.text import describe_faults
from controller.web.access.reading import CHALLENGE
from controller.web.answers import CLOSE, BodyRefused, header, read_body, send_error, send_json
from controller.web.clients import RateLimit, client_of
from schemas.command import Command
from schemas.result import Result
from schemas.terms import CommandStatus, CommandVerb

#: The last part of the path, and what it commands.
VERBS: Final[Mapping[str, CommandVerb]] = {
    "roll-back": CommandVerb.ROLL_BACK,
    "rollback": CommandVerb.ROLL_BACK,
    "abort": CommandVerb.ABORT,
    "kill": CommandVerb.ROLL_BACK,
    "pause": CommandVerb.PAUSE,
}
#: What each command does, for the index of paths.
_PURPOSES: Final[Mapping[CommandVerb, str]] = {
    CommandVerb.ROLL_BACK: "serves 0 % and ends the rollout, because of a fault",
    CommandVerb.ABORT: "serves 0 % and ends the rollout, because somebody decided so",
    CommandVerb.PAUSE: "stops the rollout where it is",
}
#: What a reason, an issuer, an id and a time need.
MAX_LOWERING_BYTES: Final = 8 * 1024
#: Commands with a token, of all clients together, with a burst of ten seconds' worth: more than
#: people and their scripts send in an emergency, and less than Redis notices.
PER_SECOND: Final = 5.0
BURST_SECONDS: Final = 10.0
#: Requests without a token, of one client: more are answered 429, and not logged.
REFUSED_PER_SECOND: Final = 1.0
_FIELDS: Final = frozenset({"reason", "issuer", "id", "issued_at"})

log = structlog.get_logger(__name__)


class Steering(Protocol):
    """Takes commands that lower, past Kafka: `deciding/commands/direct_commands.py`."""

    async def carry_out(self, command: Command) -> Result | str:
        """Carry out a command that lowers or pauses; return within some seconds.

        Returns its result; for a command that waits for Redis, a text that says what that means.
        Raises OperatingTrouble when it was not taken, and nothing was done.
        """


class Tokens:
    """The tokens that are accepted, as digests."""

    def __init__(self, lines: str) -> None:
        """`lines` has one token per line."""
        self._digests = [_digest(line.encode()) for line in lines.splitlines()]

    def accept(self, authorization: str) -> bool:
        """Return whether an Authorization header has one of the tokens.

        It takes equally long for every wrong token: digests of one length are compared, and all of
        them.
        """
        scheme, _, token = authorization.partition(" ")
        given = _digest(token.strip().encode("latin-1", errors="replace"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class RequestUnusable(Exception):
    """The body is no command; the text says why."""


class Steer:
    """Takes commands for all routes, under limits that they share."""

    def __init__(self, steering: Steering, tokens: Tokens) -> None:
        self._steering = steering
        self._tokens = tokens
        self._limit = RateLimit(PER_SECOND, burst_seconds=BURST_SECONDS)
        self._refused = RateLimit(REFUSED_PER_SECOND, burst_seconds=5.0)

    def of(self, name: str) -> ASGIApp:
        """Return the endpoint of one command, a key of `VERBS`."""
        return _Endpoint(self, name)

    async def handle(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        client = client_of(scope["client"])
        if not self._tokens.accept(header(scope, b"authorization")):
            # A wrong token costs its sender alone: nobody can lock out who has the right one.
            if seconds := self._refused.seconds_to_wait(client):
                await send_error(send, 429, "too many requests without a token", _retry(seconds))
                return
            log.warning("steering_refused", client=client, verb=name)
            why = "this needs `Authorization: Bearer TOKEN`, see http.command_token_file"
            await send_error(send, 401, why, CHALLENGE, CLOSE)
            return
        if seconds := self._limit.seconds_to_wait(""):
            await send_error(send, 429, "too many commands over HTTP", _retry(seconds), CLOSE)
            return
        try:
            body = await read_body(receive, MAX_LOWERING_BYTES)
            command = _command(name, scope["path_params"]["flag_key"], body, client)
        except BodyRefused as refusal:
            await send_error(send, refusal.status, str(refusal), CLOSE)
            return
        except RequestUnusable as fault:
            await send_error(send, 400, str(fault))
            return
        await self._carry_out(command, send)

    async def _carry_out(self, command: Command, send: Send) -> None:
        try:
            answer = await self._steering.carry_out(command)
        except OperatingTrouble as trouble:
            why = f"nothing was done: {trouble}; lower the flag in its flag planes meanwhile"
            await send_error(send, 503, why, _retry(1))
            return
        if isinstance(answer, str):
            pending = {
                "command_id": command.id,
                "flag": command.flag,
                "verb": command.verb.value,
                "status": "pending",
                "reason": answer,
            }
            await send_json(send, 202, msgspec.json.encode(pending))
            return
        status = 200 if answer.status is CommandStatus.ACCEPTED else 409
        await send_json(send, status, answer.model_dump_json().encode())


class _Endpoint:
    """One route: a class, because Starlette wraps functions and passes ASGI applications on."""

    def __init__(self, steer: Steer, name: str) -> None:
        self.purpose = f"{_PURPOSES[VERBS[name]]}; needs a token (http.command_token_file)."
        self._steer = steer
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._steer.handle(self._name, scope, receive, send)


def _command(name: str, flag_key: str, body: bytes, client: str) -> Command:
    """Return the command in a request. Raises RequestUnusable."""
    fields: dict[str, Any] = {}
    if body.strip():
        try:
            decoded = msgspec.json.decode(body)
        except RecursionError:
            raise RequestUnusable("the body is nested too deeply") from None
        except ValueError as error:  # also text that is not UTF-8
            raise RequestUnusable(f"the body is no JSON: {error}") from None
        if not isinstance(decoded, dict) or not decoded.keys() <= _FIELDS:
            names = ", ".join(sorted(_FIELDS))
            raise RequestUnusable(f"the body is a JSON object with any of {names}")
        fields = decoded
    default_reason = "kill switch" if name == "kill" else "by HTTP"
    try:
        return Command.model_validate_json(
            msgspec.json.encode(
                {
                    "id": fields.get("id") or uuid.uuid4().hex,
                    "flag": flag_key,
                    "verb": VERBS[name].value,
                    "issuer": fields.get("issuer") or f"http:{client or 'unknown'}",
                    "reason": fields.get("reason") or default_reason,
                    "issued_at": fields.get("issued_at") or datetime.now(UTC).isoformat(),
                }
            )
        )
    except RecursionError:
        raise RequestUnusable("the body is nested too deeply") from None
    except ValidationError as error:
        raise RequestUnusable(describe_faults(error)) from None


def _retry(seconds: float) -> tuple[bytes, bytes]:
    return b"retry-after", str(max(1, round(seconds))).encode()
