"""`rolloutctl flags`: every flag with a rollout, and what a person should put right about it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from controller.cli.common import (
    EXIT_CONFIG,
    DaemonOption,
    JsonOption,
    KafkaOptions,
    complain,
    fail,
    output,
    perform,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from controller.cli.daemon_answers import FlagInventory
    from controller.ports import FlagUse
    from controller.reporting.inventory import ListedFlag
    from controller.settings.flags import FlagsSettings

NO_FLAGS: Final[Mapping[str, int]] = {}


def flags(
    is_stale: Annotated[
        bool, typer.Option("--stale", help="Only flags that a person should tidy up.")
    ] = False,
    is_json: JsonOption = False,
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Show every flag with a rollout, those to tidy up first, each with what resolves it.

    With --daemon, any replica says what it found by its own rules, and how flags are used. Without,
    the rules are the settings `flags` of --config, or the default ones.
    """
    from controller.cli import rendering, sending
    from controller.cli.status import say_unreadable
    from controller.errors import BadInput
    from controller.ports import FlagUses
    from controller.reporting.inventory import ListedFlag, inventory
    from controller.settings import load_settings

    kafka = connection.settings()
    try:
        rules = load_settings(connection.config, os.environ).flags
    except BadInput as refused:
        fail(f"{refused}", EXIT_CONFIG)
    newest = perform(sending.all_rollouts(kafka))
    say_unreadable(newest)
    rollouts, known = newest.rollouts.values(), _known_by(daemon)
    uses = FlagUses() if known is None else known.uses
    listed = inventory(list(rollouts), datetime.now(UTC), rules, uses)
    if known is not None:
        # A flag that it has not read yet has no findings: other rules would say something else.
        mine = (
            ListedFlag(one.rollout, known.findings.get(one.rollout.flag_key, ()), one.use)
            for one in listed
        )
        listed = sorted(mine, key=lambda one: one.place)
    by = _rules_words(None if known is None else daemon, connection.config, rules)
    shown = [one for one in listed if one.findings or not is_stale]
    unknown = {} if is_stale else uses.unknown
    if is_json:
        for one in shown:
            rendering.print_json(one.line().model_dump(mode="json"))
        for flag_key, events in unknown.items():
            rendering.print_json({"flag": flag_key, "has_rollout": False, "events": events})
        return
    if shown or unknown:
        output().print(flag_table(shown, has_uses=bool(uses.by_flag), unknown=unknown))
    elif not newest.rollouts:
        complain("no flag has a rollout yet")
        return
    has_findings = any(one.findings for one in shown)
    found = "what to tidy up was found" if has_findings else "no flag to tidy up"
    complain(f"{found} {by}")


def _known_by(daemon: str | None) -> FlagInventory | None:
    """Return the inventory as a daemon has it; None, and a word why, where none says."""
    from controller.cli.daemon_answers import ask_flags

    if daemon is None:
        return None
    known, why = ask_flags(daemon)
    if known is None:
        complain(f"what the daemon found, and how flags are used, is not shown: {why}")
    return known


def _rules_words(daemon: str | None, config: Path | None, rules: FlagsSettings) -> str:
    """Return by which rules flags were judged: those of a daemon may be others."""
    if daemon is not None:
        return f"by the rules of {daemon}"
    if (named := config or os.environ.get("ROLLOUTD_CONFIG")) is not None:
        return f"by {named}"
    if rules != type(rules)():
        return "by the ROLLOUTD_ variables"
    return "by the default rules; --daemon URL or --config FILE goes by those of a daemon"


def flag_table(
    shown: Sequence[ListedFlag], *, has_uses: bool, unknown: Mapping[str, int] = NO_FLAGS
) -> Table:
    """Return the table of flags; `has_uses`: with how they are used.

    `unknown` are events of flags without a rollout.
    """
    from rich.table import Table
    from rich.text import Text

    from controller.reporting.inventory import decision_words
    from controller.text import one_line

    table = Table(box=None, pad_edge=False, header_style="bold")
    with_uses = ("IN 24 H", "LIFT") if has_uses else ()
    for name in ("FLAG", "OWNER", "TYPE", "SERVING", *with_uses, "CHANGED", "TO TIDY"):
        table.add_column(name, overflow="fold")
    for one in shown:
        rollout = one.rollout
        todo = "; ".join(f"{found.why}: {found.action}" for found in one.findings)
        table.add_row(
            rollout.flag_key,
            Text(one_line(rollout.plan.owner) or "-"),
            rollout.plan.flag_type.value,
            f"{rollout.percent:g} %",
            *(_use_cells(one.use) if has_uses else ()),
            f"{rollout.updated_at:%Y-%m-%d} {decision_words(one.use)}".rstrip(),
            Text(one_line(todo) or "-"),
        )
    for flag_key, events in unknown.items():
        many = f"{events:,} events or more"
        cells = (many, "-") if has_uses else ()
        todo = f"apps name it in events: rolloutctl events {one_line(flag_key)}"
        table.add_row(Text(one_line(flag_key)), "-", "-", "no rollout", *cells, "-", Text(todo))
    return table


def _use_cells(use: FlagUse | None) -> tuple[str, str]:
    """Return the evaluations of a flag and its lift."""
    from controller.reporting.inventory import evaluations_words
    from controller.reporting.lift import lifts_words

    return evaluations_words(use), lifts_words(() if use is None else use.lifts)
