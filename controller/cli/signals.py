"""`rolloutctl signal`: what monitoring systems told, and trying rules without a monitor."""

from __future__ import annotations

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
from schemas.terms import SignalStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from controller.core.rollout import Rollout
    from controller.settings.signal_rules import RulesFile
    from schemas.api import SignalEntry
    from schemas.signal import Signal

app = typer.Typer(
    help="Show what monitoring systems told, and try rules without one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_NO_DAEMON: Final = "give --daemon URL, or set ROLLOUTCTL_DAEMON: a replica knows the signals"

_DOCS: Final = "see ops/signals.md"

RulesOption = Annotated[
    Path, typer.Option("--rules", help="The rules file, as hooks.rules_file names it.")
]


@app.command("list")
def list_signals(is_json: JsonOption = False, daemon: DaemonOption = None) -> None:
    """Show the newest signals of monitoring systems, and what was done about each.

    A replica answers for all of them.
    """
    from controller.cli import rendering
    from controller.cli.daemon_answers import ask_signals

    if daemon is None:
        fail(_NO_DAEMON, EXIT_USAGE)
    signals, why = ask_signals(daemon)
    if signals is None:
        fail(why, EXIT_UNREACHABLE)
    if is_json:
        for one in signals:
            rendering.print_json(one.model_dump(mode="json"))
    elif signals:
        output().print(signal_table(signals))
    else:
        complain("no signal has come yet")


@app.command("check")
def check(
    rules: Annotated[
        Path, typer.Argument(metavar="RULES", help="The file, as hooks.rules_file names it.")
    ],
) -> None:
    """Check a rules file, with the place of each fault."""
    from controller.text import plural

    count = len(_rules(rules).rules)
    if not count:
        output().print(
            f"{rules}: no rules, so that no signal ever does anything: add some, {_DOCS}"
        )
        return
    them = "it" if count == 1 else "them"
    output().print(f"{rules}: {plural(count, 'rule')}, and nothing wrong with {them}", markup=False)


@app.command("test")
@ungrouped
def test(
    delivery: Annotated[
        Path, typer.Argument(help="A delivery as the system sends it, JSON.", metavar="FILE")
    ],
    hook: Annotated[
        str,
        typer.Option(
            "--hook", help="The endpoint, as in alertmanager/prod.", metavar="SOURCE/NAME"
        ),
    ],
    rules: RulesOption,
    *,
    connection: KafkaOptions,
) -> None:
    """Say what a delivery would do to the present rollouts. Nothing is done.

    Exits 1 where no rule is about it.
    """
    from controller.cli import sending

    signals = _read_delivery(delivery, hook)
    found = _rules(rules)
    newest = perform(sending.all_rollouts(connection.settings()))
    is_met = [_tell(signal, found, newest.rollouts) for signal in signals]
    if not any(is_met):
        raise typer.Exit(EXIT_REJECTED)


@app.command("send")
@ungrouped
def send(
    title: Annotated[str, typer.Argument(help="What fires, for people.", metavar="TITLE")],
    status: Annotated[
        SignalStatus, typer.Option("--status", help="What it says.")
    ] = SignalStatus.FIRING,
    condition: Annotated[
        str | None,
        typer.Option("--condition", help="What fires; the same when it is over. Default: TITLE."),
    ] = None,
    service: Annotated[str, typer.Option("--service", help="What it is about.")] = "",
    severity: Annotated[str, typer.Option("--severity", help="Such as critical.")] = "",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="A label; may be repeated."),
    ] = None,
    link: Annotated[str, typer.Option("--link", help="Where people see more.")] = "",
    *,
    connection: KafkaOptions,
) -> None:
    """Send a signal as a monitoring system would, through Kafka. Its endpoint is `rolloutctl/cli`.

    The rules of the daemon decide what it does.
    """
    from pydantic import ValidationError

    from controller.cli.operator_client import publish_signal
    from controller.text import describe_faults, is_blank
    from schemas.signal import Signal

    for option, text in (("TITLE", title), ("--condition", condition or title)):
        if is_blank(text):
            fail(f"{option} is empty: say what fires, as in 'checkout is down'", EXIT_USAGE)
    pairs = [one.partition("=") for one in label or ()]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        fail(f"--label {wrong[0]}: write it as in team=payments", EXIT_USAGE)
    try:
        signal = Signal(
            id=uuid.uuid4().hex,
            hook="rolloutctl/cli",
            status=status,
            condition=condition or title,
            title=title,
            service=service,
            severity=severity.lower(),
            labels={name: value for name, _, value in pairs},
            link=link,
            received_at=datetime.now(UTC),
        )
    except ValidationError as error:
        fail(describe_faults(error), EXIT_USAGE)
    perform(publish_signal(signal, connection.settings()))
    output().print(
        f"sent: {signal.status} {signal.condition!r}. `rolloutctl signal list` shows what was "
        f"done; nothing is where the daemon has no `hooks` in its settings"
    )


