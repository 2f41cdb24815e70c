"""How a flag is used is the same on every replica, and known after a restart and after its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.terms import CommandStatus, CommandVerb
from tests.live import Client, DaemonProcess, Traffic, quick_plan

FLAG = "new-checkout"
USERS = 20


async def line_of(daemon: DaemonProcess, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the flag's line of the inventory once `holds` of it. Raises AssertionError."""
    deadline = time.monotonic() + 60
    lines: Any = None
    while time.monotonic() < deadline:
        lines = (await daemon.get("/api/v1/flags")).json().get("flags")
        if lines and holds(lines[0]):
            (line,) = lines
            return dict(line)
        await asyncio.sleep(0.2)
    raise AssertionError(f"not so in 60 s: {lines}")


async def counted(daemon: DaemonProcess, at_least: int) -> None:
    """Return once so many events were counted, or were late. Raises AssertionError."""
    deadline = time.monotonic() + 60
    sums: list[str] = []
    while time.monotonic() < deadline:
        lines = (await daemon.get("/metrics")).text.splitlines()
        sums = [line for line in lines if line.startswith("rolloutd_events_total{")]
        if sum(float(line.rpartition(" ")[2]) for line in sums) >= at_least:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"fewer than {at_least} events: {sums}")


async def test_flags_without_a_rollout_are_known_after_a_restart(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A misspelled key is in the list; one that got a rollout is not."""
    async with (
        Client(kafka, topic_prefix) as client,
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
    ):
        for flag in ("new_checkout", "old-banner"):
            traffic = Traffic(client, daemon, flag)
            for number in range(USERS):
                await traffic.emit_evaluation(f"user-{number}", "on", datetime.now(UTC))
        await counted(daemon, 2 * USERS)
        answer = await client.command(
            CommandVerb.START, "old-banner", plan=quick_plan("old-banner")
        )
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await daemon.stop()
        await daemon.start()
        await line_of(daemon, lambda one: one["evaluations"] is not None)
        body = (await daemon.get("/api/v1/flags")).json()
        assert body["without_rollout"] == [{"flag": "new_checkout", "events": USERS}]
        assert [one["flag"] for one in body["flags"]] == ["old-banner"]


async def test_evaluations_are_known_after_a_restart_and_after_the_end(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A stop saves what was counted since the last minute; a second replica reads the same."""
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    async with Client(kafka, topic_prefix) as client:
        first = DaemonProcess(kafka, redis_url, folders[0], prefix=topic_prefix)
        async with first:
            answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG))
            assert answer.status is CommandStatus.ACCEPTED, answer.reason
            traffic = Traffic(client, first, FLAG)
            for number in range(USERS):
                await traffic.emit_evaluation(f"user-{number}", "on", datetime.now(UTC))
            answer = await client.command(CommandVerb.ABORT, FLAG)
            assert answer.status is CommandStatus.ACCEPTED, answer.reason
            for number in range(USERS):
                await traffic.emit_evaluation(f"user-{number}", "off", datetime.now(UTC))
            await counted(first, 2 * USERS)
            await first.stop()
            await first.start()
            second = DaemonProcess(kafka, redis_url, folders[1], prefix=topic_prefix)
            async with second:
                for replica in (first, second):
                    line = await line_of(replica, lambda one: one["evaluations"] is not None)
                    assert line["evaluations"] == {
                        "treatment": USERS,
                        "control": USERS,
                        "neither": 0,
                    }
                    assert line["evaluated_at"] is not None
