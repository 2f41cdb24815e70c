"""Harm that is counted after an active window's end, on real Kafka and Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.terms import CommandVerb
from tests.live import Client, DaemonProcess, Traffic, quick_plan

pytestmark = [pytest.mark.real_kafka, pytest.mark.rare]

FLAG = "late-harm"
STAGES = [{"percent": 10, "bake": "1h", "settle": "0s", "min_sample": 50, "max_bake": "2h"}]


def _status(daemon: DaemonProcess, kafka: str, prefix: str) -> dict[str, Any]:
    """Return `rolloutctl status --json` with a daemon's evidence."""
    program = str(Path(sys.executable).with_name("rolloutctl"))
    environ = {
        "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": kafka,
        "ROLLOUTD_KAFKA__TOPIC_PREFIX": prefix,
    }
    arguments = ["status", FLAG, "--daemon", daemon.url, "--json"]
    shown = subprocess.run(
        [program, *arguments], env=environ, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


async def test_harm_that_arrives_after_the_closing_is_shown_and_decided(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """`status` tells what is counted, and 0 % is final before the next window opens."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES))
        await daemon.until(FLAG, lambda one: one["percent"] == 10)
        apps, before_closing = Traffic(client, daemon, FLAG), datetime.now(UTC)
        opens = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
        narrower = quick_plan(FLAG, stages=STAGES, active=[{"dates": opens, "timezone": "UTC"}])
        await client.command(CommandVerb.APPLY, FLAG, plan=narrower)
        closed = await daemon.until(FLAG, lambda one: one["closed_since"] is not None)
        for number in range(1000):
            user, variant = f"late-{number}", "on" if number % 10 == 0 else "off"
            await apps.emit_evaluation(user, variant, before_closing)
            await apps.emit_outcome(user, variant, before_closing, is_error=variant == "on")
        ended = await daemon.until(FLAG, lambda one: one["phase"]["name"] == "rolled_back")
        assert ended["revision"] == closed["revision"] + 1
        status = _status(daemon, kafka, topic_prefix)
        # As many as harm takes to be certain, whatever came after.
        assert status["judgement"]["harm"]["failed_requests"] >= 5
        (alert,) = await client.alerts("rolled_back", 1)
        assert "while it was closed" in alert["summary"]
        assert "10 % does not come back" in alert["summary"]
