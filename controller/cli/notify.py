"""`rolloutctl notify`: who was told of what, taking an incident, and trying a route."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from controller.cli.common import (
    EXIT_CONFIG,
    EXIT_REJECTED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    DaemonOption,
    JsonOption,
    KafkaOptions,
    complain,
    fail,
    output,
    perform,
)
from controller.cli.option_groups import ungrouped
from schemas.terms import NotificationRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from schemas.api import NotificationsView
    from schemas.signal import Signal

app = typer.Typer(
    help="Show who was told of what, take an incident, and try a route.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_NO_DAEMON: Final = "give --daemon URL, or set ROLLOUTCTL_DAEMON: a replica knows who was told"
#: How long a test waits for its messages, in seconds.
_TEST_SECONDS: Final = 20.0
_ASK_EVERY_SECONDS: Final = 0.5

IssuerOption = Annotated[
    str | None, typer.Option("--issuer", help="Who you are. Default: your login name.")
]


@app.command("list")
def list_notifications(is_json: JsonOption = False, daemon: DaemonOption = None) -> None:
    """Show channels, open incidents and messages that were refused.

    A replica answers for all of them.
    """
    from controller.cli import rendering

    found = _ask(daemon)
    if is_json:
        rendering.print_json(found.model_dump(mode="json"))
        return
    for table in _tables(found):
        output().print(table)
        output().print()


@app.command("check")
def check(
    rules: Annotated[Path, typer.Argument(metavar="RULES")],
    channel: Annotated[
        list[str] | None,
        typer.Option("--channel", help="Name of a channel; may be repeated. Default: any is good."),
    ] = None,
) -> None:
    """Check a rules file, with the place of each fault."""
    from controller.errors import ConfigInvalid
    from controller.notifying.rules import parse_notification_rules

    try:
        text = rules.read_text()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{rules}: cannot be read: {error}", EXIT_CONFIG)
    try:
        made = parse_notification_rules(text, str(rules), channel)
    except ConfigInvalid as refused:
        fail(f"{refused}", EXIT_CONFIG)
    count = len(made.routes)
    output().print(
        f"{rules}: {count} route{'' if count == 1 else 's'}, and nothing wrong with them"
    )


@app.command("ack")
@ungrouped
def acknowledge(
    about: Annotated[
        str,
        typer.Argument(
            help="The incident's key, or a flag: then all of its incidents.", metavar="KEY"
        ),
    ],
    issuer: IssuerOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Take an incident: nobody else is told of it, and it is repeated to nobody."""
    signal = _request(NotificationRequest.ACKNOWLEDGE, about, issuer)
    _send(signal, connection)
    output().print(
        f"taken by {signal.issuer}: {about}. `rolloutctl notify list` shows it within seconds"
    )


@app.command("retry")
@ungrouped
def retry(
    about: Annotated[
        str,
        typer.Argument(help="The number of a message, or a channel; `*`: all.", metavar="WHICH"),
    ],
    *,
    connection: KafkaOptions,
) -> None:
    """Send messages again that a channel had refused."""
    _send(_request(NotificationRequest.RETRY, about, None), connection)
    output().print("asked for. `rolloutctl notify list` shows what becomes of it within seconds")


