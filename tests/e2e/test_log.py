"""The log of the installed daemon: how it begins, how it changes, and what an outage costs."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.brokers import RedisServer
from tests.live import DaemonProcess

pytestmark = [pytest.mark.real_kafka, pytest.mark.rare]

#: Lines of one event in an outage of ten seconds, in which calls are tried every 50 to 500 ms: one
#: for each partition (8 of events, 4 of commands) and reason, and not one for each try.
MOST_LINES = 40


async def until_logged(daemon: DaemonProcess, event: str, seconds: float = 60.0) -> None:
    """Return once a line of this name is in the log."""
    async with asyncio.timeout(seconds):
        while not daemon.log_lines(event):
            await asyncio.sleep(0.1)


async def test_the_log_begins_with_what_the_daemon_is_and_stays_short(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """The first line names version and addresses; SIGHUP changes the level; no line storms."""
    config = tmp_path / "rolloutd.yaml"
    config.write_text("log: {level: info}\n")
    async with DaemonProcess(
        kafka, own_redis.url, tmp_path, prefix=topic_prefix, ROLLOUTD_CONFIG=str(config)
    ) as daemon:
        first = json.loads(daemon.log_path.read_text().splitlines()[0])
        assert first["event"] == "daemon_starting"
        assert (first["kafka"], first["redis"]) == (kafka, own_redis.url)
        config.write_text("log: {level: debug}\nhttp: {max_body_bytes: 70000}\n")
        daemon.send(signal.SIGHUP)
        await until_logged(daemon, "settings_reloaded")
        [reloaded] = daemon.log_lines("settings_reloaded")
        assert reloaded["applied"] == ["log.level"]
        assert reloaded["needs_restart"] == ["http.max_body_bytes"]
        own_redis.pause()
        await until_logged(daemon, "heartbeat_missed")  # a line of level debug
        await asyncio.sleep(10)  # long against each retry: the outage itself, not a wait for it
        own_redis.resume()
        await daemon.ready()
        lines = [json.loads(line) for line in daemon.log_path.read_text().splitlines()]
        troubles = Counter(line["event"] for line in lines if line["level"] in ("warning", "error"))
        assert troubles, "the outage has been noticed"
        assert max(troubles.values()) <= MOST_LINES, troubles
        assert await daemon.stop() == 0
