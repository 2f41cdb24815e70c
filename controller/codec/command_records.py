"""Command records: what a record may leave out, and which commands are refused.

The one way from a record of `rollout.commands` to a `Command`. Whatever the record holds, the
result is a command, CommandRefused (which can be answered) or CommandUnreadable.

| field | default in a CloudEvent | default in a bare JSON object |
|---|---|---|
| `flag` | the record's key | the record's key |
| `id` | the event's id | `record-` and a hash of the record: a replay has the same id |
| `issued_at` | the event's time | the record's timestamp |
| `issuer` | none | `unnamed`, for commands that always work |
"""

from __future__ import annotations

import difflib
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from controller.codec.commands import to_command_received
from controller.codec.plans import from_core_plan, to_core_plan
from controller.errors import CommandRefused, CommandUnreadable
from controller.plans import lint
from controller.text import describe_faults, excerpt, printable
from schemas.command import TYPE, Command, Issuer
from schemas.envelope import MAX_AHEAD_MS, Headers, check_time, check_value, parse_json
from schemas.envelope import read as read_envelope
from schemas.record_refused import RecordRefused, refuse
from schemas.terms import ALWAYS_ACCEPTED, NAME, CommandVerb, QuarantineReason, verb_named

_ISSUER: Final[TypeAdapter[str]] = TypeAdapter(Issuer)
#: Characters of a refusal that quotes from a command: enough for a handful of faults in its plan.
MAX_REASON_CHARS: Final = 2000
#: Refusal of a command that made our reader fail: a mistake of ours that no test has foreseen.
UNFORESEEN: Final = "this release cannot read it"
#: Bytes of a plan with its defaults, as every state record holds it. With as much again for visits
#: and reasons it fits into the least `kafka.max_record_bytes`.
MAX_PLAN_BYTES: Final = 262_144
#: As they are written in a record.
VERBS: Final = tuple(verb.value for verb in CommandVerb)
MAX_AHEAD: Final = timedelta(milliseconds=MAX_AHEAD_MS)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def read_command(
    value: bytes | None,
    headers: Headers,
    key: bytes | None,
    timestamp_ms: int,
    now: datetime | None = None,
) -> Command:
    """Return the command in one record of `rollout.commands`.

    Accepted are CloudEvents, structured and binary, and the bare JSON object that a person types
    into kcat. Fields that the record itself tells may be left out (see the module): at 3 a.m.
    `{"verb": "roll_back"}` with the flag as key is enough.

    `now` is the reader's clock, None for none. A command from the future is refused, because its
    age would never count. So is one from before 1970. A command that always works gets the record's
    time instead. Raises CommandRefused, with the reason, when the command can be answered, and
    CommandUnreadable for everything else; nothing else, whatever the record holds.
    """
    try:
        fields = _complete_fields(value, headers, key, timestamp_ms)
    except RecordRefused as refusal:
        raise CommandUnreadable(refusal.reason, refusal.detail) from None
    try:
        command = _checked_command(fields, key)
        to_command_received(command)  # proves that its plan can be converted
    except (CommandRefused, CommandUnreadable):
        raise
    except Exception as error:  # one record must not stop the records behind it
        why = f"{UNFORESEEN} ({type(error).__name__}): please report it"
        raise _refusal(fields, why) from error
    return _with_usable_time(command, fields, timestamp_ms, now)


def refusal_by_mistake(
    value: bytes | None, headers: Headers, key: bytes | None, timestamp_ms: int, mistake: Exception
) -> CommandRefused | CommandUnreadable:
    """Return the refusal of a command that we failed to read by a mistake of ours."""
    reason = f"the controller failed on this command: {mistake!r}"
    try:
        return _refusal(_complete_fields(value, headers, key, timestamp_ms), reason)
    except Exception:  # it fails on that, too
        return CommandUnreadable(QuarantineReason.INVALID, reason[:MAX_REASON_CHARS])


def _complete_fields(
    value: bytes | None, headers: Headers, key: bytes | None, timestamp_ms: int
) -> dict[str, Any]:
    """Return the command's fields with the record's defaults. Raises RecordRefused."""
    document = None
    if not any(name.startswith("ce_") for name, _ in headers):
        document = parse_json(check_value(value))
    if isinstance(document, dict) and "specversion" not in document:
        check_time(timestamp_ms, timestamp_ms)
        fields = {**document}
        digest = hashlib.sha256(b"%d " % timestamp_ms + (value or b"")).hexdigest()
        fields.setdefault("id", f"record-{digest[:16]}")
        fields.setdefault("issued_at", _time_of(timestamp_ms).isoformat())
        if verb_named(fields.get("verb")) in ALWAYS_ACCEPTED:
            fields.setdefault("issuer", "unnamed")
    else:
        envelope = read_envelope(value, timestamp_ms, headers, (TYPE,))
        fields = {**envelope.data}
        fields.setdefault("id", envelope.id)
        fields.setdefault("issued_at", _time_of(envelope.time_ms).isoformat())
    if key:
        fields.setdefault("flag", key.decode("utf-8", "replace"))
    if (verb := verb_named(fields.get("verb"))) is not None:
        fields["verb"] = verb  # people spell it as the command line does
    return fields


