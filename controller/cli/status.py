"""The commands of `rolloutctl` that change nothing: status, watch, decisions, alerts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli import event_view, rendering, status_view
from controller.cli.common import (
    EXIT_REJECTED,
    AnyFlagArgument,
    BootstrapOption,
    ConfigOption,
    FlagArgument,
    JsonOption,
    PrefixOption,
    check_flag,
    complain,
    fail,
    kafka_settings,
    output,
    perform,
)
from controller.cli.operator_client import (
    Event,
    NewestRollouts,
    as_alert,
    as_decision,
    follow_events,
    newest_events,
    read_rollouts,
)
from controller.cli.plane_status import ask_planes, plane_line
from controller.cli.situation import Situation
from controller.core.rollout import Rollout
from controller.errors import EventLogUnavailable
from controller.settings import KafkaSettings
from schemas.decision import Decision

#: Decisions read for the evidence of a stage, since a pause and a resume by an operator have none,
#: and for all advice about a rollout.
_DECISIONS_FOR_STATUS = 200

DaemonOption = Annotated[
    str | None,
    typer.Option(
        "--daemon",
        metavar="URL",
        envvar="ROLLOUTCTL_DAEMON",
        help="A daemon's HTTP address, http://127.0.0.1:8080: with a flag, also says whether each "
        "flag plane serves what was decided. The replica that runs the flag knows.",
    ),
]
LastOption = Annotated[
    int, typer.Option("--last", "-n", min=1, max=10_000, help="How many, newest last.")
]


def situation_of(rollout: Rollout, decisions: Sequence[Decision] = ()) -> Situation:
    """Return where a rollout stands now."""
    return Situation(rollout, decisions, datetime.now(UTC))


def status(
    flag: AnyFlagArgument = None,
    is_json: JsonOption = False,
    daemon: DaemonOption = None,
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Show where every rollout stands, or everything about one.

    Whether it is safe to advance, what the rollout waits for, and on what evidence.
    """
    kafka = kafka_settings(config, bootstrap_servers, topic_prefix)
    if flag is not None:
        one, state = perform(find_rollout(kafka, check_flag(flag)))
        planes, why_none = (None, "") if daemon is None else ask_planes(daemon, flag)
        if is_json:
            further = {} if planes is None else {"planes": planes}
            typer.echo(rendering.to_json({**status_view.status_document(one, state), **further}))
        else:
            status_view.show_flag(output(), one, [plane_line(plane) for plane in planes or ()])
        if why_none:
            complain(f"flag planes: {why_none}")
        return
    newest = perform(_read_rollouts(kafka))
    situations = [situation_of(rollout) for rollout in newest.rollouts.values()]
    _say_unreadable(newest)
    if is_json:
        for one in sorted(situations, key=lambda each: each.rollout.flag_key):
            typer.echo(
                rendering.to_json(
                    status_view.status_document(one, newest.documents[one.rollout.flag_key])
                )
            )
    elif situations:
        output().print(status_view.status_table(situations))
    else:
        complain("no flag has a rollout yet; `rolloutctl start PLAN` starts one")


