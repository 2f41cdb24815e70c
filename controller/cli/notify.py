"""`rolloutctl notify`: who was told of what, taking an incident, muting, and trying a route."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from controller.cli.common import (
    EXIT_CONFIG,
    EXIT_REJECTED,
    EXIT_USAGE,
    DaemonOption,
    JsonOption,
    KafkaOptions,
    fail,
    output,
    perform,
)
from controller.cli.notify_answers import (
    ask,
    ask_if_possible,
    channels_of,
    seen,
    wait_for_test,
    warn_of_no_flag,
)
from controller.cli.option_groups import ungrouped
from schemas.terms import NotificationRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.notifications import MuteEntry, NotificationsView
    from schemas.signal import MuteRequest, Signal

app = typer.Typer(
    help="Show who was told of what, take an incident, mute, and try a route.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

#: A mute that lasts longer belongs into the rules file, which people review.
LONGEST_MUTE: Final = timedelta(days=7)
IssuerOption = Annotated[
    str | None, typer.Option("--issuer", help="Who you are. Default: your login name.")
]


@app.command("list")
def list_notifications(is_json: JsonOption = False, daemon: DaemonOption = None) -> None:
    """Show channels, open incidents, mutes and messages that were refused.

    A replica answers for all of them.
    """
    from controller.cli import rendering
    from controller.cli.notify_tables import tables_of

    found = ask(daemon)
    if is_json:
        rendering.print_json(found.model_dump(mode="json"))
        return
    for number, table in enumerate(tables_of(found)):
        if number:
            output().print()
        output().print(table)


@app.command("check")
def check(
    rules: Annotated[
        Path,
        typer.Argument(metavar="RULES", help="The file, as notifications.rules_file names it."),
    ],
    channel: Annotated[
        list[str] | None,
        typer.Option(
            "--channel",
            metavar="NAME",
            help="Name of a channel; may be repeated. Default: any is good.",
        ),
    ] = None,
) -> None:
    """Check a rules file, with the place of each fault."""
    from controller.errors import ConfigInvalid
    from controller.notifying.rules import parse_notification_rules
    from controller.text import file_trouble, plural

    try:
        text = rules.read_text()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{rules}: cannot be read: {file_trouble(error)}", EXIT_CONFIG)
    try:
        made = parse_notification_rules(text, str(rules), channel)
    except ConfigInvalid as refused:
        fail(f"{refused}", EXIT_CONFIG)
    count = len(made.routes)
    # No fault: a file that was good must not become unusable because time passes.
    over = [one for one in made.mutes if one.until <= datetime.now(UTC)]
    if count:
        said = plural(count, "route")
        said += "" if over else f", and nothing wrong with {'it' if count == 1 else 'them'}"
    else:
        said = "no routes, so that every channel hears of warnings and worse"
    output().print(f"{rules}: {said}", markup=False)
    for one in over:
        output().print(
            f"{rules}: the mute {one.name} is over since {one.until:%Y-%m-%d %H:%M} UTC and mutes "
            f"nothing: take it out, or write a later `until`",
            markup=False,
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
    daemon: DaemonOption = None,
    issuer: IssuerOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Take an incident: nobody else is told of it, and it is repeated to nobody."""
    signal = _request(NotificationRequest.ACKNOWLEDGE, about, issuer)
    view = ask_if_possible(daemon)
    found = [] if view is None else [one for one in view.incidents if about in (one.key, one.flag)]
    free = {one.key for one in found if not one.taken_by}
    if view is not None and not free:
        why = f"{found[0].taken_by} has taken it" if found else "it is over, or never was"
        fail(f"there is no open incident of {about} to take: {why}", EXIT_REJECTED)
    _send(signal, connection)
    if view is None or daemon is None:
        output().print(
            f"asked for: {signal.issuer} takes {about}. `rolloutctl notify list` shows within "
            f"seconds whether there is such an incident",
            markup=False,
        )
        return
    # Those that are over meanwhile need nobody.
    seen(daemon, lambda now: [] if free & _untaken(now) else [about])
    output().print(f"taken by {signal.issuer}: {', '.join(sorted(free))}", markup=False)


def _untaken(view: NotificationsView) -> set[str]:
    """Return the keys of the incidents that nobody has taken."""
    return {one.key for one in view.incidents if not one.taken_by}


