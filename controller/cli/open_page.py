"""`rolloutctl open`: the page of a rollout, or of all, in a browser."""

from __future__ import annotations

import webbrowser
from typing import Annotated
from urllib.parse import quote

import typer

from controller.cli.common import (
    EXIT_REJECTED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    AnyFlagArgument,
    DaemonOption,
    check_flag,
    complain,
    fail,
    output,
    without_rollout,
)
from controller.cli.daemon_answers import API, ask_daemon, ask_rollouts, ask_whether_known


def open_page(
    flag: AnyFlagArgument = None,
    only_says: Annotated[
        bool, typer.Option("--print", help="Print the address, and open nothing.")
    ] = False,
    daemon: DaemonOption = None,
) -> None:
    """Open the page of one rollout, or of all, in a browser; print its address.

    Exits 1 for a flag without a rollout, 4 where the replica does not answer.
    """
    if daemon is None:
        fail(
            "which replica? next: --daemon http://127.0.0.1:8080, or ROLLOUTCTL_DAEMON", EXIT_USAGE
        )
    address = f"{daemon.rstrip('/')}/"
    if flag is None:
        document, why = ask_daemon(daemon, f"{API}/rollouts?limit=1")
        if document is None:
            fail(why, EXIT_UNREACHABLE)
    else:
        address += f"ui/rollouts/{quote(check_flag(flag), safe='')}"
        _check_known(daemon, flag)
    output().print(address, soft_wrap=True, highlight=False)
    if not only_says and not webbrowser.open(address):
        complain("no browser was found here: open that address in one")


def _check_known(daemon: str, flag: str) -> None:
    """Exit 1 for a flag without a rollout, 4 where the daemon does not say."""
    is_known, why = ask_whether_known(daemon, flag)
    if is_known is False:
        known, why = ask_rollouts(daemon)
        if known is not None:
            fail(without_rollout(flag, known.rollouts), EXIT_REJECTED)
    if not is_known:
        fail(why, EXIT_UNREACHABLE)