def watch(
    flag: AnyFlagArgument = None,
    is_json: JsonOption = False,
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Follow state, decisions and alerts as they come, until Ctrl-C.

    With --json each line is one event as published.
    """
    kafka = kafka_settings(config, bootstrap_servers, topic_prefix)
    perform(_watch(kafka, None if flag is None else check_flag(flag), is_json=is_json))


def decisions(
    flag: FlagArgument,
    last: LastOption = 20,
    is_json: JsonOption = False,
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Show a flag's newest decisions and what each was based on.

    With --json all the evidence, as published.
    """
    kafka = kafka_settings(config, bootstrap_servers, topic_prefix)
    events = perform(_newest(kafka, "decisions", last, check_flag(flag)))
    if _printed_as_json(events, is_json, f"no decision about {flag} yet"):
        return
    console, now = output(), datetime.now(UTC)
    for event in events:
        decision = as_decision(event)
        if decision is not None:
            event_view.show_decision(console, decision, now)


def alerts(
    flag: AnyFlagArgument = None,
    last: LastOption = 20,
    is_json: JsonOption = False,
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Show the newest alerts, each with what to do."""
    kafka = kafka_settings(config, bootstrap_servers, topic_prefix)
    events = perform(_newest(kafka, "alerts", last, None if flag is None else check_flag(flag)))
    if _printed_as_json(events, is_json, "no alert yet"):
        return
    console, now = output(), datetime.now(UTC)
    for event in events:
        alert = as_alert(event)
        if alert is not None:
            rendering.show_line(console, event_view.alert_line(alert, now))


def _printed_as_json(events: Sequence[Event], is_json: bool, otherwise: str) -> bool:
    """Print events as JSON if requested, and return whether; report when there is none."""
    if not events:
        complain(otherwise)
    if is_json:
        for event in events:
            typer.echo(rendering.to_json(event))
    return is_json


# --- reading ---


async def find_rollout(kafka: KafkaSettings, flag: str) -> tuple[Situation, Event]:
    """Return where a flag stands, with its newest decisions, and its document as published.

    Exits 1 when the flag has no rollout.
    """
    async with KafkaReader(kafka, ["state", "decisions"]) as reader:
        newest = await read_rollouts(reader)
        rollout = newest.rollouts.get(flag)
        if flag in newest.unreadable:
            complain(f"{flag}: its newest document cannot be read: {newest.unreadable[flag]}")
        if rollout is None:
            near = difflib.get_close_matches(flag, newest.rollouts, n=1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"there are: {rendering.shown(sorted(newest.rollouts)) or 'none'}"
            )
            fail(f"{flag} has no rollout; {hint}", EXIT_REJECTED)
        events = await newest_events(reader, "decisions", _DECISIONS_FOR_STATUS, flag)
    newest_decisions = [one for one in map(as_decision, events) if one is not None]
    return situation_of(rollout, newest_decisions), newest.documents[flag]


async def _read_rollouts(kafka: KafkaSettings) -> NewestRollouts:
    async with KafkaReader(kafka, ["state"]) as reader:
        return await read_rollouts(reader)


async def _newest(kafka: KafkaSettings, topic: str, count: int, flag: str | None) -> list[Event]:
    async with KafkaReader(kafka, [topic]) as reader:
        return await newest_events(reader, topic, count, flag)


async def _watch(kafka: KafkaSettings, flag: str | None, *, is_json: bool) -> None:
    console = output()
    async with KafkaReader(kafka, ["state", "decisions", "alerts"]) as reader:
        state_ends = await reader.ends("state")
        start = {**state_ends, **await reader.ends("decisions", "alerts")}
        newest = await read_rollouts(reader, state_ends)
        _say_unreadable(newest)
        for key, rollout in sorted(newest.rollouts.items()):
            is_shown = key == flag or (flag is None and not rollout.has_ended)
            if is_shown and not is_json:
                line = Text.assemble(
                    ("now       ", "dim"), f"{key}  ", status_view.brief(situation_of(rollout))
                )
                rendering.show_line(console, line)
        is_away = False
        async for event in follow_events(reader, start, flag):
            if isinstance(event, EventLogUnavailable):
                if not is_away:
                    complain(f"{event}; still watching")
                is_away = True
                continue
            if is_away:
                complain("Kafka is back")
                is_away = False
            if event is None:
                continue
            if is_json:
                typer.echo(rendering.to_json(event))
            elif (text := event_view.event_line(event, datetime.now(UTC))) is not None:
                rendering.show_line(console, text)


def _say_unreadable(newest: NewestRollouts) -> None:
    for key, why in newest.unreadable.items():
        complain(f"{key}: its newest document cannot be read: {why}")
