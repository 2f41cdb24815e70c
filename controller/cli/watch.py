"""`rolloutctl watch`: what happens to rollouts, as it happens.

One transition is published as up to three events: the new state, the decision and an alert. They
are shown together, and what two of them say is shown once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cancellation import task_group
from controller.cli import event_view, rendering, status_view
from controller.cli.common import (
    EXIT_REJECTED,
    AnyFlagArgument,
    DaemonOption,
    JsonOption,
    KafkaOptions,
    check_flag,
    complain,
    fail,
    output,
    perform,
    without_rollout,
)
from controller.cli.daemon_answers import ask_evidence
from controller.cli.news import Transitions
from controller.cli.operator_client import follow_events, read_rollouts
from controller.cli.status import known_by, say_unreadable, situation_of
from controller.core.rollout import Rollout
from controller.errors import EventLogUnavailable
from controller.reporting.evidence_words import evidence_line
from controller.settings import KafkaSettings

EVIDENCE_EVERY_SECONDS = 10.0
RETRY_SECONDS = 2.0
_SHOWN_EVERY_SECONDS = 0.25


def watch(
    flag: AnyFlagArgument = None,
    is_json: JsonOption = False,
    waits: Annotated[
        bool, typer.Option("--wait", help="Wait also for a flag that has no rollout yet.")
    ] = False,
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Follow state, decisions, alerts and refused commands as they come, until Ctrl-C.

    With a flag and --daemon also its newest evidence, every ten seconds. With --json each line is
    one event as published. Exits 1 for a flag without a rollout, unless --wait is given. Kafka that
    is away at the start is waited for where --daemon says how rollouts stand.
    """
    kafka = connection.settings()
    key = None if flag is None else check_flag(flag)
    perform(_watch(kafka, key, daemon, is_json=is_json, waits=waits))


async def _watch(
    kafka: KafkaSettings, flag: str | None, daemon: str | None, *, is_json: bool, waits: bool
) -> None:
    is_told = False
    while True:
        try:
            await _follow(kafka, flag, daemon, is_json=is_json, waits=waits)
        except EventLogUnavailable as trouble:  # at the start: later ones are followed through
            if daemon is None:
                raise
            if not is_told:
                known = await known_by(daemon, trouble, flag)
                _show_now(known.rollouts, flag, is_json=is_json)
                complain("waiting for Kafka; Ctrl-C ends")
            is_told = True
        await asyncio.sleep(RETRY_SECONDS)


def _show_now(rollouts: Mapping[str, Rollout], flag: str | None, *, is_json: bool) -> None:
    """Show where a flag stands, or every rollout that is under way."""
    for key, rollout in sorted(rollouts.items()):
        is_shown = key == flag or (flag is None and not rollout.has_ended)
        if is_shown and not is_json:
            line = Text.assemble(
                ("now       ", "dim"), f"{key}  ", status_view.brief(situation_of(rollout))
            )
            rendering.show_line(output(), line, hang=10)


async def _follow(
    kafka: KafkaSettings, flag: str | None, daemon: str | None, *, is_json: bool, waits: bool
) -> None:
    news = Transitions()
    async with KafkaReader(kafka, ["state", "decisions", "alerts"], ["results"]) as reader:
        state_ends = await reader.ends("state")
        results = await reader.ends("results") if reader.has("results") else {}
        start = {**state_ends, **await reader.ends("decisions", "alerts"), **results}
        newest = await read_rollouts(reader, state_ends)
        say_unreadable(newest)
        if flag is not None and flag not in newest.rollouts and flag not in newest.unreadable:
            missing = without_rollout(flag, newest.rollouts, newest.retired)
            if not waits:
                fail(f"{missing}\nnext: --wait waits until it has one", EXIT_REJECTED)
            complain(f"{missing}\nwaiting until it has one; Ctrl-C ends")
        elif flag is None and not any(not one.has_ended for one in newest.rollouts.values()):
            complain("no rollout is under way; waiting for one, Ctrl-C ends")
        console = output()
        _show_now(newest.rollouts, flag, is_json=is_json)
        async with task_group() as tasks:
            if not is_json:
                tasks.create_task(_show_news(console, news))
            if not is_json and flag is not None and daemon is not None:
                tasks.create_task(_show_evidence(console, daemon, flag))
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
                if event_view.is_done(event):
                    continue  # its decision says so
                if is_json:
                    rendering.print_json(event)
                else:
                    news.add(event, asyncio.get_running_loop().time())


async def _show_news(console: Console, news: Transitions) -> None:
    """Show the events of each transition once they are together."""
    while True:
        await asyncio.sleep(_SHOWN_EVERY_SECONDS)
        for events in news.complete(asyncio.get_running_loop().time()):
            for line in event_view.transition_lines(events, datetime.now(UTC)):
                rendering.show_line(console, line, hang=event_view.HANG)


async def _show_evidence(console: Console, daemon: str, flag: str) -> None:
    """Show the newest evidence whenever it has changed; a daemon that is away is told once."""
    shown, said = "", ""
    while True:
        judgement, why = await asyncio.to_thread(ask_evidence, daemon, flag)
        if judgement is None:
            if why != said:
                complain(f"no evidence: {why}")
            said = why
        else:
            said = ""
            line = evidence_line(judgement)
            if line != shown:
                at = event_view.stamp(judgement.at, datetime.now(UTC))
                head = Text.assemble(("evidence  ", "dim"), at, f"{flag}  ")
                rendering.show_line(console, head.append(line), hang=event_view.HANG)
            shown = line
        await asyncio.sleep(EVIDENCE_EVERY_SECONDS)
