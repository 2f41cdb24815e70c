"""What a daemon answers to `rolloutctl notify`, before something is asked of it and after.

Belongs here: asking, waiting until it is done, and saying why it is not. Does not belong here: the
commands (`notify.py`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

import typer

from controller.cli.common import (
    EXIT_REJECTED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    complain,
    fail,
    output,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from schemas.notifications import NotificationsView

Found = TypeVar("Found")

_NO_DAEMON: Final = "give --daemon URL, or set ROLLOUTCTL_DAEMON: a replica knows who was told"
#: How long a test waits for its messages, in seconds.
_TEST_SECONDS: Final = 20.0
_ASK_EVERY_SECONDS: Final = 0.5


def ask_if_possible(daemon: str | None) -> NotificationsView | None:
    """Return how notifying stands; None without an address, or where none answers.

    What is asked over Kafka must be possible while no replica can be reached over HTTP.
    """
    from controller.cli.daemon_answers import ask_notifications

    if daemon is None:
        return None
    found, why = ask_notifications(daemon)
    if found is None:
        complain(f"{why}; it is sent all the same")
    return found


def ask(daemon: str | None) -> NotificationsView:
    """Return how notifying stands. Exits where no daemon answers, or none is named."""
    from controller.cli.daemon_answers import ask_notifications

    if daemon is None:
        fail(_NO_DAEMON, EXIT_USAGE)
    found, why = ask_notifications(daemon)
    if found is None:
        fail(why, EXIT_UNREACHABLE)
    return found


def seen(daemon: str, found_in: Callable[[NotificationsView], Sequence[Found]]) -> Sequence[Found]:
    """Return what is found as soon as it is there; exit 1 where it is not within some seconds."""
    until = time.monotonic() + _TEST_SECONDS
    while not (found := found_in(ask(daemon))):
        if time.monotonic() > until:
            fail(
                "it was sent, and no replica has done it yet: is `notifications` set, and does "
                "`rolloutctl status` show a fault?",
                EXIT_REJECTED,
            )
        time.sleep(_ASK_EVERY_SECONDS)
    return found


def channels_of(about: str, view: NotificationsView) -> Sequence[str]:
    """Return the channels of a route, or the one of that name. Exits 1 where there is neither."""
    channels = [one.name for one in view.channels]
    if view.routes is None:
        return channels  # any of them, as an older daemon does not say which
    routes = {one.name: one.to for one in view.routes}
    found = routes.get(about, [about] if about in channels else None)
    if found is None:
        known = f"routes are {', '.join(routes) or 'none'}; channels are {', '.join(channels)}"
        fail(f"there is no route or channel {about}: {known}", EXIT_REJECTED)
    if not found:
        fail(f"the route {about} names no channel: nobody is told by it", EXIT_REJECTED)
    return found


def warn_of_no_flag(about: str, daemon: str, view: NotificationsView, *, is_flag: bool) -> None:
    """Say that a mute of flags fits none at present. It may be meant for one that comes later."""
    from controller.cli.daemon_answers import ask_flags
    from controller.plans.finding import nearest_word
    from controller.settings.signal_rules import fits

    routes = [one.name for one in view.routes or ()]
    if about == "*" or (about in routes and not is_flag):
        return
    known, why = ask_flags(daemon)
    if known is None:
        complain(f"it is not known whether a flag is like {about}: {why}")
        return
    flags = {*known.findings, *known.uses.unknown}
    if any(fits(flag, (about,)) for flag in flags):
        return
    near = nearest_word(about, sorted({*flags, *(() if is_flag else routes)}))
    next_step = f"did you mean {near}?" if near else f"routes are {', '.join(routes) or 'none'}."
    complain(
        f"no flag is like {about}: {next_step} The mute holds all the same, for a flag that comes "
        f"before it ends"
    )


def wait_for_test(before: NotificationsView, daemon: str, channels: Sequence[str]) -> None:
    """Say which of some channels took something since; exit 1 where one has trouble."""
    sent = {one.name: one.sent for one in before.channels}
    dead = {one.number for one in before.dead_letters}
    until = time.monotonic() + _TEST_SECONDS
    has_begun = False
    while True:
        now = ask(daemon)
        meant = [one for one in now.channels if one.name in channels]
        waiting = [one for one in meant if one.waiting]
        taken = [one for one in meant if one.sent > sent.get(one.name, 0)]
        refused = [
            one for one in now.dead_letters if one.number not in dead and one.channel in channels
        ]
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
        fail(
            "nothing was sent yet: does `rolloutctl status` show a fault, and have all replicas "
            "the same rules?",
            EXIT_REJECTED,
        )
    if refused or waiting:
        raise typer.Exit(EXIT_REJECTED)
