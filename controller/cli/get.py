"""`rolloutctl get`: everything about one rollout as a tree, once or as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli.common import (
    AnyFlagArgument,
    DaemonOption,
    JsonOption,
    KafkaOptions,
    check_flag,
    complain,
    output,
    perform,
)
from controller.cli.daemon_answers import ask_planes, ask_rollout
from controller.cli.operator_client import as_decision
from controller.cli.rollout_tree import rollout_tree
from controller.cli.status import (
    OF_ONE_FLAG,
    read_situation,
    situation_of,
    status,
    with_newest_evidence,
)
from controller.errors import EventLogUnavailable
from controller.reporting.situation import about
from controller.settings import KafkaSettings
from controller.text import one_line

NO_DAEMON = "the newest evidence and the flag planes: --daemon URL, or ROLLOUTCTL_DAEMON, has them"

_EVERY_SECONDS = 1.0
#: Without a daemon whole topics are read each time.
_EVERY_SECONDS_OF_KAFKA = 5.0


def get(
    flag: AnyFlagArgument = None,
    is_watching: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again every second, until Ctrl-C.")
    ] = False,
    is_json: JsonOption = False,
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Show one rollout as a tree: stages, gate, evidence, flag planes, decisions, commands.

    With --daemon the newest evidence and the flag planes, too. Without FLAG, and with --json, it
    shows what `status` does.
    """
    if flag is None or is_json:
        status(
            flag,
            is_json=is_json,
            daemon=daemon,
            connection=connection,
        )
        return
    kafka, key = connection.settings(), check_flag(flag)
    console = output()
    if is_watching and not console.is_terminal:
        complain("--watch needs a terminal; `rolloutctl watch` follows a flag in a pipe")
    if is_watching and console.is_terminal:
        perform(_watch(kafka, key, daemon, console))
    else:
        console.print(perform(_once(kafka, key, daemon)))


async def _once(kafka: KafkaSettings, flag: str, daemon: str | None) -> RenderableType:
    """Return the tree, from the daemon where it answers, else from Kafka."""
    if daemon is not None:
        tree, why = await asyncio.to_thread(tree_of_daemon, daemon, flag)
        if tree is not None:
            return tree
        complain(f"{why}\nshown is what Kafka has")
    async with KafkaReader(kafka, *OF_ONE_FLAG) as reader:
        return await _tree_of_kafka(reader, flag, has_daemon=daemon is not None)


async def _watch(kafka: KafkaSettings, flag: str, daemon: str | None, console: Console) -> None:
    """Show the tree until Ctrl-C. While nothing answers, the last one stays, with why."""
    if daemon is not None:
        first, why = await asyncio.to_thread(tree_of_daemon, daemon, flag)
        if first is not None:
            await _show(console, first, partial(_asked, daemon, flag), _EVERY_SECONDS)
            return
        complain(f"{why}\nshown is what Kafka has")
    async with KafkaReader(kafka, *OF_ONE_FLAG) as reader:
        first = await _tree_of_kafka(reader, flag, has_daemon=daemon is not None)
        again = partial(_tree_of_kafka, reader, flag, has_daemon=daemon is not None)
        await _show(console, first, again, _EVERY_SECONDS_OF_KAFKA)


async def _show(
    console: Console,
    tree: RenderableType,
    again: Callable[[], Awaitable[RenderableType]],
    every_seconds: float,
) -> None:
    with Live(tree, console=console, screen=True, auto_refresh=False) as live:
        live.refresh()
        known_at = datetime.now(UTC)
        while True:
            await asyncio.sleep(every_seconds)
            try:
                tree, known_at, trouble = await again(), datetime.now(UTC), None
            except EventLogUnavailable as away:
                age = about(datetime.now(UTC) - known_at)
                trouble = Text(f"{one_line(str(away))}; shown is what was known {age} ago", "red")
            live.update(tree if trouble is None else Group(trouble, tree), refresh=True)


async def _asked(daemon: str, flag: str) -> RenderableType:
    """Return the daemon's tree. Raises EventLogUnavailable where it does not answer."""
    tree, why = await asyncio.to_thread(tree_of_daemon, daemon, flag)
    if tree is None:
        raise EventLogUnavailable(why)
    return tree


def tree_of_daemon(daemon: str, flag: str) -> tuple[RenderableType | None, str]:
    """Return a rollout as the daemon at this address knows it, or None and the reason. Blocks."""
    known, why = ask_rollout(daemon, flag)
    if known is None:
        return None, why
    decisions = [one for one in map(as_decision, known.decisions) if one is not None]
    situation = situation_of(known.rollouts[flag], decisions)
    situation, trouble = with_newest_evidence(situation, daemon)
    planes, why_none = ask_planes(daemon, flag)
    stale = "" if known.stale_since is None else f"may lack decisions since {known.stale_since}"
    unserved = f"flag planes: {why_none}" if why_none else ""
    told = "; ".join(part for part in (stale, known.trouble, trouble, unserved) if part)
    return rollout_tree(situation, planes, told), ""


async def _tree_of_kafka(reader: KafkaReader, flag: str, *, has_daemon: bool) -> RenderableType:
    situation, _ = await read_situation(reader, flag)
    return rollout_tree(situation, None, "" if has_daemon else NO_DAEMON)
