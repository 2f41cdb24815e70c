"""Gives commands through Kafka, and those that lower to a daemon over HTTP while Kafka is away.

The same command, with the same id and time, may go both ways: a flag's worker carries an id out
once.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from pydantic import ValidationError

from controller.cli.common import is_advised
from controller.cli.daemon_http import trusted
from controller.cli.operator_client import CommandResults, send_commands
from controller.cli.rendering import dashed
from controller.errors import EventLogUnavailable
from controller.settings import KafkaSettings
from controller.text import file_trouble, one_line
from schemas.command import Command
from schemas.result import Result
from schemas.terms import ALWAYS_ACCEPTED

if TYPE_CHECKING:
    import ssl

    import httpx

DAEMON_VARIABLE: Final = "ROLLOUTCTL_DAEMON"
TOKEN_VARIABLE: Final = "ROLLOUTCTL_TOKEN_FILE"  # noqa: S105  # a variable's name
#: A replica answers within 3 s, also while Redis is away.
DEADLINE_SECONDS: Final = 8.0
#: Of a whole answer, which is short.
TOTAL_SECONDS: Final = 12.0
MAX_BYTES: Final = 100_000
_PREPARED: Final = (
    "for a replica that has this token in its http.command_token_file (without that setting it "
    "takes no commands, and it reads it at its start only),"
)


@dataclass(frozen=True, slots=True)
class DaemonAddress:
    """A daemon that takes commands which lower, and the token that it wants."""

    url: str
    token: str
    verify: ssl.SSLContext | bool = True  # what its certificate is checked with


def known_daemon() -> tuple[DaemonAddress | None, str]:
    """Return the daemon that the environment names, or None and what is missing."""
    url, path = os.environ.get(DAEMON_VARIABLE), os.environ.get(TOKEN_VARIABLE)
    if not url or not path:
        names = [
            name for name, value in ((DAEMON_VARIABLE, url), (TOKEN_VARIABLE, path)) if not value
        ]
        return None, f"set {' and '.join(names)}, {_PREPARED}"
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        why = f"{path}: {file_trouble(error)}"
        return None, f"let {TOKEN_VARIABLE} name a readable file ({why}), {_PREPARED}"
    if not lines or not lines[0].isascii():
        return None, f"write a token into {path} ({TOKEN_VARIABLE}), {_PREPARED}"
    verify, why = trusted()
    return (None, why) if why else (DaemonAddress(url.rstrip("/"), lines[0], verify), "")


async def deliver(
    commands: Sequence[Command],
    kafka: KafkaSettings,
    seconds: float,
    *,
    with_state: bool = False,
    on_waiting: Callable[[], None] | None = None,
) -> CommandResults:
    """Give commands, and return the results that come within `seconds`.

    `on_waiting` is called once where sent commands have no result for some seconds.
    Commands that lower and get no result from Kafka go to the daemon over HTTP. Raises
    EventLogUnavailable, with what to do next, when Kafka was not reached and no daemon took them.
    """
    daemon, missing = known_daemon() if _are_lowering(commands) else (None, "")
    try:
        answers = await send_commands(
            commands,
            kafka,
            seconds,
            with_state=with_state,
            gives_up_early=daemon is not None,
            on_waiting=on_waiting,
        )
    except EventLogUnavailable as trouble:
        if daemon is None:
            raise EventLogUnavailable(_advised(str(trouble), commands, missing)) from trouble
        answers = CommandResults(error=str(trouble))
        await _ask(daemon, commands, answers)
        if not answers.results and not answers.is_pending:
            why = f"{trouble}\n{answers.detour}"
            raise EventLogUnavailable(_advised(why, commands, "")) from trouble
        return answers
    unanswered = [command for command in commands if command.id not in answers.results]
    if daemon is not None and unanswered:
        await _ask(daemon, unanswered, answers)
    return answers


def _advised(trouble: str, commands: Sequence[Command], missing: str) -> str:
    """Return a trouble with Kafka and what to do next, which is said once: a trouble may say it."""
    advice = _advice(commands, missing)
    if not is_advised(trouble):
        address = "; or correct Kafka's address (--bootstrap-servers, --config), and repeat"
        return f"{trouble}\nnext: {advice}{address if missing else ''}"
    return f"{trouble}\nor {advice}" if _are_lowering(commands) else f"{trouble}, then repeat"


def _are_lowering(commands: Sequence[Command]) -> bool:
    return all(command.verb in ALWAYS_ACCEPTED for command in commands)


def _advice(commands: Sequence[Command], missing: str) -> str:
    """Return what to do while Kafka is away, in one sentence."""
    if not _are_lowering(commands):
        return (
            "restore Kafka or fix its address (--bootstrap-servers, --config), then repeat; "
            "`rolloutctl doctor` asks a replica without Kafka; while Kafka is away only rollback, "
            "abort, kill and pause can be given, over HTTP"
        )
    if missing:
        return (
            f"to send {dashed(commands[0].verb)} without Kafka, {missing} and repeat (see "
            f"ops/operating.md), or lower the flag in its flag plane"
        )
    return "try another replica's address in ROLLOUTCTL_DAEMON, or lower the flag in its flag plane"


async def _ask(daemon: DaemonAddress, commands: Sequence[Command], answers: CommandResults) -> None:
    """Give commands to a daemon, and note what came of it in `answers`."""
    import httpx  # slow to load, and needed only here

    async with httpx.AsyncClient(
        timeout=DEADLINE_SECONDS,
        trust_env=False,
        verify=daemon.verify,
        headers={"authorization": f"Bearer {daemon.token}"},
    ) as client:
        asked = await asyncio.gather(*(_ask_one(client, daemon, command) for command in commands))
    notes: list[str] = []
    for command, (result, is_pending, note) in zip(commands, asked, strict=True):
        if result is not None:
            answers.results[command.id] = result
        answers.is_pending = answers.is_pending or is_pending
        if note not in notes:
            notes.append(note)
    answers.detour = "\n".join(notes)


async def _ask_one(
    client: httpx.AsyncClient, daemon: DaemonAddress, command: Command
) -> tuple[Result | None, bool, str]:
    """Return the result of one command, whether it waits for Redis, and a note for people."""
    import httpx

    flag = quote(command.flag, safe="")
    address = f"{daemon.url}/rollouts/{flag}/{command.verb.value.replace('_', '-')}"
    body = {
        "id": command.id,
        "issuer": command.issuer,
        "reason": command.reason,
        "issued_at": command.issued_at.isoformat(),
    }
    try:
        async with (
            asyncio.timeout(TOTAL_SECONDS),
            client.stream("POST", address, json=body) as answer,
        ):
            content = b""
            async for chunk in answer.aiter_raw():
                content += chunk
                if len(content) > MAX_BYTES:
                    return None, False, f"{daemon.url} answers more than {MAX_BYTES} bytes"
        document = json.loads(content)
        if answer.status_code in (200, 409):
            result = Result.model_validate(document)
            return result, False, f"Kafka gave no result: {daemon.url} was asked over HTTP"
        if answer.status_code == 202:
            return None, True, f"{daemon.url}: {one_line(str(document['reason']))}"
        return None, False, _refusal(daemon, answer.status_code, document)
    except TimeoutError:
        why = f"no complete answer within {TOTAL_SECONDS:g} s; it may have done it all the same"
        return None, False, f"{daemon.url} gave {why}"
    except (httpx.HTTPError, httpx.InvalidURL) as trouble:
        why = str(trouble) or type(trouble).__name__
        return None, False, f"{daemon.url} cannot be reached either: {why}"
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        return None, False, f"{daemon.url} does not answer as rolloutd does"


def _refusal(daemon: DaemonAddress, status: int, document: object) -> str:
    """Return why a daemon took no command, and how to fix it."""
    why = one_line(str(document.get("error"))) if isinstance(document, dict) else ""
    if status in (404, 405):
        return (
            f"{daemon.url} takes no commands over HTTP: it needs http.command_token_file, then a "
            f"restart"
        )
    if status == 401:
        return (
            f"{daemon.url} refuses the token of {TOKEN_VARIABLE}: it has to be that of its "
            f"http.command_token_file (tokens of sign_in.access_file are for POST /api/v1)"
        )
    return f"{daemon.url} answered {status}: {why}"
