"""What the daemon does about commands that are not carried out.

On a daemon that is connected to nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import pytest

from controller import bootstrap
from controller.errors import CommandRefused, CommandUnreadable, EventLogUnavailable
from controller.health import Scope
from controller.ports import OutboxEntry, Record
from controller.settings import Settings
from schemas.terms import CommandVerb, QuarantineReason


def make_daemon() -> bootstrap.Daemon:
    """Return a daemon that was not started."""
    return bootstrap.Daemon(Settings.model_validate({"redis": {"url": "redis://127.0.0.1:1"}}))


def record_of(offset: int) -> Record:
    """Return a record of the command topic."""
    return Record("rollout.commands", 0, offset, 1_700_000_000_000, b"f", b"{", ())


async def test_a_quarantine_that_is_away_keeps_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that are no command wait with ingest's refusals.

    Refusing returns, and the answers are given.
    """
    monkeypatch.setattr(bootstrap, "QUARANTINE_SECONDS", 0.05)
    daemon = make_daemon()
    published: list[OutboxEntry] = []

    async def publish(entries: Sequence[OutboxEntry]) -> None:
        if entries[0].topic == "quarantine":
            raise EventLogUnavailable("no such topic")
        published.extend(entries)

    monkeypatch.setattr(daemon._publisher, "publish", publish)
    backlog = daemon._ingest.refusals
    running = asyncio.create_task(backlog.run())
    unreadable = CommandUnreadable(QuarantineReason.INVALID, "its id is no id")
    refused = CommandRefused(
        command_id="c1", flag_key="f", verb=CommandVerb.PROMOTE, reason="no rollout"
    )
    async with asyncio.timeout(60):
        await daemon._refuse_commands([(record_of(0), unreadable), (record_of(1), refused)])
        await daemon._refuse_commands([(record_of(2), unreadable)])
    assert [json.loads(entry.value)["data"]["command_id"] for entry in published] == ["c1"]
    assert backlog.waiting == 2
    assert daemon._faults.of(Scope.DEPENDENCY, "quarantine") is not None
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await daemon._store.close()


async def test_no_loop_is_run_twice() -> None:
    """Each part of the process has one name and runs once, early or with the others."""
    daemon = make_daemon()
    parts = daemon._parts()
    names = Counter(name for name, _ in (*parts.loops, *parts.early))
    assert [name for name, times in names.items() if times > 1] == []
    assert "health" in names
    await daemon._store.close()


async def test_a_released_flag_is_no_longer_ahead_of_the_clocks() -> None:
    """Its stored times are what its next owner reports."""
    daemon = make_daemon()
    daemon._times_ahead.add("f")
    daemon._faults.report(Scope.FLAG, "f", "its last transition is ahead of the clocks")
    daemon._faults.report(Scope.FLAG, "g", "of somebody else")
    daemon._released("f")
    daemon._released("g")
    assert [fault.name for fault in daemon._faults.current] == ["g"]
    await daemon._store.close()
