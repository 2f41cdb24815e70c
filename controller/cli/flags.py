"""`rolloutctl flags`: every flag with a rollout, and what a person should put right about it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated

import typer

from controller.cli.common import (
    EXIT_CONFIG,
    JsonOption,
    KafkaOptions,
    complain,
    fail,
    output,
    perform,
)


def flags(
    is_stale: Annotated[
        bool, typer.Option("--stale", help="Only flags that a person should tidy up.")
    ] = False,
    is_json: JsonOption = False,
    *,
    connection: KafkaOptions,
) -> None:
    """Show every flag with a rollout, those to tidy up first, each with what resolves it.

    The rules are the settings `flags` of --config; without a file they are the default ones.
    """
    from rich.table import Table
    from rich.text import Text

    from controller.cli import rendering, sending
    from controller.cli.status import say_unreadable
    from controller.errors import BadInput
    from controller.reporting.inventory import inventory
    from controller.settings import load_settings
    from controller.text import one_line

    kafka = connection.settings()
    try:
        rules = load_settings(connection.config, os.environ).flags
    except BadInput as refused:
        fail(f"{refused}", EXIT_CONFIG)
    newest = perform(sending.all_rollouts(kafka))
    say_unreadable(newest)
    listed = inventory(list(newest.rollouts.values()), datetime.now(UTC), rules)
    shown = [one for one in listed if one.findings or not is_stale]
    if is_json:
        for one in shown:
            rendering.print_json(one.line().model_dump(mode="json"))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("FLAG", "OWNER", "TYPE", "SERVING", "CHANGED", "TO TIDY"):
        table.add_column(name, overflow="fold")
    for one in shown:
        rollout = one.rollout
        todo = "; ".join(f"{found.why}: {found.action}" for found in one.findings)
        table.add_row(
            rollout.flag_key,
            Text(one_line(rollout.plan.owner) or "-"),
            rollout.plan.flag_type.value,
            f"{rollout.percent:g} %",
            f"{rollout.updated_at:%Y-%m-%d}",
            Text(one_line(todo) or "-"),
        )
    if shown:
        output().print(table)
    else:
        complain("no flag to tidy up" if newest.rollouts else "no flag has a rollout yet")
