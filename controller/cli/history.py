"""`rolloutctl history`: the past rollouts of a flag, from the audit log."""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli.common import (
    DaemonOption,
    FlagArgument,
    JsonOption,
    KafkaOptions,
    check_flag,
    complain,
    output,
    perform,
)

#: Decisions read for it: those of some hundred rollouts.
MOST_DECISIONS = 5_000


def history(
    flag: FlagArgument,
    last: Annotated[
        int, typer.Option("--last", "-n", min=1, max=1_000, help="How many rollouts, newest last.")
    ] = 20,
    is_json: JsonOption = False,
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Show a flag's past rollouts: when, by whom, how far, and how each ended.

    Also of a flag that was retired, as long as the topic of decisions keeps them.
    """
    from rich.table import Table
    from rich.text import Text

    from controller.cli import rendering
    from controller.cli.operator_client import as_decision
    from controller.cli.status import newest_of
    from controller.reporting.history import history as rollouts_of
    from controller.text import one_line
    from schemas.command import CONTROLLER_NAME

    kafka = connection.settings()
    key = check_flag(flag)
    events = perform(newest_of(kafka, "decisions", MOST_DECISIONS, key, daemon))
    found = [one for one in map(as_decision, events) if one is not None]
    past = rollouts_of(found)[-last:]
    if is_json:
        for one in past:
            rendering.print_json(one.model_dump(mode="json"))
        return
    if not past:
        complain(f"no decision about {flag} is kept")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("STARTED", "BY", "PLAN", "HIGHEST", "NOW", "SINCE", "WHY"):
        table.add_column(name, overflow="fold")
    for one in past:
        table.add_row(
            "-" if one.started_at is None else f"{one.started_at:%Y-%m-%d %H:%M}",
            Text(one_line(one.started_by or "-")),
            Text(one_line(one.plan)),
            f"{one.highest_percent:g} %",
            one.phase.replace("_", " "),
            f"{one.changed_at:%Y-%m-%d %H:%M}",
            Text(
                one_line(one.reason if one.by == CONTROLLER_NAME else f"{one.reason} (by {one.by})")
            ),
        )
    output().print(table)