@app.command("test")
@ungrouped
def try_route(
    about: Annotated[str, typer.Argument(help="A route or a channel.", metavar="ROUTE")],
    daemon: DaemonOption = None,
    issuer: IssuerOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Send a test message along a route, and say which channels took it. Nobody is paged.

    Exits 1 where one did not take it within 20 seconds.
    """
    before = None if daemon is None else _ask(daemon)
    _send(_request(NotificationRequest.TEST, about, issuer), connection)
    if before is None or daemon is None:
        output().print(
            "sent. With --daemon this waits for the channels, and says which ones took it"
        )
        return
    _wait(before, daemon)


def _wait(before: NotificationsView, daemon: str) -> None:
    """Say which channels took something since; exit 1 where one has trouble."""
    sent = {one.name: one.sent for one in before.channels}
    dead = {one.number for one in before.dead_letters}
    until = time.monotonic() + _TEST_SECONDS
    has_begun = False
    while True:
        now = _ask(daemon)
        waiting = [one for one in now.channels if one.waiting]
        taken = [one for one in now.channels if one.sent > sent.get(one.name, 0)]
        refused = [one for one in now.dead_letters if one.number not in dead]
        has_begun = has_begun or bool(waiting or taken or refused)
        if (has_begun and not waiting) or time.monotonic() > until:
            break
        time.sleep(_ASK_EVERY_SECONDS)
    for one in taken:
        output().print(f"{one.name}: taken", markup=False)
    for letter in refused:
        complain(f"{letter.channel}: refused: {letter.why}")
    for one in waiting:
        complain(f"{one.name}: not taken yet: {one.trouble or 'messages wait before it'}")
    if not has_begun:
        names = ", ".join(one.name for one in now.channels)
        fail(
            f"nothing was sent: is there such a route or channel? The channels are {names}; "
            f"routes are in notifications.rules_file",
            EXIT_REJECTED,
        )
    if refused or waiting:
        raise typer.Exit(EXIT_REJECTED)


def _ask(daemon: str | None) -> NotificationsView:
    from controller.cli.daemon_answers import ask_notifications

    if daemon is None:
        fail(_NO_DAEMON, EXIT_USAGE)
    found, why = ask_notifications(daemon)
    if found is None:
        fail(why, EXIT_UNREACHABLE)
    return found


def _request(request: NotificationRequest, about: str, issuer: str | None) -> Signal:
    """Return what is asked of the notifications, as the record that asks it. Exits 2."""
    from pydantic import ValidationError

    from controller.cli.operator_client import whoami
    from controller.text import describe_faults
    from schemas.signal import Signal
    from schemas.terms import SignalStatus

    who = issuer or whoami()
    try:
        return Signal(
            id=uuid.uuid4().hex,
            hook="rolloutctl/cli",
            status=SignalStatus.NOTE,
            condition=f"notifications/{request}",
            title=f"{who}: {request} {about}",
            received_at=datetime.now(UTC),
            request=request,
            request_about=about,
            issuer=who,
        )
    except ValidationError as error:
        fail(describe_faults(error), EXIT_USAGE)


def _send(signal: Signal, connection: KafkaOptions) -> None:
    from controller.cli.operator_client import publish_signal

    perform(publish_signal(signal, connection.settings()))


def _tables(found: NotificationsView) -> Sequence[Table]:
    """Return what is shown of all of it."""
    from rich.table import Table

    from controller.cli.rendering import plain

    def table(*names: str) -> Table:
        made = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
        for name in names:
            made.add_column(name)
        return made

    channels = table("CHANNEL", "TYPE", "SENT", "WAITING", "STATE")
    for one in found.channels:
        state = f"fails: {one.trouble}" if one.trouble else "works" if one.sent else "not used yet"
        channels.add_row(
            plain(one.name), one.type, f"{one.sent:,}", f"{one.waiting:,}", plain(state)
        )
    incidents = table("OPEN SINCE (UTC)", "KEY", "WHAT", "TOLD", "TAKEN BY", "NEXT (UTC)")
    for incident in found.incidents:
        next_at = "" if incident.next_at is None else f"{incident.next_at:%H:%M:%S}"
        incidents.add_row(
            f"{incident.opened_at:%m-%d %H:%M:%S}",
            plain(incident.key),
            plain(incident.summary),
            plain(", ".join(incident.told) or "nobody: it is muted"),
            plain(incident.taken_by or "nobody"),
            next_at,
        )
    letters = table("NUMBER", "CHANNEL", "WHAT", "WHY IT WAS REFUSED")
    for letter in found.dead_letters:
        letters.add_row(
            str(letter.number), plain(letter.channel), plain(letter.summary), plain(letter.why)
        )
    shown = [channels]
    if found.incidents:
        shown.append(incidents)
    if found.dead_letters:
        shown.append(letters)
    return shown
