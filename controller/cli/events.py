"""`rolloutctl events` and `rolloutctl quarantine`: what became of the events that apps sent.

What they do is imported on use, because reading events takes more imports than `roll-back` needs.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from controller.cli.common import (
    EXIT_REJECTED,
    EXIT_USAGE,
    AnyFlagArgument,
    JsonOption,
    KafkaOptions,
    check_daemon,
    check_flag,
    fail,
    output,
    perform,
)
from schemas.fields import parse_duration

SinceOption = Annotated[
    str, typer.Option("--since", metavar="DURATION", help="How far back to begin, as in 10m or 2h.")
]
FollowOption = Annotated[
    bool, typer.Option("--watch", "--follow", "-w", help="Go on with new ones until Ctrl-C.")
]


def events(
    flag: AnyFlagArgument = None,
    since: SinceOption = "10m",
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            "-n",
            min=1,
            max=10_000_000,
            show_default=False,
            help="Records read of each topic. Default: 20,000; with --context 500,000.",
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context", metavar="ID", help="Show each event of this context (user), and no other."
        ),
    ] = None,
    follows: FollowOption = False,
    daemon: Annotated[
        str | None,
        typer.Option(
            "--daemon",
            metavar="URL",
            callback=check_daemon,
            help="Ask this daemon what it has counted since its start, and read no topic.",
        ),
    ] = None,
    is_json: JsonOption = False,
    *,
    connection: KafkaOptions,
) -> None:
    """Show what the recent events of a flag are: counted, ignored or refused, and why.

    Reads the event topics and changes nothing; no daemon is needed. Each class has its newest
    events and what to do. Exits 1 for a flag without a rollout, and for a context without events.
    """
    from controller.cli import event_tap

    flag = None if flag is None else check_flag(flag)
    if daemon is not None:
        _show_of_daemon(daemon, flag, is_json=is_json)
        return
    kafka = connection.settings()
    request = event_tap.TapRequest(
        kafka, flag, context, _duration(since), last, follows, is_json=is_json
    )
    perform(event_tap.run_events(request))


def _show_of_daemon(daemon: str, flag: str | None, *, is_json: bool) -> None:
    from controller.cli import event_lines, rendering
    from controller.cli.daemon_answers import ask_daemon

    path = "/events" if flag is None else f"/rollouts/{flag}/events"
    document, trouble = ask_daemon(daemon, path)
    if document is None:
        fail(trouble, EXIT_REJECTED)
    read = f"as {daemon} has counted since its start, in its own partitions"
    try:
        if is_json:
            typer.echo(rendering.to_json(document))
        elif flag is None:
            event_lines.show_summary(output(), document, read)
        else:
            event_lines.show_flag_events(output(), document, read)
    except (LookupError, TypeError, ValueError, AttributeError):
        fail(f"{daemon} does not answer as rolloutd does", EXIT_REJECTED)
    if flag is not None and document.get("has_rollout") is False:
        raise typer.Exit(EXIT_REJECTED)


def quarantine(
    since: SinceOption = "1h",
    flag: Annotated[
        str | None, typer.Option("--flag", help="Only records whose text names this flag.")
    ] = None,
    last: Annotated[
        int, typer.Option("--last", "-n", min=1, max=100_000, help="How many, newest last.")
    ] = 20,
    follows: FollowOption = False,
    is_json: JsonOption = False,
    *,
    connection: KafkaOptions,
) -> None:
    """Show the newest refused records: why, where they are, how to fix them, and their text."""
    from controller.cli.refused_records import QuarantineRequest, run_quarantine

    kafka = connection.settings()
    key = None if flag is None else check_flag(flag)
    request = QuarantineRequest(kafka, key, _duration(since), last, follows, is_json=is_json)
    perform(run_quarantine(request))


def _duration(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError:
        fail(f"--since: {text!r}: write a duration, as in 10m or 2h", EXIT_USAGE)