def _checked_command(fields: dict[str, Any], key: bytes | None) -> Command:
    """Return the command of these fields. Raises CommandRefused or CommandUnreadable."""
    if key and fields["flag"] != key.decode("utf-8", "replace"):
        raise _refusal(
            fields, "the command's flag is not the record's key: keep one, or make them equal"
        )
    try:
        command = Command.model_validate(fields)
    except ValidationError as error:
        why = _unknown_verb(fields.get("verb")) or describe_faults(error)
        raise _refusal(fields, why) from None
    if command.plan is not None:
        # A plan that is applied may have stages that are over: its dates are not checked by now.
        at = None if command.verb is CommandVerb.APPLY else command.issued_at
        errors = [str(finding) for finding in lint(command.plan, at) if finding.is_error]
        if errors:
            raise _refusal(fields, "plan: " + "; ".join(errors), command)
        stored = from_core_plan(to_core_plan(command.plan)).model_dump_json()
        if (size := len(stored.encode())) > MAX_PLAN_BYTES:
            why = (
                f"the plan has {size} bytes with its defaults, at most {MAX_PLAN_BYTES} fit into "
                f"the state record: shorten variants' values, audiences or descriptions"
            )
            raise _refusal(fields, why, command)
    return command


def _unknown_verb(named: object) -> str:
    """Return which verb was probably meant, and which there are; empty for one that there is."""
    if not isinstance(named, str) or verb_named(named) is not None:
        return ""
    near = difflib.get_close_matches(named[:40].strip().lower().replace("-", "_"), VERBS, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"the verb {excerpt(named, 40)!r} is not known; {meant}there are: {', '.join(VERBS)}"


def _with_usable_time(
    command: Command, fields: dict[str, Any], timestamp_ms: int, now: datetime | None
) -> Command:
    """Return the command with a time that its age can be counted from.

    Raises CommandRefused for a time that cannot be used, unless the command always works.
    """
    is_ahead = now is not None and command.issued_at - now > MAX_AHEAD
    if command.issued_at >= _EPOCH and not is_ahead:
        return command
    if command.verb in ALWAYS_ACCEPTED:
        # It lowers the percentage, so no clock may stop it: the wrong clock may be ours. The
        # record's time is the same when the record is read again.
        at = _time_of(timestamp_ms)
        return command.model_copy(update={"issued_at": at if now is None else min(at, now)})
    if now is None or not is_ahead:
        # The event of a forwarded command could not carry this time.
        raise _refusal(fields, "issued before 1970: set the clock of the issuer, and send it again")
    ahead = int((command.issued_at - now).total_seconds())
    why = f"issued {ahead} s in the future: set the clock of the issuer, or of this controller"
    raise _refusal(fields, f"{why}, and send it again")


def _time_of(time_ms: int) -> datetime:
    """Return milliseconds since 1970 as a time.

    Raises RecordRefused beyond the year 9999, where a broken clock may be.
    """
    try:
        return _EPOCH + timedelta(milliseconds=time_ms)
    except OverflowError:
        refuse(QuarantineReason.BAD_TIME, f"{time_ms} ms is no time", "set the sender's clock")


def _refusal(
    fields: dict[str, Any], reason: str, command: Command | None = None
) -> CommandRefused | CommandUnreadable:
    """Return the refusal, as an answer when the record has an id and a flag to answer to."""
    command_id, flag_key, verb = (fields.get(name) for name in ("id", "flag", "verb"))
    # The reason may quote keys of the record.
    reason = printable(reason[:MAX_REASON_CHARS], "?")
    if not all(isinstance(name, str) and NAME.match(name) for name in (command_id, flag_key)):
        return CommandUnreadable(QuarantineReason.INVALID, reason)
    return CommandRefused(
        command_id=str(command_id),
        flag_key=str(flag_key),
        verb=verb_named(verb),
        reason=reason,
        issuer=_issuer_in(fields),
        command=command,
    )


def _issuer_in(fields: dict[str, Any]) -> str:
    """Return who a refused command says has sent it; empty where that is no name."""
    try:
        return _ISSUER.validate_python(fields.get("issuer"))
    except ValidationError:
        return ""
