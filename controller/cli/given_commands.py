"""`rolloutctl commands`: the commands that were given, and what became of each."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli import event_view, rendering
from controller.cli.common import (
    AnyFlagArgument,
    DaemonOption,
    JsonOption,
    KafkaOptions,
    check_flag,
    output,
    perform,
)
from controller.cli.operator_client import Event
from controller.cli.refused_records import refused_in
from controller.cli.status import (
    LastOption,
    SinceOption,
    how_far,
    newest_of,
    not_before,
    printed_as_json,
    so_far,
    time_of_event,
)
from controller.settings import KafkaSettings
from schemas import result
from schemas.envelope import format_time, time_of
from schemas.terms import CommandStatus


def commands(
    flag: AnyFlagArgument = None,
    last: LastOption = None,
    since: SinceOption = None,
    is_refused: Annotated[
        bool, typer.Option("--refused", help="Only commands that were refused.")
    ] = False,
    is_json: JsonOption = False,
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Show the newest commands and what became of each: done, or refused and why.

    Whoever gave them, also by another Kafka client. Without a flag also records that were no
    command. While Kafka is away, --daemon is asked for those of one flag.
    """
    kafka, (count, begin) = connection.settings(), how_far(last, since)
    key = None if flag is None else check_flag(flag)
    events = perform(newest_of(kafka, "results", count, key, daemon))
    if key is None:
        events = sorted([*events, *perform(_no_commands(kafka, count))], key=time_of_event)[-count:]
    found = [one for one in not_before(events, begin) if not is_refused or _is_refused(one)]
    which = "refused command" if is_refused else "command"
    if printed_as_json(found, is_json, f"no {which} {so_far(since)}"):
        return
    console, now = output(), datetime.now(UTC)
    for event in found:
        line = event_view.answer_line(event, now)
        if line is not None:
            rendering.show_line(console, line, hang=14)


def _is_refused(event: Event) -> bool:
    return bool(event["data"].get("status") == CommandStatus.REJECTED)


async def _no_commands(kafka: KafkaSettings, count: int) -> list[Event]:
    """Return the newest records of the command topic that were no command, as refused ones."""
    async with KafkaReader(kafka, ["quarantine"]) as reader:
        records = await reader.newest("quarantine", count)
    events = []
    for refused in (one for record in records for one in refused_in(record)):
        if refused.topic != kafka.topic("commands"):
            continue
        place = f"{refused.topic}/{refused.partition}/{refused.record.offset}"
        at = format_time(time_of(refused.record.timestamp_ms))
        data: Event = {"command_id": place, "flag": None, "verb": None, "status": "rejected"}
        data |= {"reason": refused.record.detail, "revision": 0, "at": at}
        events.append({"id": place, "time": at, "type": result.TYPE, "data": data})
    return events