@app.command("mute")
@ungrouped
def mute(
    about: Annotated[
        str,
        typer.Argument(
            help="A route of the rules file, or else a flag or a pattern of flags (`checkout-*`).",
            metavar="WHAT",
        ),
    ],
    lasts: Annotated[
        str, typer.Option("--for", help="How long, such as 30m or 2h; 7d at most.", metavar="TIME")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why: others read it on the page.")],
    is_critical_too: Annotated[
        bool,
        typer.Option("--critical", help="Mute critical news as well, such as a roll-back."),
    ] = False,
    is_flag: Annotated[
        bool, typer.Option("--flag", help="WHAT are flags, also where a route is called so.")
    ] = False,
    daemon: DaemonOption = None,
    issuer: IssuerOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Tell nobody of some flags, or nobody by a route, for some time.

    What is still open when it ends is told then. Critical news is told all the same without
    --critical. The dead man's switch cannot be muted.
    """
    from schemas.signal import MuteRequest

    until = datetime.now(UTC) + _mute_time(lasts)
    if not reason.strip():
        fail("--reason: say why, for those who wonder later why nobody heard", EXIT_USAGE)
    asked = MuteRequest(
        until=until, reason=reason[:300], is_flag=is_flag, is_critical_too=is_critical_too
    )
    before: set[str] = set()
    if daemon is not None:
        view = ask(daemon)
        before = {one.name for one in view.mutes}
        warn_of_no_flag(about, daemon, view, is_flag=is_flag)
    signal = _request(NotificationRequest.MUTE, about, issuer, asked)
    _send(signal, connection)
    if daemon is None:
        output().print(
            "asked for. With --daemon this waits until it holds, and says what is muted, and "
            "whether there is such a flag",
            markup=False,
        )
        return

    def new_ones(view: NotificationsView) -> Sequence[MuteEntry]:
        return [one for one in view.mutes if one.name not in before and about in _names(one)]

    made = seen(daemon, new_ones)
    for one in made:
        more = "" if one.is_critical_too else "; critical news is told all the same"
        words = f"muted until {one.until:%Y-%m-%d %H:%M} UTC: {one.about}{more}"
        output().print(f"{words}. `rolloutctl notify unmute {one.name}` ends it", markup=False)


@app.command("unmute")
@ungrouped
def unmute(
    about: Annotated[
        str,
        typer.Argument(
            help="The number of a mute, or the route or flags that it mutes.", metavar="WHAT"
        ),
    ],
    daemon: DaemonOption = None,
    issuer: IssuerOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """End a mute that was made by command: what is still open is told now."""
    named: list[str] = []
    if daemon is not None:
        mutes = ask(daemon).mutes
        named = [one.name for one in mutes if one.is_by_command and about in _names(one)]
        if not named:
            in_file = [one.name for one in mutes if not one.is_by_command and one.name == about]
            why = "it is in notifications.rules_file: take it out there, then send SIGHUP"
            known = ", ".join(f"{one.name} ({one.about})" for one in mutes if one.is_by_command)
            known = f"by command are muted {known}" if known else "nothing is, by command"
            fail(f"nothing is muted as {about}: {why if in_file else known}", EXIT_REJECTED)
    _send(_request(NotificationRequest.UNMUTE, about, issuer), connection)
    if daemon is None:
        output().print("asked for. `rolloutctl notify list` shows what is muted within seconds")
        return
    seen(daemon, lambda view: [] if {one.name for one in view.mutes} & set(named) else [about])
    output().print(f"not muted any more: {about}", markup=False)


def _names(one: MuteEntry) -> tuple[str, str]:
    """Return the words by which a mute is known."""
    return one.name, one.about.partition(" ")[2]


def _mute_time(text: str) -> timedelta:
    """Return how long a mute lasts. Exits 2."""
    from schemas.fields import parse_duration

    try:
        found = parse_duration(text)
    except ValueError as error:
        fail(f"--for {text}: {error}", EXIT_USAGE)
    if not timedelta(minutes=1) <= found <= LONGEST_MUTE:
        fail(
            f"--for {text}: write 1m to 7d; what lasts longer is a mute of the rules file",
            EXIT_USAGE,
        )
    return found


@app.command("retry")
@ungrouped
def retry(
    about: Annotated[
        str,
        typer.Argument(help="The number of a message, or a channel; `*`: all.", metavar="WHICH"),
    ],
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Send messages again that a channel had refused."""
    view = ask_if_possible(daemon)
    if view is not None:
        letters = view.dead_letters
        if not any(about in ("*", str(one.number), one.channel) for one in letters):
            known = ", ".join(sorted({one.channel for one in letters}))
            refused = f"refused were messages by {known}" if known else "no channel has refused any"
            which = "no message was refused" if about == "*" else f"no refused message is {about}"
            fail(
                f"{which}: {refused}; `rolloutctl notify list` shows those of a week",
                EXIT_REJECTED,
            )
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
    before = None if daemon is None else ask(daemon)
    if before is not None and not before.channels:
        fail(
            "there is no channel: set notifications.channels, see ops/notifications.md", EXIT_CONFIG
        )
    channels = [] if before is None else channels_of(about, before)
    _send(_request(NotificationRequest.TEST, about, issuer), connection)
    if before is None or daemon is None:
        output().print(
            "sent. With --daemon this waits for the channels, and says which ones took it"
        )
        return
    wait_for_test(before, daemon, channels)


def _request(
    request: NotificationRequest, about: str, issuer: str | None, mute: MuteRequest | None = None
) -> Signal:
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
            mute=mute,
        )
    except ValidationError as error:
        fail(describe_faults(error), EXIT_USAGE)


def _send(signal: Signal, connection: KafkaOptions) -> None:
    from controller.cli.operator_client import publish_signal

    perform(publish_signal(signal, connection.settings()))