def _rules(path: Path) -> RulesFile:
    """Return the rules of a file. Exits 78 with every fault."""
    from controller.errors import ConfigInvalid
    from controller.settings.signal_rules import read_rules

    try:
        return read_rules(path)
    except ConfigInvalid as refused:
        fail(f"{refused}", EXIT_CONFIG)


def _read_delivery(path: Path, hook: str) -> Sequence[Signal]:
    """Return what a file says. Exits 2 for an endpoint or a delivery that is none."""
    from controller.web.hooks.heard import NotUnderstood
    from controller.web.hooks.sources import READERS, read_signals

    source, _, name = hook.partition("/")
    if source not in READERS or not name:
        fail(f"--hook {hook}: write SOURCE/NAME, with one of {', '.join(READERS)}", EXIT_USAGE)
    try:
        return read_signals(source, name, path.read_bytes(), datetime.now(UTC))
    except OSError as error:
        fail(f"{path}: {error.strerror}", EXIT_USAGE)
    except NotUnderstood as fault:
        fail(f"{path}: not in the form of {source}: {fault}", EXIT_USAGE)


def _tell(signal: Signal, rules: RulesFile, rollouts: Mapping[str, Rollout]) -> bool:
    """Print what a signal would do; return whether a rule is about it."""
    from controller.responding.matching import response

    about = f"{signal.hook}  {signal.status}  {signal.title!r}"
    extra = {"service": signal.service, "severity": signal.severity, **signal.labels}
    output().print(about, markup=False)
    output().print(
        "  " + ", ".join(f"{name}={value}" for name, value in extra.items() if value), markup=False
    )
    found = response(rules.rules, signal, rollouts)
    if not found.rules:
        output().print("  no rule is about it")
        return False
    for rule in found.rules:
        names = [one.rollout.flag_key for one in found.intents if one.rule is rule]
        doing = f"{rule.do.value}{' (dry)' if rule.dry_run else ''}"
        output().print(
            f"  {rule.name}: {doing}: {', '.join(names) or 'no flag that is on is meant'}",
            markup=False,
        )
    suspects = {one.rollout.flag_key: one.suspect for one in found.intents}
    for place, suspect in enumerate(suspects.values(), start=1):
        output().print(f"  {place}. {suspect.words}", markup=False)
    if signal.status is not SignalStatus.FIRING:
        output().print("  it does not fire: nothing is lowered, and nothing is raised")
    return True


def signal_table(signals: Sequence[SignalEntry]) -> Table:
    """Return the table of signals, newest first."""
    from rich.table import Table

    from controller.cli.rendering import plain

    rows = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name in ("AT (UTC)", "FROM", "STATUS", "TITLE", "DONE"):
        rows.add_column(name)
    for one in signals:
        rows.add_row(
            f"{one.at:%m-%d %H:%M:%S}",
            plain(one.hook),
            one.status.value,
            plain(one.title),
            plain("; ".join(one.done) or "no rollout was changed"),
        )
    return rows
