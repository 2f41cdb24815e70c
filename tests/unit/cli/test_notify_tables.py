"""The tables of `rolloutctl notify list` on a terminal."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from controller.cli.notify_tables import tables_of
from schemas.notifications import IncidentEntry, NotificationsView

KEY = "checkout-pay/8f6bb2b82cf446f7a661800ec8e255da/1/rolled_back"


def test_an_incident_has_its_whole_key() -> None:
    """It was cut off at the width of its column, and `notify ack` takes no part of a key."""
    at = datetime(2026, 11, 21, 3, tzinfo=UTC)
    parts: dict[str, Any] = {
        "key": KEY,
        "summary": "checkout-pay rolled back from 20 % to 0 % because of what a monitor said of it",
        "opened_at": at,
        "told": ["team-slack"],
        "taken_by": "",
        "next_at": None,
        "next_to": [],
    }
    incidents = [IncidentEntry.model_construct(**parts)]
    all_of: dict[str, Any] = {"channels": [], "mutes": [], "dead_letters": []}
    view = NotificationsView.model_construct(incidents=incidents, **all_of)
    shown = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    for one in tables_of(view):
        shown.print(one)
    assert isinstance(shown.file, io.StringIO)
    lines = shown.file.getvalue().splitlines()
    head = next(number for number, line in enumerate(lines) if "KEY" in line)
    start, end = lines[head].index("KEY"), lines[head].index("WHAT")
    assert "".join(line[start:end].strip() for line in lines[head + 1 :]) == KEY
