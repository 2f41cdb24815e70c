"""Commands: as they are published, as the core's event, and at a glance.

Also the result of one, as its answer is stored. Reading a record in full, with its defaults and
refusals, is `command_records.py`.
"""

from __future__ import annotations

import json
from typing import Final

import msgspec

from controller.codec.cloud_events import with_extension, write_event
from controller.codec.plans import to_core_plan
from controller.core.events import CommandReceived
from schemas.command import TYPE, Command
from schemas.envelope import MAX_BYTES
from schemas.result import Result
from schemas.terms import NAME, CommandVerb, verb_named

#: CloudEvents extension of a command that was published again, for its flag's own partition: how
#: often it was.
HOPS: Final = "rolloutdhops"


def command_event(command: Command, *, hops: int = 0) -> bytes:
    """Return the command as the CloudEvent that publishes it.

    The event has the command's own id and time, so that a copy is recognized as one.
    """
    value = write_event(TYPE, command.id, command.flag, command.issued_at, command)
    return with_extension(value, HOPS, str(hops)) if hops else value


def result_in(answer: bytes) -> Result | None:
    """Return the result that a stored answer holds, None for one that is damaged."""
    try:
        return Result.model_validate(json.loads(answer)["data"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def to_command_received(command: Command) -> CommandReceived:
    """Return the command as the core's event."""
    return CommandReceived(
        command_id=command.id,
        verb=command.verb,
        issuer=command.issuer,
        reason=command.reason,
        issued_at=command.issued_at,
        expected_revision=command.expected_revision,
        plan=to_core_plan(command.plan) if command.plan else None,
        to_stage=command.to_stage,
    )


class _PeekedData(msgspec.Struct):
    flag: str | None = None
    verb: str | None = None


class _PeekedEvent(msgspec.Struct):
    flag: str | None = None
    verb: str | None = None
    data: _PeekedData | None = None
    specversion: str | None = None
    rolloutdhops: str | int | None = None


_peek = msgspec.json.Decoder(_PeekedEvent).decode


def peek_command(
    value: bytes | None, key: bytes | None
) -> tuple[str, CommandVerb | None, int] | None:
    """Return (flag, verb, hops) of a command without reading all of it; None if that is needed.

    It costs a hundredth of `read_command` and is only a hint: it decides which command goes first,
    not what is done. The verb is None when this release does not know it.
    """
    if value is None or len(value) > MAX_BYTES:
        return None
    try:
        event = _peek(value)
        flag_key, verb = event.flag, event.verb
        if event.specversion is not None and event.data is not None:
            flag_key, verb = event.data.flag, event.data.verb
        if flag_key is None and key is not None:
            flag_key = key.decode()
        hops = int(event.rolloutdhops or 0)
    except (ValueError, RecursionError):  # reading all of it says what is wrong
        return None
    if flag_key is None or not NAME.match(flag_key):
        return None
    return flag_key, verb_named(verb), hops
