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
from controller.adapters.memory import ManualClock
from controller.deciding.commands import command_inbox
from controller.errors import CommandRefused, CommandUnreadable, EventLogUnavailable
from controller.health import Faults, Scope
from controller.ports import OutboxEntry, Record
from controller.running.flag_faults import TimesAhead
from controller.settings import Settings
from schemas.terms import CommandVerb, QuarantineReason
from tests.builders import HOUR, T0, make_rollout


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
    monkeypatch.setattr(command_inbox, "QUARANTINE_SECONDS", 0.05)
    daemon = make_daemon()
    published: list[OutboxEntry] = []

    async def publish(entries: Sequence[OutboxEntry]) -> None:
        if entries[0].topic == "quarantine":
            raise EventLogUnavailable("no such topic")
        published.extend(entries)

    monkeypatch.setattr(daemon.connections.publisher, "publish", publish)
    backlog = daemon.ingest.refusals
    running = asyncio.create_task(backlog.run())
    unreadable = CommandUnreadable(QuarantineReason.INVALID, "its id is no id")
    refused = CommandRefused(
        command_id="c1", flag_key="f", verb=CommandVerb.PROMOTE, reason="no rollout"
    )
    async with asyncio.timeout(60):
        await daemon.deciding.inbox.refuse([(record_of(0), unreadable), (record_of(1), refused)])
        await daemon.deciding.inbox.refuse([(record_of(2), unreadable)])
    assert [json.loads(entry.value)["data"]["command_id"] for entry in published] == ["c1"]
    assert backlog.waiting == 2
    assert daemon.faults.of(Scope.DEPENDENCY, "quarantine") is not None
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await daemon.connections.redis.close()


async def test_no_loop_is_run_twice() -> None:
    """Each part of the process has one name and runs once, early or with the others."""
    daemon = make_daemon()
    parts = daemon.parts()
    names = Counter(name for name, _ in (*parts.loops, *parts.early))
    assert [name for name, times in names.items() if times > 1] == []
    assert "health" in names
    await daemon.connections.redis.close()


async def test_what_lowers_without_kafka_runs_from_the_start() -> None:
    """A replica that starts in an outage carries out, passes on, and reaches the flag planes."""
    daemon = make_daemon()
    early = {name for name, _ in daemon.parts().early}
    assert {"direct", "relay", "actuation"} <= early
    await daemon.connections.redis.close()


async def test_a_released_flag_is_no_longer_ahead_of_the_clocks() -> None:
    """Its stored times are what its next owner reports."""
    clock = ManualClock(T0)
    faults = Faults(clock.now)
    times = TimesAhead(clock, faults)
    ahead = make_rollout(updated_at=T0 + HOUR)
    times.report({"f": ahead, "g": ahead})
    assert [fault.name for fault in faults.current] == ["f", "g"]
    times.clear("f")
    assert [fault.name for fault in faults.current] == ["g"]
    times.report({"g": make_rollout(updated_at=T0)})
    assert faults.current == ()
