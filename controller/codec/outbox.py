"""The outbox: which record, on which topic, each message of the core becomes.

Also holds the results of commands, the only message that needs no rollout.
"""

from __future__ import annotations

from datetime import datetime

from controller.codec.alerts import alert_event
from controller.codec.cloud_events import SOURCE, with_extension, write_event
from controller.codec.decisions import decision_event
from controller.codec.rollouts import state_event
from controller.core.effects import AnswerCommand, PublishDecision, RaiseAlert
from controller.core.rollout import Retired, Rollout
from controller.errors import BrokenInvariant
from controller.ports import OutboxEntry
from schemas import result

#: CloudEvents extension of a result: what the command's id is bound to.
DIGEST = "rolloutddigest"

Message = PublishDecision | RaiseAlert | AnswerCommand | Rollout


def outbox_entry(
    message: Message,
    flag_key: str,
    rollout: Rollout | None,
    effect_id: str,
    at: datetime,
    *,
    source: str = SOURCE,
) -> OutboxEntry:
    """Return a message as the record that publishes it; `rollout` is the flag's after it.

    Only a result can do without a rollout. Every value is a structured CloudEvent of `source`,
    except that the document of a retired flag is a tombstone. Its
    id is `effect_id`; a result has the id of its command. The entry has no field yet: the caller
    names it when the entry is saved.
    """
    if isinstance(message, AnswerCommand):
        # Publishers drop repeats by this id. Ids of commands are unique per flag, so it has both.
        answer_id = f"{flag_key}/{message.event or message.command_id}"
        value = result_event(message, flag_key, at, source)
        return OutboxEntry("", answer_id, "results", flag_key, value)
    if isinstance(message, Rollout) and isinstance(message.phase, Retired):
        return OutboxEntry("", effect_id, "state", flag_key, b"")
    if isinstance(message, Rollout):
        value = state_event(message, effect_id, at, source)
        return OutboxEntry("", effect_id, "state", flag_key, value)
    if rollout is None:
        raise BrokenInvariant(f"{type(message).__name__} for {flag_key}, which has no rollout")
    if isinstance(message, PublishDecision):
        value = decision_event(message, rollout, effect_id, at, source)
        return OutboxEntry("", effect_id, "decisions", flag_key, value)
    value = alert_event(message, rollout, effect_id, at, source)
    return OutboxEntry("", effect_id, "alerts", flag_key, value)


def result_event(effect: AnswerCommand, flag_key: str, at: datetime, source: str = SOURCE) -> bytes:
    """Return the one result of a command.

    The event's id is the command's, unless that id was used before. The extension `DIGEST` says
    what the id is bound to.
    """
    record = result.Result(
        command_id=effect.command_id,
        flag=flag_key,
        verb=effect.verb,
        status=effect.status,
        reason=effect.reason,
        revision=effect.revision,
        at=at,
        issuer=effect.issuer or None,
    )
    event_id = effect.event or effect.command_id
    value = write_event(result.TYPE, event_id, flag_key, at, record, source)
    return with_extension(value, DIGEST, effect.digest) if effect.digest else value
